"""This module selects the queues that one dispatch cycle examines.

A queue contains the deliveries of one tracker, or the callbacks of one application to one host. An application can have callbacks
to thousands of hosts, and most of these callbacks wait for a retry. Therefore the queues of trackers and the queues of callbacks
are read separately: each dispatch cycle examines up to MAX_QUEUES queues of each kind, and the next cycle continues after these
queues. So every cycle examines queues of trackers, however many queues of callbacks exist. These rules limit the work for
callbacks:

- If the callbacks of an application may use no further slot, its callback queues are skipped.
- If there are more queues of callbacks than one cycle examines, several cycles together examine all of them. If the cycle that
  reaches the last queue claims no callbacks, the next cycles examine no callbacks for CALLBACKS_PAUSE_MS milliseconds.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import Connection

from shortener.delivery import dispatch_queries
from shortener.delivery.dispatch_queries import ClaimRequest, DeliveryQueue
from shortener.delivery.queue_names import TRACKER_QUEUES, callback_ranges, is_callback
from shortener.model import mutable_record

#: One dispatch cycle examines at most this many queues of trackers, and this many queues of callbacks, because its transaction
#: blocks every other writer on SQLite.
MAX_QUEUES = 256
CALLBACKS_PAUSE_MS = 100


class Position(NamedTuple):
    """The place in the queues from which the next dispatch cycle continues.

    `tracker` and `callback` are the names of the last examined queues; "" is the beginning. No cycle examines queues
    of callbacks before `callbacks_at` (milliseconds since 1970). If `callbacks_first` is true, queues of callbacks get the first
    claims of the next cycle."""

    tracker: str = ""
    callback: str = ""
    callbacks_at: int = 0
    callbacks_first: bool = False


@mutable_record
class _QueuesOfKind:
    """The queues of one kind that a dispatch cycle examines. `is_last` is true if the last queue of this kind is among them."""

    queues: list[DeliveryQueue]
    is_last: bool

    def last_name(self, requests: list[str], before: str) -> str:
        """Return the name after which the next cycle continues; "" is the beginning. `requests` are the queues of this kind from
        which deliveries are claimed. `before` is the present position, which is returned if no queue was examined."""
        if requests:
            return requests[-1]
        return "" if self.is_last else (self.queues[-1].name if self.queues else before)


class QueueWalk:
    """The queues that one dispatch cycle examines, in the order in which they get claims. Times are milliseconds since 1970.

    `blocked` contains the applications whose callbacks may use no further slot."""

    def __init__(self, connection: Connection, position: Position, blocked: Collection[int | None], now: int) -> None:
        self._position = position
        self._now = now
        self._trackers = _read(connection, position.tracker, [TRACKER_QUEUES])
        # `callbacks_at` can be later than CALLBACKS_PAUSE_MS from now only if the clock was set back. It is then ignored.
        self.is_paused = now < position.callbacks_at <= now + CALLBACKS_PAUSE_MS
        self._callbacks = _QueuesOfKind([], True)
        if not self.is_paused:
            self._callbacks = _read(connection, position.callback, callback_ranges(without=blocked))
        self.resumes_at = position.callbacks_at if self.is_paused else None

    @property
    def queues(self) -> list[DeliveryQueue]:
        if self._position.callbacks_first:
            return self._callbacks.queues + self._trackers.queues
        return self._trackers.queues + self._callbacks.queues

    def next_position(self, candidates: Collection[str], requests: Collection[ClaimRequest]) -> tuple[Position, bool]:
        """Return the position after the claims of this cycle, and whether the next cycle must examine further queues.

        `candidates` are the names of the queues with due deliveries that could be claimed."""
        names = [request.queue for request in requests]
        trackers, callbacks = ([name for name in names if is_callback(name) == kind] for kind in (False, True))
        position = self._position
        # If the queues of one kind got all claims, the position of the other kind does not change, so that the next cycle
        # examines the same queues of the other kind again.
        if trackers or not requests or all(map(is_callback, candidates)):
            position = position._replace(tracker=self._trackers.last_name(trackers, position.tracker))
        if not self.is_paused and (callbacks or not requests or not any(map(is_callback, candidates))):
            has_ended = self._callbacks.is_last and not callbacks and len(self._callbacks.queues) >= MAX_QUEUES
            position = position._replace(
                callback=self._callbacks.last_name(callbacks, position.callback),
                callbacks_at=self._now + CALLBACKS_PAUSE_MS if has_ended else 0,
            )
        if requests:
            return position._replace(callbacks_first=not position.callbacks_first), False
        return position, not (self._trackers.is_last and self._callbacks.is_last)


def _read(connection: Connection, after: str, ranges: list[tuple[str, str]]) -> _QueuesOfKind:
    """Read up to MAX_QUEUES queues whose names come after the name `after`. After the last queue, continue with the first queue."""
    queues = _read_ranges(connection, ranges, after, MAX_QUEUES)
    is_last = len(queues) < MAX_QUEUES
    if after and is_last:
        first = _read_ranges(connection, ranges, "", MAX_QUEUES - len(queues))
        queues += [queue for queue in first if queue.name <= after]
    return _QueuesOfKind(queues, is_last)


def _read_ranges(connection: Connection, ranges: list[tuple[str, str]], after: str, limit: int) -> list[DeliveryQueue]:
    queues: list[DeliveryQueue] = []
    for begin, end in ranges:
        if after < end and len(queues) < limit:
            queues += dispatch_queries.pending_queues(connection, max(begin, after), end, limit - len(queues))
    return queues
