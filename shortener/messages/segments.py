"""This module determines the encoding of a text and counts the SMS segments that carry it (3GPP TS 23.038 and 23.040).

A text is GSM-7 if every character is in the default alphabet or its extension table. Otherwise the whole text is UCS-2. National
language tables are not used, because gateways use them only on request. No text raises an exception: a lone surrogate counts as one
UCS-2 unit.
"""

from __future__ import annotations

import codecs
from typing import Literal, NamedTuple

_BASIC = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENSION = "\f^{}\\[~]|€"
# The maximum number of septets in a single segment, and in each segment of a text with several segments
_MAX_GSM_SINGLE, _MAX_GSM_MULTI = 160, 153
# The maximum number of UTF-16 units in a single segment, and in each segment of a text with several segments
_MAX_UCS2_SINGLE, _MAX_UCS2_MULTI = 70, 67

# A one-byte encoding of the GSM-7 characters for the fast C functions of Python: 0 for NUL (charmap_build requires it), then the
# basic characters, then the extension characters. Encoding any other character raises UnicodeEncodeError.
_TABLE = "\0" + _BASIC + _EXTENSION
_MAP = codecs.charmap_build(_TABLE.ljust(256, "\ufffe"))
_EXTENSION_BYTES = bytes(range(1 + len(_BASIC), len(_TABLE)))
# These translation tables map each byte that starts a pair to 1. A pair is an extension character (two septets) or a high and a low
# surrogate (two UTF-16 units).
_GSM_PAIR_STARTS = bytes(byte in _EXTENSION_BYTES for byte in range(256))
_UCS2_PAIR_STARTS = bytes(0xD8 <= byte <= 0xDB for byte in range(256))
# The GSM-7 septets for each byte of the one-byte encoding. Position 27 of the basic alphabet is the escape character, which _BASIC
# omits.
_ESCAPE = 27
_EXTENSION_CODES = (10, 20, 40, 41, 47, 60, 61, 62, 64, 101)
_SEPTETS = (
    b"\0",
    *(bytes([index if index < _ESCAPE else index + 1]) for index in range(len(_BASIC))),
    *(bytes([_ESCAPE, code]) for code in _EXTENSION_CODES),
)
_CHARACTERS = {_SEPTETS[index]: _TABLE[index] for index in range(1, len(_TABLE))}


class Segments(NamedTuple):
    """The size of an SMS text. `units` are septets for GSM-7 (two for an extension character), or UTF-16 units for UCS-2."""

    encoding: Literal["GSM-7", "UCS-2"]
    segments: int
    units: int


def count_segments(text: str) -> Segments:
    """Return the encoding and size of a text. An empty text is one segment, because a carrier sends and bills it as one SMS.

    A pair (an extension character or a surrogate pair) is never split: it moves to the next segment (TS 23.040)."""
    try:
        encoded, length = codecs.charmap_encode(text, "strict", _MAP)
    except UnicodeEncodeError:
        return _count_ucs2(text)
    if b"\0" in encoded:  # the encoding uses 0 as a filler, but GSM-7 has no NUL, so a text with NUL is UCS-2
        return _count_ucs2(text)
    basic = len(encoded.translate(None, _EXTENSION_BYTES))
    units = 2 * length - basic
    if units <= _MAX_GSM_SINGLE:
        return Segments("GSM-7", 1, units)
    if basic == length:
        return Segments("GSM-7", -(-units // _MAX_GSM_MULTI), units)
    pair_starts = encoded.translate(_GSM_PAIR_STARTS).replace(b"\1", b"\1\0")
    return Segments("GSM-7", _count_unsplit(pair_starts, _MAX_GSM_MULTI), units)


def characters_left(text: str) -> int:
    """Return how many more units fit into the last segment of a text. The result ignores units that are unused because a pair moved
    to the next segment."""
    counted = count_segments(text)
    single, multi = (_MAX_GSM_SINGLE, _MAX_GSM_MULTI) if counted.encoding == "GSM-7" else (_MAX_UCS2_SINGLE, _MAX_UCS2_MULTI)
    return max((single if counted.segments == 1 else counted.segments * multi) - counted.units, 0)


def encode_text(text: str) -> bytes:
    """Return a text as its bytes in an SMS without headers: GSM-7 with one septet in each byte, or UCS-2 (big endian)."""
    try:
        encoded, _ = codecs.charmap_encode(text, "strict", _MAP)
    except UnicodeEncodeError:
        return text.encode("utf-16-be", "surrogatepass")
    if b"\0" in encoded:
        return text.encode("utf-16-be", "surrogatepass")
    return b"".join(_SEPTETS[byte] for byte in encoded)


def decode_septets(data: bytes) -> str:
    """Return the text of GSM-7 septets, one in each byte. An unknown code becomes a replacement character."""
    text = []
    codes = iter(data)
    for code in codes:
        pair = bytes([code, next(codes, 0)]) if code == _ESCAPE else bytes([code])
        text.append(_CHARACTERS.get(pair, "\ufffd"))
    return "".join(text)


def _count_ucs2(text: str) -> Segments:
    encoded = text.encode("utf-16-be", "surrogatepass")
    units = len(encoded) // 2
    if units <= _MAX_UCS2_SINGLE:
        return Segments("UCS-2", 1, units)
    return Segments("UCS-2", _count_unsplit(encoded[::2].translate(_UCS2_PAIR_STARTS), _MAX_UCS2_MULTI), units)


def _count_unsplit(pair_starts: bytes, size: int) -> int:
    """Return the number of segments of `size` units. `pair_starts` has one byte per unit: 1 if a pair starts there, else 0."""
    segments = position = 0
    while position < len(pair_starts):
        position += size
        if pair_starts[position - 1 : position] == b"\1":
            position -= 1
        segments += 1
    return segments
