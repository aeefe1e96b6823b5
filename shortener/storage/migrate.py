"""This module creates and migrates the schema.

The server calls `prepare`. It creates the schema in an empty database. For a database of an older version, it raises an error
that contains the command to run. It also rejects a database of an unknown version or of another program.

`migrate` migrates to newer versions only. Each migration is one transaction, so an interrupted migration leaves the schema at the
previous revision. Several processes can call `migrate` at the same time. On PostgreSQL, they wait for each other.

While a migration on PostgreSQL waits for the lock of a table, all later statements on this table wait, too. Therefore each
attempt waits for at most LOCK_TIMEOUT_MS. Then it is rolled back, the waiting statements continue, and the migration is tried
again after LOCK_PAUSE_SECONDS. If it does not get the lock within `lock_wait` seconds, `migrate` raises MigrationBlocked. A later
call continues with the same migration.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection, create_engine, event, inspect, text
from sqlalchemy.pool import NullPool, StaticPool

from shortener.errors import StoreUnavailable
from shortener.model import record
from shortener.storage import new_database
from shortener.storage.database import Database, store_errors
from shortener.storage.locks import AdvisoryLock
from shortener.storage.migrations import HEAD
from shortener.storage.open import sqlite_path
from shortener.storage.schema import metadata
from shortener.storage.write_lock import COMMAND_WAIT_SECONDS, begin_write

# Alembic is imported in the functions that need it, because the import is slow. Only `shortener migrate` and a new PostgreSQL
# database need it.
if TYPE_CHECKING:
    from alembic.config import Config

T = TypeVar("T")

PROGRESS_INTERVAL_SECONDS = 0.25
#: The longest time for which one attempt of a migration waits for a lock. It is shorter than the default of HIT_DEADLINE (2 s),
#: so that no click goes to the spool. It is longer than the default of deadlock_timeout (1 s): if an autovacuum has the lock,
#: PostgreSQL waits for deadlock_timeout and then cancels the autovacuum.
LOCK_TIMEOUT_MS = 1500
#: The pause between two attempts of a migration. During the pause, the statements of the nodes run.
LOCK_PAUSE_SECONDS = 3.0
#: The default of the time limit for one migration with all its attempts.
LOCK_WAIT_SECONDS = 60.0


class SchemaMismatch(Exception):
    """Raised if this version cannot use the schema of the database. The text contains the command to run."""


class MigrationBlocked(Exception):
    """Raised if a migration cannot get a lock, because other transactions keep it. The earlier migrations are stored, and this
    one is not. The text of the error names the oldest other transaction."""


class _LockTimeout(Exception):
    """Raised if an attempt of a migration did not get a lock within LOCK_TIMEOUT_MS. `transaction` describes the oldest other
    transaction."""

    def __init__(self, transaction: str) -> None:
        super().__init__(transaction)
        self.transaction = transaction


@record
class MigrationStep:
    """The progress of one migration.

    `seconds` is the time since the migration began. `detail` is the progress that the database reports, or "" if it reports none.
    `done` is true when the migration is committed."""

    revision: str
    description: str
    seconds: float = 0.0
    detail: str = ""
    done: bool = False


def version_of(connection: Connection) -> str | None:
    """Return the schema revision of the database, or None if the database is empty.

    Raise SchemaMismatch if the database contains tables of another program."""
    if _has_version_table(connection):
        version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if version is not None:
            return version
    if foreign := sorted(metadata.tables.keys() & inspect(connection).get_table_names()):
        raise SchemaMismatch(
            f"the database contains tables that this service did not create ({', '.join(foreign)}): use a separate database"
        )
    return None


def _has_version_table(connection: Connection) -> bool:
    if connection.dialect.name == "postgresql":
        # `has_table` would take four times as long, because it searches the catalog with a join.
        return bool(connection.scalar(text("SELECT to_regclass('alembic_version') IS NOT NULL")))
    return inspect(connection).has_table("alembic_version")


def check(version: str | None) -> None:
    """Raise SchemaMismatch unless `version` is the revision that this code requires."""
    if version == HEAD:
        return
    if version is None or version in {revision for revision, _ in steps(None)}:
        raise SchemaMismatch(f"the database is at schema {version or 'none'}, this version needs {HEAD}: run `shortener migrate`")
    raise SchemaMismatch(
        f"the database is at schema {version}, which this version, of schema {HEAD}, does not know: "
        "a newer version created it, upgrade the service (`shortener --version`)"
    )


async def prepare(url: str, database: Database | None = None) -> None:
    """Create the schema in an empty database. Raise SchemaMismatch for an old or unknown schema, and StoreUnavailable if the
    database is unavailable. `database` is the open database, or None to open a connection for the check."""
    version = await current_version(url, database)
    if version is None:
        # Create all tables in one transaction. A process that starts at the same time then sees either the whole schema or no
        # table.
        await _run_on(url, _create)
    else:
        check(version)


def _create(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        upgrade(connection)
    # There may be a version now: another process can have created the schema after the first check.
    elif version_of(connection) is None:
        new_database.create(connection)


async def migrate(
    url: str, progress: Callable[[MigrationStep], None] = lambda step: None, lock_wait: float = LOCK_WAIT_SECONDS
) -> tuple[str | None, str]:
    """Migrate the schema to HEAD. Return the revisions before and after.

    `progress` is called when a migration begins, every PROGRESS_INTERVAL_SECONDS while it runs, and when it is done. Raise
    SchemaMismatch if the schema is unknown, and StoreUnavailable if the database is unavailable. Raise MigrationBlocked if a
    migration on PostgreSQL does not get a lock within `lock_wait` seconds."""
    before = await current_version(url)
    remaining = steps(None)
    if before is not None:
        known = [revision for revision, _ in remaining]
        if before not in known:
            check(before)
        remaining = remaining[known.index(before) + 1 :]
    for revision, description in remaining:
        await _run_step(url, MigrationStep(revision, description), progress, lock_wait)
    return before, HEAD


async def _run_step(url: str, step: MigrationStep, progress: Callable[[MigrationStep], None], lock_wait: float) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    progress(step)
    while True:
        try:
            await _attempt(url, step, progress, began)
            return
        except _LockTimeout as error:
            waited = loop.time() - began
            if waited + LOCK_PAUSE_SECONDS > lock_wait:
                reason = (
                    f"migration {step.revision} ({step.description}) got no lock on its tables within {waited:.0f} s, because "
                    f"another transaction uses them. {error.transaction}. Wait until it has ended, or end it, and run "
                    "`shortener migrate` again; `--wait SECONDS` tries for longer"
                )
                raise MigrationBlocked(reason) from None
            progress(replace(step, seconds=waited, detail=f"waits for a lock. {error.transaction}"))
        await asyncio.sleep(LOCK_PAUSE_SECONDS)


async def _attempt(url: str, step: MigrationStep, progress: Callable[[MigrationStep], None], began: float) -> None:
    """Run one migration in a transaction. If it does not get a lock in time, store nothing and raise _LockTimeout."""
    loop = asyncio.get_running_loop()
    running = loop.create_task(_run_on(url, functools.partial(upgrade, revision=step.revision)))
    try:
        while not (await asyncio.wait([running], timeout=PROGRESS_INTERVAL_SECONDS))[0]:
            progress(replace(step, seconds=loop.time() - began, detail=await _detail(url)))
    finally:
        running.cancel()
    try:
        await running
    except StoreUnavailable as error:
        if not _is_lock_timeout(error):
            raise
        raise _LockTimeout(await _run_on(url, _oldest_transaction)) from None
    progress(replace(step, seconds=loop.time() - began, done=True))


def _is_lock_timeout(error: StoreUnavailable) -> bool:
    return getattr(getattr(error.__cause__, "orig", None), "sqlstate", None) == _LOCK_NOT_AVAILABLE


def _oldest_transaction(connection: Connection) -> str:
    """Describe the oldest other transaction on the database. This transaction probably has the lock."""
    row = connection.execute(text(_OLDEST_TRANSACTION)).first()
    if row is None:
        return "PostgreSQL shows no other transaction to this user"
    program = f" of {row.application_name}" if row.application_name else ""
    return f"The oldest transaction on the database is {row.seconds:.0f} s old (process {row.pid}{program})"


#: The SQLSTATE of the error of a statement that waited for a lock longer than lock_timeout.
_LOCK_NOT_AVAILABLE = "55P03"
_OLDEST_TRANSACTION = (
    "SELECT pid, application_name, extract(epoch FROM clock_timestamp() - xact_start) AS seconds FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL ORDER BY xact_start LIMIT 1"
)


async def _detail(url: str) -> str:
    """Return the progress of the index that PostgreSQL builds during a migration. Return "" on SQLite, which reports no
    progress."""
    if sqlite_path(url):
        return ""
    try:
        return await _run_on(url, _index_progress)
    except StoreUnavailable:
        return ""


def _index_progress(connection: Connection) -> str:
    """Return the phase in which PostgreSQL builds an index, and how much of this phase is done."""
    row = connection.execute(text(_INDEX_PROGRESS)).first()
    if row is None:
        return ""
    return f"{row.phase}, {row.done * 100 // row.total} %" if row.total else str(row.phase)


#: PostgreSQL reports the progress of an index build in phases. A phase counts either blocks or tuples, so the larger number is
#: used.
_INDEX_PROGRESS = (
    "SELECT phase, greatest(tuples_done, blocks_done) AS done, greatest(tuples_total, blocks_total) AS total "
    "FROM pg_stat_progress_create_index WHERE datname = current_database()"
)


def steps(before: str | None) -> list[tuple[str, str]]:
    """Return the migrations after the revision `before`, each with its description. The oldest is first."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_config()).iterate_revisions("head", before or "base")
    return [(script.revision, script.doc) for script in reversed(list(scripts))]


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Migrate the schema to a revision in the current transaction of the connection."""
    from alembic import command

    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({AdvisoryLock.MIGRATE:d})"))
        # From here on, limit the time for which a statement waits for a lock. The wait above for another migration needs no
        # limit, because it blocks no statements of the nodes.
        connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def migrated_dump() -> str:
    """Run all migrations on a SQLite database in memory. Return the statements that create its schema, which are the content of
    `new_database.SQLITE_FILE`."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.begin() as connection:
        upgrade(connection)
        return new_database.dump(connection)


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


