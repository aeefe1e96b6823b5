"""Tests of the claims of messages: which messages and gateways are claimed, and which wait without delaying others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import update

from shortener.accounts.administration import create_application
from shortener.clicks.throttle import Throttle
from shortener.container import Service
from shortener.gateways import expiry, queries
from shortener.model import ALL_APPLICATIONS
from shortener.storage import schema
from tests.conftest import NOON, Clock
from tests.gateways.conftest import MakeGateway, SendMessages, stored_sends
from tests.gateways.sending import HELD, PENDING, SENT, kill, other_process, start_attempts
from tests.receiver import Receiver, Reply

ACCEPTED = Reply(200, b'{"id":"gw-1"}')


class BusyThrottle(Throttle):
    """A throttle that always reports many hits, but never pauses other work."""

    @property
    def is_busy(self) -> bool:
        return True

    def pause_for(self, worked: float) -> float:
        return 0.0


async def change(service: Service, table: Any, row_id: int | None = None, **values: Any) -> None:
    """Update one row or all rows of a table, and refresh the directory."""
    statement = update(table).values(values)
    if row_id is not None:
        statement = statement.where(table.c.id == row_id)
    await service.database.write(lambda connection: connection.execute(statement).rowcount)
    service.directory._snapshot.version = ""
    await service.directory.refresh()


@pytest.mark.parametrize(
    "state",
    [{"max_per_second": 1.0}, {"failures_in_row": 10, "open_until": NOON}, {"max_per_second": None}],
    ids=["with a rate", "with an open circuit breaker", "without a limit"],
)
async def test_the_messages_of_a_disabled_application_use_neither_the_rate_nor_the_probe_of_a_shared_gateway(
    state: dict[str, Any],
    service: Service,
    make_gateway: MakeGateway,
    send_messages: SendMessages,
    receiver: Receiver,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The disabled application has more due messages than one transaction examines.
    monkeypatch.setattr(queries, "MAX_EXAMINED", 2)
    receiver.default_reply = ACCEPTED
    other = (await service.database.write(create_application, "other", NOON)).application_id
    gateway = await make_gateway(receiver.url(), owner=ALL_APPLICATIONS)
    await change(service, schema.applications, gateway_id=gateway.id)
    await change(service, schema.gateways, gateway.id, **state)
    await send_messages(5)
    clock.forward(seconds=0.1)
    await send_messages(application_id=other)
    clock.forward(seconds=1)
    await change(service, schema.applications, 1, disabled_at=NOON)
    await service.gateway_dispatcher.flush()
    *waiting, sent = await stored_sends(service)
    assert [(send.status, send.attempt, send.doubtful) for send in waiting] == [(PENDING, 0, False)] * 5
    assert (sent.status, sent.application_id, len(receiver.requests)) == (SENT, other, 1)

    await change(service, schema.applications, 1, disabled_at=None)
    for _ in range(10):
        clock.forward(minutes=2)
        await service.gateway_dispatcher.flush()
    assert {send.status for send in await stored_sends(service)} == {SENT}


async def test_a_gateway_with_one_attempt_at_a_time_has_recovered_when_its_backlog_is_sent(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = ACCEPTED
    gateway = await make_gateway(receiver.url(), concurrency=1)
    await change(service, schema.gateways, gateway.id, recovering_at=NOON)
    await send_messages(3)
    dispatcher, breakers = service.gateway_dispatcher, []
    for _ in range(3):
        clock.forward(seconds=0.01)
        await dispatcher.step()
        await asyncio.wait(dispatcher.attempts.tasks)
        breakers.append((await service.gateways.get(gateway.id)).health.breaker(0))
    assert (len(receiver.requests), breakers) == (3, ["recovering", "recovering", "closed"])
    await dispatcher.flush()


async def test_each_of_many_gateways_gets_attempts_while_many_hits_arrive(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages
) -> None:
    for number in range(12):
        gateway = await make_gateway(name=f"gateway {number}", settings={"report": "none"})
        await send_messages(20)
    dispatcher = other_process(service)
    dispatcher._throttle = BusyThrottle()
    for _ in range(10):  # ten cycles are far too few to send all messages of the first eight gateways
        await dispatcher.step()
        if dispatcher.attempts.tasks:
            await asyncio.wait(dispatcher.attempts.tasks)
    attempted = {send.gateway_id for send in await stored_sends(service) if send.attempt}
    assert gateway.id in attempted
    assert len(attempted) == 12
    await dispatcher.stop(5)


async def test_a_gateway_with_the_policy_hold_never_gets_a_message_whose_lease_has_ended(
    service: Service,
    make_gateway: MakeGateway,
    send_messages: SendMessages,
    receiver: Receiver,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(expiry, "MAX_ROWS", 2)  # at most two messages become held in one cycle
    receiver.default_reply = Reply(hang=True)
    await make_gateway(receiver.url(), on_doubt="hold", concurrency=32)
    await send_messages(5)
    first, second = other_process(service), other_process(service)
    await start_attempts(first, receiver, 5)
    kill(first)
    clock.forward(minutes=1)
    await second.flush()
    assert [send.status for send in await stored_sends(service)] == [HELD] * 5
    assert len(receiver.requests) == 5
