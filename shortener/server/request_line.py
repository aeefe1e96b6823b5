"""This module percent-encodes bytes above 0x7F in request lines. Some programs request a short link together with characters that
follow the link in a text, such as an emoji or an invisible character. They send these characters as raw UTF-8. The parser of
uvicorn rejects such bytes in a URL, so `http_protocol` encodes them before the parser reads them.

`IncompleteHead` determines whether the bytes that arrive next continue a request line.
"""

from __future__ import annotations

from urllib.parse import quote_from_bytes

_ASCII = bytes(range(128))


class IncompleteHead:
    """The head of a request that is incomplete.

    `size` is the number of bytes of the head after its first chunk. `is_in_request_line` is true while even the request line is
    incomplete."""

    __slots__ = ("is_in_request_line", "size")

    def __init__(self) -> None:
        self.size = 0
        self.is_in_request_line = True

    def note_end_of_chunk(self, data: bytes) -> None:
        """Update `is_in_request_line`. `data` is a chunk of received bytes that ends inside this head."""
        line_begin = data.rfind(b"\n") + 1
        if self.is_in_request_line and not data[:line_begin].strip(b"\r\n"):
            return  # empty lines before a request line have no effect
        # An empty line ends a request. If the last line of the chunk follows an empty line, it is therefore the request line of
        # the next request.
        self.is_in_request_line = data.endswith((b"\n\r\n", b"\n\n"), 0, line_begin)


def encode_request_line(data: bytes) -> bytes:
    """Percent-encode the bytes above 0x7F in the first line. All other bytes of `data` stay the same."""
    line_end = data.find(b"\n") + 1 or len(data)
    if data[:line_end].isascii():
        return data
    return quote_from_bytes(data[:line_end], _ASCII).encode() + data[line_end:]
