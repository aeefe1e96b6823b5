"""Tests of the service on both databases after its clock moved ahead. Nothing must expire or be deleted because of this."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import httpx
import pytest

from shortener.container import Service
from shortener.model import HitFlag
from shortener.storage import schema
from shortener.storage.clock_guard import LEASE_WAIT, WAIT_AFTER_STEP
from tests.clicks.helpers import create_codes, make_hit
from tests.conftest import Clock
from tests.delivery.conftest import MakeTracker, Story, changes, make_tracker, story
from tests.delivery.dispatching import DEAD, DELIVERED, cancel_attempts, deliver, delivery, other_dispatcher
from tests.delivery.dispatching import start_attempts as start_deliveries
from tests.factory import AUDIT, rows
from tests.gateways.conftest import MakeGateway, SendMessages, make_gateway, send_messages, stored_send
from tests.gateways.sending import HELD, PENDING, SENT, kill, other_process, start_attempts
from tests.machine import Machine
from tests.receiver import Receiver, Reply

__all__ = ["make_gateway", "make_tracker", "send_messages", "story"]  # fixtures

HOUR, DAY = timedelta(hours=1), timedelta(days=1)

ACCEPTED = Reply(200, b'{"id":"gw-1"}')
STEPS = timedelta(minutes=5), 30 * HOUR

Ahead = Callable[[timedelta], None]


@pytest.fixture
def machine(clock: Clock) -> Machine:
    return Machine(clock)


@pytest.fixture
def ahead(service: Service, machine: Machine) -> Ahead:
    """Return a function that moves the clock of the service ahead, although no time passes."""
    service.clock_guard._uptime = machine.uptime
    service.clock_guard.check()

    def move(step: timedelta) -> None:
        machine.clock.now += step

    return move


async def test_no_message_fails_because_the_clock_moved_ahead(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, ahead: Ahead, machine: Machine
) -> None:
    receiver.default_reply = 500
    await make_gateway(receiver.url(), schedule=[60.0])
    await send_messages()
    await service.gateway_dispatcher.flush()
    ahead(service.settings.gateway_validity_hours * HOUR + 2 * HOUR)
    receiver.default_reply = Reply(200, b'{"id":"gw-1"}')
    await service.gateway_dispatcher.flush()
    assert (await stored_send(service)).status == SENT


async def test_a_message_fails_when_it_has_waited_too_long_although_the_clock_moved_ahead(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, ahead: Ahead, machine: Machine
) -> None:
    receiver.default_reply = 500
    await make_gateway(receiver.url(), schedule=[60.0])
    await send_messages()
    machine.run(20 * HOUR)
    ahead(30 * DAY)
    machine.run(3 * HOUR)
    await service.gateway_dispatcher.flush()
    assert (await stored_send(service)).status == PENDING
    machine.run(2 * HOUR)
    await service.gateway_dispatcher.flush()
    assert (await stored_send(service)).last_error == "expired"


async def test_no_delivery_becomes_dead_because_the_clock_moved_ahead(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, ahead: Ahead, machine: Machine
) -> None:
    tracker = await make_tracker(receiver.url())
    await story.first_click()
    await service.fanout.flush()
    await service.trackers.update(AUDIT, tracker, changes(enabled=False))
    ahead(service.settings.event_retention_days * DAY + DAY)
    await deliver(service)
    assert (await delivery(service)).status == PENDING
    machine.run(DAY)
    await deliver(service)
    assert (await delivery(service)).status == DEAD


async def test_lists_show_a_link_as_live_that_redirects_after_the_clock_moved_ahead(
    service: Service, client: httpx.AsyncClient, ahead: Ahead, machine: Machine
) -> None:
    (code,) = await create_codes(service, expires_in=60)
    for state, step in (("live", 30 * DAY), ("expired", timedelta())):
        ahead(step)
        listed = (await client.get("/api/v1/links")).json()["links"]
        shown = (await client.get(f"/api/v1/links/{code}")).json()["link"]
        assert [one["state"] for one in (*listed, shown)] == [state] * 2
        for expired in (True, False):
            found = (await client.get("/api/v1/links", params={"expired": expired})).json()["links"]
            assert len(found) == (expired is (state == "expired"))
        machine.run(timedelta(seconds=61))


async def test_no_link_expires_because_the_clock_moved_ahead(service: Service, ahead: Ahead, machine: Machine) -> None:
    (code,) = await create_codes(service, expires_in=60)
    ahead(30 * DAY)
    resolution = await service.recorder.record(make_hit(service, code))
    assert (resolution.location is not None, resolution.gone) == (True, False)
    (row,) = await rows(service.database, schema.hits)
    assert not row.flags & HitFlag.LATE
    assert row.flags & HitFlag.FIRST_FOR_LINK
    machine.run(timedelta(seconds=61))
    assert (await service.recorder.record(make_hit(service, code))).gone


async def test_the_purge_of_the_service_deletes_nothing_because_the_clock_moved_ahead(
    service: Service, ahead: Ahead, machine: Machine
) -> None:
    await create_codes(service)
    job = service.jobs.table["purge"]
    assert await job.step() == 0
    ahead(service.settings.message_retention_days * DAY + DAY)
    assert await job.step() == 0
    machine.run(WAIT_AFTER_STEP)
    assert await job.step() > 0


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("on_doubt", ["resend", "hold"])
async def test_a_message_that_is_being_sent_when_the_clock_moves_ahead_is_sent_once(
    service: Service,
    make_gateway: MakeGateway,
    send_messages: SendMessages,
    receiver: Receiver,
    ahead: Ahead,
    step: timedelta,
    on_doubt: str,
) -> None:
    response = asyncio.Event()
    receiver.default_reply = Reply(200, b'{"id":"gw-1"}', after=response)
    await make_gateway(receiver.url(), on_doubt=on_doubt)
    await send_messages()
    await start_attempts(service.gateway_dispatcher, receiver, 1)
    ahead(step)
    for _ in range(2):
        await service.gateway_dispatcher.step()
    response.set()
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert (send.status, send.doubtful, send.attempt, len(receiver.requests)) == (SENT, False, 1, 1)


async def test_a_message_that_another_process_is_sending_when_the_clock_moves_ahead_is_sent_once(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, ahead: Ahead, machine: Machine
) -> None:
    response = asyncio.Event()
    receiver.default_reply = Reply(200, b'{"id":"gw-1"}', after=response)
    await make_gateway(receiver.url(), concurrency=1, timeout=60.0)
    await send_messages()
    other = other_process(service)
    other._clock_ahead, other._leases_wait = service.clock_guard.ahead, service.clock_guard.leases_wait
    await start_attempts(other, receiver, 1)
    await send_messages()
    ahead(30 * HOUR)
    machine.run(timedelta(seconds=50))
    assert await service.gateway_dispatcher.step() == 0, "the concurrency of the gateway is used"
    response.set()
    await other.flush()
    await service.gateway_dispatcher.flush()
    assert len(receiver.requests) == 2


@pytest.mark.parametrize(("on_doubt", "status"), [("resend", SENT), ("hold", HELD)])
async def test_the_lease_of_a_killed_process_ends_minutes_after_the_clock_moved_ahead(
    service: Service,
    make_gateway: MakeGateway,
    send_messages: SendMessages,
    receiver: Receiver,
    ahead: Ahead,
    machine: Machine,
    on_doubt: str,
    status: int,
) -> None:
    receiver.default_reply = Reply(hang=True)
    await make_gateway(receiver.url(), on_doubt=on_doubt)
    await send_messages()
    killed = other_process(service)
    await start_attempts(killed, receiver, 1)
    kill(killed)
    receiver.default_reply = ACCEPTED
    ahead(30 * HOUR)
    await service.gateway_dispatcher.flush()
    assert (await stored_send(service)).status == PENDING
    machine.run(LEASE_WAIT)
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert (send.status, send.doubtful) == (status, True)


async def test_a_retry_does_not_wait_because_the_clock_moved_ahead(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, ahead: Ahead
) -> None:
    receiver.default_reply = 500
    await make_gateway(receiver.url(), schedule=[60.0])
    await send_messages()
    await service.gateway_dispatcher.flush()
    receiver.default_reply = ACCEPTED
    ahead(timedelta(minutes=5))
    await service.gateway_dispatcher.flush()
    assert (await stored_send(service)).status == SENT


async def test_a_lease_does_not_end_if_the_clock_moves_ahead_and_partly_back(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, ahead: Ahead
) -> None:
    response = asyncio.Event()
    receiver.default_reply = Reply(200, b'{"id":"gw-1"}', after=response)
    await make_gateway(receiver.url())
    await send_messages()
    await start_attempts(service.gateway_dispatcher, receiver, 1)
    for step in (30 * HOUR, -10 * HOUR):
        ahead(step)
        await service.gateway_dispatcher.step()
    response.set()
    await service.gateway_dispatcher.flush()
    assert ((await stored_send(service)).status, len(receiver.requests)) == (SENT, 1)


@pytest.mark.parametrize("step", STEPS)
async def test_a_delivery_that_is_being_sent_when_the_clock_moves_ahead_is_sent_once(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, ahead: Ahead, step: timedelta
) -> None:
    response = asyncio.Event()
    receiver.default_reply = Reply(200, after=response)
    await make_tracker(receiver.url())
    await story.first_click()
    await service.fanout.flush()
    await start_deliveries(service.dispatcher, receiver, 1)
    ahead(step)
    for _ in range(2):
        await service.dispatcher.step()
    response.set()
    await service.dispatcher.flush()
    row = await delivery(service)
    assert (row.status, row.attempt, len(receiver.requests)) == (DELIVERED, 1, 1)


async def test_the_lease_of_a_delivery_of_a_killed_process_ends_minutes_after_the_clock_moved_ahead(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, ahead: Ahead, machine: Machine
) -> None:
    receiver.default_reply = Reply(hang=True)
    await make_tracker(receiver.url())
    await story.first_click()
    await service.fanout.flush()
    killed = other_dispatcher(service)
    await start_deliveries(killed, receiver, 1)
    cancel_attempts(killed)
    receiver.default_reply = 200
    ahead(30 * HOUR)
    await service.dispatcher.flush()
    assert (await delivery(service)).status == PENDING
    machine.run(LEASE_WAIT)
    await service.dispatcher.flush()
    assert (await delivery(service)).status == DELIVERED


async def test_a_message_of_a_removed_gateway_that_is_being_sent_when_the_clock_moves_ahead_does_not_fail(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, ahead: Ahead
) -> None:
    response = asyncio.Event()
    receiver.default_reply = Reply(200, b'{"id":"gw-1"}', after=response)
    gateway = await make_gateway(receiver.url())
    await send_messages()
    await start_attempts(service.gateway_dispatcher, receiver, 1)
    await service.gateways.remove(AUDIT, gateway.id)
    ahead(timedelta(minutes=5))
    await service.gateway_dispatcher.step()
    response.set()
    await service.gateway_dispatcher.flush()
    assert (await stored_send(service)).status == SENT


@pytest.mark.parametrize("decision", ["resend", "discard"])
async def test_no_decision_changes_a_message_that_is_being_sent_when_the_clock_moves_ahead(
    service: Service,
    client: httpx.AsyncClient,
    make_gateway: MakeGateway,
    send_messages: SendMessages,
    receiver: Receiver,
    ahead: Ahead,
    decision: str,
) -> None:
    """If the decision changed the message, the recipient could get it twice, or the message would be listed as failed although it
    was sent."""
    response = asyncio.Event()
    receiver.default_reply = Reply(200, b'{"id":"gw-1"}', after=response)
    await make_gateway(receiver.url())
    [message] = await send_messages()
    await start_attempts(service.gateway_dispatcher, receiver, 1)
    ahead(timedelta(minutes=5))
    assert (await client.post(f"/api/v1/sends/{message['message_id']}/{decision}")).status_code == 409
    response.set()
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert (send.status, send.doubtful, len(receiver.requests)) == (SENT, False, 1)


async def test_a_delivery_of_a_deleted_tracker_that_is_being_sent_when_the_clock_moves_ahead_is_not_dead(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, ahead: Ahead
) -> None:
    response = asyncio.Event()
    receiver.default_reply = Reply(200, after=response)
    tracker = await make_tracker(receiver.url())
    await story.first_click()
    await service.fanout.flush()
    await start_deliveries(service.dispatcher, receiver, 1)
    await service.trackers.delete(AUDIT, tracker)
    ahead(timedelta(minutes=5))
    await service.dispatcher.step()
    response.set()
    await service.dispatcher.flush()
    assert (await delivery(service)).status == DELIVERED
