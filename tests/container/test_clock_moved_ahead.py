"""Tests of the service after its clock moved ahead: nothing expires and nothing is deleted because of this. On both databases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from shortener.container import Service
from shortener.model import HitFlag
from shortener.storage import schema
from shortener.storage.clock_guard import WAIT_AFTER_STEP
from tests.clicks.helpers import create_codes, make_hit
from tests.conftest import Clock
from tests.delivery.conftest import MakeTracker, Story, changes, make_tracker, story
from tests.delivery.dispatching import DEAD, deliver, delivery
from tests.factory import AUDIT, rows
from tests.gateways.conftest import MakeGateway, SendMessages, make_gateway, send_messages, stored_send
from tests.gateways.sending import PENDING, SENT
from tests.machine import Machine
from tests.receiver import Receiver, Reply

__all__ = ["make_gateway", "make_tracker", "send_messages", "story"]  # fixtures

HOUR, DAY = timedelta(hours=1), timedelta(days=1)

Ahead = Callable[[timedelta], None]


@pytest.fixture
def machine(clock: Clock) -> Machine:
    return Machine(clock)


@pytest.fixture
def ahead(service: Service, machine: Machine) -> Ahead:
    """A function that moves the clock of the service ahead, while no time passes."""
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
