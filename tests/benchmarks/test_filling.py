"""Tests of the databases that benchmarks fill: their counts must be correct, because `verify` is measured on them."""

from datetime import timedelta
from typing import Any

from sqlalchemy import func, select

from benchmarks import filling
from shortener.container import Service
from shortener.reporting import count_check
from shortener.reporting.rollup_check import verify_rollups
from shortener.storage import schema
from shortener.storage.references import find_orphans


async def test_the_verification_finds_no_difference_in_a_filled_database(service: Service) -> None:
    now, days = service.clock(), 3
    codes = await filling.fill_messages(service.database, 300, days=days, clicked=0.5, now=now)
    assert len(set(codes)) == 300

    period = (now - timedelta(days=days + 1), now)
    assert await service.database.read(count_check.verify, *period) == []
    assert await service.database.read(verify_rollups, *period) == []
    assert await find_orphans(service.database) == []


async def test_a_filled_database_has_counts_of_all_kinds_and_no_count_that_is_not_folded(service: Service) -> None:
    await filling.fill_messages(service.database, 300, days=3, clicked=0.5, now=service.clock())

    async def number(statement: Any) -> int:
        return await service.database.read(lambda connection: connection.execute(statement).scalar_one())

    clicks = await number(select(func.count()).select_from(schema.hits))
    assert 100 < clicks < 200
    sums: dict[str, int] = {}
    for metric, amount in await service.database.read(
        lambda connection: connection.execute(select(schema.counts.c.metric, schema.counts.c.amount)).all()
    ):
        kind = metric.partition(":")[0]
        sums[kind] = sums.get(kind, 0) + int(amount)
    assert sums == {
        **dict.fromkeys(("messages", "segments", "links", "sent", "delivered"), 300),
        **dict.fromkeys(("clicks", "clicked_links", "clicked_messages", "ttc", "device", "browser"), clicks),
    }
    assert await number(select(func.count()).select_from(schema.count_deltas)) == 0
    assert await number(select(func.count()).select_from(schema.rollups)) > 0
