"""What kind of device and which browser an agent belongs to, for statistics.

Parsed by ua-parser with its native expressions, some tens of microseconds for an agent not seen lately; so this is called where
counts are folded, never on the way to a redirect. An agent that says nothing gives "Other". An iPad that asks for desktop pages
says that it is a Mac, and is counted as one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import ua_parser

Kind = Literal["phone", "tablet", "desktop", "bot", "other"]

MAX_AGENT_LENGTH = 512  # characters that are looked at

_DESKTOPS = frozenset({"Windows", "Mac OS X", "Chrome OS", "Linux", "Ubuntu"})
_TELEVISION = re.compile(r"TV\b|CrKey|BRAVIA")
_PHONE = re.compile(r"Mobi|MIDP|Symbian|BREW")  # browsers of phones say Mobile or Mobi, simple phones what they run


@dataclass(frozen=True, slots=True)
class Device:
    """`os` and `browser` are families without versions, in ua-parser's words ("iOS", "Mobile Safari"), or "Other"."""

    kind: Kind
    os: str
    browser: str


def parse_device(user_agent: str) -> Device:
    """The device that an agent belongs to, as far as it tells. Never fails."""
    return _device_of(user_agent[:MAX_AGENT_LENGTH])


#: The names that statistics tell browsers by, each with ua-parser's families; their number is bounded, whatever agents send.
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
    """One of a few dozen names for a family of `Device.browser`, or "other"."""
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
    if os == "Android":  # Android's rule for browsers: a phone says Mobile, a tablet does not
        return "tablet"
    return "desktop" if os in _DESKTOPS or "X11" in agent else "other"
