"""Destinations: where a short link leads, checked once and kept as the bytes of its `Location` header.

Promises: what `parse_destination` accepts is an absolute http or https URL whose scheme, host and port every parser reads alike,
so that nobody is led elsewhere than the check said; its `location` is ASCII without control characters, so that it cannot end
the header. Apart from scheme and host (lower case, punycode) and non-ASCII characters (percent-encoded as UTF-8), the URL stays
as it was written: queries, fragments, `%` escapes and `+` included. Private addresses are not refused: only the handset goes there.
Fails with `DestinationError`, which says what is wrong and where.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import quote, unquote_to_bytes

import idna

#: Characters of a URL, both as written and as percent-encoded for the header.
MAX_LENGTH = 2048
#: Names that a destination may hold in braces; each is filled in as soon as its value is known.
PLACEHOLDERS = ("message_id", "click_id", "code", "campaign", "phone_sha256")

_PLACEHOLDER = re.compile(rb"\{(%s)\}" % "|".join(PLACEHOLDERS).encode())
# No URL holds these (RFC 3986). Browsers drop tabs and line ends, turn a backslash into a slash, and so arrive at another host.
_FORBIDDEN = re.compile(r'[\x00-\x20\x7f-\xa0"<>\\]')
_HEAD = re.compile(r"(https?://)([^/?#]*)", re.IGNORECASE)
# Underscores and hyphens at the edges are no host names, but real hosts have them, and handsets find them.
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_PRINTABLE = bytes(range(0x21, 0x7F))
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
_JOINERS = "\u200c\u200d"  # format characters, but part of how Persian and the Indic scripts spell


class DestinationError(Exception):
    """A URL cannot be a destination. `reason` reads on from the URL; `position` counts characters from its start."""

    def __init__(self, reason: str, position: int = 0) -> None:
        self.reason = reason
        self.position = position
        super().__init__(f"{reason} (position {position})")


@dataclass(frozen=True, slots=True)
class Destination:
    """`url` is for people and records; `location` is what goes over the wire, placeholders still in it.
    `host` has no port and no brackets."""

    url: str
    location: bytes
    host: str
    placeholders: frozenset[str]


def parse_destination(url: str) -> Destination:
    """Raises DestinationError unless `url` is an absolute http(s) URL without user-info that every parser reads alike."""
    if len(url) > MAX_LENGTH:
        raise DestinationError(f"is longer than {MAX_LENGTH} characters", MAX_LENGTH)
    _check_characters(url)
    head = _HEAD.match(url)
    if head is None:
        raise DestinationError("does not begin with http:// or https://")
    scheme, authority = head.groups()
    start = head.start(2)
    if "@" in authority:
        raise DestinationError("holds user-info before its host", start)
    bracket = authority.rfind("]") + 1
    colon = authority.find(":", bracket)
    written, port = (authority, "") if colon < 0 else (authority[:colon], authority[colon:])
    host = _parse_host(written, start)
    _check_port(port, start + len(written))
    stored_host = f"[{host}]" if written.startswith("[") else host
    stored = f"{scheme.lower()}{stored_host}{port}{url[head.end() :]}"
    location = (stored if stored.isascii() else quote(stored, safe=_PRINTABLE)).encode()
    if len(location) > MAX_LENGTH:
        raise DestinationError(f"is longer than {MAX_LENGTH} characters when percent-encoded")
    names = frozenset(name.decode() for name in _PLACEHOLDER.findall(location)) if b"{" in location else frozenset()
    return Destination(stored, location, host, names)


def fill(location: bytes, values: Mapping[str, str]) -> bytes:
    """`location` with `{name}` replaced for each name in `values`, percent-encoded by RFC 3986 (only unreserved characters stay).

    One pass: braces within a value are encoded, so it cannot hold a placeholder. A name that `values` lacks stays as it is, to be
    filled in later; the values are keyed by PLACEHOLDERS."""

    def value(match: re.Match[bytes]) -> bytes:
        text = values.get(match[1].decode())
        return match[0] if text is None else quote(text, safe="").encode()

    return _PLACEHOLDER.sub(value, location)


def append_param(location: bytes, name: str, value: str) -> bytes:
    """`location` with `name=value` at the end of its query, before the fragment; the rest stays byte for byte.

    A parameter of that name that is already there wins: then nothing changes."""
    key = quote(name, safe="").encode()
    address, hash_sign, fragment = location.partition(b"#")
    _, question_mark, query = address.partition(b"?")
    plain = name.encode()
    for part in query.split(b"&"):
        present = part.partition(b"=")[0]
        if present in (key, plain) or (b"%" in present and unquote_to_bytes(present) == plain):
            return location
    separator = b"?"
    if question_mark:
        separator = b"&" if query and not query.endswith(b"&") else b""
    return b"%b%b%b=%b%b%b" % (address, separator, key, quote(value, safe="").encode(), hash_sign, fragment)


def _check_characters(url: str) -> None:
    bad = _FORBIDDEN.search(url)
    if bad is None and not url.isascii():
        # Spaces of other scripts, invisible format characters (they turn text around or hide in a host) and half characters.
        for position, character in enumerate(url):
            if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zs", "Zl", "Zp") and character not in _JOINERS:
                _refuse_character(character, position)
    if bad is not None:
        _refuse_character(bad[0], bad.start())


def _refuse_character(character: str, position: int) -> NoReturn:
    if character in '"<>\\':
        raise DestinationError(f"holds {character} at position {position}, which a URL spells %{ord(character):02X}", position)
    kind = "white space" if character.isspace() else "a control or invisible character"
    raise DestinationError(f"holds {kind} (U+{ord(character):04X}) at position {position}", position)


def _check_port(port: str, position: int) -> None:
    digits = port[1:]
    if port and not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and 1 <= int(digits) <= 65535):
        raise DestinationError(f"holds {digits!r} as its port, which is no number from 1 to 65535", position)


def _parse_host(written: str, position: int) -> str:
    """The host in lower-case ASCII, without brackets."""
    if not written:
        raise DestinationError("holds no host", position)
    if "{" in written or "}" in written:
        raise DestinationError("holds a brace in its host: placeholders may stand after the host only", position)
    if written.startswith("["):
        # A zone (%eth0) means something on one machine only.
        if not written.endswith("]") or "%" in written or not _is_address(written[1:-1], ipaddress.IPv6Address):
            raise DestinationError("holds something else than an IPv6 address in the brackets of its host", position)
        return written[1:-1].lower()
    host = written.lower()
    if len(host) > 253:
        raise DestinationError("holds an overlong host name", position)
    try:
        if not host.isascii():
            host = idna.encode(host, uts46=True).decode()
        labels = host.split(".")
        for label in labels:
            if label.startswith("xn--"):
                idna.ulabel(label)
    except idna.IDNAError as error:
        raise DestinationError(f"holds an invalid international host name: {error}", position) from None
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise DestinationError("holds an invalid host name", position)
    if _NUMERIC.fullmatch(labels[-1]) and not _is_address(host, ipaddress.IPv4Address):
        # Browsers read 127.1, 0x7f.1 and 2130706433 as addresses, other parsers as names.
        raise DestinationError("holds a host that is neither a name nor an IPv4 address of four numbers", position)
    return host


def _is_address(text: str, kind: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True
