"""Tests of messages that wait for a gateway when their personal data is erased: they are given up, and their cost is refunded.

The tests of the decisions of operators are in tests/web/test_sends.py."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import httpx
import pytest

from shortener.container import Service
from shortener.gateways.decisions import give_up_erased
from shortener.messages.balances import change_balance, read_balance
from shortener.messages.prices import set_price
from shortener.model import State, Topic
from shortener.reporting.count_check import verify
from shortener.retention.erasure import erase_message
from shortener.storage import schema
from tests.conftest import NOON, Clock
from tests.factory import AUDIT, rows
from tests.gateways.conftest import MakeGateway, SendMessages, stored_message, stored_send, stored_sends
from tests.gateways.sending import FAILED, HELD, SENT, other_process, start_attempts
from tests.machine import Machine
from tests.receiver import Receiver, Reply

ACCEPTED = Reply(200, b'{"id":"gw-1"}')


@pytest.fixture(autouse=True)
async def prepaid(service: Service) -> None:
    """Give the default application a balance of 10, and a price of 0.25 for each message."""
    await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal(10))
    await service.database.write(set_price, 0, "1", Decimal("0.25"))


async def balance(service: Service) -> Decimal:
    stored = await service.database.read(read_balance, 1)
    assert stored is not None
    return stored.amount


@pytest.mark.parametrize("subject", ["phone", "message_id"])
async def test_erasing_an_unsent_prepaid_message_gives_it_up_and_refunds_its_cost_once(
    subject: str, service: Service, client: httpx.AsyncClient, make_gateway: MakeGateway, send_messages: SendMessages, clock: Clock
) -> None:
    await make_gateway("http://127.0.0.1:9/")
    [message] = await send_messages()
    assert await balance(service) == Decimal("9.75")
    erased_at = clock.forward(seconds=5)
    body = {subject: message["to"] if subject == "phone" else message["message_id"]}
    for _ in range(2):
        assert (await client.post("/api/v1/erasures", json=body)).status_code == 200
        assert await balance(service) == 10
    send = await stored_send(service)
    assert (send.status, send.refunded, send.doubtful, send.text) == (FAILED, True, False, None)
    assert (send.last_error, send.finished_at) == ("erased", erased_at)
    stored = await stored_message(service, message["message_id"])
    assert (stored.state, stored.reason_code, stored.reason_description) == (State.FAILED, "erased", None)
    [event] = await rows(service.database, schema.events)
    assert (event.topics, event.data["new_state"]) == (Topic.STATE | Topic.DELIVERY, "FAILED")
    again = await client.post(f"/api/v1/sends/{message['message_id']}/discard")
    assert again.json()["error_code"] == "CONFLICT"
    assert await balance(service) == 10
    assert await service.database.read(verify, NOON, clock.forward(hours=1)) == []


async def test_an_erased_message_that_a_gateway_has_certainly_not_accepted_is_refunded(
    service: Service, client: httpx.AsyncClient, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    receiver.default_reply = 500
    await make_gateway(receiver.url())
    [message] = await send_messages()
    await service.gateway_dispatcher.flush()
    await client.post("/api/v1/erasures", json={"message_id": message["message_id"]})
    assert (await stored_send(service)).refunded
    assert await balance(service) == 10


@pytest.mark.parametrize("moment", ["during the attempt", "after the process was killed", "while it is held"])
async def test_an_erased_message_that_a_gateway_may_have_accepted_is_not_refunded(
    moment: str,
    service: Service,
    client: httpx.AsyncClient,
    make_gateway: MakeGateway,
    send_messages: SendMessages,
    receiver: Receiver,
    clock: Clock,
) -> None:
    attempt_ends = asyncio.Event()
    receiver.default_reply = Reply(close=True, after=attempt_ends)
    await make_gateway(receiver.url(), on_doubt="hold")
    [message] = await send_messages()
    dispatcher = other_process(service)
    await start_attempts(dispatcher, receiver, 1)
    if moment == "while it is held":
        attempt_ends.set()
        await dispatcher.flush()
        assert (await stored_send(service)).status == HELD
    elif moment == "after the process was killed":
        clock.forward(minutes=1)
    await client.post("/api/v1/erasures", json={"message_id": message["message_id"]})
    attempt_ends.set()
    await dispatcher.flush()
    send = await stored_send(service)
    assert (send.status, send.refunded, send.doubtful, send.text) == (FAILED, False, True, None)
    assert (send.last_error, send.finished_at is not None, send.lease_until) == ("erased", True, None)
    assert await balance(service) == Decimal("9.75")
    assert len(receiver.requests) == 1


async def test_an_erasure_reports_no_failure_of_a_message_whose_attempt_is_in_flight_after_the_clock_moved_ahead(
    service: Service,
    client: httpx.AsyncClient,
    make_gateway: MakeGateway,
    send_messages: SendMessages,
    receiver: Receiver,
    clock: Clock,
) -> None:
    machine = Machine(clock)
    service.clock_guard._uptime = machine.uptime
    service.clock_guard.check()
    receiver.default_reply = Reply(hang=True)
    await make_gateway(receiver.url())
    [message] = await send_messages()
    await start_attempts(service.gateway_dispatcher, receiver, 1)
    clock.forward(minutes=1)  # The lease of the attempt seems to have ended.
    await client.post("/api/v1/erasures", json={"message_id": message["message_id"]})
    assert (await stored_message(service, message["message_id"])).state == State.CREATED, "the gateway may accept it"
    send = await stored_send(service)
    assert (send.status, send.refunded, send.doubtful) == (FAILED, False, True)


async def test_concurrent_erasures_and_dispatchers_refund_exactly_the_messages_that_no_gateway_gets(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    receiver.default_reply = ACCEPTED
    await make_gateway(receiver.url(), concurrency=8)
    sent = await send_messages(24)
    give_up = give_up_erased(service.gateway_dispatcher.writer, service.clock_guard.leases_wait)
    dispatchers = [other_process(service) for _ in range(2)]
    connections = asyncio.Semaphore(12)  # PostgreSQL has 16 connections; a transaction that waits too long for one fails

    async def erase(message: dict[str, Any]) -> None:
        async with connections:
            await service.database.write(erase_message, 1, message["message_id"], NOON, AUDIT, give_up)

    await asyncio.gather(
        *map(erase, [*reversed(sent[8:]), *sent[8:]]),
        *(dispatcher.flush() for dispatcher in dispatchers),
    )
    for dispatcher in dispatchers:
        await dispatcher.flush()
    stored = await stored_sends(service)
    assert {send.status for send in stored} <= {SENT, FAILED}
    requested = {request.json["to"] for request in receiver.requests}
    assert len(requested) == len(receiver.requests)
    refunded = [message["to"] for message, send in zip(sent, stored, strict=True) if send.refunded]
    assert requested.isdisjoint(refunded)
    assert len(requested) + len(refunded) == 24
    assert await balance(service) == 10 - Decimal("0.25") * len(requested)
