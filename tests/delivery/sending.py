"""This module contains test helpers that send one request with a `Sender`."""

import asyncio
import datetime as dt
import time

from shortener.delivery.http_exchange import OutgoingRequest, SendResult
from shortener.delivery.sender import Sender
from tests.delivery.receiver import Behaviour, Receiver, receiver, respond

NOW = dt.datetime(2026, 11, 20, 12, 0, tzinfo=dt.UTC)
#: The time limit in seconds of a request that is expected to time out.
DEADLINE = 0.2
#: A test tries these time limits (in seconds) one after the other, until the start of the response arrives in time. A busy machine
#: may need longer than DEADLINE.
DEADLINES = (DEADLINE, 10 * DEADLINE, 100 * DEADLINE)
#: The time limit in seconds of a request that is expected to end before this limit.
PLENTY = 30.0
#: A request may take this many seconds longer than its time limit, because the test machine may be busy.
GRACE = 30.0


async def post(sender: Sender, url: str, deadline: float = PLENTY) -> SendResult:
    return await sender.send(OutgoingRequest("POST", url, {"Content-Type": "application/json"}, b'{"a":1}'), deadline)


async def attempt(sender: Sender, behaviour: Behaviour, deadline: float = PLENTY) -> tuple[SendResult, Receiver]:
    """Start a receiver with the given behaviour, send it one request, and check that the request ends in time.

    Return the result and the receiver."""
    async with receiver(behaviour) as peer:
        began = time.monotonic()
        result = await post(sender, peer.url("/in"), deadline)
        assert time.monotonic() - began < deadline + GRACE
        return result, peer


async def attempt_on_idle_connection(sender: Sender, behaviour: Behaviour, deadline: float = PLENTY) -> SendResult:
    """Send one request to which the receiver responds, and return the result of a second request on the same connection.

    The receiver handles the second request, and all further requests, with the given behaviour."""

    async def first_ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (respond(200) if len(peer.requests) == 1 else behaviour)(reader, writer)

    async with receiver(first_ok) as peer:
        assert (await post(sender, peer.url("/in"))).status == 200
        began = time.monotonic()
        result = await post(sender, peer.url("/in"), deadline)
        assert time.monotonic() - began < deadline + GRACE
        return result
