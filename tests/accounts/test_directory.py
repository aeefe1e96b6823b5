"""Tests of the directory of accounts that every process has in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from shortener.accounts.administration import update_application
from shortener.accounts.directory import REFRESH_SECONDS, Directory
from shortener.cli.common import _REFRESH_MARGIN_SECONDS
from shortener.container import Service
from shortener.errors import ApiError, ErrorCode, StoreUnavailable
from shortener.storage import schema
from shortener.storage.database import Database


class SlowDatabase:
    """A database whose first read ends only after the test has set `may_end`. The read returns the data of the time at which it
    began."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.may_end = asyncio.Event()
        self.has_read = asyncio.Event()
        self.reads = 0

    async def read(self, query: Callable[..., Any], *args: Any) -> Any:
        self.reads += 1
        result = await self._database.read(query, *args)
        if not self.has_read.is_set():
            self.has_read.set()
            await self.may_end.wait()
        return result


async def test_a_directory_refresh_that_ends_late_does_not_restore_older_accounts(service: Service) -> None:
    database = SlowDatabase(service.database)
    directory = Directory(database)  # type: ignore[arg-type]  # the directory calls only the method `read`
    slow = asyncio.create_task(directory.refresh())
    await database.has_read.wait()
    await service.database.write(update_application, 1, {"disabled": True}, service.clock())
    await directory.refresh()
    database.may_end.set()
    await slow
    application = directory.application(1)
    assert application is not None
    assert application.disabled, "the kill switch stays effective"


async def test_unknown_credentials_that_arrive_together_share_one_read_of_the_database(service: Service) -> None:
    database = SlowDatabase(service.database)
    directory = Directory(database)  # type: ignore[arg-type]  # the directory calls only the method `read`
    first = asyncio.create_task(directory.catch_up())
    await database.has_read.wait()
    await service.database.write(update_application, 1, {"disabled": True}, service.clock())
    others = [asyncio.create_task(directory.catch_up()) for _ in range(50)]
    await asyncio.sleep(0)
    database.may_end.set()
    await asyncio.gather(first, *others)
    assert database.reads == 2, "the read in progress, and one read for all callers that arrived during it"
    application = directory.application(1)
    assert application is not None
    assert application.disabled


async def test_a_directory_keeps_the_old_accounts_while_the_database_is_unavailable_or_does_not_respond(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unavailable:
        is_down = False

        async def read(self, query: Callable[..., Any], *args: Any) -> Any:
            if self.is_down:
                raise StoreUnavailable("down")
            return await service.database.read(query, *args)

    database = Unavailable()
    directory = Directory(database)  # type: ignore[arg-type]  # the directory calls only the method `read`
    await directory.refresh()
    database.is_down = True
    assert not await directory.catch_up()
    assert [application.id for application in directory.applications()] == [1]

    monkeypatch.setattr("shortener.accounts.directory.MAX_CATCH_UP_SECONDS", 0.01)
    silent = SlowDatabase(service.database)
    directory = Directory(silent)  # type: ignore[arg-type]  # the directory calls only the method `read`
    assert [await directory.catch_up() for _ in range(3)] == [False] * 3
    assert silent.reads == 1, "the callers share the read that hangs"
    assert directory.applications() == []
    silent.may_end.set()
    monkeypatch.undo()
    assert await directory.catch_up()
    assert [application.id for application in directory.applications()] == [1]


async def test_application_settings_that_a_newer_version_stored_are_ignored_but_not_deleted(service: Service) -> None:
    """In a rolling upgrade, a new node stores settings and values that the old nodes do not know."""
    newer = {"click_events": "sometimes", "track": "all_urls", "a_setting_of_the_next_release": {"is": "on"}}

    def store_as_newer_node(connection: Connection) -> None:
        connection.execute(update(schema.applications).values(settings=newer))

    def stored(connection: Connection) -> Any:
        return connection.scalar(select(schema.applications.c.settings))

    await service.database.write(store_as_newer_node)
    await service.directory.refresh()
    application = service.directory.application(1)
    assert application is None or application.settings.track == "directives", "the version of the directory has not changed yet"
    await service.database.write(update_application, 1, {"strict_destinations": True}, service.clock())
    await service.directory.refresh()
    application = service.directory.application(1)
    assert application is not None
    settings = application.settings
    assert (settings.track, settings.strict_destinations) == ("all_urls", True)
    assert settings.click_events == "first", "the default replaces a value that this version does not know"
    assert await service.database.read(stored) == newer | {"strict_destinations": True}
    with pytest.raises(ApiError) as rejected:
        await service.database.write(update_application, 1, {"a_setting_of_the_next_release": 1}, service.clock())
    assert rejected.value.code is ErrorCode.INVALID_REQUEST, "an unknown setting in a change is an error"


async def test_each_process_reads_changed_accounts_at_least_twice_a_second(service: Service) -> None:
    """The documents promise that disabling something takes effect on every node within a second. The tests with real nodes wait
    longer, because the machine may be busy."""
    assert service.jobs.table["directory"].interval == REFRESH_SECONDS
    assert REFRESH_SECONDS + _REFRESH_MARGIN_SECONDS <= 0.5
