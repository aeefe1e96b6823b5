"""Who made a hit, judged by its request alone: a person, a suspected machine, or something that only looked ahead.

A verdict is the first answer of a named list of small rules (`RULES`, in order). The rules of the request look at its method and
headers each time. The rules of the agent read the User-Agent, and what they say is remembered for as many agents as a busy hour
has, so a seen agent costs a look-up. What no rule objects to is a person's. `classify` never fails and does no I/O.

The rules err on the side of the person where an agent could be either: a machine's hit that counts is a wrong number, a person's
that does not is a lost customer. In the browsers inside apps (Facebook, Instagram, WhatsApp, LINE, KakaoTalk ...) people tap links;
that an agent names such an app is no reason for suspicion.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from shortener.clicks.verdicts.crawlers import find_crawler
from shortener.model import Verdict

MAX_AGENT_LENGTH = 512  # characters that are looked at
MAX_CACHED_AGENTS = 16_384  # some 10 MiB if each is as long as can be


class RequestTraits(NamedTuple):
    """What the rules look at: the method, and the values of headers, "" for a missing one."""

    method: str
    user_agent: str
    sec_purpose: str = ""
    purpose: str = ""
    x_purpose: str = ""
    x_moz: str = ""


@dataclass(frozen=True, slots=True)
class Classification:
    """A verdict, the name of the rule that gave it, and the reason in words for a person."""

    verdict: Verdict
    rule: str
    reason: str


# --- Rules of the request --------------------------------------------------------------------------------------------------

# Sec-Purpose: prefetch[;prerender] (Fetch standard), Purpose: prefetch (older Chrome), X-Moz: prefetch (older Firefox),
# X-Purpose: preview (Facebook's apps, Safari's top sites).
_AHEAD = re.compile(r"prefetch|prerender|preview", re.IGNORECASE)


def _method(request: RequestTraits) -> str | None:
    return None if request.method == "GET" else f"a {request.method} request"


def _prefetch(request: RequestTraits) -> str | None:
    _, _, sec_purpose, purpose, x_purpose, x_moz = request
    if not (sec_purpose or purpose or x_purpose or x_moz):
        return None
    found = _AHEAD.search(f"{sec_purpose} {purpose} {x_purpose} {x_moz}")
    return f"announced as {found[0].lower()}" if found else None


# --- Rules of the agent ----------------------------------------------------------------------------------------------------

#: The agents that apps fetch a link preview with, and whose they are. The first that matches is named.
PREVIEWS = (
    # Fetched on the sender's own phone, within an agent of Safari on a Mac; so do not believe its Facebook and Twitter.
    ("iMessage", r"facebookexternalhit/[\d.]+ Facebot Twitterbot/"),
    ("Google Messages", r"Google-PageRenderer|developers\.google\.com/\+/web/snippet|GoogleMessages"),
    # Signal's apps send "WhatsApp/2". Later in an agent, this word and Viber's mean the browser inside the app: a person.
    ("WhatsApp or Signal", r"^WhatsApp"),
    ("Telegram", r"TelegramBot"),
    ("Viber", r"^Viber"),
    ("KakaoTalk", r"kakaotalk-scrap"),
    ("LINE", r"line-poker|Linespider"),
    ("Facebook", r"facebookexternalhit|facebookcatalog|Facebot|meta-external"),
    ("X", r"Twitterbot"),
    ("Slack", r"Slackbot|Slack-ImgProxy"),
    ("Discord", r"Discordbot"),
    ("Skype or Teams", r"SkypeUriPreview"),
    ("LinkedIn", r"LinkedInBot"),
    ("Snapchat", r"Snap ?URL ?Preview"),
    ("VK", r"vkShare"),
    ("Matrix", r"^Synapse"),
)
_PREVIEW = re.compile("|".join(f"(?:{pattern})" for _, pattern in PREVIEWS), re.IGNORECASE)
_PREVIEW_NAMES = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in PREVIEWS)

# What the agents of nearly all people's browsers have in common. The rules need not walk through it, and what is left is short.
_COMMON = re.compile(
    r"Mozilla/5\.0 \((?P<system>(?:[^()]|\([^()]*\))*)\) AppleWebKit/[\d.]+ \(KHTML, like Gecko\)(?= |$)"
    r"(?: (?:Version|Chrome|CriOS)/[\d.]+(?= |$))*(?: Mobile(?:/\w+)?(?= |$))?(?: Safari/[\d.]+(?= |$))?"
)

# The model and build of an Android phone. Phones are called Sonic, Fever or CUBOT; that says nothing about who is asking.
_MODEL = re.compile(r"(Android [^;()]{1,12};)(?: ?[a-z]{2}[-_][a-z]{2};)?(?![^;)]*http)[^;()@]+(?=[;)(])", re.IGNORECASE)

# What a program says of itself and no browser does: an address to write to, the site that it belongs to (apps have a version
# behind such a name), "compatible" without being a browser of that age, a name inside of "(KHTML, like Gecko; ...)", or one of the
# trade's words. CUBOT makes phones, CamScanner is an app with a browser.
_PROGRAM = re.compile(
    r"https?:|\bwww\.|(?<=\w)@(?=[a-z][\w-]*\.[a-z])|(?<![\w./-])(?:[\w-]+\.)+(?:com|net|org|io)\b(?!\.|/\d)|"
    r"[(;] ?compatible(?:\)|; (?!MSIE \d|Konqueror|Polaris|Teleca|OSS/|Linux|U;))|like Gecko; ?\w|\bGoogle-[A-Z]|-Google\b|"
    r"(?<!cu)bot(?![a-z])|crawl|spider|scraper|headless|preview|monitor|synthetic|fetcher|checker|validator|"
    r"(?<!cam)scanner|inspector|(?<!user)(?<!user[- ])agent(?![a-z])",
    re.IGNORECASE,
)

# The engines of browsers, and what simple phones say in place of one: the parts of their platform, or the maker and no more.
_BROWSER = re.compile(
    r"AppleWebKit|Gecko/|KHTML|Trident|MSIE \d|Opera|Presto|^Mozilla/\d.*(?:Android|iPhone OS|Firefox/)|FBAN/|"
    r"UCWEB|UCBrowser|Browser/|UP\.Browser|MIDP|MAUI|Obigo|NetFront|Teleca|Dolfin|Polaris|DoCoMo|"
    r"^(?:Alcatel|BlackBerry|HTC|Huawei|LGE?[-/ ]|Mot-|Nokia|Samsung|Sec-|Sie-|SonyEricsson|ZTE)",
    re.IGNORECASE,
)


class Agent(NamedTuple):
    """A User-Agent, and what is particular about it: less the common words of browsers and the phone's model."""

    text: str
    particular: str