async def _run_on(url: str, function: Callable[[Connection], T], *, only_reads: bool = False) -> T:
    """Run a function in a transaction on a new connection. If the function only reads, the transaction does not wait for the
    write lock of a SQLite database. A command that reads therefore works while a server writes."""
    with store_errors():
        if path := sqlite_path(url):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return await asyncio.to_thread(_run_on_sqlite, path, function, only_reads)
        from shortener.storage.postgres import async_engine  # asyncpg is imported here, because SQLite does not need it

        engine = async_engine(url, pool_size=1)
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(function)
        finally:
            await engine.dispose()


def _run_on_sqlite(path: Path, function: Callable[[Connection], T], only_reads: bool) -> T:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        connect_args={"isolation_level": None, "timeout": COMMAND_WAIT_SECONDS},
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, record: object) -> None:
        # The page size of a new SQLite file; it has no effect on an existing file. A first click rewrites a page of an index, so
        # small pages make its commit small.
        connection.execute("PRAGMA page_size=2048")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if only_reads:
            connection.exec_driver_sql("BEGIN")
        else:
            connection.exec_driver_sql("PRAGMA busy_timeout=0")
            begin_write(lambda: connection.exec_driver_sql("BEGIN IMMEDIATE"), COMMAND_WAIT_SECONDS)
            # Set the busy_timeout again for COMMIT: a new file has no WAL yet, so its COMMIT must wait for readers.
            connection.exec_driver_sql(f"PRAGMA busy_timeout={COMMAND_WAIT_SECONDS * 1000:.0f}")

    with engine.begin() as connection:
        return function(connection)


async def current_version(url: str, database: Database | None = None) -> str | None:
    """Return the schema revision of the database, or None if the database is empty. `database` is the open database, or None to
    open a connection for the check.

    Raise SchemaMismatch if the database contains tables of another program, and StoreUnavailable if the database is
    unavailable."""
    if database is not None:
        return await database.read(version_of)
    path = sqlite_path(url)
    return (_stored_version(path) if path else None) or await _run_on(url, version_of, only_reads=True)


def _stored_version(path: Path) -> str | None:
    """Return the schema revision in a SQLite file, without the time that SQLAlchemy needs to open a database. Return None if the
    file must be examined more closely: it is missing, empty, locked, damaged or without a revision."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=0)) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return None
    return row[0] if row else None
