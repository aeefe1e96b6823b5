r"""`#track("url")` and `#trackurl("url","label")` in the body of a message (Syniverse's directives).

Promises: what is a directive is either understood whole or refused with the place and the reason, never sent out half-rewritten.
In doubt a text is refused rather than sent with a raw directive in it:

- A directive is `#track` or `#trackurl`, in any case (phones write `#Track`), and `(`. Blanks between the two are taken when
  a quote follows. `#track` without a parenthesis, `#tracker`, `#tracking("x")`, `#track (see below)` and `foo#track("x")`, where an
  ASCII letter, digit, `_` or `#` stands before, are plain text. Other letters may stand before it: not every script puts spaces.
- Quotes are `"…"`, `'…'`, `“…”` or `‘…’`; a curly pair may be turned either way. The first closing quote ends the argument.
- `\"` in place of `"`, as pasted from a JSON sample, is taken: an argument that opens with backslashes closes with a quote
  with or without them.
- Within an argument `\"`, `\'`, `\\` and `\/` (JSON again) stand for the second character; any other backslash for itself.
- Between parentheses, quotes and comma any white space may stand. Within quotes nothing is trimmed.
- `#track` takes one argument, `#trackurl` exactly two; neither is empty. A label is at most MAX_LABEL characters of plain text.
- Everything between the quotes is the argument, `)`, `,`, `#` and `#track(` included; it is not scanned again.

The URL itself is checked by `destinations.parse_destination`. Fails with `DirectiveError`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

#: Directives in one message; beyond this it is a mistake (a 1,600-character message holds 50 short links and nothing else).
MAX_DIRECTIVES = 20
#: Characters of a label.
MAX_LABEL_CHARACTERS = 100

_QUOTES = "\"'“”„‘’‚"
_START = re.compile(rf"(?<![A-Za-z0-9_#])#(track|trackurl)(?:\(|[ \t]+\((?=\s*\\*[{_QUOTES}]))", re.IGNORECASE | re.ASCII)
_OPENING = re.compile(rf"\s*(\\*)([{_QUOTES}])")
_CLOSERS = {'"': '"', "'": "'", **dict.fromkeys("“”„", "“”"), **dict.fromkeys("‘’‚", "‘’")}
# From behind the opening quote to the first closing one: as a person writes it, and as pasted with backslashes.
_PLAIN = {opening: re.compile(rf"((?:[^\\{closers}]++|\\.)*+)[{closers}]", re.DOTALL) for opening, closers in _CLOSERS.items()}
_PASTED = {opening: re.compile(rf"([^{closers}]*+)[{closers}]") for opening, closers in _CLOSERS.items()}
_ESCAPE = re.compile(rf"\\([\\/{_QUOTES}])")
_GAP = re.compile(r"\s*")
# The label goes into databases, JSON and spreadsheets; PostgreSQL takes neither NUL nor half a character.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class DirectiveError(Exception):
    """A directive is malformed. `position` counts characters from the start of the body; `reason` is for a person."""

    def __init__(self, position: int, reason: str) -> None:
        self.position = position
        self.reason = reason
        super().__init__(f"{reason} (position {position})")


@dataclass(frozen=True, slots=True)
class Directive:
    """`body[start:end]` is the directive, in characters."""

    start: int
    end: int
    url: str
    label: str | None
    kind: Literal["track", "trackurl"]


def find_directives(body: str) -> list[Directive]:
    """The directives in the order of the text, none overlapping. Raises DirectiveError at the first malformed one."""
    if "#" not in body:
        return []
    directives: list[Directive] = []
    match = _START.search(body)
    while match is not None:
        if len(directives) == MAX_DIRECTIVES:
            raise DirectiveError(match.start(), f"more than {MAX_DIRECTIVES} directives in one message")
        directive = _parse(body, match)
        directives.append(directive)
        match = _START.search(body, directive.end)
    return directives


def render(body: str, directives: Sequence[Directive], replacements: Sequence[str]) -> str:
    """`body` with each directive replaced by the text at its place in `replacements`; what replaces one is not looked at again."""
    parts: list[str] = []
    end = 0
    for directive, replacement in zip(directives, replacements, strict=True):
        parts += (body[end : directive.start], replacement)
        end = directive.end
    parts.append(body[end:])
    return "".join(parts)


def _parse(body: str, start: re.Match[str]) -> Directive:
    url, position = _argument(body, start.end(), "a URL in quotes")
    if not url:
        raise DirectiveError(start.start(), "the URL is empty")
    if start[1].lower() == "track":
        if body[position : position + 1] == ",":
            raise DirectiveError(position, "#track takes a URL and nothing else; #trackurl takes a label as well")
        return Directive(start.start(), _closed(body, position, start.start()), url, None, "track")
    if body[position : position + 1] != ",":
        if body[position : position + 1] == ")":
            raise DirectiveError(position, '#trackurl wants a label after the URL: #trackurl("url","label")')
        _refuse(body, position, '"," and a label')
    label_at = position + 1
    label, position = _argument(body, label_at, "a label in quotes")
    if not label.strip():
        raise DirectiveError(label_at, "the label is empty")
    if len(label) > MAX_LABEL_CHARACTERS:
        raise DirectiveError(label_at, f"the label is longer than {MAX_LABEL_CHARACTERS} characters")
    if _UNPRINTABLE.search(label):
        raise DirectiveError(label_at, "the label holds a control character")
    return Directive(start.start(), _closed(body, position, start.start()), url, label, "trackurl")


def _argument(body: str, position: int, wanted: str) -> tuple[str, int]:
    """A quoted argument from `position`, and where the next sign after it stands."""
    opening = _OPENING.match(body, position)
    if opening is None:
        _refuse(body, _skip(body, position), wanted)
    backslashes, quote = opening.groups()
    closed = (_PASTED if backslashes else _PLAIN)[quote].match(body, opening.end())
    if closed is None:
        raise DirectiveError(opening.start(2), f"the quote {quote} is never closed")
    text = closed[1].rstrip("\\") if backslashes else closed[1]
    return _ESCAPE.sub(r"\1", text), _skip(body, closed.end())


def _closed(body: str, position: int, start: int) -> int:
    """Where the directive ends; `position` is where its parenthesis should close."""
    if position >= len(body):
        raise DirectiveError(start, "the parenthesis is never closed")
    if body[position] != ")":
        _refuse(body, position, '")"')
    return position + 1


def _skip(body: str, position: int) -> int:
    gap = _GAP.match(body, position)
    assert gap is not None
    return gap.end()


def _refuse(body: str, position: int, wanted: str) -> NoReturn:
    found = repr(body[position]) if position < len(body) else "the end of the text"
    raise DirectiveError(position, f"expected {wanted}, found {found}")
