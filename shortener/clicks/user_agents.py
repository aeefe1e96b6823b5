"""The kind of device and the browser of a user agent, for statistics.

ua-parser with its native expressions takes tens of microseconds for an agent that is not cached. Therefore hits are counted by
device in a background job, never during a redirect. An agent without known parts gives "Other". An iPad that requests desktop
pages sends the agent of a Mac and is counted as one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import ua_parser

Kind = Literal["phone", "tablet", "desktop", "bot", "other"]

MAX_AGENT_LENGTH = 512  # characters that are parsed

_DESKTOPS = frozenset({"Windows", "Mac OS X", "Chrome OS", "Linux", "Ubuntu"})
_TELEVISION = re.compile(r"TV\b|CrKey|BRAVIA")
_PHONE = re.compile(r"Mobi|MIDP|Symbian|BREW")  # browsers of phones say Mobile or Mobi, simple phones name their platform


@dataclass(frozen=True, slots=True)
class Device:
    """A device. `os` and `browser`: ua-parser's families without versions ("iOS", "Mobile Safari"), or "Other"."""

    kind: Kind
    os: str
    browser: str


def parse_device(user_agent: str) -> Device:
    """Return the device of a user agent. Raises nothing."""
    return _device_of(user_agent[:MAX_AGENT_LENGTH])


#: The browser names in statistics, each with ua-parser's families. The list is fixed, so the number of metrics is limited.
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
_NAMES = {family: name for name, families in _BROWSERS.items() for family in families}


def browser_name(family: str) -> str:
    """Return the name in statistics for a family (`Device.browser`), or "other"."""
    return _NAMES.get(family, OTHER_BROWSER)


@lru_cache(maxsize=16_384)
def _device_of(agent: str) -> Device:
    known = ua_parser.parse(agent).with_defaults()
    return Device(_kind(agent, known.os.family, known.device), known.os.family, known.user_agent.family)


def _kind(agent: str, os: str, device: ua_parser.Device) -> Kind:
    if device.brand == "Spider":
        return "bot"
    if _TELEVISION.search(agent):
        return "other"
    if "Tablet" in agent or device.family.startswith("iPad"):
        return "tablet"
    if os == "iOS" or _PHONE.search(agent):
        return "phone"
    if os == "Android":  # Android's rule for browsers: the agent of a phone contains Mobile, that of a tablet does not
        return "tablet"
    return "desktop" if os in _DESKTOPS or "X11" in agent else "other"
