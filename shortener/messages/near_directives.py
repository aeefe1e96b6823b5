"""This module finds mistyped directives. A message with a mistyped directive must be rejected, because otherwise its raw text
reaches the phone.

Keyboards and editors change characters (`＃`, `（`, a zero-width space), programs escape them (`&#40;`, `%28`), and people mistype
(`##track("...")`, `#trak("...")`). For each character that is similar to `#`, the search copies the text after it and normalises
the copy. Three regular expressions (_NEAR, _MISTYPED, _SPLIT) then find all forms. A correct name is reported if a parenthesis
directly follows it, or if a quote follows. A mistyped name, and a name before `:` or `=`, is reported only if a quoted URL follows.
Therefore `#track (see below)`, `#tracker("x")` and hashtags are not reported.
"""
# Tested by tests/messages/test_directives.py

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

# The number of characters after a `#` that the search examines. It is sufficient for the longest form of a directive with an
# invisible character after every letter.
_MAX_WINDOW_CHARACTERS = 64
_SIGN = re.compile(r"[#＃﹟♯]|&(?:amp;)*(?:#0*35|#x0*23|num);|%(?:25)*23", re.IGNORECASE)
# The first characters of all forms of the sign `#`. The search first looks for these characters, because this is ten times as
# fast as a search for the complete forms.
_SIGN_START = re.compile(r"[#＃﹟♯&%]")
# A regular expression for an opening parenthesis that a program has escaped (for HTML, a URL or Markdown), and for brackets that
# look like a parenthesis. The search replaces each match by `❨`.
_OPENING = re.compile(r"&(?:amp;)*(?:#0*40|#x0*28|lpar);|%(?:25)*28|\\+\(|[❨❪❬❲⟨⟪⟬⦅⦗〈《〔〖〘〚⸨﴾]", re.IGNORECASE)
# The first characters of all forms that `_SIGN` and `_OPENING` match.
_ESCAPED_STARTS = frozenset("#＃﹟♯&%\\❨❪❬❲⟨⟪⟬⦅⦗〈《〔〖〘〚⸨﴾")
# A text that the search need not normalise: ASCII without an escaped or invisible character. A short text may contain thousands of
# signs, and normalising the text after a sign takes 70 µs.
_PLAIN = re.compile(r"[\t\n\r\x20-$'-\[\]-\x7e]*")  # without % and & (between $ and ') and without the backslash
_LOOK_ALIKES = str.maketrans("аасекорхтгυιАСЕКОРХТ", "aacekopxtrviACEKOPXT")
_QUOTE = (
    r"\\*(?:[\"'“”„‘’‚«»‹›「」『』`´]|%(?:25)*2[27]|"
    r"&(?:amp;)*(?:quot|apos|[lr][ds]?quo|(?:sb|bd)quo|[lr]s?aquo|#\w+);)"
)
_NAME = r"track[\s_-]*(?:url)?"
_URL = r"\s*(?:https?(?::|%)|[a-z][a-z0-9+.-]*:\\?/)"
_BRACKET = r"[(\[{<【❨]\s*"
_MARKS = r"(?:</?[a-z]{1,6}>|[^\w\s#]){1,4}\s*"  # text between the name and the parenthesis, such as `</b>`, `**` and a full stop
# A regular expression for the name of a directive followed directly by a parenthesis, or by a quote with or without a bracket.
_NEAR = re.compile(
    rf"#+(?:track(?:url)?\(|\s*{_NAME}\s*(?:(?:(?:[:=]\s*)?{_BRACKET})?{_QUOTE}(?=\s*\S*\)|{_URL})|[:=]\s*{_QUOTE}(?={_URL})))|"
    rf"#+{_NAME}{_MARKS}{_BRACKET}{_QUOTE}{_URL}",
    re.IGNORECASE,
)
_MISTYPED = re.compile(rf"#+\s*(\w{{4,10}})\s*{_BRACKET}{_QUOTE}{_URL}", re.IGNORECASE)
# _SPLIT matches a name with blanks or signs inside, in front of a quoted URL. _SEPARATORS matches these blanks and signs.
_SPLIT = re.compile(rf"#+([^(\[{{<【❨\"'“”]{{5,32}}?)\s*{_BRACKET}{_QUOTE}{_URL}", re.IGNORECASE)
_SEPARATORS = re.compile(r"&(?:#?\w{1,8});|%(?:25)*20|[\W_]")
_NAMES = ("track", "trackurl")


