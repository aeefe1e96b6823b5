"""This module checks destinations, base URLs and hosts.

`parse_destination` accepts an absolute http or https URL only if every URL parser reads the same scheme, host and port from it.
It also accepts a link into an app (`myapp://open/5`) if the caller permits the scheme. The `location` of a destination is ASCII
without control characters, so it cannot end the `Location` header early. The scheme and the host become lower case, an
international host becomes punycode as browsers encode it (UTS 46), and other non-ASCII characters are percent-encoded as UTF-8.
All other bytes stay unchanged, also in queries, fragments and `%` escapes. Private addresses are allowed, because the recipient's
device opens the URL and this service does not.

Every check raises `UrlError`, which states the reason and the position.
"""
# Tested by tests/test_urls.py and tests/test_base_urls.py

from __future__ import annotations

import contextlib
import ipaddress
import re
import unicodedata
from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn
from urllib.parse import quote, urlsplit

import idna

from shortener.host_labels import LABEL, check_directions, encode_label

#: The maximum length of a destination. It applies to the URL as written and again to the percent-encoded URL.
MAX_URL_CHARACTERS = 2048
#: Placeholder names that a destination may contain in braces. Each placeholder is replaced as soon as its value is known.
DESTINATION_PLACEHOLDERS = ("message_id", "click_id", "code", "campaign", "phone_sha256")

#: Segments that cannot be a code, and with which the path before a code cannot begin. They are reserved on every host.
RESERVED_SEGMENTS = frozenset(
    {"portal", "docs", "action", "healthz", "readyz", "metrics", "robots", "favicon", "sitemap", "api", "sms", "static", "internal"}
    | {"ct", "scg-external-api", "openapi.json"}
)
SENDER_SEGMENT = "{sender}"  # The placeholder for the sender of a message, in the path of a domain.
MAX_LINK_PATH_CHARACTERS = 100
DEFAULT_PORTS = {"http": 80, "https": 443}

_MAX_PATH_SEGMENTS = 5
_SEGMENT = re.compile(r"[A-Za-z0-9._~-]{1,64}")
_MAX_HOST_CHARACTERS = 253
#: A regular expression for the placeholders in the location of a destination.
PLACEHOLDER = re.compile(rb"\{(%s)\}" % "|".join(DESTINATION_PLACEHOLDERS).encode())
# RFC 3986 permits none of these characters. Browsers remove tabs and line ends, and read a backslash as a slash. So a browser
# could open another host than the one that was checked.
_FORBIDDEN = re.compile(r'[\x00-\x20\x7f-\xa0"<>\\]')
#: Schemes that run code in a browser or open local data. No setting can permit one of these schemes.
FORBIDDEN_SCHEMES = frozenset(
    ["javascript", "data", "vbscript", "file", "blob", "about", "filesystem", "view-source", "jar", "livescript", "mocha"]
)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,31}")

_ANY_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,31}):(?=.)", re.IGNORECASE | re.DOTALL)
_APP_AUTHORITY = re.compile(r"//[^/?#]*@")  # a link into an app whose authority contains user information
_SCHEME_AND_AUTHORITY = re.compile(r"(https?://)([^/?#]*)", re.IGNORECASE)
# The form of each part of a host name according to the standards (RFC 1123). Certificate authorities issue certificates only for
# such names.
_STANDARD_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_PRINTABLE = bytes(range(0x21, 0x7F))
#: White space and invisible characters. People paste them with a URL by mistake.
BLANKS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "".join(
    map(chr, (0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2065), *range(0x2066, 0x206A), 0xFEFF))
)
# the first 96 bits of an IPv6 address that contains an IPv4 address: ::ffff:0:0/96 and 64:ff9b::/96
_PREFIXES_OF_IPV4 = (0xFFFF, 0x64_FF9B << 64)
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
# The zero-width non-joiner and joiner. They are permitted, because Persian and the Indic scripts need them.
_JOINERS = "\u200c\u200d"
_NOT_IN_HOST = frozenset("/?#@")
_USER_INFORMATION = "must not contain a user name or password before its host"


class UrlError(Exception):
    """Raised if a URL or host is not valid.

    `reason` is the rest of a sentence that begins with the URL or host. `position` is the index of the wrong character, from
    0."""

    def __init__(self, reason: str, position: int = 0) -> None:
        self.reason = reason
        self.position = position
        super().__init__(f"{reason} (position {position})")


class NumericHostError(UrlError):
    """Raised for a host such as 127.1 or 0x7f000001, which some parsers read as an IPv4 address and others as a name.

    `host` is lower case and ASCII."""

    def __init__(self, reason: str, position: int, host: str) -> None:
        super().__init__(reason, position)
        self.host = host


