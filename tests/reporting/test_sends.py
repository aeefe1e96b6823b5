"""Tests of the list and the counts of messages that gateways send."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Connection, Insert, Update, insert, update

from shortener.accounts.administration import create_application
from shortener.container import Service
from shortener.gateways.decisions import DISCARDED
from shortener.gateways.gateway import NewGateway
from shortener.model import ALL_APPLICATIONS, SendStatus
from shortener.reporting import sends as module
from shortener.reporting.sends import SendFilter, count_held, count_sends, list_gateway_sends, uses_gateways
from shortener.retention.scrub import ERASED
from shortener.storage.schema import gateways, sends
from tests.conftest import Clock
from tests.factory import AUDIT
from tests.gateways.conftest import MakeGateway, SendMessages, stored_sends

STATES = [SendStatus.PENDING, SendStatus.SENT, SendStatus.SENT, SendStatus.FAILED, SendStatus.HELD, SendStatus.HELD]


def execute(connection: Connection, statement: Insert | Update) -> None:
    connection.execute(statement)


@pytest.fixture
async def gateway(service: Service, make_gateway: MakeGateway, send_messages: SendMessages) -> int:
    """The id of a gateway. It has one message in each of the states STATES, the oldest first. The held messages are doubtful."""
    created = await make_gateway()
    await send_messages(len(STATES))
    for row, status in zip(await stored_sends(service), STATES, strict=True):
        error = {SendStatus.FAILED: "rejected", SendStatus.HELD: "timeout"}.get(status)
        values = {"status": int(status), "doubtful": status is SendStatus.HELD, "last_error": error}
        statement = update(sends).where(sends.c.id == row.id).values(values)
        await service.database.write(execute, statement)
    return created.id


async def listed(service: Service, clock: Clock, limit: int = 100, **filters: object) -> list[int]:
    """Return the states of the listed messages from all pages."""
    found: list[int] = []
    below = None
    values = {"since": clock() - timedelta(hours=1), "until": clock() + timedelta(hours=1), **filters}
    for _ in range(20):
        page = await service.database.read(list_gateway_sends, SendFilter(1, **values), limit, below)  # type: ignore[arg-type]
        found += [row.status for row in page.rows]
        below = page.next
        if below is None:
            break
    return found


async def test_messages_of_gateways_are_listed_by_gateway_and_by_state_newest_first(
    service: Service, gateway: int, clock: Clock
) -> None:
    newest_first = [int(state) for state in reversed(STATES)]
    for limit in (1, 2, 100):
        assert await listed(service, clock, limit) == newest_first
        assert await listed(service, clock, limit, gateway_id=gateway) == newest_first
        for state in SendStatus:
            expected = [int(state)] * STATES.count(state)
            assert await listed(service, clock, limit, state=state.api_name) == expected
            assert await listed(service, clock, limit, state=state.api_name, gateway_id=gateway) == expected
            assert await listed(service, clock, limit, state=state.api_name, gateway_id=gateway + 1) == []
        assert await listed(service, clock, limit, state="doubtful") == [SendStatus.HELD] * 2
    assert await listed(service, clock, since=clock()) == newest_first
    assert await listed(service, clock, until=clock()) == []


@pytest.mark.parametrize("state", [None, "pending", "held", "sent", "doubtful"])
async def test_a_page_that_examined_the_maximum_number_of_messages_continues_with_older_ones(
    service: Service, gateway: int, clock: Clock, monkeypatch: pytest.MonkeyPatch, state: str | None
) -> None:
    complete = await listed(service, clock, state=state)
    monkeypatch.setattr(module, "MAX_SCANNED_ROWS", 2)
    assert await listed(service, clock, state=state) == complete


async def test_the_counts_of_a_gateway_are_the_numbers_of_its_messages_by_state(
    service: Service, gateway: int, clock: Clock
) -> None:
    hour = timedelta(hours=1)
    found = await service.database.read(count_sends, 1, clock() - hour, clock() + hour, clock() - hour)
    [(gateway_id, counts)] = found.by_gateway.items()
    assert gateway_id == gateway
    assert (counts.pending, counts.held, counts.sent, counts.failed, counts.doubtful) == (1, 2, 2, 1, 2)
    assert (counts.oldest_pending, counts.last_error) == (clock(), "timeout")
    assert (found.is_complete, found.is_waiting_complete) == (True, True)
    assert await service.database.read(count_held, 1) == 2
    later = await service.database.read(count_sends, 1, clock() + hour, clock() + 2 * hour, clock())
    counts = later.by_gateway[gateway]
    assert (counts.pending, counts.held, counts.sent, counts.failed, counts.doubtful) == (1, 2, 0, 0, 0)
    assert (await service.database.read(count_sends, 1, *[clock() + hour] * 3)).by_gateway == {}


@pytest.mark.parametrize("decision", [DISCARDED, ERASED])
async def test_the_last_error_of_a_gateway_is_no_decision_about_a_message(
    service: Service, gateway: int, clock: Clock, decision: str
) -> None:
    await change(service, len(STATES) - 1, last_error=decision)
    hour = timedelta(hours=1)
    found = await service.database.read(count_sends, 1, clock() - hour, clock() + hour, clock() - hour)
    assert found.by_gateway[gateway].last_error == "timeout"
    for number in range(len(STATES)):
        await change(service, number, last_error=decision)
    found = await service.database.read(count_sends, 1, clock() - hour, clock() + hour, clock() - hour)
    assert found.by_gateway[gateway].last_error is None


async def test_counts_of_more_messages_than_are_examined_are_lower_limits(
    service: Service, gateway: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour = timedelta(hours=1)
    monkeypatch.setattr(module, "MAX_COUNTED", len(STATES) - 2)
    found = await service.database.read(count_sends, 1, clock() - hour, clock() + hour, clock() - hour)
    assert (found.is_complete, found.is_waiting_complete, found.by_gateway[gateway].sent) == (False, True, 1)
    monkeypatch.setattr(module, "MAX_COUNTED", 2)
    found = await service.database.read(count_sends, 1, clock() - hour, clock() + hour, clock() - hour)
    assert (found.is_complete, found.is_waiting_complete) == (False, False)
    assert found.by_gateway[gateway].oldest_pending == clock()


async def change(service: Service, number: int, **values: object) -> None:
    """Change the message whose state is at this index of STATES."""
    row = (await stored_sends(service))[number]
    await service.database.write(execute, update(sends).where(sends.c.id == row.id).values(values))


async def test_the_numbers_of_waiting_messages_are_lower_limits_if_more_messages_wait_than_are_examined(
    service: Service, gateway: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_COUNTED", 2)
    times = clock(), clock() + timedelta(hours=1), clock()
    await change(service, 4, status=int(SendStatus.PENDING))
    assert not (await service.database.read(count_sends, 1, *times)).is_waiting_complete
    await change(service, 4, status=int(SendStatus.HELD))
    await change(service, 0, status=int(SendStatus.SENT))
    found = await service.database.read(count_sends, 1, *times)
    assert (found.is_waiting_complete, found.by_gateway[gateway].held) == (True, 2)


async def test_waiting_messages_are_counted_from_their_oldest_one_in_the_period(
    service: Service, gateway: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_COUNTED", len(STATES))
    earlier, long_ago = clock() - timedelta(minutes=10), clock() - timedelta(days=400)
    await change(service, 2, status=int(SendStatus.PENDING), created_at=earlier)
    old = {"application_id": 1, "gateway_id": gateway, "status": 0, "next_at": long_ago, "created_at": long_ago}
    await service.database.write(execute, insert(sends).values([{"id": number, **old} for number in range(1, len(STATES))]))
    for since, expected in ((earlier, (2, earlier)), (clock(), (1, clock()))):
        found = await service.database.read(count_sends, 1, clock(), clock(), since)
        counts = found.by_gateway[gateway]
        assert (counts.pending, counts.oldest_pending, found.is_waiting_complete) == (*expected, True)


async def test_an_application_uses_gateways_if_it_has_one_or_if_one_of_the_installation_sends_its_messages(
    service: Service, gateway: int, clock: Clock
) -> None:
    other = (await service.database.write(create_application, "other", clock())).application_id
    await service.gateways.create(AUDIT, other, NewGateway(name="own", kind="simulator"))
    assert await service.database.read(uses_gateways, other), "the other application has no messages"
    everybody = update(gateways).where(gateways.c.id == gateway).values(application_id=ALL_APPLICATIONS)
    await service.database.write(execute, everybody)
    assert await service.database.read(uses_gateways, 1)


async def test_an_application_without_a_gateway_and_without_messages_of_gateways_uses_none(
    service: Service, gateway: int, clock: Clock
) -> None:
    other = (await service.database.write(create_application, "other", clock())).application_id
    assert await service.database.read(uses_gateways, 1)
    assert not await service.database.read(uses_gateways, other)
    hour = timedelta(hours=1)
    found = await service.database.read(count_sends, other, clock() - hour, clock() + hour, clock() - hour)
    assert found.by_gateway == {}
