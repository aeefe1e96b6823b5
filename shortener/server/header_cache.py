"""What was read of the headers of requests for short links, remembered by their bytes.

Phones of one kind send the same headers again and again, so the parser and the rules have little to say that they have not said
before. A request that came in one piece, and is no more than a question for a code, is looked up by everything behind its first
line; what is found there is what the parser made of the very same bytes. The address that a proxy names in X-Forwarded-For is the
one thing that may differ, in the one form that nobody reads in two ways. Whatever is not found goes to the parser.
"""

from __future__ import annotations

import re

from shortener.clicks.path import LONGEST, SHORTEST
from shortener.clicks.redirect import ClientInfo

MOST, LONGEST_HEADERS = 4096, 2048  # headers that are remembered, bytes of each

_QUESTION = re.compile(rb"GET /([A-Za-z0-9]{%d,%d}) HTTP/1\.1\r\n" % (SHORTEST, LONGEST))
_FORWARDED = re.compile(rb"\r\n[Xx]-[Ff]orwarded-[Ff]or: ([0-9A-Fa-f.:]+(?:, ?[0-9A-Fa-f.:]+)*)(?=\r\n)")


class Heads:
    """The memory of one process. It forgets everything when it is full."""

    def __init__(self) -> None:
        self._askers: dict[bytes, ClientInfo] = {}

    def __len__(self) -> int:
        return len(self._askers)

    def recall(self, data: bytes) -> tuple[str, ClientInfo] | None:
        """The code that is asked for, and who asks; None: the parser has to look at these bytes."""
        question = _QUESTION.match(data)
        if question is None:
            return None
        headers = data[question.end() :]
        client_info = self._askers.get(headers)
        if client_info is None:
            without, forwarded = _apart(headers)
            client_info = self._askers.get(without) if forwarded else None
            if client_info is None:
                return None
            client_info = client_info._replace(forwarded=forwarded)
        return question[1].decode(), client_info

    def get_or_set(self, data: bytes, client_info: ClientInfo) -> None:
        """Keep what the parser made of a request that goes on with its connection; `data`: the piece that ended with it."""
        question = _QUESTION.match(data)
        if question is None or data.find(b"\r\n\r\n") != len(data) - 4:  # it began earlier, or came with more
            return
        headers = data[question.end() :]
        if client_info.forwarded:
            headers, forwarded = _apart(headers)
            if forwarded != client_info.forwarded:
                return
            client_info = client_info._replace(forwarded="")
        if len(headers) <= LONGEST_HEADERS:
            if len(self._askers) >= MOST:
                self._askers.clear()
            self._askers[headers] = client_info


def _apart(headers: bytes) -> tuple[bytes, str]:
    """Headers without what X-Forwarded-For says, and that; "" if it says nothing, or not in the usual form."""
    found = _FORWARDED.search(headers)
    if found is None:
        return headers, ""
    return headers[: found.start(1)] + headers[found.end(1) :], found[1].decode()
