"""This module encodes a text as the short messages of submit_sm PDUs, and decodes the text of deliver_sm PDUs.

A text that fits into one SMS is one part without a header. A longer text becomes several parts, each with a user data header of
six bytes (3GPP TS 23.040, 8-bit reference). The number of parts always equals the number of segments that `messages/segments.py`
computes, because the price of a message depends on its segments. GSM-7 texts have one septet in each byte, which SMPP calls the
default alphabet (data coding 0). Other texts are UCS-2 (data coding 8).
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from shortener.messages.segments import count_segments, decode_septets, encode_text

GSM7_DATA_CODING, UCS2_DATA_CODING = 0, 8
MAX_PARTS = 255  # the maximum number of parts, because a header has one byte for the number of a part
_GSM7_SINGLE, _GSM7_PART = 160, 153
_UCS2_SINGLE, _UCS2_PART = 140, 134
_ESCAPE = 0x1B


class EncodedText(NamedTuple):
    """The data coding of a text and its parts. `has_headers` is true if each part begins with a user data header."""

    data_coding: int
    parts: list[bytes]
    has_headers: bool


def encode_parts(text: str, reference: str) -> EncodedText:
    """Return the short messages that carry a text. Raise ValueError if the text needs more than MAX_PARTS.

    `reference` identifies the message. Every attempt uses the same reference number in the headers, so that phones do not join
    parts of a repeated message with parts of another message."""
    data = encode_text(text)
    is_gsm = count_segments(text).encoding == "GSM-7"
    coding = GSM7_DATA_CODING if is_gsm else UCS2_DATA_CODING
    if len(data) <= (_GSM7_SINGLE if is_gsm else _UCS2_SINGLE):
        return EncodedText(coding, [data], False)
    parts = _split(data, _GSM7_PART, is_gsm=True) if is_gsm else _split(data, _UCS2_PART, is_gsm=False)
    if len(parts) > MAX_PARTS:
        raise ValueError(f"the text needs {len(parts)} SMS, and SMPP allows {MAX_PARTS}")
    number = zlib.crc32(reference.encode()) & 0xFF
    headers = [bytes([5, 0, 3, number, len(parts), index]) for index in range(1, len(parts) + 1)]
    return EncodedText(coding, [header + part for header, part in zip(headers, parts, strict=True)], True)


def _split(data: bytes, size: int, *, is_gsm: bool) -> list[bytes]:
    """Split encoded text. An extension character and a surrogate pair are never divided."""
    parts = []
    start = 0
    while start < len(data):
        end = start + size
        if end < len(data):
            if is_gsm and data[end - 1] == _ESCAPE:
                end -= 1
            elif not is_gsm and 0xD8 <= data[end - 2] <= 0xDB:
                end -= 2
        parts.append(data[start:end])
        start = end
    return parts


class ReceivedText(NamedTuple):
    """The text of a received short message. `part` is its number among the parts of a long message, from 1. It is also 1 for a
    message with a single part."""

    text: str
    part: int


def decode_received(data: bytes, data_coding: int, has_header: bool) -> ReceivedText:
    """Return the text of a short message. Bytes that are not valid in its data coding become replacement characters."""
    part = 1
    if has_header and data:
        header, data = data[1 : 1 + data[0]], data[1 + data[0] :]
        part = _part_number(header)
    if data_coding == UCS2_DATA_CODING:
        return ReceivedText(data.decode("utf-16-be", "replace"), part)
    if data_coding in (1, 3):  # data coding 1 is IA5, and 3 is Latin-1
        return ReceivedText(data.decode("latin-1"), part)
    if data_coding & 0xF0 == 0xF0 and data_coding & 0x04:  # 8-bit data with a message class
        return ReceivedText(data.decode("latin-1"), part)
    return ReceivedText(decode_septets(data), part)


def _part_number(header: bytes) -> int:
    """Return the number of a part from the elements of its user data header; 1 if no element contains a part number."""
    position = 0
    while position + 2 <= len(header):
        element, length = header[position], header[position + 1]
        value = header[position + 2 : position + 2 + length]
        if element == 0 and len(value) == 3:
            return value[2]
        if element == 8 and len(value) == 4:
            return value[3]
        position += 2 + length
    return 1
