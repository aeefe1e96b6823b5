"""Databases that fail at a chosen moment, for tests of what callers see in this case. Also transactions of other processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import asyncpg
import pytest
from sqlalchemy import Connection, Row, make_url
from sqlalchemy.sql import Executable

from shortener.container import Service
from shortener.errors import CommitUncertain, StoreUnavailable
from shortener.storage.database import Database

P = ParamSpec("P")
T = TypeVar("T")


class DownAfterCommit:
    """A database that becomes unavailable after its next `commits` transactions. It is available again when `is_back` is true."""

    def __init__(self, database: Database, commits: int) -> None:
        self._database = database
        self._commits = commits
        self.is_back = False

    @property
    def is_down(self) -> bool:
        """Whether the database is unavailable now."""
        return self._commits <= 0 and not self.is_back

    async def write(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self.is_down:
            raise StoreUnavailable("down")
        result = await self._database.write(transact, *args, **kwargs)
        self._commits -= 1
        return result

    async def write_later(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.write(transact, *args, **kwargs)

    async def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self.is_down:
            raise StoreUnavailable("down")
        return await self._database.read(query, *args, **kwargs)

    async def stream(self, statement: Executable, *, size: int = 1000) -> AsyncIterator[Sequence[Row[Any]]]:
        if self.is_down:
            raise StoreUnavailable("down")
        async for rows in self._database.stream(statement, size=size):
            yield rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


def take_down_after(service: Service, monkeypatch: pytest.MonkeyPatch, commits: int = 1) -> DownAfterCommit:
    """Make the database of the API and the portal unavailable after the next `commits` transactions. Return this database."""
    database = DownAfterCommit(service.database, commits)
    monkeypatch.setattr(service, "database", database)
    for part in (service.directory, service.gateways, service.trackers, service.link_updates, service.deliveries):
        monkeypatch.setattr(part, "_database", database)
    return database


Cut = Literal["committed", "stored", "rolled back", "down"]


class CutCommits:
    """A database whose next transactions fail. Each item of `cuts` determines the result of one transaction:

    `stored`: the connection ends during COMMIT, and the transaction is stored. `rolled back`: the connection ends during COMMIT,
    and the transaction is rolled back. `down`: the transaction does not begin. `committed`: the transaction succeeds."""

    def __init__(self, database: Database, cuts: Iterable[Cut]) -> None:
        self._database = database
        self._cuts = iter(cuts)

    async def write_later(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        cut = next(self._cuts, None)
        if cut == "down":
            raise StoreUnavailable("down")

        def run(connection: Connection) -> T:
            result = transact(connection, *args, **kwargs)
            if cut == "rolled back":
                raise CommitUncertain("cut at COMMIT")
            return result

        result = await self._database.write_later(run)
        if cut == "stored":
            raise CommitUncertain("cut at COMMIT")
        return result

    write = write_later

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


@contextlib.asynccontextmanager
async def someone_at(service: Service, statement: str, message: int) -> AsyncIterator[asyncpg.Connection]:
    """Yield a connection that acts as another process. It is in an open transaction that has executed `statement` with the row id
    `message`."""
    url = make_url(service.settings.database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(statement, message)
            yield connection
    finally:
        await connection.close()


async def until_it_waits(connection: asyncpg.Connection, task: asyncio.Task[Any]) -> None:
    """Wait until another transaction waits for a lock that `connection` holds. `task` is the work that must wait for this
    lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
    while not await connection.fetchval(waiting):
        assert not task.done()
        await asyncio.sleep(0.01)  # wait a moment, then query the locks again
