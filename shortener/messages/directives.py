r"""Parser for `#track("url")` and `#trackurl("url","label")` in the body of a message (Syniverse's directives).

Guarantee: each directive is either parsed completely or rejected with its position and a reason. The parser rejects an ambiguous
directive, because a raw directive must never reach a handset. The grammar:

- A directive starts with `#track` or `#trackurl`, in any case (phones write `#Track`), followed by `(`. Blanks before the
  parenthesis are accepted if a quote follows it.
- The following are plain text: `#track` without a parenthesis, `#tracker`, `#tracking("x")`, `#track (see below)`.
- Text that resembles a directive is rejected: full-width characters, look-alike letters or invisible characters in it,
  `##track("url")`, `# track("url")`, `#track["https://..."]`, `#trak("https://...")` (`near_directives.py`).
- The quotes are `"…"`, `'…'`, `“…”`, `‘…’`, `«…»`, `‹…›`, or an HTML entity such as `&quot;`. The two quotes of a pair may be in
  either order. They may differ (`"…”`) if a comma or parenthesis follows. The first closing quote ends the argument.
- `\"` is accepted instead of `"`, because people paste JSON samples. If backslashes precede the opening quote, the closing quote
  may have backslashes or none.
- Inside an argument, `\"`, `\'`, `\\` and `\/` mean the second character, as in JSON. Any other backslash is literal. Entities
  are decoded only if the opening quote is an entity.
- White space is allowed between parentheses, quotes and comma. White space and invisible characters around a URL are removed.
- `#track` takes one argument. `#trackurl` takes exactly two. No argument may be empty. A label is plain text of at most
  MAX_LABEL_CHARACTERS characters.
- All text between the quotes is the argument, including `)`, `,`, `#` and `#track(`. The parser does not scan it again.

`urls.parse_destination` checks the URL itself. All errors are `DirectiveError`.
"""

from __future__ import annotations

import html
import re
from typing import Literal, NamedTuple, NoReturn

from shortener.messages.near_directives import find_near_directive
from shortener.urls import BLANKS, trim_url

#: The maximum number of directives in one message. A message of 1,600 characters has space for at most 50 short links without
#: other text, so this maximum is sufficient.
MAX_DIRECTIVES = 20
#: The directives of a text with more than MAX_DIRECTIVES are checked too, so that the sender gets all errors in one response. The
#: check ends after this number of directives, because a hostile text can have thousands whose quotes are never closed.
MAX_CHECKED_DIRECTIVES = 100
MAX_LABEL_CHARACTERS = 100

_DOUBLE, _SINGLE = '"“”„«»', "'‘’‚‹›"
_QUOTES = _DOUBLE + _SINGLE
_DOUBLE_ENTITY = "&(?:quot|ldquo|rdquo|bdquo|laquo|raquo|#34|#x22|#171|#187|#8220|#8221|#8222);"
_SINGLE_ENTITY = "&(?:apos|lsquo|rsquo|sbquo|#39|#x27|#8216|#8217);"
_BLANK = f"[{re.escape(BLANKS)}]"
_START = re.compile(
    rf"(?<!#)#(track|trackurl)(?:\(|[ \t]+\((?=\s*\\*(?:[{_QUOTES}]|{_DOUBLE_ENTITY}|{_SINGLE_ENTITY})))",
    re.IGNORECASE | re.ASCII,
)
_OPENING = re.compile(rf"{_BLANK}*(\\*)([{_QUOTES}]|{_DOUBLE_ENTITY}|{_SINGLE_ENTITY})", re.IGNORECASE)
_CLOSERS = {
    '"': '"',
    "'": "'",
    **dict.fromkeys("“”„", "“”"),
    **dict.fromkeys("‘’‚", "‘’"),
    **dict.fromkeys("«»", "«»"),
    **dict.fromkeys("‹›", "‹›"),
}
# Both expressions match an argument of a directive. The match begins after the opening quote and ends with the first closing
# quote. _PLAIN is for typed text, and _PASTED for a pasted JSON sample, in which backslashes precede the quotes.
_PLAIN = {opening: re.compile(rf"((?:[^\\{closers}]++|\\.)*+)[{closers}]", re.DOTALL) for opening, closers in _CLOSERS.items()}
_PASTED = {opening: re.compile(rf"([^{closers}]*+)[{closers}]") for opening, closers in _CLOSERS.items()}
# These expressions match a closing quote in another form than the opening quote, for example ” after ". Such a quote closes the
# argument if a comma or a parenthesis follows it.
_MIXED = {
    **dict.fromkeys(_DOUBLE, re.compile(rf"(?:[{_DOUBLE}]|{_DOUBLE_ENTITY})(?={_BLANK}*[,)])", re.IGNORECASE)),
    **dict.fromkeys(_SINGLE, re.compile(rf"(?:[{_SINGLE}]|{_SINGLE_ENTITY})(?={_BLANK}*[,)])", re.IGNORECASE)),
}
_ESCAPE = re.compile(rf"\\([\\/{_QUOTES}])")
_WHITE_SPACE = re.compile(rf"{_BLANK}*")
# Characters that a label must not contain, because labels are stored in databases, JSON and spreadsheets. For example, PostgreSQL
# accepts neither NUL nor a lone surrogate.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class DirectiveError(Exception):
    """Raised if a directive is malformed. `position` is the index of the first character of the directive in the body, from 0.
    `reason` is an explanation for the sender."""

    def __init__(self, position: int, reason: str) -> None:
        self.position = position
        self.reason = reason
        super().__init__(f"{reason} (position {position})")