@dataclass(frozen=True, slots=True)
class Destination:
    """A checked destination.

    `url` is the readable form. `location` is the value of the `Location` header and may still contain placeholders. `host` is
    without port and brackets; it is empty for a link into an app."""

    url: str
    location: bytes
    host: str
    placeholders: frozenset[str]


def parse_destination(url: str, extra_schemes: Container[str] = ()) -> Destination:
    """Check a destination URL and return it as a `Destination`. Raise UrlError if the URL is not valid.

    `url` must be an absolute http(s) URL without user information, or a link into an app with a scheme of `extra_schemes` (in
    lower case). The `host` of a link into an app is empty."""
    if len(url) > MAX_URL_CHARACTERS:
        raise UrlError(f"is longer than {MAX_URL_CHARACTERS} characters", MAX_URL_CHARACTERS)
    _check_characters(url)
    head = _SCHEME_AND_AUTHORITY.match(url)
    host = ""
    if head is None:
        other = _ANY_SCHEME.match(url)
        scheme = other[1].lower() if other else ""
        if other is None or scheme in ("http", "https") or scheme in FORBIDDEN_SCHEMES or scheme not in extra_schemes:
            raise UrlError("must begin with http:// or https://")
        if _APP_AUTHORITY.match(url, other.end()):
            raise UrlError(_USER_INFORMATION, other.end() + 2)
        stored = scheme + url[other.end(1) :]
    else:
        scheme, authority = head.groups()
        written, port = _split_authority(authority, head.start(2))
        host = _parse_host(written, head.start(2))
        stored_host = f"[{host}]" if written.startswith("[") else host
        stored = f"{scheme.lower()}{stored_host}{port}{url[head.end() :]}"
    location = (stored if stored.isascii() else quote(stored, safe=_PRINTABLE)).encode()
    if len(location) > MAX_URL_CHARACTERS:
        raise UrlError(f"is longer than {MAX_URL_CHARACTERS} characters when percent-encoded")
    names = frozenset(name.decode() for name in PLACEHOLDER.findall(location)) if b"{" in location else frozenset()
    return Destination(stored, location, host, names)


def trim_url(text: str) -> str:
    """Return a URL without the white space and the invisible characters around it."""
    return text.strip(BLANKS)


def parse_authority(authority: str, position: int = 0) -> tuple[str, int | None]:
    """Return the host (lower case, punycode, without brackets) and the port of an authority. The host may end with a dot. The port
    is None if the authority has no port.

    `position` is the index of the authority in its URL, for the positions in errors. Raise UrlError if the authority is not valid
    or contains user information."""
    written, port = _split_authority(authority, position)
    dot = "." if written.endswith(".") and not written.startswith("[") else ""
    host = _parse_host(written.removesuffix(dot), position) + dot
    if dot and _NUMERIC.fullmatch(host.removesuffix(".").rpartition(".")[2]):
        raise NumericHostError("has an IPv4 address that ends with a dot as its host", position, host)
    return host, int(port[1:]) if port else None


def parse_host(text: str) -> str:
    """Return a host in the form of `Destination.host`: lower case, punycode, IPv6 without brackets. `text` must not contain a
    scheme, port or path.

    Raise UrlError if `text` is not such a host."""
    name = text.removeprefix("[").removesuffix("]")
    if name.count(":") == 1 or not _NOT_IN_HOST.isdisjoint(name):
        raise UrlError("must be a host without scheme, port and path")
    _check_characters(name)
    return _parse_host(f"[{name}]" if ":" in name else name, 0)


@dataclass(frozen=True, slots=True)
class BaseUrl:
    """The prefix of short links: `origin` is scheme, host and port; `path` is "" or the path before the code, such as /ABCDEF."""

    origin: str
    path: str