def _agent(text: str) -> Agent:
    common = _COMMON.match(text)
    particular = f"({common['system']}){text[common.end() :]}" if common else text
    return Agent(text, _MODEL.sub(r"\1", particular, count=1))


def _empty_agent(agent: Agent) -> str | None:
    return None if agent.text.strip() else "no user agent"


def _link_preview(agent: Agent) -> str | None:
    if _PREVIEW.search(agent.particular) is None:
        return None
    return "link preview of " + next(name for name, pattern in _PREVIEW_NAMES if pattern.search(agent.particular))


def _crawler(agent: Agent) -> str | None:
    found = find_crawler(agent.particular)
    return f"known crawler or library: {found}" if found else None


def _program(agent: Agent) -> str | None:
    found = _PROGRAM.search(agent.particular)
    return f"names itself a program: {found[0].strip(' (;')}" if found else None


def _no_browser(agent: Agent) -> str | None:
    return None if "AppleWebKit/" in agent.text or _BROWSER.search(agent.text) else "agent of no browser"


_REQUEST_RULES: tuple[tuple[str, Callable[[RequestTraits], str | None]], ...] = (("method", _method), ("prefetch", _prefetch))
_AGENT_RULES: tuple[tuple[str, Callable[[Agent], str | None]], ...] = (
    ("empty_agent", _empty_agent),
    ("link_preview", _link_preview),
    ("crawler", _crawler),
    ("program", _program),
    ("no_browser", _no_browser),
)
_PERSON = Classification(Verdict.HUMAN, "browser", "nothing speaks against a person")

#: All rules, by what they say and their names, in the order in which they are asked; the last one is what is left.
RULES = (
    *((Verdict.IGNORED, name) for name, _ in _REQUEST_RULES),
    *((Verdict.SUSPECTED, name) for name, _ in _AGENT_RULES),
    (Verdict.HUMAN, _PERSON.rule),
)


def classify(request: RequestTraits) -> Classification:
    """Who made this request. The caller counts by `Classification.rule`."""
    for name, rule in _REQUEST_RULES:
        if reason := rule(request):
            return Classification(Verdict.IGNORED, name, reason)
    return _judge_agent(request.user_agent[:MAX_AGENT_LENGTH])


@lru_cache(maxsize=MAX_CACHED_AGENTS)
def _judge_agent(text: str) -> Classification:
    agent = _agent(text)
    for name, rule in _AGENT_RULES:
        if reason := rule(agent):
            return Classification(Verdict.SUSPECTED, name, reason)
    return _PERSON
