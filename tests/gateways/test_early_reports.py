"""Tests of delivery reports of gateways that arrive before the response to their message is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest

from shortener.container import Service
from shortener.gateways import early_reports
from shortener.gateways.early_reports import FORGET_SECONDS, LATE_RESPONSE_SECONDS, MessageNotKnownYet
from shortener.gateways.gateway import StoredGateway
from shortener.gateways.submission import GatewayReport
from shortener.gateways.unrecorded_reports import LossReason
from shortener.ids import encode
from shortener.model import State
from tests.conftest import Clock
from tests.factory import AUDIT
from tests.gateways.conftest import MakeGateway, SendMessages, stored_message, stored_send
from tests.gateways.sending import SENT, start_attempts
from tests.receiver import Receiver, Reply

TIMEOUT = 20
LEASE = TIMEOUT + 10
FIELDS = {"status": "status", "id": "id"}
EARLY = GatewayReport("DELIVRD", gateway_message_id="gw-1")


@pytest.fixture(autouse=True)
def passed(service: Service, clock: Clock) -> Clock:
    """The monotonic clock. It follows the clock of the service, except in tests with the fixture `step`."""
    service.gateway_reports._early._monotonic = lambda: clock().timestamp()
    return Clock()


@pytest.fixture
def step(service: Service, clock: Clock, passed: Clock) -> Callable[[timedelta], None]:
    """A function that sets the clock of the service. The monotonic clock does not change: it is the separate clock `passed`."""
    service.gateway_reports._early._monotonic = lambda: passed().timestamp()

    def move(by: timedelta) -> None:
        clock.now += by

    return move


@pytest.fixture
def response() -> asyncio.Event:
    """When this asyncio.Event is set, the gateway responds to the message m-1."""
    return asyncio.Event()


@pytest.fixture
async def gateway(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, response: asyncio.Event
) -> StoredGateway:
    """A gateway that has received the message m-1 and has not responded yet."""
    service.gateway_reports._wait.seconds = 0
    receiver.default_reply = Reply(200, b'{"id":"gw-1"}', after=response)
    made = await make_gateway(receiver.url(), timeout=TIMEOUT)
    await send_messages(message_ids=("m-1",))
    await start_attempts(service.gateway_dispatcher, receiver, 1)
    return made


async def respond(service: Service, response: asyncio.Event) -> None:
    """Let the gateway respond with the id gw-1, and record the response."""
    response.set()
    await service.gateway_dispatcher.flush()
    assert (await stored_send(service)).status == SENT


def unknown(service: Service, gateway: StoredGateway) -> int:
    """Update the metric, and return its number of reports of unknown messages."""
    service.metrics.text("")
    return service.gateway_reports.unrecorded.of_gateway(gateway.id).get(LossReason.UNKNOWN_MESSAGE, 0)


async def test_a_receipt_that_arrives_before_the_response_is_repeated_and_counts_after_the_response(
    service: Service, gateway: StoredGateway, response: asyncio.Event
) -> None:
    for _ in range(2):
        with pytest.raises(MessageNotKnownYet):
            await service.gateway_reports.receive(gateway.id, EARLY)
    await respond(service, response)
    assert await service.gateway_reports.receive(gateway.id, EARLY)
    assert (await stored_message(service, "m-1")).state == State.DELIVERED
    assert unknown(service, gateway) == 0


async def test_a_callback_that_arrives_before_the_response_gets_503_and_its_repeat_is_recorded(
    service: Service, client: httpx.AsyncClient, gateway: StoredGateway, response: asyncio.Event
) -> None:
    await service.gateways.update(AUDIT, gateway.id, {"settings": {"report_fields": FIELDS}}, 1)
    path = gateway.config.report_url.removeprefix(service.settings.base_url)
    reports = [{"status": "DELIVRD", "id": "gw-1"}, {"id": "gw-1"}]
    early = await client.post(path, json=reports)
    assert (early.status_code, early.json()["error_code"], early.headers["retry-after"]) == (503, "UNAVAILABLE", "2")
    lost = service.gateway_reports.unrecorded.of_gateway
    assert lost(gateway.id) == {}
    await respond(service, response)
    assert (await client.post(path, json=reports)).status_code == 200
    assert (await stored_message(service, "m-1")).state == State.DELIVERED
    assert lost(gateway.id) == {LossReason.NO_STATUS: 1}


async def test_a_report_of_another_system_is_acknowledged_when_the_attempts_before_it_have_ended(
    service: Service, clock: Clock, gateway: StoredGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    foreign = GatewayReport("DELIVRD", gateway_message_id="foreign")
    for _ in range(2):
        with pytest.raises(MessageNotKnownYet):
            await service.gateway_reports.receive(gateway.id, foreign)
    clock.forward(seconds=LEASE - 1)
    await send_messages()  # this attempt begins after the report, so that the report cannot be about its message
    await start_attempts(service.gateway_dispatcher, receiver, 1)
    clock.forward(seconds=1)
    assert not await service.gateway_reports.receive(gateway.id, foreign)
    assert not await service.gateway_reports.receive(gateway.id, foreign)
    assert unknown(service, gateway) == 2


async def test_a_report_that_is_not_repeated_counts_as_unknown(service: Service, clock: Clock, gateway: StoredGateway) -> None:
    with pytest.raises(MessageNotKnownYet):
        await service.gateway_reports.receive(gateway.id, EARLY)
    clock.forward(seconds=FORGET_SECONDS - 1)
    assert unknown(service, gateway) == 0
    clock.forward(seconds=1)
    assert unknown(service, gateway) == 1


async def test_an_unknown_report_is_acknowledged_at_once_if_no_attempt_is_in_flight_or_if_it_names_its_message(
    service: Service, gateway: StoredGateway, response: asyncio.Event
) -> None:
    for named in (GatewayReport("DELIVRD", reference=encode(1)), GatewayReport("DELIVRD", message_id="unknown")):
        assert not await service.gateway_reports.receive(gateway.id, named)
    await respond(service, response)
    assert not await service.gateway_reports.receive(gateway.id, GatewayReport("DELIVRD", gateway_message_id="foreign"))
    assert unknown(service, gateway) == 3


@pytest.mark.parametrize("on_doubt", ["resend", "hold"])
async def test_a_receipt_that_arrives_before_a_late_response_is_repeated(
    service: Service,
    clock: Clock,
    make_gateway: MakeGateway,
    send_messages: SendMessages,
    receiver: Receiver,
    on_doubt: str,
) -> None:
    service.gateway_reports._wait.seconds = 0
    receiver.default_reply = Reply(close=True)
    gateway = await make_gateway(receiver.url(), on_doubt=on_doubt, schedule=[3600])
    await send_messages(message_ids=("m-1",))
    assert await service.gateway_dispatcher.step()
    while (await stored_send(service)).last_error is None:
        await service.gateway_dispatcher.step()
        await asyncio.sleep(0.01)
    assert (await stored_send(service)).doubtful
    with pytest.raises(MessageNotKnownYet):
        await service.gateway_reports.receive(gateway.id, EARLY)
    late = GatewayReport("SENT", reference=encode((await stored_send(service)).id), gateway_message_id="gw-1")
    assert await service.gateway_reports.receive(gateway.id, late)
    assert await service.gateway_reports.receive(gateway.id, EARLY)
    assert (await stored_message(service, "m-1")).state == State.DELIVERED


async def test_a_report_is_acknowledged_when_no_late_response_can_arrive(
    service: Service, clock: Clock, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    service.gateway_reports._wait.seconds = 0
    receiver.default_reply = Reply(close=True)
    gateway = await make_gateway(receiver.url(), on_doubt="hold")
    await send_messages()
    await service.gateway_dispatcher.flush()
    with pytest.raises(MessageNotKnownYet):
        await service.gateway_reports.receive(gateway.id, EARLY)
    clock.forward(seconds=LATE_RESPONSE_SECONDS)
    assert not await service.gateway_reports.receive(gateway.id, EARLY)


async def test_reports_are_acknowledged_at_once_if_too_many_wait(
    service: Service, gateway: StoredGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_reports, "MAX_REPORTS", 1)
    with pytest.raises(MessageNotKnownYet):
        await service.gateway_reports.receive(gateway.id, EARLY)
    assert not await service.gateway_reports.receive(gateway.id, replace(EARLY, gateway_message_id="gw-2"))


@pytest.mark.parametrize("hours", [-5, 5])
async def test_a_step_of_the_clock_does_not_change_how_long_a_report_waits(
    service: Service, passed: Clock, step: Callable[[timedelta], None], gateway: StoredGateway, hours: int
) -> None:
    with pytest.raises(MessageNotKnownYet):
        await service.gateway_reports.receive(gateway.id, EARLY)
    step(timedelta(hours=hours))
    passed.forward(seconds=LEASE - 1)
    with pytest.raises(MessageNotKnownYet):
        await service.gateway_reports.receive(gateway.id, EARLY)
    passed.forward(seconds=1)
    assert not await service.gateway_reports.receive(gateway.id, EARLY)


async def test_a_report_waits_no_longer_than_a_lease_after_the_clock_was_set_back(
    service: Service, passed: Clock, step: Callable[[timedelta], None], gateway: StoredGateway
) -> None:
    step(timedelta(hours=-5))
    with pytest.raises(MessageNotKnownYet):
        await service.gateway_reports.receive(gateway.id, EARLY)
    passed.forward(seconds=LEASE)
    assert not await service.gateway_reports.receive(gateway.id, EARLY)


async def test_a_report_about_an_attempt_in_flight_is_not_lost_after_the_clock_moved_ahead(
    service: Service, step: Callable[[timedelta], None], gateway: StoredGateway
) -> None:
    step(timedelta(hours=5))
    with pytest.raises(MessageNotKnownYet):
        await service.gateway_reports.receive(gateway.id, EARLY)
