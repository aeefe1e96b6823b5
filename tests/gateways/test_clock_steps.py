"""These tests check messages that wait for a gateway after the system clock was set back, on both databases."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import update

from shortener.container import Service
from shortener.delivery.claims import LEASE_MARGIN_MS
from shortener.delivery.health import MAX_FAILURES
from shortener.gateways.queries import queue_name
from shortener.storage import schema
from shortener.storage.types import to_ms
from tests.conftest import Clock
from tests.databases import someone_at
from tests.factory import rows
from tests.gateways.conftest import MakeGateway, SendMessages, stored_send, stored_sends
from tests.gateways.sending import HELD, SENT, kill, other_process, start_attempts
from tests.receiver import Receiver, Reply

ACCEPTED = Reply(200, b'{"id":"gw-1"}')
STEP = timedelta(hours=5)


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_message_is_sent_again_after_its_planned_delay_although_the_clock_was_set_back(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock, is_restarted: bool
) -> None:
    receiver.default_reply = 500
    await make_gateway(receiver.url(), schedule=[60.0])
    await send_messages(3)
    await service.gateway_dispatcher.flush()
    clock.now -= STEP
    receiver.default_reply = ACCEPTED
    dispatcher = other_process(service) if is_restarted else service.gateway_dispatcher
    await dispatcher.flush()
    assert len(receiver.requests) == 3
    assert all(timedelta(0) < row.next_at - clock() <= timedelta(seconds=66) for row in await stored_sends(service))
    clock.forward(seconds=67)
    await dispatcher.flush()
    assert [row.status for row in await stored_sends(service)] == [SENT] * 3


async def test_a_first_attempt_is_made_although_the_clock_was_set_back_after_the_message_was_queued(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = ACCEPTED
    await make_gateway(receiver.url())
    await send_messages()
    clock.now -= STEP
    await service.gateway_dispatcher.flush()
    assert (await stored_send(service)).status == SENT


async def test_a_gateway_paused_by_a_local_failure_continues_after_the_clock_was_set_back(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = ACCEPTED
    gateway = await make_gateway(receiver.url())
    service.gateway_dispatcher.pauses.pause(queue_name(gateway.id), to_ms(clock()))
    clock.now -= STEP
    await send_messages()
    await service.gateway_dispatcher.flush()
    assert (await stored_send(service)).status == SENT


@pytest.mark.parametrize(("on_doubt", "status"), [("resend", SENT), ("hold", HELD)])
async def test_a_message_of_a_killed_process_does_not_wait_longer_than_its_lease_after_the_clock_was_set_back(
    service: Service,
    make_gateway: MakeGateway,
    send_messages: SendMessages,
    receiver: Receiver,
    clock: Clock,
    on_doubt: str,
    status: int,
) -> None:
    receiver.default_reply = Reply(hang=True)
    await make_gateway(receiver.url(), concurrency=1, timeout=5.0, on_doubt=on_doubt)
    await send_messages()
    killed = other_process(service)
    await start_attempts(killed, receiver, 1)
    kill(killed)
    clock.now -= STEP
    receiver.default_reply = ACCEPTED
    await service.gateway_dispatcher.flush()
    assert len(receiver.requests) == 1, "the attempt may still be in flight"
    clock.forward(milliseconds=120_001 + LEASE_MARGIN_MS)
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert (send.status, send.doubtful) == (status, True)


async def test_the_outcome_of_a_running_attempt_is_recorded_although_the_clock_was_set_back(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    response = asyncio.Event()
    receiver.default_reply = Reply(200, b'{"id":"gw-1"}', after=response)
    await make_gateway(receiver.url())
    await send_messages()
    await start_attempts(service.gateway_dispatcher, receiver, 1)
    clock.now -= STEP
    await service.gateway_dispatcher.step()
    response.set()
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert (send.status, send.doubtful, len(receiver.requests)) == (SENT, False, 1)


async def test_a_circuit_breaker_of_a_gateway_stays_open_only_for_its_planned_pause_after_the_clock_was_set_back(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = 500
    await make_gateway(receiver.url(), schedule=[1.0])
    await send_messages(MAX_FAILURES + 1)
    await service.gateway_dispatcher.flush()
    assert (await rows(service.database, schema.gateways))[-1].open_until is not None
    clock.now -= STEP
    receiver.default_reply = ACCEPTED
    for _ in range(40):
        await service.gateway_dispatcher.flush()
        clock.forward(seconds=10)
    assert {row.status for row in await stored_sends(service)} == {SENT}


async def test_no_stored_time_of_a_message_is_changed_while_the_clock_runs_normally(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = Reply(503, b"", {"retry-after": "7200"})
    await make_gateway(receiver.url(), schedule=[60.0])
    await send_messages()
    await service.gateway_dispatcher.flush()
    await service.database.write(
        lambda connection: connection.execute(update(schema.gateways).values(open_until=None, paced_until=None)).rowcount
    )
    before = await stored_send(service)
    clock.forward(seconds=1)
    await other_process(service).flush()
    assert await stored_send(service) == before
    assert before.next_at - clock() > timedelta(seconds=7190)


async def test_the_repair_comes_back_to_a_gateway_that_another_process_has_locked(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    if service.database.dialect == "sqlite":
        pytest.skip("SQLite runs one transaction after the other")
    receiver.default_reply = 500
    gateway = await make_gateway(receiver.url(), schedule=[60.0])
    await send_messages()
    await service.gateway_dispatcher.flush()
    clock.now -= STEP
    receiver.default_reply = ACCEPTED
    async with someone_at(service, "SELECT 1 FROM gateways WHERE id = $1 FOR UPDATE", gateway.id):
        await service.gateway_dispatcher.step()
    for _ in range(2):
        await service.gateway_dispatcher.flush()
        clock.forward(seconds=67)
    await service.gateway_dispatcher.flush()
    assert (await stored_send(service)).status == SENT


async def test_the_breaker_of_a_gateway_without_messages_is_repaired_too(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = ACCEPTED
    gateway = await make_gateway(receiver.url())
    change = update(schema.gateways).where(schema.gateways.c.id == gateway.id)
    values = {"failures_in_row": MAX_FAILURES, "open_until": clock() + timedelta(minutes=1), "opened_at": clock()}
    await service.database.write(lambda connection: connection.execute(change.values(values)).rowcount)
    await service.gateway_dispatcher.step()
    clock.now -= STEP
    await service.gateway_dispatcher.step()
    await send_messages()
    for _ in range(40):
        await service.gateway_dispatcher.flush()
        clock.forward(seconds=10)
    assert (await stored_send(service)).status == SENT
