"""Tests of `values_table` and `parameter_table`, which pass rows from memory to SQL as a table, on both engines."""

from sqlalchemy import BigInteger, Connection, Integer, Row, Text, select

from shortener.storage.database import Database
from shortener.storage.values_table import parameter_table, table_parameters, values_table

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


async def test_a_statement_on_a_parameter_table_can_be_executed_with_different_rows(database: Database) -> None:
    dialect = database.dialect
    table = parameter_table(dialect, "rows", number=Integer, name=Text, big=BigInteger)
    statement = select(table.c.number, table.c.name, table.c.big).order_by(table.c.number)

    def read_twice(connection: Connection) -> list[list[Row[int, str, int]]]:
        return [list(connection.execute(statement, table_parameters(dialect, "rows", rows))) for rows in (ROWS, ROWS[1:2])]

    assert await database.read(read_twice) == [ROWS, ROWS[1:2]]
