"""This module implements `Database` for PostgreSQL with asyncpg, for any number of processes, each with its own connection pool.

Transactions run at READ COMMITTED. At this level, two transactions can both do the same thing, even if each of them first checks
that it has not been done. If something must happen only once, the code uses a conditional update or a unique index.

`write` repeats a transaction after a deadlock or a serialization failure. It also repeats a transaction whose connection ended
before the commit began, for example because the server was restarted. If the connection ends during COMMIT, the transaction may
be stored, and `write` raises CommitUncertain.

The URL has the form of libpq, and may contain the parameters that asyncpg accepts: `sslmode`, `sslrootcert` and so on. If the URL
has several hosts, postgres_hosts.py tries them. One parameter is specific to this service: `prepared_statements=off`, for
PgBouncer in transaction mode. Each statement is then prepared without a name, in the transaction that runs it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
import structlog
from sqlalchemy import Connection, ExceptionContext, Row, event, exc
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.sql import Executable

from shortener.errors import CommitUncertain, ReadTooLong, StoreUnavailable
from shortener.storage.database import store_errors
from shortener.storage.node_lease import random_command_node
from shortener.storage.outage_log import outage_log
from shortener.storage.postgres_hosts import connect

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

MAX_ATTEMPTS = 5
#: A transaction that fails with one of these SQLSTATEs is repeated: serialization_failure and deadlock_detected.
_RETRYABLE = {"40001", "40P01"}
#: After an error with one of these SQLSTATEs, a connection can no longer be used: the server shuts down, or has become a
#: read-only standby (25006).
_DISCONNECTED = {"57P01", "57P02", "57P03", "25006"}
#: If a COMMIT failed and the first two characters of the SQLSTATE are one of these texts, the transaction may be stored, because
#: the connection or the server failed. "" means an error of the client without an SQLSTATE.
_UNKNOWN_OUTCOMES = ("", "08", "57", "58")
CONNECT_TIMEOUT_SECONDS = 5.0
CLOSE_SECONDS = 0.5  # A process waits at most for this time until the server has closed a connection.
POOL_TIMEOUT_SECONDS = 5.0  # While all connections of the pool are in use, a transaction waits at most for this time.
_PREPARED_STATEMENTS = "prepared_statements"


class PostgresDatabase:
    """A PostgreSQL database. `Database` describes its methods."""

    dialect: Literal["postgresql"] = "postgresql"

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self.has_failed_writes = False
        self.node = random_command_node()  # A command keeps this number. A process that serves leases another number.

    @classmethod
    async def open(cls, url: str, *, pool_size: int = 8, timeout: float | None = None) -> PostgresDatabase:
        """Connect to PostgreSQL. Raise StoreUnavailable if this fails. `async_engine` describes the parameters."""
        database = cls(async_engine(url, pool_size=pool_size, timeout=timeout))
        try:
            await database.read(_check)
        except StoreUnavailable:
            await database.close()
            raise
        return database

    def truncate_wal(self) -> None:
        """Do nothing, because the server removes its WAL itself."""

    def writes_succeed(self) -> None:
        self.has_failed_writes = False

    async def write(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await self._write(transact, *args, **kwargs)
        except StoreUnavailable:
            self.has_failed_writes = True
            raise

    write_later = write  # PostgreSQL runs transactions concurrently, so bulk work does not delay other transactions.

    async def _write(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with store_errors():
            for attempts_left in reversed(range(MAX_ATTEMPTS)):
                committing = False
                try:
                    async with self._engine.begin() as connection:
                        result = await connection.run_sync(transact, *args, **kwargs)
                        committing = True
                    return result
                except OSError as error:  # This includes TimeoutError.
                    if committing:
                        raise _commit_uncertain(error) from error
                    raise
                except exc.DBAPIError as error:
                    if committing and (getattr(error.orig, "sqlstate", None) or "")[:2] in _UNKNOWN_OUTCOMES:
                        raise _commit_uncertain(error.orig or error) from error
                    cut = error.connection_invalidated and not committing
                    if not attempts_left or not (cut or getattr(error.orig, "sqlstate", None) in _RETRYABLE):
                        raise
        raise AssertionError("unreachable")

    async def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with store_errors():
            for attempts_left in reversed(range(MAX_ATTEMPTS)):
                try:
                    async with self._reader.connect() as connection:
                        try:
                            return await connection.run_sync(query, *args, **kwargs)
                        except TimeoutError:
                            raise ReadTooLong("a query took longer than DATABASE_TIMEOUT") from None
                except exc.DBAPIError as error:
                    if not attempts_left or not error.connection_invalidated:
                        raise
        raise AssertionError("unreachable")

    async def stream(self, statement: Executable, *, size: int = 1000) -> AsyncIterator[Sequence[Row[Any]]]:
        with store_errors():
            async with self._reader.connect() as connection:
                result = await connection.stream(statement)
                async for rows in result.partitions(size):
                    yield rows

    async def close(self) -> None:
        await self._engine.dispose()


def async_engine(url: str, *, pool_size: int = 8, timeout: float | None = None) -> AsyncEngine:
    """Return an engine with a connection pool.

    `pool_size` connections stay open. Under load, the engine opens up to the same number of additional connections. `timeout` is
    the time limit of a statement in seconds, or None for no limit."""
    dsn, prepared = split_url(url)
    options: dict[str, Any] = {}
    if not prepared:
        options = {"statement_cache_size": 0, "prepared_statement_cache_size": 0, "prepared_statement_name_func": _no_name}

    def create() -> Any:
        # Pass the URL to asyncpg directly. SQLAlchemy would translate parameters of libpq to names that asyncpg does not know.
        dbapi: Any = engine.dialect.dbapi
        return dbapi.connect(dsn, async_creator_fn=_connect, timeout=CONNECT_TIMEOUT_SECONDS, command_timeout=timeout, **options)

    engine = create_async_engine(
        "postgresql+asyncpg://",
        creator=create,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        hide_parameters=True,  # Hide parameters, because errors are logged and parameters contain phone numbers and IP addresses.
    )
    event.listen(engine.sync_engine, "handle_error", _detect_disconnect)
    return engine


def _commit_uncertain(cause: BaseException) -> CommitUncertain:
    """Log that it is unknown whether a COMMIT succeeded, and return the exception to raise. `cause` is the error of the
    COMMIT."""
    text = f"{type(cause).__name__}: {cause}".partition("\n")[0]
    log.warning("commit_uncertain", error=text)
    return CommitUncertain(text)


def _check(connection: Connection) -> None:
    """Do nothing. A read with this function makes SQLAlchemy open the first connection and read the properties of the server."""


class _QuicklyClosed(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that closes within CLOSE_SECONDS, even if the server does not respond.

    When a task is cancelled, SQLAlchemy closes the connection of its transaction, and a process that stops waits for this."""

    __slots__ = ()

    async def close(self, *, timeout: float | None = None) -> None:
        try:
            await super().close(timeout=min(timeout or CLOSE_SECONDS, CLOSE_SECONDS))
        except TimeoutError:
            return  # asyncpg has aborted the connection.


