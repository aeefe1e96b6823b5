r"""Parser for `#track("url")` and `#trackurl("url","label")` in the body of a message (Syniverse's directives).

Guarantee: each directive is either parsed completely or rejected with its position and a reason. If the parser is in doubt, it
rejects the text, because a raw directive must never reach a handset. The grammar:

- A directive starts with `#track` or `#trackurl`, in any case (phones write `#Track`), followed by `(`. Blanks before the
  parenthesis are accepted if a quote follows it.
- The following are plain text: `#track` without a parenthesis, `#tracker`, `#tracking("x")`, `#track (see below)`, and any
  directive directly after an ASCII letter, digit, `_` or `#`. Other letters may precede a directive, because not every script
  puts spaces between words.
- The quotes are `"…"`, `'…'`, `“…”` or `‘…’`. A curly pair may be turned either way. The first closing quote ends the argument.
- `\"` is accepted instead of `"`, because people paste JSON samples. An argument that opens with backslashes closes with a quote
  with or without backslashes.
- Inside an argument, `\"`, `\'`, `\\` and `\/` (JSON again) mean the second character. Any other backslash is literal.
- White space is allowed between parentheses, quotes and comma. White space inside quotes is part of the argument.
- `#track` takes one argument. `#trackurl` takes exactly two. No argument may be empty. A label is plain text of at most
  MAX_LABEL_CHARACTERS characters.
- All text between the quotes is the argument, including `)`, `,`, `#` and `#track(`. The parser does not scan it again.

`urls.parse_destination` checks the URL itself. All errors are `DirectiveError`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NoReturn

#: Directives in one message. A 1,600-character message holds 50 short links and no other text, so more is a mistake.
MAX_DIRECTIVES = 20
MAX_LABEL_CHARACTERS = 100

_QUOTES = "\"'“”„‘’‚"
_START = re.compile(rf"(?<![A-Za-z0-9_#])#(track|trackurl)(?:\(|[ \t]+\((?=\s*\\*[{_QUOTES}]))", re.IGNORECASE | re.ASCII)
_OPENING = re.compile(rf"\s*(\\*)([{_QUOTES}])")
_CLOSERS = {'"': '"', "'": "'", **dict.fromkeys("“”„", "“”"), **dict.fromkeys("‘’‚", "‘’")}
# Both match from after the opening quote to the first closing quote: _PLAIN for typed text, _PASTED for a pasted JSON sample.
_PLAIN = {opening: re.compile(rf"((?:[^\\{closers}]++|\\.)*+)[{closers}]", re.DOTALL) for opening, closers in _CLOSERS.items()}
_PASTED = {opening: re.compile(rf"([^{closers}]*+)[{closers}]") for opening, closers in _CLOSERS.items()}
_ESCAPE = re.compile(rf"\\([\\/{_QUOTES}])")
_WHITE_SPACE = re.compile(r"\s*")
# Labels are stored in databases, JSON and spreadsheets. PostgreSQL accepts neither NUL nor a lone surrogate.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class DirectiveError(Exception):
    """A directive is malformed. `position` counts characters from the start of the body; `reason` is a text for people."""

    def __init__(self, position: int, reason: str) -> None:
        self.position = position
        self.reason = reason
        super().__init__(f"{reason} (position {position})")


@dataclass(frozen=True, slots=True)
class Directive:
    """A parsed directive: `body[start:end]`, counted in characters. `label` is None for `#track`."""

    start: int
    end: int
    url: str
    label: str | None
    kind: Literal["track", "trackurl"]


def find_directives(body: str) -> list[Directive]:
    """Return all directives in text order, without overlaps. Raise DirectiveError at the first malformed one."""
    if "#" not in body:
        return []
    directives: list[Directive] = []
    match = _START.search(body)
    while match is not None:
        if len(directives) == MAX_DIRECTIVES:
            raise DirectiveError(match.start(), f"there are more than {MAX_DIRECTIVES} directives in one message")
        directive = _parse(body, match)
        directives.append(directive)
        match = _START.search(body, directive.end)
    return directives


def _parse(body: str, start: re.Match[str]) -> Directive:
    url, position = _parse_argument(body, start.end(), "a URL in quotes")
    if not url:
        raise DirectiveError(start.start(), "the URL is empty")
    if start[1].lower() == "track":
        if body[position : position + 1] == ",":
            raise DirectiveError(position, "#track takes only a URL; use #trackurl for a URL with a label")
        return Directive(start.start(), _parse_closing(body, position, start.start()), url, None, "track")
    if body[position : position + 1] != ",":
        if body[position : position + 1] == ")":
            raise DirectiveError(position, '#trackurl requires a label after the URL: #trackurl("url","label")')
        _reject(body, position, '"," and a label')
    label_start = position + 1
    label, position = _parse_argument(body, label_start, "a label in quotes")
    if not label.strip():
        raise DirectiveError(label_start, "the label is empty")
    if len(label) > MAX_LABEL_CHARACTERS:
        raise DirectiveError(label_start, f"the label is longer than {MAX_LABEL_CHARACTERS} characters")
    if _UNPRINTABLE.search(label):
        raise DirectiveError(label_start, "the label contains a control character")
    return Directive(start.start(), _parse_closing(body, position, start.start()), url, label, "trackurl")


def _parse_argument(body: str, position: int, expected: str) -> tuple[str, int]:
    """Parse a quoted argument from `position`. Return it and the position of the next character that is not white space."""
    opening = _OPENING.match(body, position)
    if opening is None:
        _reject(body, _skip_white_space(body, position), expected)
    backslashes, quote = opening.groups()
    closing = (_PASTED if backslashes else _PLAIN)[quote].match(body, opening.end())
    if closing is None:
        raise DirectiveError(opening.start(2), f"the quote {quote} is never closed")
    text = closing[1].rstrip("\\") if backslashes else closing[1]
    return _ESCAPE.sub(r"\1", text), _skip_white_space(body, closing.end())


def _parse_closing(body: str, position: int, start: int) -> int:
    """Return the end of the directive that begins at `start`. The closing parenthesis must be at `position`."""
    if position >= len(body):
        raise DirectiveError(start, "the parenthesis is never closed")
    if body[position] != ")":
        _reject(body, position, '")"')
    return position + 1


def _skip_white_space(body: str, position: int) -> int:
    match = _WHITE_SPACE.match(body, position)
    assert match is not None
    return match.end()


def _reject(body: str, position: int, expected: str) -> NoReturn:
    found = repr(body[position]) if position < len(body) else "the end of the text"
    raise DirectiveError(position, f"expected {expected}, found {found}")
