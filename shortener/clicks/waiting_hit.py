"""A hit that is not stored yet, and the client that waits for its response."""
# Tested by tests/clicks/test_recorder.py

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from shortener.clicks.resolver import Hit, Resolution
from shortener.errors import StoreUnavailable


class PendingResponse(Protocol):
    """The response to a hit: a future, or an object that sends the response at once. Its setters raise nothing."""

    def done(self) -> bool: ...
    def set_result(self, resolution: Resolution, /) -> None: ...
    def set_exception(self, error: StoreUnavailable, /) -> None: ...


@dataclass(slots=True)
class WaitingHit:
    """A hit in memory. Only the event loop changes it; the thread of a transaction may read the flags.

    `overdue_at`: the loop time at which the response no longer waits for the store.
    """

    hit: Hit
    response: PendingResponse
    overdue_at: float
    resolution: Resolution | None = None  # known without the transaction of the hit
    written: Resolution | None = None  # where the hit leads, set before the COMMIT of its transaction; the commit may fail
    is_queued_for_spool: bool = False  # the spool writer has received it at least once
    is_in_batcher: bool = True  # the batcher holds it, so the spool writer need not keep it
    is_settled: bool = False  # nothing is left to write: the hit is in the spool, or no link has its code
    is_suspect: bool = False  # the database rejected the hit, and took another one later
    is_refused: bool = False  # the response was 503: the hit must not be stored

    @property
    def is_obsolete(self) -> bool:
        """Whether no transaction must write the hit any more."""
        return self.is_settled or self.is_refused

    def respond(self, resolution: Resolution) -> bool:
        """Send the response unless one was sent. Return whether it was sent now."""
        if self.response.done():
            return False
        self.response.set_result(resolution)
        return True

    def refuse(self, error: Exception) -> None:
        """Respond with 503, unless the client has a response or the hit may be committed at this moment.

        The transaction sets `written` and then reads `is_refused`; this sets `is_refused` and then reads `written`. So a hit that
        got 503 is not committed, whatever the thread of the transaction does meanwhile."""
        if self.response.done():
            return
        self.is_refused = True
        if self.written is not None:
            self.is_refused = False
            self.response.set_result(self.written)
        else:
            self.response.set_exception(StoreUnavailable(str(error)))
