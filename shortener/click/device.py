"""What kind of device and which browser an agent belongs to, for statistics.

Parsed by ua-parser with its native expressions, some tens of microseconds for an agent not seen lately; so this is called where
counts are folded, never on the way to a redirect. An agent that says nothing gives "Other". An iPad that asks for desktop pages says
that it is a Mac, and is counted as one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import ua_parser

Kind = Literal["phone", "tablet", "desktop", "bot", "other"]

LONGEST_AGENT = 512  # characters that are looked at

_DESKTOPS = frozenset({"Windows", "Mac OS X", "Chrome OS", "Linux", "Ubuntu"})
_TELEVISION = re.compile(r"TV\b|CrKey|BRAVIA")
_PHONE = re.compile(r"Mobi|MIDP|Symbian|BREW")  # browsers of phones say Mobile or Mobi, simple phones what they run


@dataclass(frozen=True, slots=True)
class Device:
    """`os` and `browser` are families without versions, in ua-parser's words ("iOS", "Mobile Safari"), or "Other"."""

    kind: Kind
    os: str
    browser: str


def device_of(user_agent: str) -> Device:
    """The device that an agent belongs to, as far as it tells. Never fails."""
    return _device_of(user_agent[:LONGEST_AGENT])


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
