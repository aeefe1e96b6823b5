"""URL detection in plain text, for `track: first_url` and `track: all_urls`.

Guarantee: `urls.parse_destination` accepts each detected URL, and any other text stays unchanged. Detection is conservative:
full stops without a space ("Ok.so", "hi.how") are far more common than unusual domains. A short link in the middle of a sentence
damages the message, while an undetected domain still reaches the handset as the sender wrote it. The rules:

1. `http://` and `https://` URLs are detected anywhere, if the host has a dot, is an IP address or is `localhost`.
2. `www.` starts a URL if its domain ends in a public suffix of the ICANN section of the Public Suffix List.
3. Any other domain is a bare domain. All of the following must hold:
   - It consists of Latin, Greek or Cyrillic letters.
   - No such letter, digit or `_ @ . / \\ = & % # + ~ $ -` directly precedes it. No such letter or `_ @ = +` directly follows it.
   - It has a name before a public ICANN suffix. The kind of suffix decides the rest:
   a. A suffix that is not a word is sufficient (`.com`, `.org`, `.co.uk`, `.com.au`, ...: _GENERIC, _SECOND_LEVEL).
   b. A country suffix that is not a word and does not begin sentences (`.de`, `.fr`, `.jp`: _COUNTRIES) requires a name of at
      least three characters, and a suffix in lower case.
   c. Every other suffix (`.me`, `.so`, `.info`, `.how`, ...) requires a path, as in `t.me/shop`.
   In b and c a capital letter in the suffix (`Yes.No/maybe`, `hi.How`) means that a sentence starts there, unless the whole host
   is in capitals and has a path. In a, except for `.net`, a capitalised suffix is accepted after a name of at least three
   characters, because phones write `Yahoo.Com`.
4. A query directly after a bare host must contain a `=`. A port must be followed by a path or have four digits.

A URL ends before white space, quotes, angle brackets, `|`, a backslash, CJK punctuation, and before a `,` or `;` that precedes
another http://. Trailing punctuation, and closing brackets that the URL does not open, belong to the sentence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from publicsuffixlist import PublicSuffixList

from shortener.urls import UrlError, parse_destination

_GENERIC = frozenset(["com", "net", "org", "edu", "gov", "mil", "biz", "mobi", "xyz"])
_CAPITALISED = _GENERIC - {"net"}  # sentences begin with "Net"
_SECOND_LEVEL = frozenset(["ac", "co", "com", "edu", "gob", "gov", "gouv", "ltd", "net", "nhs", "org", "plc"])
_COUNTRIES = re.compile(
    "ae|ar|bg|br|ch|cl|cz|de|dk|ee|fi|fr|gr|hk|hr|hu|ie|jp|ke|kr|kz|lt|mx|nl|nz|pk|pl|pt|ro|sg|sk|tr|tw|ua|uk|uy|vn|za|рф|укр"
)

# A character inside a URL: any character that does not end one. The excluded ranges are control characters, invisible format
# characters, and CJK punctuation with full-width forms.
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
    """A URL in a text: `text[start:end]`, counted in characters. `url` always has a scheme; the default is `http://`."""

    start: int
    end: int
    url: str


def find_urls(body: str) -> list[DetectedUrl]:
    """Return all URLs in text order, without overlaps. Never raise."""
    if _HINT.search(body) is None:
        return []
    detected = []
    for match in _CANDIDATE.finditer(body):
        text = _url_with_scheme(match) if match["bare"] is None else _bare_url(match)
        if text is None:
            continue
        url = text if match["bare"] is None else "http://" + text
        try:
            parse_destination(url)
        except UrlError:
            continue
        detected.append(DetectedUrl(match.start(), match.start() + len(text), url))
    return detected


def _url_with_scheme(match: re.Match[str]) -> str | None:
    """Return the URL including its scheme, or None if rule 1 rejects it."""
    host, rest = match["host"], match["rest"]
    last = host.rpartition(".")[2]
    if not last.isascii() and _suffix(host) is None:
        # Some scripts put no space after a URL: the host ends at the first character of such a script.
        ascii_part = _ASCII.match(host)
        if ascii_part is None:
            return None
        host, rest = ascii_part[0].rstrip(".-"), ""
    if "." not in host and host.lower() != "localhost" and _IP.fullmatch(host) is None:
        return None
    return match[0][: match.start("host") - match.start()] + host + _trim(rest)


def _bare_url(match: re.Match[str]) -> str | None:
    """Return the URL without a scheme, or None if rules 2 to 4 reject it."""
    host, rest = match["bare"], _trim(match["bare_rest"])
    suffix = _suffix(host)
    if suffix is None:
        return None
    if host[:4].lower() == "www.":
        return host + rest if len(host) > len("www.") + len(suffix) or "." in suffix else None
    name, _, top = host.rpartition(".")
    if suffix == host.lower():
        suffix = top.lower()  # for example gov.uk, which is both a suffix and a site
    else:
        name = host[: -len(suffix) - 1]
    name = name.rpartition(".")[2]
    second, _, country = suffix.partition(".")
    is_lower = top.islower() or (host.isupper() and "/" in rest)
    if suffix in _GENERIC or (country and second in _SECOND_LEVEL):
        is_url = is_lower or host.isupper() or (len(name) >= 3 and (country or suffix in _CAPITALISED))
    elif len(name) >= 3 and _COUNTRIES.fullmatch(suffix):
        is_url = is_lower
    else:
        is_url = is_lower and len(rest) > 1 and rest[0] == "/" and not name.isdigit()
    return host + rest if is_url else None


def _suffix(host: str) -> str | None:
    suffix: str | None = _public_suffixes().publicsuffix(host)
    return suffix


@cache
def _public_suffixes() -> PublicSuffixList:
    return PublicSuffixList(only_icann=True, accept_unknown=False)


def _trim(rest: str) -> str:
    """Return `rest` without trailing punctuation and without closing brackets that it does not open."""
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
