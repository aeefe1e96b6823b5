"""PostgreSQL over asyncpg: any number of processes, each with its own pool.

Transactions run at READ COMMITTED; what must happen once is a conditional update or a unique index, never check-then-act. A
deadlock or serialisation failure is tried again here, so no caller sees one; and so is a transaction that found its connection
cut before it could commit, because the server was restarted since the connection was last used.

The URL is libpq's, as asyncpg reads it: several hosts with `target_session_attrs`, `sslmode`, `sslrootcert` and the rest. One
parameter is ours: `prepared_statements=off`, for PgBouncer in transaction mode, prepares each statement without a name, in the
transaction that runs it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
from sqlalchemy import Connection, ExceptionContext, Row, event, exc, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.sql import Executable

from shortener.ids import MAX_NODES
from shortener.storage.database import store_errors

P = ParamSpec("P")
T = TypeVar("T")

RETRIES = 5
_TRY_AGAIN = {"40001", "40P01"}  # serialization_failure, deadlock_detected
#: The connection is of no more use: the server goes down, or is no longer the one that takes writes (25006).
_GONE = {"57P01", "57P02", "57P03", "25006"}
CONNECT_TIMEOUT = 5.0  # seconds
_OURS = "prepared_statements"
POOL_WAIT = 5.0  # seconds for a connection of a pool that is all in use


class PostgresDatabase:
    dialect: Literal["postgresql"] = "postgresql"

    def __init__(self, engine: AsyncEngine, node: int) -> None:
        self._engine = engine
        self._reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self.node = node

    @classmethod
    async def open(cls, url: str, *, pool_size: int = 8, timeout: float | None = None) -> PostgresDatabase:
        """Connect and take a node number (see `async_engine`). Raises StoreUnavailable."""
        engine = async_engine(url, pool_size=pool_size, timeout=timeout)
        with store_errors():
            async with engine.begin() as connection:
                number: int = (await connection.execute(text("SELECT nextval('nodes')"))).scalar_one()
        return cls(engine, number % MAX_NODES)

    async def write(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with store_errors():
            for left in reversed(range(RETRIES)):
                committing = False
                try:
                    async with self._engine.begin() as connection:
                        result = await connection.run_sync(transact, *args, **kwargs)
                        committing = True
                    return result
                except exc.DBAPIError as error:
                    cut = error.connection_invalidated and not committing
                    if not left or not (cut or getattr(error.orig, "sqlstate", None) in _TRY_AGAIN):
                        raise
        raise AssertionError("unreachable")

    async def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with store_errors():
            for left in reversed(range(RETRIES)):
                try:
                    async with self._reader.connect() as connection:
                        return await connection.run_sync(query, *args, **kwargs)
                except exc.DBAPIError as error:
                    if not left or not error.connection_invalidated:
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
    """`pool_size`: connections that are kept; as many again are opened when all are in use. `timeout`: seconds that a statement may
    take; None: as long as it likes."""
    dsn, prepared = split_url(url)
    more: dict[str, Any] = {}
    if not prepared:
        more = {"statement_cache_size": 0, "prepared_statement_cache_size": 0, "prepared_statement_name_func": _no_name}

    def connect() -> Any:
        # Not by SQLAlchemy's URL: it hands parameters of libpq on under names that asyncpg does not know.
        dbapi: Any = engine.dialect.dbapi
        return dbapi.connect(dsn, async_creator_fn=asyncpg.connect, timeout=CONNECT_TIMEOUT, command_timeout=timeout, **more)

    engine = create_async_engine(
        "postgresql+asyncpg://",
        creator=connect,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=POOL_WAIT,
        hide_parameters=True,  # in errors, which are logged: numbers and addresses are among them
    )
    event.listen(engine.sync_engine, "handle_error", _recognise_cut)
    return engine


def split_url(url: str) -> tuple[str, bool]:
    """The URL without our own parameter, and whether statements may be prepared: whether a connection is one server's for long."""
    parts = urlsplit(url)
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    theirs = [(name, value) for name, value in parameters if name != _OURS]
    if len(theirs) == len(parameters):
        return url, True
    return urlunsplit(parts._replace(query=urlencode(theirs))), (_OURS, "off") not in parameters


def _no_name() -> str:
    return ""


def _recognise_cut(context: ExceptionContext) -> None:
    """A connection whose server said good-bye, or did not answer in time, is not used again."""
    error = context.original_exception
    if isinstance(error, TimeoutError) or getattr(error, "sqlstate", None) in _GONE:
        context.is_disconnect = True