def parse_base_url(url: str) -> BaseUrl:
    """Return the prefix of short links. Raise UrlError unless `url` is http(s)://HOST[:PORT] with an optional path.

    A final slash and a dot at the end of the host are removed, and the host becomes lower case."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UrlError("is not a valid URL") from None
    has_more = parts.username is not None or parts.query or parts.fragment
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname or has_more:
        raise UrlError("must be http://HOST or https://HOST, with an optional path before the code")
    host = parts.hostname.removesuffix(".")
    if not host.isascii():
        raise UrlError("must have its host in punycode, such as xn--bcher-kva.example")
    if "*" in parts.hostname:
        raise UrlError("must not have a wildcard in its host; add each host separately")
    # Browsers send the host of the link unchanged in the Host header, so a host with a final dot would count as another host.
    # Therefore the dot is removed.
    host = f"[{_parse_host(f'[{host}]', 0)}]" if ":" in host else _parse_host(host, len(parts.scheme) + 3)
    authority = host if port is None else f"{host}:{port}"
    return BaseUrl(f"{parts.scheme}://{authority}", parse_link_path(parts.path))


def parse_own_domain(url: str) -> BaseUrl:
    """Return the prefix of the short links on a domain of an application. Raise UrlError for every URL that `parse_base_url`
    rejects. Also raise it for a host that the standards forbid, because no certificate authority issues a certificate for it."""
    parsed = parse_base_url(url)
    parts = urlsplit(parsed.origin)
    host = parts.hostname or ""
    if ":" not in host and not all(map(_STANDARD_LABEL.fullmatch, host.split("."))):
        raise UrlError(
            "has an invalid host name: each part of the host may contain letters, digits and hyphens, "
            "and must not begin or end with a hyphen"
        )
    if parts.port == 0:
        raise UrlError("has the port 0; a port must be a number from 1 to 65535")
    return parsed


def host_of_domain(url: str) -> str:
    """Return the stored host of an application's domain. `url` is the base URL of the domain. Raise the same UrlErrors as
    `parse_base_url`."""
    return host_of(parse_base_url(url).origin)


def parse_link_path(path: str) -> str:
    """Check the path that precedes codes on a domain. Return it without its final slash, or "" if it is empty. Raise UrlError if
    the path is not valid.

    A segment is text, or `{sender}`, which is replaced by the sender of the message."""
    path = path.rstrip("/")
    if not path:
        return ""
    segments = path.removeprefix("/").split("/")
    if not path.startswith("/") or len(path) > MAX_LINK_PATH_CHARACTERS or len(segments) > _MAX_PATH_SEGMENTS:
        raise UrlError(
            f"must have a path of at most {_MAX_PATH_SEGMENTS} segments and {MAX_LINK_PATH_CHARACTERS} characters, such as /ABCDEF"
        )
    for segment in segments:
        if segment in (".", "..") or not (segment == SENDER_SEGMENT or _SEGMENT.fullmatch(segment)):
            raise UrlError(
                "must have a path of letters, digits and - . _ ~ between its slashes, or {sender}: https://go.brand.example/ABCDEF"
            )
    if segments[0].lower() in RESERVED_SEGMENTS or segments[0].startswith(".well-known"):
        raise UrlError(f"must not have a path that begins with /{segments[0]}: the service uses it")
    return path


def fill_link_path(path: str, sender: str) -> str:
    """Return the path before the code of a short link, with the sender in place of `{sender}`. Raise UrlError if the sender
    contains characters that a path cannot contain."""
    if SENDER_SEGMENT not in path:
        return path
    segment = sender.removeprefix("+")
    if not _SEGMENT.fullmatch(segment) or segment in (".", ".."):
        raise UrlError(
            "must be 1 to 64 letters, digits and - . _ ~, because the short links of this domain contain the sender ({sender})"
        )
    return path.replace(SENDER_SEGMENT, segment)


def matches_link_path(path: str, requested: str) -> bool:
    """Return whether `requested`, the path before the code in a request, matches `path`. The case of letters is ignored."""
    if SENDER_SEGMENT not in path:
        return path.lower() == requested.lower()
    expected, given = path.lower().split("/"), requested.lower().split("/")
    return len(expected) == len(given) and all(one in (SENDER_SEGMENT, other) for one, other in zip(expected, given, strict=True))


def is_web_url(url: str) -> bool:
    """Return whether a URL has the scheme http or https, or begins with `//`."""
    return url.startswith("//") or url.partition(":")[0].lower() in DEFAULT_PORTS


def host_name_of(url: str) -> str:
    """Return the host of an absolute URL in the form of `Destination.host`, without port and brackets. Return "" if the scheme is
    neither http nor https."""
    return urlsplit(url).hostname or "" if is_web_url(url) else ""


@lru_cache(maxsize=1024)
def host_of(url: str) -> str:
    """Return the host of an absolute URL in the form of a Host header: lower case, with the port unless it is the default port of
    the scheme.

    Return "" if the scheme is neither http nor https: after another scheme, the text in place of the host can be something else, as
    in myapp://order:4711223/x."""
    if not is_web_url(url):
        return ""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if ":" in host:
        with contextlib.suppress(ValueError):
            host = _compress(host)
        host = f"[{host}]"
    return host if parts.port in (None, DEFAULT_PORTS.get(parts.scheme)) else f"{host}:{parts.port}"


def canonical_host(host: str) -> str:
    """Return a host in the form in which domains are stored: lower case, IPv6 addresses as browsers write them. The host may have
    a port, which stays."""
    if not host.startswith("["):
        return host.lower()
    try:
        return host_of(f"//{host}")
    except ValueError:
        return host.lower()


