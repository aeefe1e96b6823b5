"""Making and moving on the schema.

`prepare` is what the server calls: an empty database is made ready, one of an older version is refused with the command to
run, one of an unknown version, or of another program, is refused. `migrate` moves it on, forward only: each step is a transaction
of its own, so one that is cut off leaves the schema at the step before. Several processes may do it at once; on PostgreSQL they
wait for each other.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, create_engine, event, inspect, text
from sqlalchemy.pool import NullPool

from shortener.errors import StoreUnavailable
from shortener.storage.database import store_errors
from shortener.storage.migrations import HEAD
from shortener.storage.open import sqlite_path
from shortener.storage.postgres import async_engine
from shortener.storage.schema import metadata

if TYPE_CHECKING:
    from alembic.config import Config

T = TypeVar("T")

_LOCK = 7_305_469_222  # any number that nothing else locks
PROGRESS_INTERVAL_SECONDS = 0.25  # seconds between two words of how far a step is


class SchemaMismatch(Exception):
    """The database has a schema that this version does not work with; the text names the command to run."""


@dataclass(frozen=True, slots=True)
class MigrationStep:
    """Where a step is. `seconds`: since it began; `detail`: what the engine tells of it, if it does; `done`: it is committed."""

    revision: str
    what: str
    seconds: float = 0.0
    detail: str = ""
    done: bool = False


def version_of(connection: Connection) -> str | None:
    """The revision that the database is at; None when it is empty. Raises SchemaMismatch for tables of somebody else."""
    tables = set(inspect(connection).get_table_names())
    version: str | None = None
    if "alembic_version" in tables:
        version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if version is None and (clashing := sorted(tables & metadata.tables.keys())):
        raise SchemaMismatch(
            f"the database holds tables that this service did not make ({', '.join(clashing)}): give it a database of its own"
        )
    return version


def check(version: str | None) -> None:
    """Raises SchemaMismatch unless `version` is the one that this code needs."""
    if version == HEAD:
        return
    if version is None or version in {revision for revision, _ in steps(None)}:
        raise SchemaMismatch(f"the database is at schema {version or 'none'}, this version needs {HEAD}: run `shortener migrate`")
    raise SchemaMismatch(
        f"the database is at schema {version}, which this version, of schema {HEAD}, does not know: "
        "a newer version made it, upgrade the service (`shortener --version`)"
    )


async def prepare(url: str) -> None:
    """Make an empty database ready. Raises SchemaMismatch for an old or unknown one, StoreUnavailable when it cannot be reached."""
    version = await _on(url, version_of)
    if version is None:
        await _on(url, upgrade)  # in one go: another process that starts now sees all of it or nothing
    else:
        check(version)


async def migrate(url: str, progress: Callable[[MigrationStep], None] = lambda step: None) -> tuple[str | None, str]:
    """Bring the schema to HEAD; returns the revisions before and after. `progress`: told when a step begins, every TOLD_EVERY
    seconds while it runs, and when it is done. Raises SchemaMismatch, StoreUnavailable."""
    before = await _on(url, version_of)
    left = steps(None)
    if before is not None:
        known = [revision for revision, _ in left]
        if before not in known:
            check(before)
        left = left[known.index(before) + 1 :]
    for revision, what in left:
        await _take(url, MigrationStep(revision, what), progress)
    return before, HEAD


async def _take(url: str, step: MigrationStep, progress: Callable[[MigrationStep], None]) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    progress(step)
    running = loop.create_task(_on(url, functools.partial(upgrade, revision=step.revision)))
    try:
        while not (await asyncio.wait([running], timeout=PROGRESS_INTERVAL_SECONDS))[0]:
            progress(replace(step, seconds=loop.time() - began, detail=await _detail(url)))
    finally:
        running.cancel()
    await running
    progress(replace(step, seconds=loop.time() - began, done=True))


async def _detail(url: str) -> str:
    """What PostgreSQL tells of an index that is being made; SQLite tells nothing."""
    if sqlite_path(url):
        return ""
    try:
        return await _on(url, _index_under_way)
    except StoreUnavailable:
        return ""


def _index_under_way(connection: Connection) -> str:
    """Its phase, with the share of it that is done."""
    row = connection.execute(text(_INDEX_UNDER_WAY)).first()
    if row is None:
        return ""
    return f"{row.phase}, {row.done * 100 // row.total} %" if row.total else str(row.phase)


#: A phase counts either the blocks that it reads or the rows that it puts in.
_INDEX_UNDER_WAY = (
    "SELECT phase, greatest(tuples_done, blocks_done) AS done, greatest(tuples_total, blocks_total) AS total "
    "FROM pg_stat_progress_create_index WHERE datname = current_database()"
)


def steps(before: str | None) -> list[tuple[str, str]]:
    """The revisions after `before`, oldest first, each with what it does."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_config()).iterate_revisions("head", before or "base")
    return [(script.revision, script.doc) for script in reversed(list(scripts))]


def upgrade(connection: Connection, revision: str = "head") -> None:
    from alembic import command

    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


async def _on(url: str, function: Callable[[Connection], T]) -> T:
    with store_errors():
        if path := sqlite_path(url):
            path.parent.mkdir(parents=True, exist_ok=True)
            return await asyncio.to_thread(_on_sqlite, path, function)
        engine = async_engine(url, pool_size=1)
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(function)
        finally:
            await engine.dispose()


def _on_sqlite(path: Path, function: Callable[[Connection], T]) -> T:
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool, connect_args={"isolation_level": None})

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, record: object) -> None:
        # Counts for a new file only. A first click rewrites one page somewhere in `messages`: small pages make small commits.
        connection.execute("PRAGMA page_size=2048")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    with engine.begin() as connection:
        return function(connection)


async def current_version(url: str) -> str | None:
    """The revision that the database is at. Raises StoreUnavailable."""
    return await _on(url, version_of)
