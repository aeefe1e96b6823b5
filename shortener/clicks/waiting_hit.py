"""A waiting hit is a hit in memory that is not stored yet, together with the response that its client waits for."""
# Tested by tests/clicks/test_recorder.py

from __future__ import annotations

from typing import Protocol

from shortener.clicks.resolver import Hit, Resolution
from shortener.errors import StoreUnavailable
from shortener.model import mutable_record


class PendingResponse(Protocol):
    """The response to a hit: a future, or an object that sends the response at once. Setting its result or its exception raises
    no error."""

    def done(self) -> bool: ...
    def set_result(self, resolution: Resolution, /) -> None: ...
    def set_exception(self, error: StoreUnavailable, /) -> None: ...


@mutable_record
class WaitingHit:
    """A hit in memory. Only the event loop changes it, with one exception: the thread of a transaction sets `written`. This thread
    also reads the flags.

    `overdue_at` is the time of the event loop after which the response is sent even if the hit is not stored."""

    hit: Hit
    response: PendingResponse
    overdue_at: float
    resolution: Resolution | None = None  # the resolution that was found before the transaction that stores the hit
    # the resolution that the transaction of the hit has found; set before the COMMIT, which may still fail
    written: Resolution | None = None
    is_queued_for_spool: bool = False  # the spool writer has received the hit at least once
    is_in_batcher: bool = True  # the batcher has the hit, so the spool writer does not also keep it in memory
    is_settled: bool = False  # the hit needs no row in the database any more: it is in the spool, or no link has its code
    is_suspect: bool = False  # the database has rejected the hit once, although it accepted other hits or test rows
    is_refused: bool = False  # the client got 503, so the hit must not be stored

    @property
    def is_obsolete(self) -> bool:
        """Return whether the hit must not be written to the database any more."""
        return self.is_settled or self.is_refused

    def respond(self, resolution: Resolution) -> bool:
        """Send the response if none was sent before. Return whether this call sent it."""
        if self.response.done():
            return False
        self.response.set_result(resolution)
        return True

    def refuse(self, error: Exception) -> None:
        """Send the response 503, unless a response was sent before or the transaction of the hit may be committing.

        The transaction sets `written` and then reads `is_refused`. This method sets `is_refused` and then reads `written`. Because
        of this order, a hit that got 503 is never committed, whatever the timing of the two threads is."""
        if self.response.done():
            return
        self.is_refused = True
        if self.written is not None:
            self.is_refused = False
            self.response.set_result(self.written)
        else:
            self.response.set_exception(StoreUnavailable(str(error)))
