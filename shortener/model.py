"""The words of the service as types: states, verdicts, topics and the small frozen records that the parts hand to each other.

No I/O and no imports from the other parts. Times are aware UTC, money is `Decimal`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, get_args


class State(enum.IntEnum):
    """What is known of a message, in the order in which it may move (Syniverse's names).

    FAILED and EXPIRED share a rank between SENT and DELIVERED: a late DELIVERED or a person's click still moves the message on,
    a late FAILED never moves a delivered one back.
    """

    CREATED = 0
    SENT = 10
    FAILED = 20
    EXPIRED = 21
    DELIVERED = 30
    READ = 40
    CLICKTHRU = 50

    def may_follow(self, current: State) -> bool:
        """Whether a message in `current` moves to this state."""
        return self // 10 > current // 10


class Verdict(enum.IntEnum):
    """Who made a hit. Only `HUMAN` is a click."""

    HUMAN = 0
    SUSPECTED = 1
    IGNORED = 2

    @property
    def api_name(self) -> str:
        return self.name.lower()


class Topic(enum.IntFlag):
    """What an event is told as; one row of the event log may raise several. A tracker subscribes by these names in lower case."""

    STATE = 1
    CLICK = 2
    LATE_CLICK = 4
    CONVERSION = 8
    DELIVERY = 16
    CLICK_RETRACTED = 32
    TEST = 64
    SUSPECTED = 128  # beside CLICK: not a person's, and told as a click only where that was asked for

    @property
    def api_name(self) -> str:
        assert self.name is not None
        return self.name.lower()


#: The events that a tracker may subscribe to, as the API, the command line and the documents name them.
EventName = Literal["state", "click", "late_click", "conversion", "delivery", "click_retracted"]
EVENT_NAMES: tuple[EventName, ...] = get_args(EventName)
SUBSCRIBABLE_TOPICS = tuple(Topic[name.upper()] for name in EVENT_NAMES)


class LinkFlag(enum.IntFlag):
    """What a link wants beyond a plain redirect."""

    NONE = 0
    EVERY_CLICK = 1  # raises a click event each time (`#trackurl`, or the application's click_events: every)
    FILL_CLICK_ID = 2  # the destination holds {click_id}; what is known when the link is made is filled in then
    APPEND_CLICK_ID = 4  # the application's click_id_param goes to the destination


class HitFlag(enum.IntFlag):
    """What a hit was the first of, and what became of it."""

    NONE = 0
    FIRST_FOR_LINK = 1
    FIRST_FOR_MESSAGE = 2
    LATE = 4  # the link had expired
    RETRACTED = 8  # a later verdict took back that it was a first click
    DISABLED = 16  # the link, its destination's host, its domain or its application was switched off


class DeliveryStatus(enum.IntEnum):
    """Where a delivery stands. Only PENDING rows are ever claimed."""

    PENDING = 0
    DELIVERED = 1
    DEAD = 2  # the last attempt failed, or the answer was final; kept, listed, replayable
    PARKED = 3  # told, not stored: PENDING, and its tracker is disabled; goes on when the tracker is enabled again

    @property
    def api_name(self) -> str:
        return self.name.lower()


def utcnow() -> datetime:
    """The clock of a real process; everything takes a clock or a time, so that tests can pass their own."""
    return datetime.now(UTC)


Clock = Callable[[], datetime]
