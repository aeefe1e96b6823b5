"""The code in the path of a short link, as phones send it.

Linkifiers take the punctuation behind a link along ("see https://go.example/Ab3xK9." is tapped with its full stop), so that is
forgiven, several signs if need be, plain or percent-encoded. Any other path that is not exactly a code has none: nothing of it
reaches a look-up, a log or the database.
"""

from __future__ import annotations

import re

MIN_CODE_LENGTH, MAX_CODE_LENGTH = 4, 32  # characters of a code
_MOST_FORGIVEN = 8  # signs behind it

# Stops, brackets and quotes: ASCII, typographic, and those of Chinese and Japanese.
_FORGIVEN = ".,)]}>!?;:'\"*`´‘’‚‛“”„‟‹›«»…。，、！？）；：」』"


def _percent_encoded(sign: bytes) -> bytes:
    return b"".join(b"%%%02X" % byte for byte in sign)


_STRAY = b"|".join(form for sign in _FORGIVEN for form in (re.escape(sign.encode()), b"(?i:%s)" % _percent_encoded(sign.encode())))
_PATH = re.compile(rb"/([A-Za-z0-9]{%d,%d})(?:%s){0,%d}" % (MIN_CODE_LENGTH, MAX_CODE_LENGTH, _STRAY, _MOST_FORGIVEN))


def code_of(path: bytes | str) -> str | None:
    """The code in a request's path `/{code}`, raw (bytes) or decoded; None if the path is no code's."""
    found = _PATH.fullmatch(path if isinstance(path, bytes) else path.encode(errors="surrogatepass"))
    return found[1].decode() if found else None
