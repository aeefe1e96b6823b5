"""URL detection in plain text, for `track: first_url` and `track: all_urls`.

Guarantee: `urls.parse_destination` accepts each detected URL. Detection is conservative, because a full stop without a space
("Ok.so", "hi.how") is far more common than an unusual domain. A short link in the middle of a sentence damages the message, while
an undetected domain still reaches the handset as the sender wrote it. The rules:

1. `http://` and `https://` URLs are detected anywhere, if the host has a dot, is an IP address or is `localhost`. If such a URL is
   not usable, none of its parts is detected.
2. `www.` starts a URL if its domain ends in a public suffix of the ICANN section of the Public Suffix List.
3. Any other domain is a bare domain. All of the following must hold:
   - It consists of Latin, Greek or Cyrillic letters, of one script in each label.
   - It does not begin inside another word, address or number. It does not begin with an abbreviation (`e.g.shop.com`), and not with
     a word in capitals before a name in small letters (`STOP.shop.com`).
   - It has a name before a public ICANN suffix. `bare_domains.py` decides by the suffix and by the words around it.
4. A query directly after a bare host must contain a `=`. A port without a path belongs to the URL only if it has four or five
   digits.

A URL ends before a character that people do not type as a part of a URL in that place (`url_end.py`). A text that is
similar to a URL but is not detected is reported with the reason, so that the sender can correct it.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from shortener.messages.bare_domains import is_bare_domain, public_suffix
from shortener.messages.url_end import find_end
from shortener.model import record
from shortener.urls import UrlError, parse_destination

_LETTER = r"[0-9A-Za-z\u00c0-\u024f\u0370-\u052f\u1e00-\u1fff]"
_LABEL = rf"{_LETTER}(?:(?:{_LETTER}|-)*{_LETTER})?"

_HINT = re.compile(r"\w\.\w|://")
# A host without a scheme never begins after a hyphen inside a word. Otherwise the search would read the rest of the word again
# after each hyphen, which takes quadratic time.
_CANDIDATE = re.compile(
    rf"""
      (?P<scheme>https?://)
    | (?<![0-9A-Za-z])(?P<other>[a-z][a-z0-9+.-]{{1,30}}(?<!http)(?<!https)://\S|https?:/?(?=\w)|(?:mailto|javascript):(?=\S)|smsto?:\+?(?=\d)|data:(?=\w+/))
    | (?<!{_LETTER})(?<!{_LETTER}-)(?<!--)(?P<bare>(?>{_LABEL}(?:\.(?!https?://){_LABEL})++))(?!{_LETTER})
    """,
    re.IGNORECASE | re.VERBOSE,
)
_SCHEME_AT_END = re.compile(r"https?\Z", re.IGNORECASE)
_AUTHORITY = re.compile(r"[^\s/?#\\<>\"\u2000-\u303f\uff00-\uffef\U0001f000-\U0001ffff]*")
# A regular expression for a host that an e-mail address follows without a space: `https://shop.example,info@shop.example`.
_SENTENCE_BEFORE_AT = re.compile(r"[\w-]+(?:\.[\w-]+)+[,;|()\[\]](?:[^:@]|(?<=mailto):)*+@")
# A regular expression for the rest of a rejected URL, up to white space. In this rest, a URL is detected only after a comma or
# semicolon.
_TOKEN = re.compile(r"(?:(?![,;]https?://)[^\s<>\"“”«»])*", re.IGNORECASE)
_IPV6 = re.compile(r"\[[0-9a-f:.]+\]", re.IGNORECASE)
_IPV4 = re.compile(r"[0-9]+(?:\.[0-9]+){3}")
_ASCII_HOST = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_PORT = re.compile(r":([0-9]+)")
_BARE_PORT = re.compile(r":(?:[0-9]{1,5}(?=/)|[0-9]{4,5}(?!\w))")
_BARE_QUERY = re.compile(r"\?[\w.%-]+=")
# Characters that can be the next character of a host or an e-mail address. If one of them follows a host without a scheme, the host
# is not detected as a URL.
_BARE_CONTINUES = re.compile(r"[_@=+]|[?-]\w|\\[^\"']|\.[/?#]")
_NOT_BEFORE_BARE = frozenset("_@./\\=&%#+~$-")
# A regular expression for two single letters, each with a dot, at the start of a host: an abbreviation such as e.g., z.B. or U.S.
_ABBREVIATION = re.compile(r"(?:[^\W\d_]\.){2}")
_SENTENCE = re.compile(r"\.([A-Z][a-z]*)$")
#: Top-level domains that are reserved for documentation and tests. They are not in the Public Suffix List.
_RESERVED = frozenset(["example", "test", "invalid", "localhost", "local", "internal", "onion"])
_SPACELESS = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]")


@record
class DetectedUrl:
    """A detected URL, whose text is `text[start:end]` (in characters). `url` always has a scheme; the default is `http://`."""

    start: int
    end: int
    url: str


@record
class UntrackableUrl:
    """A part of a text that is similar to a URL but is not detected. `reason` is the end of a sentence that begins with it."""

    start: int
    end: int
    reason: str


class Detection(NamedTuple):
    """The detected URLs of a text, and the parts that are similar to URLs. Both are in text order and do not overlap."""

    urls: list[DetectedUrl]
    untrackable: list[UntrackableUrl]


def find_urls(body: str) -> list[DetectedUrl]:
    """Return all URLs of a text in text order, without overlaps. Raise no error for any text."""
    return detect_urls(body).urls


def detect_urls(body: str) -> Detection:
    """Return all URLs of a text, and all parts that are similar to URLs. Raise no error for any text."""
    result = Detection([], [])
    if _HINT.search(body) is None:
        return result
    position = 0
    while (match := _CANDIDATE.search(body, position)) is not None:
        if match["bare"] is not None:
            scheme = _SCHEME_AT_END.search(match["bare"])
            # A URL directly after a number, as in `11.11https://shop.example/`: continue the search at its scheme.
            if scheme and body.startswith("://", match.end()):
                position = match.start() + scheme.start()
                continue
            found = _bare_url(body, match)
        elif match["scheme"] is not None:
            found = _url_with_scheme(body, match)
        else:
            found = UntrackableUrl(match.start(), _token_end(body, match.end()), "does not begin with http:// or https://")
        if isinstance(found, DetectedUrl):
            try:
                parse_destination(found.url)
            except UrlError as error:
                found = UntrackableUrl(found.start, found.end, error.reason)
        if isinstance(found, DetectedUrl):
            result.urls.append(found)
            position = found.end
            continue
        if found is not None and found.reason:
            result.untrackable.append(found)
        position = match.end() if match["bare"] is not None else max(_token_end(body, match.end()), found.end if found else 0)
    return result


def _token_end(body: str, position: int) -> int:
    match = _TOKEN.match(body, position)
    assert match is not None
    return match.end()


def _url_with_scheme(body: str, match: re.Match[str]) -> DetectedUrl | UntrackableUrl | None:
    """Return the URL that begins with the scheme at `match`, or the reason why it is not usable."""
    start, position = match.span()

    def reject(reason: str) -> UntrackableUrl:
        return UntrackableUrl(start, _token_end(body, position), reason)

    authority = _AUTHORITY.match(body, position)
    assert authority is not None
    if not authority[0] and body[position : position + 1] == " ":
        following = _CANDIDATE.match(body, position + 1)
        if following is None or following["bare"] is None:
            return None
        return UntrackableUrl(start, _token_end(body, position + 1), "has a space after its scheme")
    if authority[0].lower() in ("http:", "https:"):
        return reject("has two schemes")
    if "@" in authority[0] and not _SENTENCE_BEFORE_AT.match(authority[0]):
        return reject("must not contain a user name or password before its host")
    host_end = _host_end(body, position)
    if host_end is None:
        return reject("has a host without a dot" if authority[0][:1].isalnum() else "")
    port = _PORT.match(body, host_end)
    if port is not None and not (len(port[1]) <= 5 and 1 <= int(port[1]) <= 65535):
        return reject(f"has the port {port[1][:10]!r}; a port must be a number from 1 to 65535")
    rest = port.end() if port else host_end
    end = find_end(body, start, rest) if body[rest : rest + 1] in ("/", "?", "#") else rest
    if body.startswith("://", end) or (body[end : end + 1] == ":" and body.startswith("//", end + 1)):
        return reject("has two schemes")
    if body[end : end + 1] == "@":
        return reject("must not contain a user name or password before its host")
    if body[end : end + 1] == "\\" and body[end + 1 : end + 2] not in ("", '"', "'"):
        return reject("contains a backslash")
    if body[end : end + 1] == '"' and body[end - 1] == "=" and body[end + 1 : end + 2].isalnum():
        return reject('contains "; write %22 instead')
    if end == rest and body[end : end + 1] == "." and body[end + 1 : end + 2] in ("/", "?", "#"):
        return reject("has a host that ends with a dot")
    return DetectedUrl(start, end, body[start:end])


def _host_end(body: str, start: int) -> int | None:
    """Return the end of the host at `start`. Return None if the text there cannot be the host of a URL with a scheme (rule 1)."""
    address = _IPV6.match(body, start)
    if address is not None:
        return address.end()
    ascii_part = _ASCII_HOST.match(body, start)
    host = ascii_part[0] if ascii_part else ""
    end = start + len(host)
    if _is_host_character(body, end):
        # In some scripts, people write no space after a URL. The host then ends before the first character of such a script.
        if not _has_known_suffix(host):
            international = _international_host_end(body, start)
            if international is not None:
                return international
    elif body[end : end + 1] == "." and _is_host_character(body, end + 1) and not _has_known_suffix(host):
        international = _international_host_end(body, start)
        if international is not None:
            return international
    host = host.rstrip("-_")
    end = start + len(host)
    if body[end : end + 1] not in ("/", "?", "#", ":"):
        host = _without_sentence(host)
    if "." not in host and host.lower() != "localhost" and _IPV4.fullmatch(host) is None:
        return None
    return start + len(host)


def _without_sentence(host: str) -> str:
    """Return a host without the first word of the next sentence, for example `shop.example` for `shop.example.Reply STOP`."""
    found = _SENTENCE.search(host)
    if found is None or not _has_known_suffix(host[: found.start()]) or host[: found.start()] != host[: found.start()].lower():
        last = host.rpartition(".")
        return last[0] if not _has_known_suffix(host) and _has_known_suffix(last[0]) and last[0].count(".") else host
    return host[: found.start()]


def _has_known_suffix(host: str) -> bool:
    last = host.rpartition(".")
    return bool(last[0]) and (last[2].lower() in _RESERVED or _IPV4.fullmatch(host) is not None or public_suffix(host) is not None)


def _is_host_character(body: str, position: int) -> bool:
    character = body[position : position + 1]
    return bool(character) and not character.isascii() and _in_label(character)


def _in_label(character: str) -> bool:
    """Return whether a non-ASCII character may be in a label of an internationalized domain name (IDN): a letter, a mark, a digit,
    an emoji or a joiner of emoji. The caller checks ASCII letters, digits, hyphens and underscores itself."""
    category = unicodedata.category(character)
    return category[0] in "LM" or category in ("Nd", "So", "Sk") or (character in "\u200c\u200d")


def _international_host_end(body: str, start: int) -> int | None:
    """Return the position after the internationalized domain name (IDN) at `start`. Return None if there is none.

    The last label must begin with a known top-level domain, because text may follow the name without a space. A last label of at
    least two characters that is entirely ASCII ends the name even if no known top-level domain is in it."""
    end = start
    while end < len(body) and (
        body[end] in "-_"
        or (body[end].isascii() and body[end].isalnum())
        or (not body[end].isascii() and _in_label(body[end]))
        or (body[end] == "." and end > start and body[end - 1] != "." and _is_label_start(body, end + 1))
    ):
        end += 1
    host = body[start:end]
    name, _, last = host.rpartition(".")
    if not name:
        return None
    # Text may follow the host without a space, so the longest known top-level domain at the start of the last label is used.
    for length in range(len(last), 1, -1):
        label = last[:length]
        if label.lower() in _RESERVED or public_suffix(f"{name}.{label}") is not None:
            return start + len(name) + 1 + length
        if length == len(last) and label.isascii():
            return end
    return None


def _is_label_start(body: str, position: int) -> bool:
    character = body[position : position + 1]
    return bool(character) and (character.isalnum() or (not character.isascii() and _in_label(character)))


def _bare_url(body: str, match: re.Match[str]) -> DetectedUrl | UntrackableUrl | None:
    """Return the URL that begins with the host without a scheme at `match`; None if rules 2 to 4 reject it."""
    host, (start, end) = match["bare"], match.span()
    if _begins_inside_token(body, start) or not all(_is_of_one_script(label) for label in host.split(".")):
        return None
    port = _BARE_PORT.match(body, end)
    host_end = end
    if port is not None:
        end = port.end()
    if body[end : end + 1] == "/" or _BARE_QUERY.match(body, end):
        end = find_end(body, start, end)
    if (end == host_end or port) and body[end : end + 1] and _BARE_CONTINUES.match(body, end):
        return None
    if body[end : end + 1] in ("@", "\\") and body[end + 1 : end + 2] not in ("", '"', "'", " "):
        return None
    verdict = is_bare_domain(body, start, end, host, body[host_end:end])
    if verdict and _begins_with_other_word(host):
        return UntrackableUrl(start, end, "is a bare domain directly after another word; write a space or https:// before it")
    if verdict is None:
        return UntrackableUrl(start, end, "is a bare domain; write https:// before it")
    return DetectedUrl(start, end, "http://" + body[start:end]) if verdict else None


def _begins_inside_token(body: str, start: int) -> bool:
    """Return whether the host at this position, which has no scheme, is a part of a longer word, e-mail address or number."""
    before = body[start - 1 : start] if start else ""
    if not before:
        return False
    if before in _NOT_BEFORE_BARE:
        # Hebrew and Arabic texts attach a preposition to a URL with a hyphen.
        is_attached = before == "-" and start > 1 and unicodedata.bidirectional(body[start - 2]) in ("R", "AL")
        return not is_attached
    if before == " ":
        return start > 2 and body[start - 2] == "@" and (body[start - 3].isalnum() or body[start - 3] == "_")
    if before == ":" and re.search(r"https?:$", body[max(start - 6, 0) : start], re.IGNORECASE):
        return True
    if before.isascii():
        return False
    if before in "\u00ad\uff20\u200c\u200d":
        return True
    return unicodedata.category(before)[0] in "LMN" and before != "\ufe0f" and _SPACELESS.match(before) is None


def _begins_with_other_word(host: str) -> bool:
    """Return whether the first labels of a host without a scheme are a word of the sentence and not part of a URL: `e.g.shop.com`,
    `STOP.shop.com`."""
    labels = host.removesuffix("." + (public_suffix(host) or "")).split(".")
    if _ABBREVIATION.match(host) and len(labels) > 1:
        return True
    first = "".join(filter(str.isalpha, labels[0]))
    return len(labels) > 1 and len(first) > 1 and first.isupper() and first != "WWW" and labels[-1].islower()


def _is_of_one_script(label: str) -> bool:
    """Return whether a label of a host has letters of one script only. A label that mixes ASCII letters with Greek or Cyrillic
    letters is two words without a space between them."""
    if label.isascii():
        return True
    others = any("\u0370" <= character <= "\u052f" or "\u1f00" <= character <= "\u1fff" for character in label)
    return not (others and any(character.isascii() and character.isalpha() for character in label))
