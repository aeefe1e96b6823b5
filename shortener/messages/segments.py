"""Segments: how many SMS a text is sent as, and in which encoding (3GPP TS 23.038 and 23.040).

A text is GSM-7 if every character is in the default alphabet or its extension table, else the whole text is UCS-2. National
language tables are not used: gateways do not unless asked. Never fails; half a surrogate pair counts as one UCS-2 unit.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import Literal

_BASIC = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENSION = "\f^{}\\[~]|€"
_GSM_ONE, _GSM_MANY = 160, 153  # septets in a single segment, and in each of several
_UCS_ONE, _UCS_MANY = 70, 67  # UTF-16 units

# A one-byte encoding of our own, so that C code does the looking up: NUL for NUL (the builder of the map wants it), then the basic
# characters, then the extension characters. What is in neither table cannot be encoded.
_TABLE = "\0" + _BASIC + _EXTENSION
_MAP = codecs.charmap_build(_TABLE.ljust(256, "\ufffe"))
_EXTENSION_BYTES = bytes(range(1 + len(_BASIC), len(_TABLE)))
# Tables that mark with 1 what opens a pair: an extension character (its escape septet), and the high byte of a high surrogate.
_GSM_OPENS = bytes(byte in _EXTENSION_BYTES for byte in range(256))
_UCS_OPENS = bytes(0xD8 <= byte <= 0xDB for byte in range(256))


@dataclass(frozen=True, slots=True)
class Segments:
    """`units`: septets for GSM-7, of which an extension character takes two; UTF-16 units for UCS-2."""

    encoding: Literal["GSM-7", "UCS-2"]
    segments: int
    units: int


def count_segments(text: str) -> Segments:
    """An empty text is one segment of no units: it is sent, and paid for, as one SMS.

    A pair (extension character, surrogate pair) that the end of a segment would split begins the next one, as TS 23.040 says."""
    try:
        encoded, length = codecs.charmap_encode(text, "strict", _MAP)
    except UnicodeEncodeError:
        return _count_ucs2(text)
    if b"\0" in encoded:  # NUL, which GSM-7 lacks
        return _count_ucs2(text)
    basic = len(encoded.translate(None, _EXTENSION_BYTES))
    units = 2 * length - basic
    if units <= _GSM_ONE:
        return Segments("GSM-7", 1, units)
    if basic == length:
        return Segments("GSM-7", -(-units // _GSM_MANY), units)
    opens = encoded.translate(_GSM_OPENS).replace(b"\1", b"\1\0")
    return Segments("GSM-7", _split(opens, _GSM_MANY), units)


def _count_ucs2(text: str) -> Segments:
    encoded = text.encode("utf-16-be", "surrogatepass")
    units = len(encoded) // 2
    if units <= _UCS_ONE:
        return Segments("UCS-2", 1, units)
    return Segments("UCS-2", _split(encoded[::2].translate(_UCS_OPENS), _UCS_MANY), units)


def _split(opens: bytes, size: int) -> int:
    """How many segments of `size` units; a unit that is marked in `opens` stays with the next one."""
    segments = position = 0
    while position < len(opens):
        position += size
        if opens[position - 1 : position] == b"\1":
            position -= 1
        segments += 1
    return segments
