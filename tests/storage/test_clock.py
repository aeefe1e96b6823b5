"""Tests of the clock that several processes share. They run only with PostgreSQL, because one process uses a SQLite database."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shortener.container import open_service
from shortener.errors import StoreUnavailable
from shortener.model import utcnow
from shortener.settings import Settings
from shortener.storage.clock import MAX_IGNORED_OFFSET, SharedClock, _read_clock, ms_clock
from shortener.storage.clock_guard import find_step
from shortener.storage.database import Database
from shortener.storage.migrate import migrate
from shortener.storage.open import open_database
from shortener.storage.types import to_ms
from tests.conftest import Clock, new_postgresql_database
from tests.servers import PostgresProcess


@pytest.fixture
async def database(database: Database) -> Database:
    if database.dialect == "sqlite":
        pytest.skip("one process uses a SQLite database, so there is one clock")
    return database


def off_by(**units: float) -> Clock:
    """Return a clock that is wrong by a constant time."""

    class Wrong(Clock):
        def __call__(self) -> datetime:
            return datetime.now(UTC) + timedelta(**units)

    return Wrong()


async def test_processes_whose_clocks_differ_by_hours_use_the_same_time(database: Database) -> None:
    ahead, behind, right = (SharedClock(database, off_by(hours=hours)) for hours in (3, -3, 0))
    for clock in (ahead, behind, right):
        assert await clock.step() == 0
    assert abs(ahead() - behind()) < 4 * MAX_IGNORED_OFFSET
    assert abs(ahead() - datetime.now(UTC)) < 4 * MAX_IGNORED_OFFSET


async def test_a_machine_clock_that_differs_by_milliseconds_from_the_database_is_not_corrected(database: Database) -> None:
    clock = SharedClock(database, off_by(milliseconds=20))
    await clock.step()
    assert clock.offset == timedelta()


async def test_the_clock_that_returns_milliseconds_is_corrected_with_the_clock_of_the_database(database: Database) -> None:
    clock = SharedClock(database)
    assert abs(ms_clock(clock)() - to_ms(clock())) < 1000
    clock.offset = timedelta(hours=-2)
    assert abs(ms_clock(clock)() - to_ms(clock())) < 1000


async def test_a_process_on_postgresql_does_not_follow_a_machine_clock_that_somebody_sets(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that followed the machine clock would, until its next measurement, claim deliveries of other processes and expire
    links."""
    clock = SharedClock(database)
    await clock.step()
    before, system = ms_clock(clock)(), time.time_ns
    for minutes in (10, -10):
        monkeypatch.setattr(time, "time_ns", lambda ahead=minutes * 60 * 10**9: system() + ahead)
        assert abs(ms_clock(clock)() - before) < 60_000
        assert abs(to_ms(clock()) - before) < 60_000


async def test_the_last_clock_correction_stays_in_use_while_the_database_is_down(postgres_server: PostgresProcess) -> None:
    url = await new_postgresql_database(postgres_server.url, None)
    await migrate(url)
    database = await open_database(url, owner=True)
    try:
        clock = SharedClock(database, off_by(hours=1))
        await clock.step()
        correction = clock.offset
        await asyncio.to_thread(postgres_server.stop)
        with pytest.raises(StoreUnavailable):
            await clock.step()
        assert clock.offset == correction
        await asyncio.to_thread(postgres_server.start)
        await clock.step()
    finally:
        await database.close()


async def test_a_step_of_the_database_clock_is_stored_when_a_process_notices_it(
    database: Database, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await open_service(Settings(data_dir=tmp_path, database_url=store_url))
    try:
        service.clock_guard.check()
        ahead_ms = 30 * 3_600_000
        monkeypatch.setattr("shortener.storage.clock._read_clock", lambda connection: _read_clock(connection) + ahead_ms)
        await service.jobs.table["clock"].step()
        assert await database.read(find_step, service.clock()) is not None
        assert await database.read(service.clock_guard.leases_wait)
    finally:
        await service.close(grace=1)


async def test_a_process_ends_no_lease_until_it_follows_the_clock_of_the_database(
    database: Database, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortener.storage.clock_guard._START_WAIT_MS", 0)
    service = await open_service(Settings(data_dir=tmp_path, database_url=store_url))
    try:
        await service.jobs.table["clock"].step()
        assert not await database.read(service.clock_guard.leases_wait)
        assert isinstance(service.clock, SharedClock)
        service.clock.offset -= timedelta(minutes=5)
        assert await database.read(service.clock_guard.leases_wait)
    finally:
        await service.close(grace=1)


async def test_a_service_on_sqlite_uses_the_clock_of_its_machine(store_url: str, tmp_path: Path) -> None:
    service = await open_service(Settings(data_dir=tmp_path, database_url=store_url))
    try:
        assert (service.clock is utcnow) == (service.database.dialect == "sqlite")
    finally:
        await service.close(grace=1)
