"""The order of the deliveries of one message to one tracker.

State events and conversion events of a message are sent to a tracker one after the other. For example, if a click immediately
follows the delivery report, a tracker that responds within MAX_WAIT_SECONDS (attempt.py) receives DELIVERED before CLICKTHRU. An
attempt that waits uses a slot of its tracker. Therefore only a few attempts of a message wait, and further attempts begin at once.
"""

# Tested by tests/delivery/test_order.py

from __future__ import annotations

import asyncio

from shortener.delivery.dispatch_queries import ClaimedDelivery
from shortener.model import Topic

MAX_WAITING = 3  # At most this many attempts of one message and one tracker wait for an earlier attempt.
_ORDERED_TOPICS = (Topic.STATE.value, Topic.CONVERSION.value)

_Key = tuple[str, int]


class MessageOrder:
    """The attempts in flight that send state events or conversion events, grouped by message and tracker."""

    def __init__(self) -> None:
        self._in_flight: dict[_Key, list[asyncio.Task[None]]] = {}

    def earlier(self, claim: ClaimedDelivery) -> asyncio.Task[None] | None:
        """Return the attempt that must end before the attempt of this delivery begins. Return None if this attempt can begin at
        once."""
        key = _key(claim)
        attempts = [] if key is None else self._in_flight.get(key, [])
        return attempts[-1] if 0 < len(attempts) <= MAX_WAITING else None

    def add(self, claim: ClaimedDelivery, attempt: asyncio.Task[None]) -> None:
        """Remember the attempt of a delivery until it ends, so that the next attempt for the same message and tracker can wait for
        it. An attempt for an event of another topic is not remembered.

        If MAX_WAITING attempts already wait, the new attempt is not remembered either: it begins at once, and no later attempt
        waits for it. When fewer attempts wait again, a new attempt waits for the last remembered attempt."""
        key = _key(claim)
        if key is None or len(self._in_flight.get(key, ())) > MAX_WAITING:
            return
        self._in_flight.setdefault(key, []).append(attempt)
        attempt.add_done_callback(lambda ended: self._remove(key, ended))

    def _remove(self, key: _Key, attempt: asyncio.Task[None]) -> None:
        attempts = self._in_flight[key]
        attempts.remove(attempt)
        if not attempts:
            del self._in_flight[key]


def _key(claim: ClaimedDelivery) -> _Key | None:
    return (claim.queue, claim.message) if claim.topic in _ORDERED_TOPICS and claim.message is not None else None
