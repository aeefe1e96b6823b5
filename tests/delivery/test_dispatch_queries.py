"""These tests run SQL statements of the dispatcher on both databases."""

from sqlalchemy import Connection, insert

from shortener.container import Service
from shortener.delivery import dispatch_queries
from shortener.storage import schema
from tests.conftest import NOON


async def test_queues_with_pending_deliveries_are_found_by_index_lookups(service: Service) -> None:
    def fill(connection: Connection) -> None:
        common = {"topic": 2, "application_id": 1, "status": 0, "attempt": 0, "next_at": NOON, "created_at": NOON}
        pending = [{"id": n, "event_id": n, "tracker_id": 1, "lane": "t1", **common} for n in range(2000)]
        pending += [{"id": 5000 + n, "event_id": 5000 + n, "tracker_id": n, "lane": f"t{n}", **common} for n in range(2, 600)]
        connection.execute(insert(schema.deliveries), pending)

    await service.database.write(fill)

    def queue_names(connection: Connection, after: str) -> list[str]:
        return [queue.name for queue in dispatch_queries.pending_queues(connection, after, dispatch_queries.END_OF_NAMES, 256)]

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

        steps = [step for step in await service.database.read(plan) if " d " in step]
        assert steps
        assert all("SEARCH d USING INDEX deliveries_due (lane" in step for step in steps)
