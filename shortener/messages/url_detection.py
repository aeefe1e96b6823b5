"""Detection: the URLs in a text that has no directives for them (`track: first_url` and `all_urls`).

Promises: each URL found is one that `destinations.parse_destination` accepts; what cannot be tracked is left as it is. A text whose
full stops lack a space ("Ok.so", "hi.how") is far more common than an unusual domain, and a link put in the middle of a sentence
spoils the message, while an unfound domain still reaches the handset as it was written. So:

1. `http://` and `https://` are taken wherever they stand, if the host has a dot, is an IP address or is `localhost`.
2. `www.` is taken if its domain ends in a public suffix of ICANN's.
3. Any other domain is bare. It is of Latin, Greek or Cyrillic letters, stands free (before it none of those letters, digits and
   `_ @ . / \\ = & % # + ~ $ -`, after it neither such letters nor `_ @ = +`), and has a name before a public suffix of ICANN's.
   Besides,
   a. a suffix that is no word (`.com`, `.org`, `.co.uk`, `.com.au`, ...: _GENERIC, _SECOND_LEVEL) is enough;
   b. a country's that neither is a word nor begins sentences (`.de`, `.fr`, `.jp`: _COUNTRIES) wants a name of three characters
      or more, and small letters;
   c. every other one (`.me`, `.so`, `.info`, `.how`, ...) wants a path after it, as in `t.me/shop`.
   In b and c a capital in the suffix (`Yes.No/maybe`, `hi.How`) is the start of a sentence, unless the whole host is in capitals
   and has a path. In a, save `.net`, it is taken after a name of three characters, since phones write `Yahoo.Com`.
4. A query directly after a bare host must hold a `=`, a port must be followed by a path or have four digits.

A URL ends before white space, quotes, angle brackets, `|`, a backslash, CJK punctuation, and `,` or `;` before the next http://;
punctuation at its end and closing brackets that it does not open are left to the sentence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from publicsuffixlist import PublicSuffixList

from shortener.urls import DestinationError, parse_destination

_GENERIC = frozenset(["com", "net", "org", "edu", "gov", "mil", "biz", "mobi", "xyz"])
_CAPITALISED = _GENERIC - {"net"}  # "Net" begins sentences
_SECOND_LEVEL = frozenset(["ac", "co", "com", "edu", "gob", "gov", "gouv", "ltd", "net", "nhs", "org", "plc"])
_COUNTRIES = re.compile(
    "ae|ar|bg|br|ch|cl|cz|de|dk|ee|fi|fr|gr|hk|hr|hu|ie|jp|ke|kr|kz|lt|mx|nl|nz|pk|pl|pt|ro|sg|sk|tr|tw|ua|uk|uy|vn|za|рф|укр"
)

# Within a URL: anything but what ends one. The ranges are control characters, invisible format characters, and CJK punctuation
# with full-width forms.
_INSIDE = (
    r"[^\s\x00-\x20\x7f-\xa0\xad<>\"`\\|“”„‘’‚«»‹›…,;\u200b\u200e\u200f\u2028-\u202f\u2060-\u206f\u3000-\u303f\ufeff\uff00-\uffef]"
)
_TAIL = rf"(?:{_INSIDE}++|[,;](?!https?://))*+"
_LETTER = r"[0-9A-Za-z\u00c0-\u024f\u0370-\u052f]"
_LABEL = rf"{_LETTER}(?:(?:{_LETTER}|-)*{_LETTER})?"

_HINT = re.compile(r"\w\.\w|://")
_CANDIDATE = re.compile(
    rf"""
      https?://(?![^\s/?\#@]*@)
      (?P<host>\[[0-9a-f:.]+\]|\w[\w-]*+(?:\.[\w-]++)*+)
      (?P<rest>(?::[0-9]{{1,5}})?+(?:[/?\#]{_TAIL})?+)
      (?!@|://|\\[^"']|\.[/?\#])
    |
      (?<!{_LETTER})(?<![_@./\\=&%\#+~$-])(?<!\w@[ ])
      (?P<bare>(?>{_LABEL}(?:\.(?!https?://){_LABEL})++))
      (?P<bare_rest>(?::(?:[0-9]{{1,5}}(?=/)|[0-9]{{4,5}}(?!\w)))?+(?:/{_TAIL}|\?(?=[\w.%-]+=){_TAIL})?+)
      (?!{_LETTER}|[_@=+]|[?-]\w|\\[^"']|\.[/?\#])
    """,
    re.IGNORECASE | re.VERBOSE,
)
_ASCII = re.compile(r"[\x21-\x7e]+")
_IP = re.compile(r"\[.+\]|[0-9]+(?:\.[0-9]+){3}")
_PUNCTUATION = ".,;:!?'*~¡¿"


@dataclass(frozen=True, slots=True)
class DetectedUrl:
    """`text[start:end]` is the URL as it stands in the text; `url` has a scheme: `http://` if it had none."""

    start: int
    end: int
    url: str


def find_urls(body: str) -> list[DetectedUrl]:
    """The URLs in the order of the text, none overlapping. Never fails."""
    if _HINT.search(body) is None:
        return []
    found = []
    for match in _CANDIDATE.finditer(body):
        text = _explicit(match) if match["bare"] is None else _bare(match)
        if text is None:
            continue
        url = text if match["bare"] is None else "http://" + text
        try:
            parse_destination(url)
        except DestinationError:
            continue
        found.append(DetectedUrl(match.start(), match.start() + len(text), url))
    return found


def _explicit(match: re.Match[str]) -> str | None:
    """The URL behind http://, or None."""
    host, rest = match["host"], match["rest"]
    last = host.rpartition(".")[2]
    if not last.isascii() and _suffix(host) is None:
        # Scripts without spaces: the host ends where they begin.
        ascii_part = _ASCII.match(host)
        if ascii_part is None:
            return None
        host, rest = ascii_part[0].rstrip(".-"), ""
    if "." not in host and host.lower() != "localhost" and _IP.fullmatch(host) is None:
        return None
    return match[0][: match.start("host") - match.start()] + host + _trim(rest)


def _bare(match: re.Match[str]) -> str | None:
    """The URL without a scheme, or None."""
    host, rest = match["bare"], _trim(match["bare_rest"])
    suffix = _suffix(host)
    if suffix is None:
        return None
    if host[:4].lower() == "www.":
        return host + rest if len(host) > len("www.") + len(suffix) or "." in suffix else None
    name, _, top = host.rpartition(".")
    if suffix == host.lower():
        suffix = top.lower()  # gov.uk is a suffix, and a site
    else:
        name = host[: -len(suffix) - 1]
    name = name.rpartition(".")[2]
    second, _, country = suffix.partition(".")
    small = top.islower() or (host.isupper() and "/" in rest)
    if suffix in _GENERIC or (country and second in _SECOND_LEVEL):
        taken = small or host.isupper() or (len(name) >= 3 and (country or suffix in _CAPITALISED))
    elif len(name) >= 3 and _COUNTRIES.fullmatch(suffix):
        taken = small
    else:
        taken = small and len(rest) > 1 and rest[0] == "/" and not name.isdigit()
    return host + rest if taken else None


def _suffix(host: str) -> str | None:
    suffix: str | None = _suffixes().publicsuffix(host)
    return suffix


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList(only_icann=True, accept_unknown=False)


def _trim(rest: str) -> str:
    """`rest` without the punctuation of the sentence around it."""
    end = len(rest)
    unopened = {closing: rest.count(closing) - rest.count(opening) for opening, closing in ("()", "[]", "{}")}
    while end:
        last = rest[end - 1]
        if unopened.get(last, 0) > 0:
            unopened[last] -= 1
        elif last not in _PUNCTUATION:
            break
        end -= 1
    return rest[:end]
