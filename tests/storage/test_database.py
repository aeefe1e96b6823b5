"""Tests of what both database engines guarantee about transactions, reads, streams and errors."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog
from sqlalchemy import Connection, insert, literal, select, text
from sqlalchemy.exc import IntegrityError

from shortener.errors import StoreUnavailable
from shortener.settings import Settings
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.migrate import prepare
from shortener.storage.open import open_database
from shortener.storage.types import from_ms, iso_of_ms, iso_with_ms, to_iso

NOW = datetime(2026, 11, 20, 12, 0, 0, 123000, tzinfo=UTC)


def add(connection: Connection, name: str) -> int:
    statement = insert(schema.applications).values(name=name, settings={"a": 1}, created_at=NOW)
    number: int = connection.execute(statement.returning(schema.applications.c.id)).scalar_one()
    return number


def look_up(connection: Connection, value: int | str) -> None:
    connection.execute(select(literal(value)))


def names(connection: Connection) -> list[str]:
    return list(connection.execute(select(schema.applications.c.name).order_by(schema.applications.c.id)).scalars())


async def test_values_written_to_the_database_are_read_unchanged(database: Database) -> None:
    number = await database.write(add, "one")
    row = (await database.read(lambda connection: connection.execute(select(schema.applications)).all()))[0]
    assert (row.id, row.name, row.settings, row.created_at) == (number, "one", {"a": 1}, NOW)


async def test_a_failed_transaction_stores_nothing(database: Database) -> None:
    def fail(connection: Connection) -> None:
        add(connection, "one")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await database.write(fail)
    assert await database.read(names) == []
    await database.write(add, "two")
    assert await database.read(names) == ["two"]


async def test_a_transaction_runs_in_the_context_of_its_caller_so_that_log_lines_contain_the_request_id(database: Database) -> None:
    with structlog.contextvars.bound_contextvars(request_id="caller-7"):
        assert await database.write(lambda connection: structlog.contextvars.get_contextvars()) == {"request_id": "caller-7"}


async def test_a_unique_conflict_raises_integrity_error(database: Database) -> None:
    await database.write(add, "one")
    with pytest.raises(IntegrityError):
        await database.write(add, "one")
    assert await database.read(names) == ["one"]


async def test_a_value_that_does_not_fit_its_column_raises_an_error_other_than_store_unavailable(database: Database) -> None:
    for value in (2**70, "\udc80"):
        with pytest.raises(Exception, match=r"int|surrogates|64") as caught:
            await database.write(look_up, value)
        assert not isinstance(caught.value, StoreUnavailable)


async def test_a_write_inside_a_read_transaction_fails(database: Database) -> None:
    with pytest.raises(Exception, match=r"read-?only"):
        await database.read(add, "one")
    assert await database.read(names) == []


async def test_a_stream_yields_all_rows_in_lists_of_the_requested_size(database: Database) -> None:
    for number in range(25):
        await database.write(add, f"a{number:02}")
    pieces = [len(rows) async for rows in database.stream(select(schema.applications.c.name), size=10)]
    assert pieces == [10, 10, 5]


async def test_a_database_that_cannot_be_reached_raises_store_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await open_database(f"postgresql://nobody@/none?host={tmp_path}", owner=True)


async def test_a_second_server_on_a_sqlite_file_is_rejected(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shortener.db'}"
    first = await open_database(url, owner=True)
    with pytest.raises(StoreUnavailable, match="only one process can use a SQLite database"):
        await open_database(url, owner=True)
    command = await open_database(url, owner=False)  # A command can open the database while a server uses it.
    await command.close()
    await first.close()
    again = await open_database(url, owner=True)
    await again.close()


async def test_sqlite_uses_wal_with_full_synchronization_and_a_busy_timeout(tmp_path: Path) -> None:
    database = await open_database(f"sqlite:///{tmp_path / 'shortener.db'}", owner=True)

    def pragmas(connection: Connection) -> tuple[str, int, int]:
        values = [
            connection.execute(text(f"PRAGMA {name}")).scalar_one() for name in ("journal_mode", "synchronous", "busy_timeout")
        ]
        return (values[0], values[1], values[2])

    assert await database.write(pragmas) == ("wal", 2, 1000)
    command = await open_database(f"sqlite:///{tmp_path / 'shortener.db'}", owner=False)
    assert await command.write(pragmas) == ("wal", 2, 0), "a command waits for a busy server without SQLite (write_lock.py)"
    await command.close()
    await database.close()


@pytest.mark.parametrize("name", ["a#b", "a%41b", "a?b", "a b", "ä&=+;"])
async def test_the_path_of_a_sqlite_file_can_contain_characters_that_are_special_in_urls(tmp_path: Path, name: str) -> None:
    settings = Settings(data_dir=tmp_path / name)
    await prepare(settings.store_url)
    database = await open_database(settings.store_url, owner=True)
    try:
        await database.write(add, "one")
        assert await database.read(names) == ["one"]
        assert [len(rows) async for rows in database.stream(select(schema.applications.c.name))] == [1]
    finally:
        await database.close()
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name / "shortener.db").is_file()


@pytest.mark.parametrize("ms", [None, 0, 999, 1000, 1_764_000_000_000, 1_764_000_000_007, 1_764_000_000_120, 253_402_300_799_000])
def test_a_time_stored_in_milliseconds_is_formatted_like_the_same_time_as_a_datetime(ms: int | None) -> None:
    assert iso_of_ms(ms) == to_iso(None if ms is None else from_ms(ms))
    if ms is not None:
        assert iso_with_ms(ms) == from_ms(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_the_text_of_a_time_has_a_year_of_four_digits() -> None:
    assert to_iso(datetime(1, 1, 1, tzinfo=UTC)) == iso_of_ms(-62_135_596_800_000) == "0001-01-01T00:00:00Z"
    assert to_iso(datetime(999, 12, 31, 23, 59, 59, 7_999, tzinfo=UTC)) == "0999-12-31T23:59:59.007Z"
    assert iso_with_ms(-62_135_596_800_000) == "0001-01-01T00:00:00.000Z"
