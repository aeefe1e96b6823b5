"""This module finds the device and the browser in user agents, for the statistics.

ua-parser with its native expressions takes tens of microseconds for a user agent that is not cached. Therefore a redirect does
not parse user agents; a background job does. Unknown parts of a user agent become "Other". An iPad that requests desktop pages
sends the user agent of a Mac and is counted as a Mac.

ua-parser has 630 expressions for devices. The service needs only the kind of the device, so it loads only the dozen expressions
for crawlers and iPads. The other expressions would double the memory and the time.

The first call in a process loads the expressions, which takes a tenth of a second. Clicks wait while a transaction runs.
Therefore code that parses user agents in a transaction first awaits `load_expressions`.
"""

from __future__ import annotations

import asyncio
import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal, cast

from shortener.lean_imports import exclude_imported_objects
from shortener.model import record

if TYPE_CHECKING:
    import ua_parser

Kind = Literal["phone", "tablet", "desktop", "bot", "other"]

MAX_AGENT_LENGTH = 512  # maximum number of characters of a user agent that are parsed

#: The brand that ua-parser's expressions for devices give to crawlers.
_CRAWLER = "Spider"
#: The brand that this module gives to matches of ua-parser's last expression for crawlers. This expression contains words such as
#: "bot" and "silk", which names of phones (Cubot) contain too. In ua-parser, the expressions for phones come before it, but this
#: module does not load them. Therefore a device with this brand counts as a crawler only if its operating system is not one of
#: phones.
_UNLESS_PHONE = "Spider, unless it is a phone"
_DESKTOPS = frozenset({"Windows", "Mac OS X", "Chrome OS", "Linux", "Ubuntu"})
_TELEVISION = re.compile(r"TV\b|CrKey|BRAVIA")
# the user agents of phone browsers contain Mobile or Mobi; those of simple phones contain their platform
_PHONE = re.compile(r"Mobi|MIDP|Symbian|BREW")


@record
class Device:
    """The device that a user agent describes. `os` and `browser` are ua-parser's families without versions ("iOS", "Mobile
    Safari"), or "Other"."""

    kind: Kind
    os: str
    browser: str


def has_expressions() -> bool:
    """Return whether this process has loaded the expressions of ua-parser."""
    return _device_of.cache_info().currsize > 0


async def load_expressions() -> None:
    """Load the expressions of ua-parser in another thread, unless this process has loaded them before."""
    if not has_expressions():
        await asyncio.to_thread(_load)


def _load() -> None:
    _device_of("")
    exclude_imported_objects()


def parse_device(user_agent: str) -> Device:
    """Return the device that a User-Agent header describes. Any text is accepted."""
    return _device_of(user_agent[:MAX_AGENT_LENGTH])


#: The browser names in the statistics, each with its browser families of ua-parser. The fixed list limits the number of metrics.
_BROWSERS = {
    "Safari": ("Safari", "Mobile Safari"),
    "Chrome": ("Chrome", "Chrome Mobile", "Chrome Mobile iOS", "Chromium"),
    "Samsung Internet": ("Samsung Internet",),
    "Firefox": ("Firefox", "Firefox Mobile", "Firefox iOS", "Firefox Focus", "Firefox Alpha", "Firefox Beta"),
    "Edge": ("Edge", "Edge Mobile"),
    "Opera": ("Opera", "Opera Mobile", "Opera Mini", "Opera Touch", "Opera GX", "Opera Tablet"),
    "Android Browser": ("Android",),
    "UC Browser": ("UC Browser",),
    "MIUI Browser": ("MiuiBrowser",),
    "Huawei Browser": ("Huawei Browser",),
    "Yandex Browser": ("Yandex Browser",),
    "QQ Browser": ("QQ Browser", "QQ Browser Mini", "QQ Browser Mobile"),
    "Amazon Silk": ("Amazon Silk",),
    "Brave": ("Brave", "Brave Mobile"),
    "DuckDuckGo": ("DuckDuckGo", "DuckDuckGo Mobile"),
    "Vivaldi": ("Vivaldi",),
    "Internet Explorer": ("IE", "IE Mobile", "IE Large Screen"),
    "Google app": ("Google",),
    "Facebook": ("Facebook",),
    "Messenger": ("Facebook Messenger",),
    "Instagram": ("Instagram",),
    "Telegram": ("Telegram",),
    "LINE": ("LINE",),
    "KakaoTalk": ("KakaoTalk",),
    "WeChat": ("WeChat Browser",),
    "TikTok": ("TikTok",),
    "Snapchat": ("Snapchat",),
    "Pinterest": ("Pinterest",),
    "X": ("Twitter",),
    "another app": ("Mobile Safari UI/WKWebView", "Chrome Mobile WebView"),
}
OTHER_BROWSER = "other"
_SEPARATOR = "\n"
_NAMES = {family: name for name, families in _BROWSERS.items() for family in families}


def browser_name(family: str) -> str:
    """Return the name that the statistics use for a browser family (`Device.browser`), or "other"."""
    return _NAMES.get(family, OTHER_BROWSER)


def device_class(user_agent: str) -> str:
    """Return the kind of device and the browser name of a user agent as one text. An erasure and the purge store this text
    instead of the user agent. A line break separates the two parts, so the text differs from every User-Agent header."""
    device = parse_device(user_agent)
    return f"{device.kind}{_SEPARATOR}{browser_name(device.browser)}"


def device_and_browser(agent: str) -> tuple[str, str]:
    """Return the kind of device and the browser name. `agent` is a user agent or a result of `device_class`."""
    kind, _, browser = (agent if _SEPARATOR in agent else device_class(agent)).partition(_SEPARATOR)
    return kind, browser


@cache
def _parser() -> ua_parser.Parser:
    """Return a parser with the expressions for browsers, operating systems, crawlers and iPads."""
    # imported here: the expressions take 12 MB of memory, and a process counts its first hit only minutes after its start
    import ua_parser

    browsers, systems, all_devices = ua_parser.load_lazy_builtins()
    devices: list[Any] = []
    is_after_brands = False
    for one in cast("list[Any]", all_devices):
        if one.brand != _CRAWLER:
            is_after_brands = True
            if "iPad" in f"{one.regex}{one.family}":
                devices.append(one)
        elif is_after_brands:
            devices.append(type(one)(one.regex, one.regex_flag, one.family, _UNLESS_PHONE, one.model))
        else:
            devices.append(one)
    return ua_parser.Parser.from_matchers((browsers, systems, devices))


@lru_cache(maxsize=16_384)
def _device_of(agent: str) -> Device:
    known = _parser().parse(agent).with_defaults()
    return Device(_kind(agent, known.os.family, known.device), known.os.family, known.user_agent.family)


def _kind(agent: str, os: str, device: ua_parser.Device) -> Kind:
    if device.brand == _CRAWLER or (device.brand == _UNLESS_PHONE and os not in ("iOS", "Android")):
        return "bot"
    if _TELEVISION.search(agent):
        return "other"
    if "Tablet" in agent or device.family.startswith("iPad"):
        return "tablet"
    if os == "iOS" or _PHONE.search(agent):
        return "phone"
    if os == "Android":  # on Android, phones send Mobile in the user agent, and tablets do not
        return "tablet"
    return "desktop" if os in _DESKTOPS or "X11" in agent else "other"
