"""This module finds macros in URLs: placeholders in braces, such as `{phone}`, and placeholders of other systems, such as
`%phone%`, which this service does not replace. `find_macros` yields every macro, whatever its name; the caller decides which
names it replaces. `macro_problems` checks destinations and fallback URLs. delivery/placeholders.py checks the URLs of trackers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote

_WORD = r"[A-Za-z][A-Za-z0-9_.-]{0,100}"
# Macros in braces, in the forms of common macro syntaxes: ${x}, #{x}, {{x}}, { x }, {_x}, {!x}, {x:raw}, {x|raw}. _BRACED finds
# plain braces. _ESCAPED finds braces that are percent-encoded once or twice.
_INSIDE = rf"(?:\s|%20)*[_!$]?({_WORD})(?:[:|][^{{}}&]*)?(?:\s|%20)*"
_BRACED = re.compile(rf"[$#]?\{{{{1,3}}{_INSIDE}\}}{{1,3}}")
_ESCAPED = re.compile(rf"(?:%(?:25)?7B){{1,3}}{_INSIDE}(?:%(?:25)?7D){{1,3}}", re.IGNORECASE)
# Macros in other syntaxes: <x>, __x__, %x%, %%x%%. A text such as %cafe%20 is not a macro, because %ca and %20 are
# percent-encoded bytes.
_OTHER_MACROS = re.compile(
    rf"<({_WORD})>|(?<!\w)__([A-Za-z0-9]+(?:_[A-Za-z0-9]+)*)__(?!\w)|%%({_WORD})%%"
    r"|%(?![0-9A-Fa-f]{2})([A-Za-z][\w-]*)%|%([A-Za-z][\w-]*)%(?![0-9A-Fa-f]{2})"
)
# The macro ||x||, and forms of <x>, #x#, %x% and ||x|| in which the signs are percent-encoded once or twice.
_PIPES = r"(?:\||%(?:25)?7C){2}"
_ENCODED_MACROS = re.compile(
    rf"%(?:25)?3C({_WORD})%(?:25)?3E|%(?:25)?23({_WORD})%(?:25)?23|%25({_WORD})%25|{_PIPES}({_WORD}){_PIPES}", re.IGNORECASE
)
# Macros of the form (x) and [x]. Directly after a name they are not macros, as in count(value), Users(phone) and user[phone]=.
_PARENTHESIS = re.compile(rf"(?<![\w)\]])\(({_WORD})\)")
_BRACKET = re.compile(rf"(\[|%5B)\[?({_WORD})\]?(\]|%5D)", re.IGNORECASE)
_AFTER_NAME = re.compile(r"(?:[\w)\]-]|%5D)\Z", re.IGNORECASE)
_SEPARATORS = re.compile(r"[_.-]")

# Placeholder names of other systems. Each value is the placeholder of this service that has the same meaning.
_SYNONYMS = {
    "clickid": "click_id",
    "cid": "click_id",
    "subid": "click_id",
    "externalid": "click_id",
    "clid": "click_id",
    "messageid": "message_id",
    "msgid": "message_id",
    "smsid": "message_id",
    "shortcode": "code",
    "linkcode": "code",
    "linkid": "code",
    "campaignid": "campaign",
    "campaignname": "campaign",
    "phone": "phone_sha256",
    "phonehash": "phone_sha256",
    "msisdn": "phone_sha256",
    "mobile": "phone_sha256",
    "recipient": "phone_sha256",
    "to": "phone_sha256",
    "number": "phone_sha256",
    "phonenumber": "phone_sha256",
}


class Macro(NamedTuple):
    """A macro in a URL. `position` is the index of its first character in the URL. `is_braced` is true for `{name}` and its
    variants, such as `{{name}}`."""

    text: str
    word: str
    position: int
    is_braced: bool


def find_macros(url: str, start: int = 0) -> Iterator[Macro]:
    """Yield each macro that begins at the index `start` of `url` or later: first the macros in braces, then the macros in other
    notations."""
    query = url.find("?", start)
    for found in _BRACED.finditer(url, start):
        yield Macro(found[0], found[1], found.start(), True)
    for pattern in (_ESCAPED, _OTHER_MACROS, _ENCODED_MACROS, _PARENTHESIS):
        for found in pattern.finditer(url, start):
            yield Macro(found[0], next(group for group in found.groups() if group is not None), found.start(), False)
    for found in _BRACKET.finditer(url, start):
        before = url[start : found.start()]
        is_key = 0 <= query < found.start() and "=" not in re.split("[?&;]", before)[-1]
        if not (is_key and _AFTER_NAME.search(before)):
            yield Macro(found[0], found[2], found.start(), False)


def url_warnings(url: str, names: Sequence[str]) -> list[str]:
    """Return the problems of a URL that its owner may have overlooked: `&amp;` from an HTML page, and the result of
    `macro_problems`. Each text continues a sentence that begins with "the destination"."""
    return [*entity_problems(url), *macro_problems(url, names)]


#: HTML entities in URLs that were copied from an HTML page: `&amp;`, `&quot;`, `&apos;`, and numeric entities of ASCII characters.
_ENTITY = re.compile(r"&(?:(amp|quot|apos)|#0*(3[3-9]|[4-9][0-9]|1[01][0-9]|12[0-6])|#x0*([2-7][0-9a-f]));", re.IGNORECASE)
_NAMED_ENTITIES = {"amp": "&", "quot": '"', "apos": "'"}


def entity_problems(url: str) -> list[str]:
    """Return one text about the first HTML entity in a URL, such as `&amp;` or `&#038;`. Return an empty list if there is none.
    Such a URL was copied from an HTML page.

    If the entity stays in the URL, the server receives the parameter `amp;NAME` instead of `NAME`, or nothing after the `#` of a
    numeric entity."""
    found = _ENTITY.search(url)
    if found is None:
        return []
    name, decimal, hexadecimal = found.groups()
    meant = _NAMED_ENTITIES[name.lower()] if name else chr(int(decimal) if decimal else int(hexadecimal, 16))
    return [f"contains {found[0]}, which is sent unchanged; write {meant if meant == '&' else quote(meant)}"]


def macro_problems(url: str, names: Sequence[str]) -> list[str]:
    """Explain why macros in a destination or fallback URL will not be replaced. Return one text for each such macro. The text
    continues a sentence that begins with "the destination".

    The service replaces only `{name}`, for each name in `names`."""
    if not any(sign in url for sign in "{%[(<_|"):
        return []
    problems: dict[str, None] = {}
    by_word = {_plain(name): name for name in names}
    exact = {f"{{{name}}}" for name in names}
    for macro in find_macros(url):
        # `#{name}` is not a macro of another system: the # begins the fragment of the URL, and {name} is replaced.
        if macro.is_braced and macro.text.removeprefix("#") in exact:
            continue
        word = _plain(macro.word)
        name = by_word.get(word)
        if name is None and (macro.is_braced or len(word) > len("number")):
            name = _SYNONYMS.get(word)
        if name is None and macro.is_braced:
            import difflib  # difflib is imported here, because only errors need it

            near = difflib.get_close_matches(word, by_word, n=1, cutoff=0.75)
            name = by_word[near[0]] if near else None
        if name is not None and name in names:
            problems[f"contains {macro.text}, which is not a placeholder; write {{{name}}}"] = None
        elif macro.is_braced:
            known = " ".join(f"{{{known}}}" for known in names)
            problems[f"contains {macro.text}, which is not a placeholder; known placeholders: {known}"] = None
    return list(problems)


def _plain(word: str) -> str:
    return _SEPARATORS.sub("", word).lower()
