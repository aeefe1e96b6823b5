"""Tests of `values_table`: rows in memory as an SQL table, on both engines."""

from sqlalchemy import BigInteger, Connection, Integer, Row, Text, select

from shortener.storage.database import Database
from shortener.storage.values_table import values_table

ROWS = [(1, "a", 2**62 + 1), (2, 'it\'s "ü" \\ ', -5), (3, "123", 0)]


def read(connection: Connection, rows: list[tuple[int, str, int]]) -> list[Row[int, str, int]]:
    table = values_table(connection, rows, number=Integer, name=Text, big=BigInteger)
    return list(connection.execute(select(table.c.number, table.c.name, table.c.big).order_by(table.c.number)))


async def test_values_table_returns_its_rows_unchanged(database: Database) -> None:
    assert await database.read(read, ROWS) == ROWS


async def test_values_table_without_rows_is_empty(database: Database) -> None:
    assert await database.read(read, []) == []


async def test_values_table_accepts_forty_thousand_rows_without_exceeding_the_parameter_limit(database: Database) -> None:
    many = [(number, str(number), number) for number in range(40_000)]
    assert len(await database.read(read, many)) == 40_000
