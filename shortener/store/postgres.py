"""PostgreSQL over asyncpg: any number of processes, each with its own pool.

Transactions run at READ COMMITTED; what must happen once is a conditional update or a unique index, never check-then-act. A
deadlock or serialisation failure is tried again here, so no caller sees one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from sqlalchemy import Connection, Row, exc, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.sql import Executable

from shortener.ids import NODES
from shortener.store.database import store_errors

P = ParamSpec("P")
T = TypeVar("T")

RETRIES = 5
_TRY_AGAIN = {"40001", "40P01"}  # serialization_failure, deadlock_detected


class PostgresDatabase:
    dialect: Literal["postgresql"] = "postgresql"

    def __init__(self, engine: AsyncEngine, node: int) -> None:
        self._engine = engine
        self._reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self.node = node

    @classmethod
    async def open(cls, url: str, *, pool_size: int = 8) -> PostgresDatabase:
        """Connect and take a node number. Raises StoreUnavailable."""
        engine = async_engine(url, pool_size=pool_size)
        with store_errors():
            async with engine.begin() as connection:
                number: int = (await connection.execute(text("SELECT nextval('nodes')"))).scalar_one()
        return cls(engine, number % NODES)

    async def write(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with store_errors():
            for left in reversed(range(RETRIES)):
                try:
                    async with self._engine.begin() as connection:
                        return await connection.run_sync(transact, *args, **kwargs)
                except exc.DBAPIError as error:
                    if not left or getattr(error.orig, "sqlstate", None) not in _TRY_AGAIN:
                        raise
        raise AssertionError("unreachable")

    async def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with store_errors():
            async with self._reader.connect() as connection:
                return await connection.run_sync(query, *args, **kwargs)

    async def stream(self, statement: Executable, *, size: int = 1000) -> AsyncIterator[Sequence[Row[Any]]]:
        with store_errors():
            async with self._reader.connect() as connection:
                result = await connection.stream(statement)
                async for rows in result.partitions(size):
                    yield rows

    async def close(self) -> None:
        await self._engine.dispose()


def async_engine(url: str, *, pool_size: int = 8) -> AsyncEngine:
    scheme, rest = url.split("://", 1)
    assert scheme in ("postgres", "postgresql")
    return create_async_engine(
        f"postgresql+asyncpg://{rest}",
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=5,
        pool_pre_ping=False,
        connect_args={"timeout": 5, "command_timeout": 30},
    )
