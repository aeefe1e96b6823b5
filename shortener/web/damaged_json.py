"""This module reads JSON that contains invalid bytes or characters in texts, so that one damaged text does not cause the rejection
of the whole body.

A byte order mark is removed, and UTF-16 and UTF-32 are decoded. Bytes that are not UTF-8 are read as Windows-1252, which contains
the printable characters of Latin-1. An unpaired surrogate becomes U+FFFD. Control characters are accepted.
"""

from __future__ import annotations

import json
import re
from typing import Any

_DECODER = json.JSONDecoder(strict=False, parse_constant=str)
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class RepairedText(str):
    """A text in which invalid bytes or characters were replaced."""

    __slots__ = ()


def load_damaged_json(content: bytes) -> Any:
    """Parse JSON. Invalid bytes in texts become surrogates, which `repair` replaces. Raise ValueError if the content is not JSON,
    and RecursionError if it is nested too deeply."""
    encoding = json.detect_encoding(content)
    is_utf8 = encoding.startswith("utf-8")
    # `surrogateescape` decodes each byte that is not UTF-8 to the surrogate U+DC00 plus the byte.
    return _DECODER.decode(content.decode(encoding, "surrogateescape" if is_utf8 else "replace"))


def repair(value: Any) -> Any:
    """Replace the surrogates in all texts of a JSON value. Each changed text becomes a RepairedText."""
    if isinstance(value, str):
        return RepairedText(_SURROGATE.sub(_replace, value)) if not value.isascii() and _SURROGATE.search(value) else value
    if isinstance(value, dict):
        return {repair(name): repair(one) for name, one in value.items()}
    if isinstance(value, list):
        return [repair(one) for one in value]
    return value


def _replace(found: re.Match[str]) -> str:
    byte = ord(found[0]) - 0xDC00
    return bytes([byte]).decode("cp1252", "replace") if 0x80 <= byte <= 0xFF else "\ufffd"