def count_signs(body: str) -> int:
    """Return the number of characters at which a mistyped directive may begin. For each of these characters, the search examines
    the text after it, which can take 100 µs."""
    return len(_SIGN_START.findall(body))


class NearDirective(NamedTuple):
    """A mistyped directive, which begins with `body[start:end]`. `reason` is an explanation for the sender."""

    start: int
    end: int
    reason: str


def find_near_directive(body: str, start: int, end: int | None = None) -> NearDirective | None:
    """Return the first mistyped directive that begins between `start` and `end`; None if there is none.

    The range must not contain the start of a correct directive, because the search would report that directive too."""
    limit = len(body) if end is None else end
    first = _SIGN_START.search(body, start, limit)
    if first is None:
        return None
    for sign in _SIGN.finditer(body, first.start()):
        if sign.start() >= limit:
            return None
        if sign.start() > start and body[sign.start() - 1] == "#":
            continue  # `##track(` is one mistyped directive, so it is reported only once
        length = _near_length(body, sign.start())
        if length:
            reason = 'this text resembles a directive; write #track("url") or #trackurl("url","label")'
            return NearDirective(sign.start(), sign.start() + length, reason)
    return None


def _near_length(body: str, position: int) -> int:
    """Return the length of the mistyped directive that begins at `position`; 0 if there is none."""
    window = body[position : position + _MAX_WINDOW_CHARACTERS]
    text, lengths = _normalise(window)
    found = _NEAR.match(text)
    if found is None:
        found = _MISTYPED.match(text)
        if found is None or not any(_is_one_edit(found[1].lower(), name) for name in _NAMES):
            found = _SPLIT.match(text)
            if found is None or _SEPARATORS.sub("", found[1]).lower() not in _NAMES:
                return 0
    return lengths[found.end() - 1]


def _normalise(window: str) -> tuple[str, list[int]]:
    """Replace look-alike characters by plain characters, and remove invisible characters.

    Return the new text, and for each of its characters the end position of the original character."""
    if _PLAIN.fullmatch(window):
        return window, list(range(1, len(window) + 1))
    text: list[str] = []
    ends: list[int] = []
    position = 0
    while position < len(window):
        character, end = window[position], position + 1
        if character in _ESCAPED_STARTS:
            sign = _SIGN.match(window, position) if not text or text[-1] == "#" else None
            escaped = sign or _OPENING.match(window, position)
            if escaped:
                character, end = "#" if sign else "❨", escaped.end()
        for plain in _plain_form(character):
            text.append(plain)
            ends.append(end)
        position = end
    return "".join(text), ends


@lru_cache(maxsize=4096)
def _plain_form(character: str) -> str:
    """Return the plain characters that replace a character. Return "" for an invisible character."""
    category = unicodedata.category(character)
    if category in ("Cf", "Mn", "Me") or character in "\u115f\u1160\u2800\u3164\uffa0":
        return ""
    if category == "Cc" and not character.isspace():
        return ""
    return unicodedata.normalize("NFKC", character).translate(_LOOK_ALIKES)


def _is_one_edit(word: str, name: str) -> bool:
    """Return whether two names differ by one letter that was omitted, added, changed, or exchanged with the next letter."""
    if word == name or abs(len(word) - len(name)) > 1:
        return False
    if len(word) == len(name):
        different = [index for index in range(len(name)) if word[index] != name[index]]
        is_exchanged = (
            len(different) == 2
            and different[1] == different[0] + 1
            and word[different[0]] == name[different[1]]
            and word[different[1]] == name[different[0]]
        )
        return len(different) == 1 or is_exchanged
    shorter, longer = sorted((word, name), key=len)
    return any(longer[:index] + longer[index + 1 :] == shorter for index in range(len(longer)))
