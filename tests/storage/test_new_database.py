"""Tests of the file whose statements create the tables of a new SQLite database."""

from pathlib import Path

from sqlalchemy import Connection, func, select

from shortener.storage import migrate as module
from shortener.storage import new_database
from shortener.storage.migrate import current_version, migrate, prepare
from shortener.storage.migrations import HEAD
from shortener.storage.schema import metadata


def rows_of_all_tables(connection: Connection) -> dict[str, int]:
    counts = {name: connection.scalar(select(func.count()).select_from(table)) or 0 for name, table in metadata.tables.items()}
    return {name: count for name, count in counts.items() if count}


async def test_the_file_creates_exactly_the_tables_indexes_and_triggers_of_the_migrations(tmp_path: Path) -> None:
    by_file, by_migrations = (f"sqlite:///{tmp_path}/{name}.db" for name in ("file", "migrations"))
    await prepare(by_file)
    await migrate(by_migrations)
    written = await module._run_on(by_migrations, new_database.dump)
    assert new_database.SQLITE_FILE.read_text() == written, "a migration was added or changed: run `make config`"
    assert await module._run_on(by_file, new_database.dump) == written
    assert await current_version(by_file) == await current_version(by_migrations) == HEAD
    assert await module._run_on(by_migrations, rows_of_all_tables) == await module._run_on(by_file, rows_of_all_tables) == {}


async def test_a_process_that_finds_the_tables_of_another_process_creates_none(tmp_path: Path) -> None:
    """Both processes have found the database empty, and then the first one has created the tables."""
    url = f"sqlite:///{tmp_path}/new.db"
    await module._run_on(url, module._create)
    await module._run_on(url, module._create)
    assert await current_version(url) == HEAD


def test_the_command_that_generates_the_file_returns_its_text() -> None:
    assert module.migrated_dump() == new_database.SQLITE_FILE.read_text()