async def _connect(*args: Any, **options: Any) -> Any:
    """Connect to PostgreSQL. Raise StoreUnavailable if the server rejects this user, has no free connection, or is down.

    These errors have SQLSTATEs that statements can also cause for other reasons, such as 42501 for a missing permission.
    Therefore only this function converts them to StoreUnavailable."""
    try:
        return await connect(*args, connection_class=_QuicklyClosed, **options)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        outage_log.warn(error)
        raise StoreUnavailable(str(error) or type(error).__name__) from error


def split_url(url: str) -> tuple[str, bool]:
    """Return the database URL without the parameter `prepared_statements`, and whether statements may be prepared by name."""
    parts = urlsplit(url)
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    others = [(name, value) for name, value in parameters if name != _PREPARED_STATEMENTS]
    if len(others) == len(parameters):
        return url, True
    return urlunsplit(parts._replace(query=urlencode(others))), (_PREPARED_STATEMENTS, "off") not in parameters


def _no_name() -> str:
    return ""


def _detect_disconnect(context: ExceptionContext) -> None:
    """Mark a connection as disconnected if the server has closed it or did not respond in time."""
    error = context.original_exception
    if isinstance(error, TimeoutError) or getattr(error, "sqlstate", None) in _DISCONNECTED:
        context.is_disconnect = True
