"""These tests run SQL statements of the dispatcher on both databases."""

import pytest
from sqlalchemy import Connection, insert

from shortener.container import Service
from shortener.delivery import dispatch_queries
from shortener.delivery.queue_names import END_OF_NAMES
from shortener.storage import schema
from shortener.storage.types import to_ms
from tests.conftest import NOON


async def test_queues_with_pending_deliveries_are_found_by_index_lookups(service: Service) -> None:
    def fill(connection: Connection) -> None:
        common = {"topic": 2, "application_id": 1, "status": 0, "attempt": 0, "next_at": NOON, "created_at": NOON}
        pending = [{"id": n, "event_id": n, "tracker_id": 1, "lane": "t1", **common} for n in range(2000)]
        pending += [{"id": 5000 + n, "event_id": 5000 + n, "tracker_id": n, "lane": f"t{n}", **common} for n in range(2, 600)]
        connection.execute(insert(schema.deliveries), pending)

    await service.database.write(fill)

    def queue_names(connection: Connection, after: str) -> list[str]:
        return [queue.name for queue in dispatch_queries.pending_queues(connection, after, END_OF_NAMES, 256)]

    everything = []
    after = ""
    while found := await service.database.read(queue_names, after):
        everything += found
        after = found[-1]
    assert everything == sorted(f"t{n}" for n in range(1, 600))
    if service.database.dialect == "sqlite":

        def plan(connection: Connection) -> list[str]:
            statement = "EXPLAIN QUERY PLAN " + dispatch_queries._QUEUES["sqlite"]
            return [row[3] for row in connection.exec_driver_sql(statement, ("", "u", "u", 256))]

        steps = [step for step in await service.database.read(plan) if step.startswith(("SEARCH d ", "SCAN d"))]
        assert steps
        assert all("SEARCH d USING INDEX deliveries_due (lane" in step for step in steps)


@pytest.mark.parametrize(
    ("attempt", "base_attempt", "claimed"),
    [(0, 0, (1, 0)), (31_999, 31_990, (32_000, 31_990)), (32_767, 32_760, (9, 1)), (32_000, 32_000, (2, 1))],
)
async def test_a_delivery_with_very_many_attempts_is_claimed_and_its_number_stays_within_the_column(
    service: Service, attempt: int, base_attempt: int, claimed: tuple[int, int]
) -> None:
    def fill(connection: Connection) -> None:
        common = {"topic": 2, "application_id": 1, "status": 0, "queue": 1, "next_at": NOON, "created_at": NOON, "lane": "t1"}
        many = {"id": 1, "event_id": 1, "tracker_id": 1, "attempt": attempt, "base_attempt": base_attempt}
        other = {"id": 2, "event_id": 2, "tracker_id": 1, "attempt": 1, "base_attempt": 0}
        connection.execute(insert(schema.deliveries), [{**common, **many}, {**common, **other}])

    await service.database.write(fill)
    request = dispatch_queries.ClaimRequest("t1", dispatch_queries.RETRIES, 10, to_ms(NOON) + 1000)
    rows = await service.database.write(dispatch_queries.claim, [request], to_ms(NOON))
    assert {row.id: (row.attempt, row.base_attempt) for row in rows} == {1: claimed, 2: (2, 0)}
