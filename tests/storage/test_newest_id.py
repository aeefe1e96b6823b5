"""Tests of a start after the clock was set back: new ids must be larger than the ids of existing rows."""

from __future__ import annotations

from datetime import timedelta

from shortener.ids import ms_of
from shortener.storage import schema
from shortener.storage.newest_id import MAX_AHEAD_MS
from tests.clicks.helpers import create_codes, fetch_rows, make_hit
from tests.conftest import Clock, MakeService

TABLES = (schema.messages, schema.links, schema.hits, schema.events, schema.deliveries)


async def test_ids_increase_if_a_process_restarts_after_the_clock_was_set_back(make_service: MakeService, clock: Clock) -> None:
    known: set[int] = set()
    newest = 0
    for step in (timedelta(), timedelta(hours=-1), timedelta(minutes=1)):
        clock.now += step
        service = await make_service()
        for _ in range(20):
            (code,) = await create_codes(service)
            await service.recorder.record(make_hit(service, code))
        await service.recorder.flush()
        found = {row.id for table in TABLES for row in await fetch_rows(service, table)}
        assert min(found - known) > newest, "new rows have larger ids than all rows before"
        known, newest = found, max(found)
        assert service.recorder.totals.id_clashes == service.recorder.totals.dead_letters == 0
        await service.close(grace=1)


async def test_two_processes_whose_clock_was_set_back_generate_different_ids(
    make_service: MakeService, clock: Clock, store_url: str
) -> None:
    first = await make_service()
    (code,) = await create_codes(first)
    await first.recorder.record(make_hit(first, code))
    await first.close(grace=1)
    clock.now -= timedelta(hours=1)
    services = [await make_service() for _ in range(1 if store_url.startswith("sqlite") else 2)]
    generated = [service.ids() for service in services for _ in range(5000)]
    assert len(set(generated)) == len(generated)
    assert min(generated) > max(row.id for row in await fetch_rows(services[0], schema.hits))


async def test_new_ids_do_not_follow_existing_ids_from_a_clock_that_was_days_ahead(make_service: MakeService, clock: Clock) -> None:
    clock.forward(days=400)
    service = await make_service()
    await create_codes(service)
    await service.close(grace=1)
    clock.now -= timedelta(days=400)
    service = await make_service()
    assert abs(ms_of(service.ids()) - service.now_ms()) < MAX_AHEAD_MS
