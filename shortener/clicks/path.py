"""The code in the path of a short link.

Phones turn text into links and often include the punctuation behind a link: "see https://go.example/Ab3xK9." is opened with its
full stop. Therefore up to eight such characters behind a code are ignored, plain or percent-encoded. Any other path has no
code, and no part of it reaches a look-up, a log or the database.
"""

from __future__ import annotations

import re

MIN_CODE_LENGTH, MAX_CODE_LENGTH = 4, 32  # characters
_MAX_IGNORED_CHARACTERS = 8  # behind the code

# Stops, brackets and quotation marks: ASCII, typographic, Chinese and Japanese.
_IGNORED = ".,)]}>!?;:'\"*`´‘’‚‛“”„‟‹›«»…。，、！？）；：」』"


def _percent_encoded(character: bytes) -> bytes:
    return b"".join(b"%%%02X" % byte for byte in character)


_PUNCTUATION = b"|".join(
    form for character in _IGNORED for form in (re.escape(character.encode()), b"(?i:%s)" % _percent_encoded(character.encode()))
)
_PATH = re.compile(
    rb"/([A-Za-z0-9]{%d,%d})(?:%s){0,%d}" % (MIN_CODE_LENGTH, MAX_CODE_LENGTH, _PUNCTUATION, _MAX_IGNORED_CHARACTERS)
)


def code_of(path: bytes | str) -> str | None:
    """Return the code in a request path `/{code}`, None if the path has no code. `path`: raw bytes or decoded text."""
    found = _PATH.fullmatch(path if isinstance(path, bytes) else path.encode(errors="surrogatepass"))
    return found[1].decode() if found else None
