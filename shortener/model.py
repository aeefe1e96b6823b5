"""The words of the service as types: states, verdicts, topics and the small frozen records that the parts hand to each other.

No I/O and no imports from the other parts. Times are aware UTC, money is `Decimal`.
"""

from __future__ import annotations

import enum


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
    def word(self) -> str:
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

    @property
    def word(self) -> str:
        assert self.name is not None
        return self.name.lower()


#: What a tracker may subscribe to (contract, section 5, and `click_retracted`).
SUBSCRIBABLE = (Topic.STATE, Topic.CLICK, Topic.LATE_CLICK, Topic.CONVERSION, Topic.DELIVERY, Topic.CLICK_RETRACTED)
