"""The wait for the message of a delivery report. A report can arrive before its message is stored. A report can also arrive
before the service has recorded the response in which the gateway assigned an id to the message.
"""
# Tested by tests/messages/test_report_wait.py

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

#: The pauses before reports of unknown messages are tried again, as fractions of the longest wait.
_PAUSES = (0.1, 0.3, 0.6)


class ReportWait:
    """The waits of requests that report about unknown messages. A request waits at most `seconds` in total (REPORT_WAIT); 0 means
    not at all. At most `max_requests` requests wait at a time, so that reports of unknown messages do not occupy the memory of
    the process."""

    def __init__(self, seconds: float, max_requests: int) -> None:
        self.seconds = seconds
        self.requests = 0  # The number of requests that wait.
        self._max_requests = max_requests

    async def retry_unknown(self, results: list[T], retry: Callable[[Sequence[int]], Awaitable[Sequence[T]]]) -> list[T]:
        """Try the reports of unknown messages (None in `results`) again, and return the results of all reports.

        `retry` gets the indexes of these reports in `results`, tries them again and returns their new results. If too many requests
        wait already, return at once."""
        for part in _PAUSES if self.seconds else ():
            unknown = [index for index, result in enumerate(results) if result is None]
            if not unknown or self.requests >= self._max_requests:
                break
            self.requests += 1
            try:
                await asyncio.sleep(self.seconds * part)
            finally:
                self.requests -= 1
            for index, result in zip(unknown, await retry(unknown), strict=True):
                results[index] = result
        return results
