"""What a part may rely on, on both engines."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, literal, select, text
from sqlalchemy.exc import IntegrityError

from shortener.errors import StoreUnavailable
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.open import open_database

NOW = datetime(2026, 11, 20, 12, 0, 0, 123000, tzinfo=UTC)


def add(connection: Connection, name: str) -> int:
    statement = insert(schema.applications).values(name=name, settings={"a": 1}, created_at=NOW)
    number: int = connection.execute(statement.returning(schema.applications.c.id)).scalar_one()
    return number


def look_up(connection: Connection, value: int | str) -> None:
    connection.execute(select(literal(value)))


def names(connection: Connection) -> list[str]:
    return list(connection.execute(select(schema.applications.c.name).order_by(schema.applications.c.id)).scalars())


async def test_what_a_transaction_wrote_is_read_back_as_it_was(database: Database) -> None:
    number = await database.write(add, "one")
    row = (await database.read(lambda connection: connection.execute(select(schema.applications)).all()))[0]
    assert (row.id, row.name, row.settings, row.created_at) == (number, "one", {"a": 1}, NOW)


async def test_a_failing_transaction_leaves_nothing_behind(database: Database) -> None:
    def fail(connection: Connection) -> None:
        add(connection, "one")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await database.write(fail)
    assert await database.read(names) == []
    await database.write(add, "two")
    assert await database.read(names) == ["two"]


async def test_a_clash_passes_through_as_what_it_is(database: Database) -> None:
    await database.write(add, "one")
    with pytest.raises(IntegrityError):
        await database.write(add, "one")
    assert await database.read(names) == ["one"]


async def test_data_that_no_column_can_hold_is_our_mistake_and_not_an_outage(database: Database) -> None:
    for value in (2**70, "\udc80"):
        with pytest.raises(Exception, match=r"int|surrogates|64") as caught:
            await database.write(look_up, value)
        assert not isinstance(caught.value, StoreUnavailable)


async def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(Exception, match=r"read-?only"):
        await database.read(add, "one")
    assert await database.read(names) == []


async def test_a_stream_brings_all_rows_in_pieces(database: Database) -> None:
    for number in range(25):
        await database.write(add, f"a{number:02}")
    pieces = [len(rows) async for rows in database.stream(select(schema.applications.c.name), size=10)]
    assert pieces == [10, 10, 5]


async def test_what_cannot_be_reached_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await open_database(f"postgresql://nobody@/none?host={tmp_path}", owner=True)


async def test_sqlite_belongs_to_one_server(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shortener.db'}"
    first = await open_database(url, owner=True)
    with pytest.raises(StoreUnavailable, match="SQLite belongs to one process"):
        await open_database(url, owner=True)
    beside = await open_database(url, owner=False)  # a command beside the server
    await beside.close()
    await first.close()
    again = await open_database(url, owner=True)
    await again.close()


async def test_sqlite_is_durable_and_waits_for_other_writers(tmp_path: Path) -> None:
    database = await open_database(f"sqlite:///{tmp_path / 'shortener.db'}", owner=True)

    def pragmas(connection: Connection) -> tuple[str, int, int]:
        ask = [connection.execute(text(f"PRAGMA {name}")).scalar_one() for name in ("journal_mode", "synchronous", "busy_timeout")]
        return (ask[0], ask[1], ask[2])

    assert await database.write(pragmas) == ("wal", 2, 1000)
    await database.close()
