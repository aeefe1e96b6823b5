"""The code in the path of a short link, and the path before it.

Programs turn text into links and often include characters that follow a link: a full stop, a bracket, an emoji, a space or an
invisible character; people and proxies add a slash. Therefore everything behind a code that is neither a letter nor a digit of any
script is ignored, as UTF-8 or percent-encoded. Any other path has no code, and no part of it reaches a look-up, a log or the
database.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote_to_bytes

MIN_CODE_LENGTH, MAX_CODE_LENGTH = 4, 32  # characters
MAX_PREFIX_LENGTH = 128  # bytes of the path before a code

_CODE = rb"[A-Za-z0-9]{%d,%d}" % (MIN_CODE_LENGTH, MAX_CODE_LENGTH)
#: Nearly all paths are only a code. All others take the slower way.
_PLAIN_PATH = re.compile(rb"/(%s)" % _CODE)
_CODE_AND_REST = re.compile(rb"/(%s)(?![A-Za-z0-9])" % _CODE)
#: The path before a code has no empty segment and no dot segment. A segment that is a code of its own ends with a letter or digit.
_PREFIX = re.compile(rb"((?:/(?!\.{1,2}/)[A-Za-z0-9._~%%-]{1,64}){1,8})(?=/%s(?![A-Za-z0-9]))" % _CODE)
_ASCII_IGNORED = re.compile(rb"[!-/:-@\[-`{-~]*")  # without "%" escapes that matter: see `_is_ignored`


def code_of(path: bytes | str) -> str | None:
    """Return the code in a request path `/{code}`, None if the path has no code. `path`: raw bytes or decoded text."""
    path = path if isinstance(path, bytes) else path.encode(errors="surrogatepass")
    plain = _PLAIN_PATH.fullmatch(path)
    if plain is not None:
        return plain[1].decode()
    found = _CODE_AND_REST.match(path)
    return found[1].decode() if found is not None and _is_ignored(path[found.end() :]) else None


def code_behind_prefix(path: bytes | str) -> tuple[str, str] | None:
    """Return (prefix, code) of a request path `/PREFIX/{code}`, None if the path has no such form.

    The prefix begins with a slash and has one segment or more. The longest prefix is returned: the code is the last segment that
    ignored characters may follow."""
    path = path if isinstance(path, bytes) else path.encode(errors="surrogatepass")
    found = _PREFIX.match(path)
    if found is None or len(found[1]) > MAX_PREFIX_LENGTH:
        return None
    code = code_of(path[found.end() :])
    return None if code is None else (found[1].decode(), code)


def _is_ignored(rest: bytes) -> bool:
    """Return whether the text behind a code has no letter and no digit of any script."""
    if b"%" not in rest and _ASCII_IGNORED.fullmatch(rest):
        return True
    # Bytes that are not UTF-8 (half an emoji) become U+FFFD, which is a symbol.
    text = unquote_to_bytes(rest).decode(errors="replace")
    return not any(unicodedata.category(character)[0] in "LN" for character in text)
