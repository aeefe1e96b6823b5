"""Helpers that send one request with a sender."""

import datetime as dt
import time

from shortener.delivery.sender import OutgoingRequest, Sender, SendResult
from tests.delivery.receiver import Behaviour, Receiver, receiver

NOW = dt.datetime(2026, 11, 20, 12, 0, tzinfo=dt.UTC)
#: Time limit of an attempt that must time out.
DEADLINE = 0.2
#: Time limit of an attempt that must end by itself.
PLENTY = 5.0
#: What a loaded machine may add.
GRACE = 5.0


async def post(sender: Sender, url: str, deadline: float = PLENTY) -> SendResult:
    return await sender.send(OutgoingRequest("POST", url, {"Content-Type": "application/json"}, b'{"a":1}'), deadline)


async def attempt(sender: Sender, behaviour: Behaviour, deadline: float = PLENTY) -> tuple[SendResult, Receiver]:
    """Send one request to a receiver and check that it ends in time."""
    async with receiver(behaviour) as peer:
        began = time.monotonic()
        result = await post(sender, peer.url("/in"), deadline)
        assert time.monotonic() - began < deadline + GRACE
        return result, peer
