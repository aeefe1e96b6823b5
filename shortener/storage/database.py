"""The interface of the database: transactions, reads and streams of rows.

A transaction is a plain function of a SQLAlchemy `Connection`. `await database.write(record, batch)` runs `record(connection,
batch)` between BEGIN and COMMIT, and returns its result when the commit is durable. With SQLite, the function runs in the writer
thread, so a whole transaction needs one thread switch. With PostgreSQL, it runs on the event loop over asyncpg. Therefore the
function must not await. It may wait only for its own statements, and must not use the connection after it returns.

If the function raises an exception, the transaction is rolled back and the caller gets the exception. If the database is down,
locked or full, `StoreUnavailable` is raised, and no part of the transaction is stored. If the connection to PostgreSQL ends
during COMMIT, `CommitUncertain` is raised, and the transaction may be stored. `IntegrityError` is raised unchanged.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

import structlog
from sqlalchemy import Connection, Row, Table, exc
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql import Executable

from shortener.errors import ReadTooLong, StoreUnavailable
from shortener.storage.outage_log import outage_log

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Database(Protocol):
    """A database of either engine.

    `node` is the number of this process for `ids.IdGenerator`. With PostgreSQL, it is at first a number for commands. A process
    that serves must lease another number, which no other process uses (`node_lease.NodeLease`)."""

    @property
    def dialect(self) -> Literal["sqlite", "postgresql"]: ...

    @property
    def node(self) -> int: ...

    @property
    def has_failed_writes(self) -> bool:
        """Whether a write failed since the last successful `integrity.try_write`, for example because the disk is full."""
        ...

    def truncate_wal(self) -> None:
        """Empty the WAL of SQLite within some seconds. Call this after deletions of data that must not stay on the disk. Do
        nothing on PostgreSQL, and in a process that does not serve."""
        ...

    def writes_succeed(self) -> None:
        """Set `has_failed_writes` to false, after a successful `integrity.try_write`."""
        ...

    async def write(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the function `transact` as one transaction, and return its result when the commit is durable. Raise
        StoreUnavailable if the database is unavailable. Raise its subclass CommitUncertain if it is unknown whether the
        transaction is stored."""
        ...

    async def write_later(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the same as `write` for bulk work, such as a rewrite of many messages, a fan-out or a purge.

        SQLite runs one transaction after the other. A transaction of `write` waits for at most one transaction of bulk work.
        Transactions of the same kind run in the order of their calls."""
        ...

    async def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the function `query` on one consistent snapshot, and return its result. The function must not write. Raise
        StoreUnavailable if the database is unavailable."""
        ...

    def stream(self, statement: Executable, *, size: int = 1000) -> AsyncIterator[Sequence[Row[Any]]]:
        """Yield the rows of a statement as lists of `size` rows, in constant memory. Raise StoreUnavailable if the database is
        unavailable."""
        ...

    async def close(self) -> None:
        """Wait for running transactions and close every connection."""
        ...


def upsert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Return an INSERT statement in the dialect of the connection, with the methods `on_conflict_do_nothing` and
    `on_conflict_do_update`."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql  # processes with SQLite never import this dialect, which saves memory

    return postgresql.insert(table)


def is_unique_violation(error: Exception) -> bool:
    """Return whether an IntegrityError means that another row already has the same unique key."""
    if not isinstance(error, exc.IntegrityError):
        return False
    sqlstate = getattr(error.orig, "sqlstate", None)
    name = getattr(error.orig, "sqlite_errorname", "")
    return sqlstate == "23505" or name in ("SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_ROWID")


#: The SQLSTATE class of errors for values that a column cannot store. The asyncpg dialect has no exception class for it.
_INVALID_VALUE = "22"
#: The SQLSTATE class of statements that the database rejects. All statements of this service are constant. A rejected statement
#: therefore means that the schema or the permissions are wrong, for example during a migration or maintenance.
_REJECTED_STATEMENT = "42"


def rejects_values(error: Exception) -> bool:
    """Return whether the database rejected the values of a statement: a column cannot store one of them, or a constraint forbids
    it. The same statement with other values can succeed."""
    sqlstate = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
    return isinstance(error, exc.IntegrityError | exc.DataError) or sqlstate.startswith(_INVALID_VALUE)


@contextlib.contextmanager
def after_commit() -> Iterator[None]:
    """Log an exception of the steps after a commit, and do not raise it. The transaction is stored, so the caller must not treat
    it as failed."""
    try:
        yield
    except Exception:
        log.exception("after_commit_failed")


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """If the driver raises an error that means that the database cannot execute statements now, raise StoreUnavailable instead.

    Errors of unique indexes, and of values that do not fit a column, are raised unchanged."""
    try:
        yield
    except (exc.DBAPIError, exc.TimeoutError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        is_rejected = (getattr(cause, "sqlstate", None) or "").startswith(_REJECTED_STATEMENT)
        if rejects_values(error) or (isinstance(error, exc.ProgrammingError) and not is_rejected):
            raise
        if is_rejected:
            log.error("store_unavailable", error=f"{type(cause).__name__}: {cause}".partition("\n")[0])
        else:
            outage_log.warn(cause)
        is_too_long = getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT  # see sqlite_reader.ReadLimit
        raise (ReadTooLong if is_too_long else StoreUnavailable)(str(cause)) from error
