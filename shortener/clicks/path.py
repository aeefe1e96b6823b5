"""This module parses request paths: it finds the code of a short link in a path, and the prefix before the code.

Programs turn text into links and often include characters after the link: a full stop, a bracket, an emoji, a space or an
invisible character. People and proxies add a slash. Therefore the characters after a code are ignored if none of them is a letter
or a digit of any script. Three kinds of characters are also ignored, although Unicode counts them as letters or digits: the emoji
for information, keycap emoji (a digit in a square), and invisible letters. The characters may be UTF-8 or percent-encoded. Any
other path has no code, and no part of it is looked up, logged or stored.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote_to_bytes

MIN_CODE_LENGTH, MAX_CODE_LENGTH = 4, 32  # minimum and maximum number of characters of a code
MAX_PREFIX_LENGTH = 128  # maximum number of bytes of the prefix before a code

_CODE = rb"[A-Za-z0-9]{%d,%d}" % (MIN_CODE_LENGTH, MAX_CODE_LENGTH)
#: A regular expression for a path that is only a code. Nearly all paths match it. Other paths need the slower search.
_PLAIN_PATH = re.compile(rb"/(%s)" % _CODE)
_CODE_AND_REST = re.compile(rb"/(%s)(?![A-Za-z0-9])" % _CODE)
#: A regular expression for the prefix before a code: up to eight segments. No segment is empty, "." or "..". A code must follow,
#: and no letter or digit may follow the code.
_PREFIX = re.compile(rb"((?:/(?!\.{1,2}/)[A-Za-z0-9._~%%-]{1,64}){1,8})(?=/%s(?![A-Za-z0-9]))" % _CODE)
#: The characters that follow the digit in a keycap emoji (a digit in a square).
_KEYCAP = "\ufe0f?\u20e3"
_DIGIT_IN_KEYCAP = re.compile(f"[0-9]{_KEYCAP}")
_END_OF_KEYCAP = re.compile(_KEYCAP)
#: Characters that are ignored although Unicode counts them as letters: the emoji for information, and the fillers of Hangul, which
#: are invisible.
_IGNORED_LETTERS = "\u2139\u115f\u1160\u3164\uffa0"
# ASCII characters that may follow a code; "%" is missing, because `code_of` decodes it
_ASCII_IGNORED = re.compile(rb"[!-/:-@\[-`{-~]*")


def code_of(path: bytes | str) -> str | None:
    """Return the code in a request path `/{code}`, or None if the path has no code. `path` is raw bytes or decoded text."""
    path = path if isinstance(path, bytes) else path.encode(errors="surrogatepass")
    plain = _PLAIN_PATH.fullmatch(path)
    if plain is not None:
        return plain[1].decode()
    found = _CODE_AND_REST.match(path)
    if found is None:
        return None
    code, rest = found[1].decode(), path[found.end() :]
    if b"%" not in rest and _ASCII_IGNORED.fullmatch(rest):
        return code
    # `decode` replaces bytes that are not valid UTF-8 by U+FFFD. This character is neither a letter nor a digit.
    behind = unquote_to_bytes(rest).decode(errors="replace")
    if code[-1].isdigit() and len(code) > MIN_CODE_LENGTH and _END_OF_KEYCAP.match(behind):
        code = code[:-1]  # this digit begins a keycap emoji
    return code if _is_ignored(behind) else None


def code_behind_prefix(path: bytes | str) -> tuple[str, str] | None:
    """Return (prefix, code) of a request path `/PREFIX/{code}`, or None if the path does not have this form.

    The prefix begins with a slash and has at least one segment. Only ignored characters may follow the code."""
    path = path if isinstance(path, bytes) else path.encode(errors="surrogatepass")
    found = _PREFIX.match(path)
    if found is None or len(found[1]) > MAX_PREFIX_LENGTH:
        return None
    code = code_of(path[found.end() :])
    return None if code is None else (found[1].decode(), code)


def _is_ignored(behind: str) -> bool:
    """Return whether the text after a code contains no letter and no digit of any script, except in emoji."""
    if "\u20e3" in behind:
        behind = _DIGIT_IN_KEYCAP.sub("", behind)
    return not any(unicodedata.category(one)[0] in "LN" and one not in _IGNORED_LETTERS for one in behind)
