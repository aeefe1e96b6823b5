"""The request rules classify a hit by its request alone: as a person, as a suspected machine, or as a prefetch that must be
ignored. The rules are applied in the order of `RULES`, and the first rule that matches determines the verdict. If no rule
matches, the hit is HUMAN. Some rules examine the method and the headers. The user agent rules examine only the header User-Agent.
Their results are cached, for as many user agents as arrive in a busy hour. `classify` does no I/O and raises no errors.

If both people and machines send a user agent, the verdict is HUMAN. A machine that counts as a person only makes a number wrong,
but a person who does not count is a lost customer. People tap links in the browsers inside apps (Facebook, Instagram, WhatsApp,
LINE, KakaoTalk). Therefore the name of such an app in a user agent is not a reason to suspect the hit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from shortener.clicks.verdicts.crawlers import find_crawler, split_patterns, trie_expression
from shortener.model import Verdict, record

MAX_AGENT_LENGTH = 512  # maximum number of characters of a user agent that the rules examine
MAX_CACHED_AGENTS = 16_384  # the cache has about 10 MiB if all user agents have the maximum length


class RequestTraits(NamedTuple):
    """The method of a request and the values of its headers. A missing header has the value ""."""

    method: str
    user_agent: str
    sec_purpose: str = ""
    purpose: str = ""
    x_purpose: str = ""
    x_moz: str = ""


@record
class Classification:
    """A verdict, the name of the rule that matched, and the reason as a text for people."""

    verdict: Verdict
    rule: str
    reason: str


# --- Rules for methods and headers
# --------------------------------------------------------------------------------------------------

# The words with which browsers and apps mark prefetches and previews in headers: Sec-Purpose: prefetch[;prerender] (Fetch
# standard), Purpose: prefetch (older Chrome), X-Moz: prefetch (older Firefox), and X-Purpose: preview (Facebook's apps, Safari's
# top sites).
_PREFETCH = re.compile(r"prefetch|prerender|preview", re.IGNORECASE)


def _method(request: RequestTraits) -> str | None:
    return None if request.method == "GET" else f"a {request.method} request"


def _prefetch(request: RequestTraits) -> str | None:
    _, _, sec_purpose, purpose, x_purpose, x_moz = request
    if not (sec_purpose or purpose or x_purpose or x_moz):
        return None
    found = _PREFETCH.search(f"{sec_purpose} {purpose} {x_purpose} {x_moz}")
    return f"the request is a {found[0].lower()}" if found else None


# --- Rules of the user agent-----------------------------------------------------------------------------------------------

#: The apps that fetch link previews, each with an expression for its user agent. The first match determines the app.
PREVIEWS = (
    # iMessage fetches the preview on the sender's phone. Its user agent is the one of Safari on a Mac, and also contains Facebook
    # and Twitter.
    ("iMessage", r"facebookexternalhit/[\d.]+ Facebot Twitterbot/"),
    ("Google Messages", r"Google-PageRenderer|developers\.google\.com/\+/web/snippet|GoogleMessages"),
    # Signal's apps send "WhatsApp/2". If a user agent contains WhatsApp or Viber in another place, the browser inside this app
    # sends it, so the request is not a preview.
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

# The parts of a user agent that nearly all browsers send. The rules examine only the rest, which is short.
_COMMON = re.compile(
    r"Mozilla/5\.0 \((?P<system>(?:[^()]|\([^()]*\))*)\) AppleWebKit/[\d.]+ \(KHTML, like Gecko\)(?= |$)"
    r"(?: (?:Version|Chrome|CriOS)/[\d.]+(?= |$))*(?: Mobile(?:/\w+)?(?= |$))?(?: Safari/[\d.]+(?= |$))?"
)

# The model and build of an Android phone. The rules must not examine them, because there are models with the names Sonic, Fever
# and CUBOT.
_MODEL = re.compile(
    r"(Android [^;()]{1,12};)(?: ?[a-z]{2}[-_][a-z]{2};)?(?![^;)]*http(?![^;)]* Build/))"
    r"[^;()@]+(?:\([^;()@]*\) (?=Build/)[^;()@]*)?(?=[;)(])",
    re.IGNORECASE,
)

# Text that programs send and browsers do not send: an e-mail address, a web site, "compatible", a name inside "(KHTML, like
# Gecko; ...)", or words such as crawler and monitor. The expression does not match four kinds of text that the phones of people
# send: a web site before a version, as in apps; "compatible" in old browsers; CUBOT, a manufacturer of phones; and CamScanner and
# TripAdvisor, apps that contain a browser.
_PROGRAM = re.compile(
    r"https?:|\bwww\.|(?<=\w)@(?=[a-z][\w-]*\.[a-z])|(?<![\w./-])(?:[\w-]+\.)+(?:com|net|org|io)\b(?!\.|/\d)|"
    r"[(;] ?compatible(?:\)|; (?!MSIE \d|Konqueror|Polaris|Teleca|OSS/|Linux|U;|SonyEricsson|UP\.|WAP|MAUI|MMEF|MSPIE|"
    r"Windows Mobile|Go\.Web))|"
    r"like Gecko(?:; ?(?!OpenBrowser|Wireless|googleweblight)\w|, Google)|\bGoogle-[A-Z]|-Google\b|\bGoogle favicon|"
    r"[<>](?!buildID)|\b(?:select|union|load_file)\b ?\(|"
    r"(?<!cu)bot(?![a-z])|crawl|crwlr|spider|scraper|headless|preview|monitor|synthetic|fetcher|fetch api|checker|validator|"
    r"classifier|Web Services Client|"
    r"(?<!cam)scanner|inspector|(?<!trip)advisor|http ?client|(?<!user)(?<!user[- ])agent(?![a-z])",
    re.IGNORECASE,
)

# Monitors, test tools, developer tools and measuring programs. They control a complete browser and add their name to its user
# agent.
_TOOLS = (
    "PTST",
    "GTmetrix",
    "Pingdom",
    "UptimeRobot",
    "Uptrends",
    "StatusCake",
    "Site24x7",
    "Checkly",
    "Catchpoint",
    "ThousandEyes",
    "Dynatrace",
    "Ruxit",
    "Datadog",
    "NewRelic",
    "AppDynamics",
    "AlertSite",
    "DejaClick",
    "GomezAgent",
    "KeynoteAgent",
    "iplabel",
    "SpeedCurve",
    "sitespeed",
    "DebugBear",
    "Hyperping",
    "Freshping",
    "NodePing",
    "Zabbix",
    "Nagios",
    "Observatory",
    "CloudflareDiagnostics",
    "Lighthouse",
    "PageSpeed",
    "YellowLab",
    "Dareboost",
    "Yottaa",
    "Selenium",
    "WebDriver",
    "Playwright",
    "Puppeteer",
    "PhantomJS",
    "SlimerJS",
    "CasperJS",
    "Cypress",
    "TestCafe",
    "jsdom",
    "HtmlUnit",
    "Functionize",
    "BrowserStack",
    "SauceLabs",
    "LambdaTest",
    "Applitools",
    "Katalon",
    "Postman",
    "HTTPie",
    "Assetnote",
    "BurpSuite",
    "Nessus",
    "Qualys",
    "Nuclei",
    "sqlmap",
    "Nikto",
    "Acunetix",
    "Netsparker",
    "zgrab",
    "Censys",
    "Shodan",
    "Convertify",
    "Sparkler",
    "Mixnode",
    "HLB/",
    "yunjiankong",
    "Transcoder",
    "NetworkMeasurement",
    "Prospecting",
    "geckoversion",
    "Neustar WPM",
    "Akamai_Site",
    "Nodemeter",
    "KimonoLabs",
    "wkhtmlto",
    "webkit2png",
    "Websnapr",
    "Webthumb",
    "webscreenie",
    "web-capture",
    "screenshot",
    "imgsizer",
    "SnapSearch",
    "mixed-content-scan",
    "BacklinkHttp",
    # Programs that contain a browser and fetch pages or previews without a person: Java, Electron, feed readers and Outlook.
    "JavaFX/",
    "Electron/",
    "AtomShell/",
    "NetNewsWire",
    "QuiteRSS",
    "Windows-RSS",
    "ReederForMac",
    "wechatdevtools",
    "fasthttp",
    "Bluecoat",
    "Outlook-Express",
    "Microsoft Outlook",
    "ms-office",
)
_TOOL = re.compile(trie_expression(split_patterns(_TOOLS)[0]), re.IGNORECASE)
#: An e-mail address after `Build/` is the address of the author of a modified Android. The phones of people send it, so it is not
#: a sign of a program.
_ADDRESS_IN_BUILD = re.compile(r"Build/[^;()\s@]+@[^;()\s]+")
_TIMESTAMP = re.compile(r" Time/[0-9]{10}")

# A regular expression for programs that put their name before the user agent of a browser: "Test: Mozilla/5.0 (...". Some phones
# put their model there (`LG-D802 Mozilla/5.0`), and some browsers their name and version. Therefore, before the user agent of a
# phone, only two forms match: a word without digits, or a name with a version and then a comma or another mark.
_WORD_BEFORE_MOZILLA = re.compile(
    r"""[^\s(]{1,40}?(?: \w{1,20})?[\s;:=/."',|-]{1,4}Mozilla/\d\.\d \(|[\w .-]{1,60}\([\w .]{1,30}\)[:(]\s?Mozilla/"""
)
_WORD_BEFORE_PHONE = re.compile(
    r"""(?!user-?agent)["']?[a-z][a-z_.-]{0,39}(?:\s+|(?:/[\d.]+)?[,;:|="']\s*)Mozilla/5\.0 \(""", re.IGNORECASE
)
_MOBILE = re.compile(r"Mobile|Android|iPhone|iPad|iPod|MIDP|Windows (?:Phone|CE)|Symbian|Opera Mini|UCBrowser", re.IGNORECASE)

# A regular expression for the user agents of desktop browsers without additional names. A phone's browser that requests a desktop
# page does not match, because its user agent contains an additional name or a new version.
_DESKTOP = re.compile(
    r"Mozilla/5\.0 \((?:X11|Windows|Macintosh)(?![^()]*(?:HTC|PadFone|MOT-))[^()]*\) (?:"
    r"Gecko/\d+ (?:\w+/[\w.]+ (?:\(\w+\) )?)?Firefox/(?P<firefox>\d+)[\w.]*|"
    r"AppleWebKit/[\d.]+ \(KHTML, like Gecko\) (?:Ubuntu Chromium/[\d.]+ )?Chrome/(?P<chrome>\d+)[\d.]* Safari/[\d.]+|"
    r"AppleWebKit/[\d.]+ \(KHTML, like Gecko\) Version/(?P<safari>\d+)[\d.]* Safari/[\d.]+)"
)
# A regular expression for Internet Explorer up to 10 on Windows, also with additional names, but not on phones and tablets.
_ENDED_EXPLORER = re.compile(
    r"[\w-]+/[\d.]+ \((?:compatible; ?)?(?:[^()]*; ?)?MSIE (?:\d|10)\.[^()]*Windows NT"
    r"(?![^()]*(?:ARM|Touch|Tablet|Mobile|Phone|Windows CE|XBLWP|XV\d))"
)
# `_ENDED_DESKTOP` matches the user agents of desktop browsers that ended before 2021: Internet Explorer, Edge before it used
# Chromium, and Opera before it used Chromium. Phones send similar user agents, but with a model, `ARM`, `Touch` or another
# operating system (Linux zvav is Opera Mini). Therefore the expression lists the names of the operating systems that match.
_WINDOWS = r"Windows (?:NT \d+\.\d+|9[58]|2000|ME|XP)"
_ENDED_DESKTOP = re.compile(
    r"Mozilla/[45]\.0 \((?:compatible; MSIE (?P<msie>\d+)\.\d+\w?; )?(?:IE 11\.0; )?(?:"
    rf"(?:{_WINDOWS}|WOW64|Win64|x64|IA64|SV1|Trident/[4-7]\.\d|SLCC\d|Media Center PC [\d.]+|InfoPath\.\d|"
    r"(?P<ie>rv:11)\.0|\.NET CLR [\d.]+|\.NET[\d.]+[CE])(?:; ?|(?=\))))+\)(?: like Gecko)?|"
    rf"Mozilla/5\.0 \({_WINDOWS}(?:; (?:WOW64|Win64|x64))*\) AppleWebKit/[\d.]+ \(KHTML, like Gecko\) Chrome/[\d.]+ "
    r"Safari/[\d.]+ Edge/(?P<edge>1[2-8])\.\d+|"
    rf"Opera/9\.\d+ \((?:{_WINDOWS}|X11; (?:Ubuntu; )?Linux (?:x86_64|i[3-6]86)|Macintosh; Intel Mac OS X [\d._]+)"
    r"(?:; (?:WOW64|Win64|x64|U|Edition \w+|[a-z]{2}(?:-\w{2})?))*\) Presto/[\d.]+ Version/(?P<opera>\d+)\.\d+"
)
_ENDED_NAMES = {"msie": "Internet Explorer", "ie": "Internet Explorer", "edge": "Edge", "opera": "Opera"}
# The last browser versions for Windows XP and OS X 10.9, from 2013 to 2018; older versions are suspected. The few people who
# still use such old computers do not open links from an SMS on them. But machines send old versions: Samsung's app Messages, for
# example, fetches link previews as Firefox 24 on Ubuntu.
_OLDEST_VERSIONS = {"firefox": 52, "chrome": 49, "safari": 9}

# The names of browser engines and of simple phones. A user agent without any of them is not a browser: simple phones send parts
# of the name of their platform, or only their manufacturer.
_BROWSER = re.compile(
    r"WebView/|^Safari/[\d.]+ Mobile|^iPhone\w*$|^Android \d|jig browser|^Palmscape|PalmOS|^Xiino|"
    r"AppleWebKit|Gecko/|KHTML|Trident|MSIE \d|Opera|Presto|^Mozilla/\d.*(?:Android|iPhone OS|Firefox/)|FBAN/|"
    r"UCWEB|UCBrowser|Browser/|UP\.Browser|MIDP|MAUI|Obigo|NetFront|Teleca|Dolfin|Polaris|DoCoMo|"
    r"Wap[ _-]?Browser|UC ?Browser|\bUP/\d|J-PHONE/|KDDI-|SoftBank/|emobile/|DDIPOCKET|OpenBrowser|AVE-?Front|hiptop|"
    r"MobileExplorer|MMEF\d|MSPIE|IEMobile|Pocket Internet Explorer|Elaine/|Symbian|Maemo|MeeGo|Mobile\) WebKit/|"
    r";FOMA;|^Mozilla/\d\.\d+ \(?(?:SonyEricsson|SAMSUNG|Vodafone)|"
    r"^(?:Alcatel|BlackBerry|Ericsson|Haier|HTC|Huawei|LGE?(?:[-/ ]|\w{0,2}\d)|Mot-|Nokia|Samsung|SCH-|Sec-|Sie-|SonyEricsson|"
    r"Tianyu|ZTE)",
    re.IGNORECASE,
)


class ParsedAgent(NamedTuple):
    """A User-Agent header. `particular` is its text without the parts that most browsers contain and without the model of the
    phone. `model` is the removed model."""

    text: str
    particular: str
    model: str


def parse_agent(text: str) -> ParsedAgent:
    """Split a User-Agent header into the parts that most browsers share, the model of the phone, and the rest of the text."""
    common = _COMMON.match(text)
    particular = f"({common['system']}){text[common.end() :]}" if common else text
    model = _MODEL.search(particular)
    if model is None:
        return ParsedAgent(text, particular, "")
    return ParsedAgent(text, particular[: model.end(1)] + particular[model.end() :], model[0])


def _empty_agent(agent: ParsedAgent) -> str | None:
    return None if agent.text.strip() else "no user agent"


def _link_preview(agent: ParsedAgent) -> str | None:
    if _PREVIEW.search(agent.particular) is None:
        return None
    return "link preview of " + next(name for name, pattern in _PREVIEW_NAMES if pattern.search(agent.particular))


def _crawler(agent: ParsedAgent) -> str | None:
    found = find_crawler(agent.particular)
    return f"known crawler or library: {found}" if found else None


def _program(agent: ParsedAgent) -> str | None:
    text = _ADDRESS_IN_BUILD.sub("", agent.particular) if "@" in agent.particular else agent.particular
    found = _PROGRAM.search(text) or _TOOL.search(text) or _TOOL.search(agent.model) or _TIMESTAMP.search(text)
    if found:
        return f"the user agent names a program: {found[0].strip(' (;')}"
    is_program = (_WORD_BEFORE_PHONE if _MOBILE.search(agent.text) else _WORD_BEFORE_MOZILLA).match(agent.text)
    return "the user agent has a word before Mozilla/" if is_program else None


def _old_desktop(agent: ParsedAgent) -> str | None:
    found = _DESKTOP.fullmatch(agent.text)
    if found is None:
        return _ended_desktop(agent)
    name, version = next((name, version) for name, version in found.groupdict().items() if version is not None)
    if int(version) >= _OLDEST_VERSIONS[name]:
        return None
    return f"a desktop browser that is too old for a person: {name.capitalize()} {version}"


def _ended_desktop(agent: ParsedAgent) -> str | None:
    found = _ENDED_DESKTOP.fullmatch(agent.text)
    version = next((part for part in found.groupdict().items() if part[1] is not None), None) if found else None
    if version is None:
        is_ended = _ENDED_EXPLORER.match(agent.text) and not _MOBILE.search(agent.text)
        return "a desktop browser that is too old for a person: Internet Explorer" if is_ended else None
    number = version[1].removeprefix("rv:")
    return f"a desktop browser that is too old for a person: {_ENDED_NAMES[version[0]]} {number}"


def _no_browser(agent: ParsedAgent) -> str | None:
    return None if "AppleWebKit/" in agent.text or _BROWSER.search(agent.text) else "the user agent is not a browser"


_REQUEST_RULES: tuple[tuple[str, Callable[[RequestTraits], str | None]], ...] = (("method", _method), ("prefetch", _prefetch))
AGENT_RULES: tuple[tuple[str, Callable[[ParsedAgent], str | None]], ...] = (
    ("empty_agent", _empty_agent),
    ("link_preview", _link_preview),
    ("crawler", _crawler),
    ("program", _program),
    ("no_browser", _no_browser),
    ("old_desktop", _old_desktop),
)
_PERSON = Classification(Verdict.HUMAN, "browser", "no rule matched")

#: All rules as (verdict, name), in the order in which they are applied. The last entry is for hits that match no rule.
RULES = (
    *((Verdict.IGNORED, name) for name, _ in _REQUEST_RULES),
    *((Verdict.SUSPECTED, name) for name, _ in AGENT_RULES),
    (Verdict.HUMAN, _PERSON.rule),
)


def classify(request: RequestTraits) -> Classification:
    """Return the verdict on a request, with the rule that matched and the reason."""
    for name, rule in _REQUEST_RULES:
        if reason := rule(request):
            return Classification(Verdict.IGNORED, name, reason)
    return classify_agent(request.user_agent[:MAX_AGENT_LENGTH])


@lru_cache(maxsize=MAX_CACHED_AGENTS)
def classify_agent(text: str) -> Classification:
    """Return the verdict of the user agent rules. The text has at most MAX_AGENT_LENGTH characters. Results are cached."""
    agent = parse_agent(text)
    for name, rule in AGENT_RULES:
        if reason := rule(agent):
            return Classification(Verdict.SUSPECTED, name, reason)
    return _PERSON