class Directive(NamedTuple):
    """A parsed directive, whose text is `body[start:end]` (in characters). `label` is None for `#track`."""

    start: int
    end: int
    url: str
    label: str | None
    kind: Literal["track", "trackurl"]


def find_directives(body: str) -> list[Directive]:
    """Return all directives of a body in text order. Raise DirectiveError for the first malformed directive."""
    directives, errors = parse_directives(body)
    if errors:
        raise errors[0]
    return directives


def parse_directives(body: str) -> tuple[list[Directive], list[DirectiveError]]:
    """Return all directives and all errors of a body, both in text order. A text with an error must not be sent. If the body has
    more than MAX_CHECKED_DIRECTIVES directives, the last error says where the check ended."""
    if "#" not in body and find_near_directive(body, 0) is None:
        return [], []
    directives: list[Directive] = []
    errors: list[DirectiveError] = []
    position = number = 0
    match: re.Match[str] | None = None
    has_more = True
    while True:
        # A match after `position` is used again, because a second search of the same text would take long.
        if has_more and (match is None or match.start() < position):
            sign = body.find("#", position)
            match = _START.search(body, sign) if sign >= 0 else None
            has_more = match is not None
        near = find_near_directive(body, position, match.start() if match else len(body))
        if near is not None:
            errors.append(DirectiveError(near.start, near.reason))
            position = near.end
            continue
        if match is None:
            return directives, errors
        if number == MAX_DIRECTIVES:
            reason = f"there are more than {MAX_DIRECTIVES} directives in one message"
            errors.append(DirectiveError(match.start(), reason))
        if number == MAX_CHECKED_DIRECTIVES:
            reason = f"the rest of the text was not checked, because it has more than {MAX_CHECKED_DIRECTIVES} directives"
            return directives, [*errors, DirectiveError(match.start(), reason)]
        number += 1
        try:
            directive = _parse(body, match)
        except DirectiveError as error:
            errors.append(error)
            position = match.end()
        else:
            directives.append(directive)
            position = directive.end


def _parse(body: str, start: re.Match[str]) -> Directive:
    url, position = _parse_argument(body, start.end(), "a URL in quotes", is_url=True)
    url = trim_url(url)
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


def _parse_argument(body: str, position: int, expected: str, *, is_url: bool = False) -> tuple[str, int]:
    """Parse the quoted argument of a directive at `position`. Return the argument, and the position of the next text after it."""
    opening = _OPENING.match(body, position)
    if opening is None:
        _reject(body, _skip_white_space(body, position), expected)
    backslashes, quote = opening.groups()
    is_entity = quote.startswith("&")
    kind = html.unescape(quote) if is_entity else quote
    closing = None if is_entity else (_PASTED if backslashes else _PLAIN)[kind].match(body, opening.end())
    if is_url or closing is None:
        limit = closing.end(1) if closing else len(body)
        mixed = _find_mixed(body, kind, opening.end(), limit, is_pasted=bool(backslashes))
        if mixed is not None:
            text = body[opening.end() : mixed.start()]
            text = html.unescape(text) if is_entity else text
            return _ESCAPE.sub(r"\1", text.rstrip("\\") if backslashes else text), _skip_white_space(body, mixed.end())
    if closing is None:
        raise DirectiveError(opening.start(2), f"the quote {quote} is never closed")
    text = closing[1].rstrip("\\") if backslashes else closing[1]
    return _ESCAPE.sub(r"\1", text), _skip_white_space(body, closing.end())


def _find_mixed(body: str, quote: str, start: int, end: int, *, is_pasted: bool) -> re.Match[str] | None:
    """Return the match of the first closing quote between `start` and `end` whose form differs from that of `quote`, for example
    curly instead of straight. A quote matches only if it ends an argument. Return None if there is no such quote."""
    for found in _MIXED[quote].finditer(body, start):
        if found.start() >= end:
            return None
        if is_pasted or body[found.start() - 1] != "\\":
            return found
    return None


def _parse_closing(body: str, position: int, start: int) -> int:
    """Return the end of the directive that begins at `start`. Raise DirectiveError if no closing parenthesis is at `position`."""
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