def canonical_name(name: str) -> str:
    """Return an IPv6 address (without port and brackets) in the form of `Destination.host`. Return any other text unchanged."""
    return canonical_host(f"[{name}]")[1:-1] if ":" in name else name


def embedded_ipv4(name: str) -> str | None:
    """Return the IPv4 address that is embedded in an IPv6 address (without brackets), or None. A phone that opens the IPv6
    address connects to this IPv4 address.

    An IPv4 address is embedded in IPv4-mapped addresses (::ffff:192.0.2.1) and in the addresses of NAT64 (64:ff9b::192.0.2.1),
    which many mobile networks use."""
    try:
        number = int(ipaddress.IPv6Address(name))
    except ValueError:
        return None
    return str(ipaddress.IPv4Address(number & 0xFFFFFFFF)) if number >> 32 in _PREFIXES_OF_IPV4 else None


def _check_characters(url: str) -> None:
    bad = _FORBIDDEN.search(url)
    if bad is None and not url.isascii():
        # Reject some characters outside of ASCII: spaces of other scripts, unpaired surrogates, and invisible characters that can
        # reverse or hide text.
        for position, character in enumerate(url):
            if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zs", "Zl", "Zp") and character not in _JOINERS:
                _reject_character(character, position)
    if bad is not None:
        _reject_character(bad[0], bad.start())


def _reject_character(character: str, position: int) -> NoReturn:
    if character in '"<>\\':
        raise UrlError(f"contains {character} at position {position}; write %{ord(character):02X} instead", position)
    kind = "white space" if character.isspace() else "a control or invisible character"
    raise UrlError(f"contains {kind} (U+{ord(character):04X}) at position {position}", position)


def _split_authority(authority: str, position: int) -> tuple[str, str]:
    """Split an authority. Return the host as written, and the port with its colon ("" without a port)."""
    if "@" in authority:
        raise UrlError(_USER_INFORMATION, position)
    bracket = authority.rfind("]") + 1
    colon = -1 if authority.startswith("[") and not bracket else authority.find(":", bracket)
    host, port = (authority, "") if colon < 0 else (authority[:colon], authority[colon:])
    if not host:
        raise UrlError("has no host", position)
    digits = port[1:]
    if port and not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and 1 <= int(digits) <= 65535):
        raise UrlError(f"has the port {digits!r}; a port must be a number from 1 to 65535", position + len(host) + 1)
    return host, port


def _parse_host(written: str, position: int) -> str:
    """Return the host in lower-case ASCII, without brackets. Raise UrlError if it is not valid."""
    if not written:  # the host may be empty if `parse_host` is the caller
        raise UrlError("has no host", position)
    if "{" in written or "}" in written:
        raise UrlError("has a brace in its host; placeholders are allowed after the host only", position)
    if written.startswith("["):
        # An IPv6 zone such as %eth0 is rejected, because it is valid on one machine only.
        try:
            return _compress(written[1:-1] if written.endswith("]") and "%" not in written else "")
        except ValueError:
            raise UrlError("must have an IPv6 address in the brackets of its host", position) from None
    if len(written) > _MAX_HOST_CHARACTERS:
        raise UrlError(f"has a host of more than {_MAX_HOST_CHARACTERS} characters", position)
    try:
        # UTS 46 converts every capital sigma to σ. `str.lower` must not be used: it converts a capital sigma at the end of a word
        # to ς, which is a different host name.
        host = written.lower() if written.isascii() else idna.uts46_remap(written, std3_rules=False, transitional=False)
        labels = [encode_label(label) for label in host.split(".")]
        host = ".".join(labels)
        if "xn--" in host:
            check_directions(labels)
    except idna.IDNAError as error:
        raise UrlError(f"has an invalid international host name: {error}", position) from None
    if len(host) > _MAX_HOST_CHARACTERS or not all(map(LABEL.fullmatch, labels)):
        raise UrlError("has an invalid host name", position)
    if _NUMERIC.fullmatch(labels[-1]) and not _is_ipv4(host):
        # Browsers read 127.1, 0x7f.1 and 2130706433 as IPv4 addresses; other parsers read them as names.
        raise NumericHostError("has a host that is neither a name nor an IPv4 address of four numbers", position, host)
    return host


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _compress(text: str) -> str:
    """Return an IPv6 address as browsers write it: in lower case, with its longest run of zeros as `::`, and without a dotted IPv4
    address. Raise ValueError if the text is not an IPv6 address."""
    address = ipaddress.IPv6Address(text)
    mapped = address.ipv4_mapped
    return address.compressed if mapped is None else f"::ffff:{int(mapped) >> 16:x}:{int(mapped) & 0xFFFF:x}"
