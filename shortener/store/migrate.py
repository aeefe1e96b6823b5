"""Making and moving on the schema.

`prepare` is what the server calls: an empty database is made ready, one of an older version is refused with the command to
run, one of a newer version is refused. `migrate` moves it on, forward only: each step is a transaction of its own, so one that is
cut off leaves the schema at the step before. Several processes may do it at once; on PostgreSQL they wait for each other.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, create_engine, event, inspect, text
from sqlalchemy.pool import NullPool

from shortener.store.database import store_errors
from shortener.store.migrations import HEAD
from shortener.store.open import sqlite_path
from shortener.store.postgres import async_engine

if TYPE_CHECKING:
    from alembic.config import Config

T = TypeVar("T")

_LOCK = 7_305_469_222  # any number that nothing else locks


class SchemaMismatch(Exception):
    """The database has a schema that this version does not work with; the text names the command to run."""


def version_of(connection: Connection) -> str | None:
    """The revision that the database is at; None when it is empty."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return version


def check(version: str | None) -> None:
    """Raises SchemaMismatch unless `version` is the one that this code needs."""
    if version == HEAD:
        return
    if version is not None and version > HEAD:
        raise SchemaMismatch(f"the database is at schema {version}, newer than this version's {HEAD}: upgrade the service")
    raise SchemaMismatch(f"the database is at schema {version or 'none'}, this version needs {HEAD}: run `shortener migrate`")


async def prepare(url: str) -> None:
    """Make an empty database ready. Raises SchemaMismatch for an old or newer one, StoreUnavailable when it cannot be reached."""
    version = await _on(url, version_of)
    if version is None:
        await migrate(url)
    else:
        check(version)


async def migrate(url: str, progress: Callable[[str, str], None] = lambda revision, what: None) -> tuple[str | None, str]:
    """Bring the schema to HEAD; returns the revisions before and after. `progress`: told of each step before it is taken."""
    before = await _on(url, version_of)
    if before is not None and before > HEAD:
        check(before)
    if before != HEAD:
        for revision, what in steps(before):
            progress(revision, what)
            await _on(url, functools.partial(upgrade, revision=revision))
    return before, HEAD


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
