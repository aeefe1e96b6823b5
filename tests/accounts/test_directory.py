"""Tests of the directory of accounts that every process has in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from shortener.accounts.administration import update_application
from shortener.accounts.directory import Directory
from shortener.container import Service
from shortener.storage.database import Database


class SlowDatabase:
    """A database whose first read ends only when the test allows it. It returns the data of the time when it began."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.may_end = asyncio.Event()
        self.has_read = asyncio.Event()

    async def read(self, query: Callable[..., Any], *args: Any) -> Any:
        result = await self._database.read(query, *args)
        if not self.has_read.is_set():
            self.has_read.set()
            await self.may_end.wait()
        return result


async def test_a_directory_refresh_that_ends_late_does_not_restore_older_accounts(service: Service) -> None:
    database = SlowDatabase(service.database)
    directory = Directory(database)  # type: ignore[arg-type]  # it only reads
    slow = asyncio.create_task(directory.refresh())
    await database.has_read.wait()
    await service.database.write(update_application, 1, {"disabled": True}, service.clock())
    await directory.refresh()
    database.may_end.set()
    await slow
    application = directory.application(1)
    assert application is not None
    assert application.disabled, "the kill switch stays effective"
