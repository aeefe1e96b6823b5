"""Tests of the SQL statements of the gateway dispatcher: they use the partial indexes, and claims do not overlap."""

from __future__ import annotations

from sqlalchemy import Connection, event, update

from shortener.container import Service
from shortener.delivery.dispatch_queries import ClaimRequest
from shortener.gateways import queries
from shortener.gateways.queries import FinishedSend
from shortener.storage.schema import sends
from shortener.storage.types import to_ms
from tests.conftest import NOON
from tests.gateways.conftest import MakeGateway, SendMessages, stored_sends
from tests.gateways.sending import PENDING, SENT
from tests.reporting.plans import plans, scanned

NOW = to_ms(NOON)


async def test_the_claim_query_returns_each_due_message_once_and_counts_the_send_attempt(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages
) -> None:
    gateway = await make_gateway()
    await send_messages(5)
    request = ClaimRequest(queries.queue_name(gateway.id), 0, 3, NOW + 10_000)
    first = await service.database.write(queries.claim, [request], NOW, ())
    second = await service.database.write(queries.claim, [request], NOW, ())
    assert (len(first), len(second)) == (3, 2)
    assert {claim.attempt for claim in first} == {1}
    assert not any(claim.doubtful for claim in first)
    again = ClaimRequest(request.queue, 1, 10, NOW + 30_000)
    third = await service.database.write(queries.claim, [again], NOW + 10_001, ())
    assert {claim.doubtful for claim in third} == {True}
    assert {claim.attempt for claim in third} == {2}


async def test_the_outcome_of_a_send_attempt_is_stored_only_for_the_process_that_claimed_the_message(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages
) -> None:
    gateway = await make_gateway()
    await send_messages(1)
    request = ClaimRequest(queries.queue_name(gateway.id), 0, 1, NOW + 10_000)
    [claim] = await service.database.write(queries.claim, [request], NOW, ())

    def finished(attempt: int, lease: int) -> FinishedSend:
        return FinishedSend(claim.id, attempt, lease, SENT, 1, 0, 1, NOW, False, NOW, "gw", 200, None)

    assert await service.database.write(queries.finish, [finished(2, claim.lease_until)]) == set()
    assert await service.database.write(queries.finish, [finished(1, claim.lease_until + 1)]) == set()
    [row] = await stored_sends(service)
    assert row.status == PENDING
    assert await service.database.write(queries.finish, [finished(1, claim.lease_until)]) == {claim.id}
    [row] = await stored_sends(service)
    assert (row.status, row.text, row.doubtful) == (SENT, None, False)


async def test_gateways_without_pending_messages_are_not_examined(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages
) -> None:
    gateway = await make_gateway()
    assert await service.database.write(queries.lock_states, NOW) == []
    await send_messages(1)
    [state] = await service.database.write(queries.lock_states, NOW)
    assert (state.id, state.is_due(NOW), state.is_due(NOW - 1), state.in_flight) == (gateway.id, True, False, 0)


async def test_the_statements_for_due_messages_use_the_partial_index(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages
) -> None:
    gateway = await make_gateway()
    await send_messages(3)
    request = ClaimRequest(queries.queue_name(gateway.id), 0, 2, NOW + 10_000)

    def explain(connection: Connection) -> list[str]:
        def run() -> None:
            assert len(queries.lock_states(connection, NOW)) == 1
            assert len(queries.claim(connection, [request], NOW, ())) == 2

        if connection.dialect.name == "postgresql":
            # without this setting, PostgreSQL reads a small table completely instead of using the index
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        return plans(connection, run)

    _, states, claim, *_ = await service.database.write(explain)
    assert states.count("sends_due (") == 2 if service.database.dialect == "sqlite" else states.count("sends_due on sends") == 2
    assert "sends_due" in claim
    for plan in (states, claim):
        assert scanned(plan, "gateways") == []
        assert "Seq Scan on sends" not in plan
    assert "sends.status = 0" in str(queries._STATES), "PostgreSQL cannot use the partial index for a parameter"


async def test_a_message_with_very_many_send_attempts_is_claimed_and_its_number_stays_within_the_column(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages
) -> None:
    gateway = await make_gateway()
    await send_messages(2)
    await service.database.write(lambda connection: connection.execute(update(sends).values(attempt=32_767, base_attempt=32_760)))
    request = ClaimRequest(queries.queue_name(gateway.id), 0, 2, NOW + 10_000)
    claims = await service.database.write(queries.claim, [request], NOW, ())
    assert [(claim.attempt, claim.base_attempt) for claim in claims] == [(9, 1), (9, 1)]


async def test_the_running_attempts_of_gateways_are_counted_after_the_gateways_were_locked(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages
) -> None:
    await make_gateway()
    await send_messages(1)
    executed: list[str] = []

    def lock(connection: Connection) -> None:
        event.listen(connection, "before_cursor_execute", lambda _connection, _cursor, sql, *_: executed.append(sql))
        queries.lock_states(connection, NOW)

    await service.database.write(lock)
    locking, counting = executed
    assert "count(" not in locking
    assert "count(" in counting
    if service.database.dialect == "postgresql":
        assert "FOR UPDATE SKIP LOCKED" in locking
        assert "FOR UPDATE" not in counting


async def test_only_gateways_with_pending_messages_are_waiting(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages
) -> None:
    await make_gateway(name="empty")
    gateway = await make_gateway(name="other")
    assert await service.database.read(queries.find_waiting) == []
    await send_messages(1)
    assert await service.database.read(queries.find_waiting) == [gateway.id]
