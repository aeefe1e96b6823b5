"""Tests of inserts of many rows with one statement, into one table and into several tables, on both engines."""

from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, select
from sqlalchemy.exc import IntegrityError

from shortener.storage import schema
from shortener.storage.bulk import MAX_ROWS_PER_STATEMENT, BulkInsert, ForbiddenTexts, insert_all
from shortener.storage.database import Database

insert_count_deltas = BulkInsert(schema.count_deltas, "id", "data")
insert_hits = BulkInsert(schema.hits, "id", "link_id", "at", "verdict", "rule", "flags", "address", "user_agent")
insert_responses = BulkInsert(
    schema.idempotency, "application_id", "key", "content_hash", "answer", "created_at", on_conflict="DO NOTHING"
)

HITS = [(2**62 + number, 7, 1_790_000_000_000, 1, "browser", 3, "", 'it\'s "ü"') for number in range(3)]
COUNT_DELTAS = [(5, '[[1,2,"clicks","3"]]')]
RESPONSES = [(1, "a", "x", "{}", 1_790_000_000_000)]


def stored(connection: Connection) -> tuple[int, int, int]:
    hits, count_deltas, responses = (
        len(connection.execute(select(table)).all()) for table in (schema.hits, schema.count_deltas, schema.idempotency)
    )
    return hits, count_deltas, responses


async def test_a_bulk_insert_into_several_tables_stores_all_values_unchanged(database: Database) -> None:
    await database.write(insert_all, (insert_hits, HITS), (insert_responses, RESPONSES), (insert_count_deltas, COUNT_DELTAS))
    assert await database.read(stored) == (3, 1, 1)
    rows = await database.read(lambda connection: connection.execute(select(schema.hits).order_by(schema.hits.c.id)).all())
    assert [(row.id, row.user_agent) for row in rows] == [(hit[0], hit[-1]) for hit in HITS]


async def test_a_bulk_insert_skips_a_table_without_rows(database: Database) -> None:
    await database.write(insert_all, (insert_hits, []), (insert_responses, []), (insert_count_deltas, COUNT_DELTAS))
    await database.write(insert_all, (insert_hits, []))
    assert await database.read(stored) == (0, 1, 0)


async def test_a_bulk_insert_with_on_conflict_do_nothing_skips_conflicting_rows(database: Database) -> None:
    await database.write(insert_all, (insert_responses, RESPONSES), (insert_count_deltas, COUNT_DELTAS))
    await database.write(insert_all, (insert_responses, RESPONSES), (insert_hits, HITS))
    assert await database.read(stored) == (3, 1, 1)


async def test_one_conflicting_row_prevents_all_inserts_of_a_bulk_insert(database: Database) -> None:
    await database.write(insert_all, (insert_count_deltas, COUNT_DELTAS))
    with pytest.raises(IntegrityError):
        await database.write(insert_all, (insert_hits, HITS), (insert_count_deltas, COUNT_DELTAS))
    assert await database.read(stored) == (0, 1, 0)


async def test_a_bulk_insert_into_several_tables_is_one_statement_on_postgresql(database: Database) -> None:
    def statements_of(connection: Connection) -> list[str]:
        statements: list[str] = []

        def record(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            statements.append(statement)

        event.listen(connection, "before_cursor_execute", record)
        inserts = (insert_hits, HITS), (insert_responses, RESPONSES), (insert_count_deltas, COUNT_DELTAS)
        insert_all(connection, *inserts)
        event.remove(connection, "before_cursor_execute", record)
        return statements

    statements = await database.write(statements_of)
    if database.dialect == "postgresql":
        assert len(statements) == 1


@pytest.mark.parametrize("inserts", [((insert_hits, HITS), (insert_count_deltas, COUNT_DELTAS)), ((insert_hits, HITS),), ()])
async def test_a_forbidden_text_prevents_all_inserts_of_a_bulk_insert(database: Database, inserts: Any) -> None:
    forbidden = ForbiddenTexts(schema.purged_codes.c.code)
    await database.write(lambda connection: connection.execute(insert(schema.purged_codes), [{"code": "old"}, {"code": "older"}]))
    with pytest.raises(IntegrityError):
        await database.write(lambda connection: insert_all(connection, *inserts, unless=(forbidden, ["new", "old"])))
    assert await database.read(stored) == (0, 0, 0)
    await database.write(lambda connection: insert_all(connection, *inserts, unless=(forbidden, ["new", "Old"])))
    await database.write(lambda connection: insert_all(connection, (insert_responses, RESPONSES), unless=(forbidden, [])))
    assert await database.read(stored) == (3 if inserts else 0, 1 if len(inserts) == 2 else 0, 1)


async def test_a_bulk_insert_splits_more_rows_than_one_sqlite_statement_allows(database: Database) -> None:
    hits = [(number, *HITS[0][1:]) for number in range(2 * MAX_ROWS_PER_STATEMENT + 1)]
    assert await database.write(insert_hits, hits) == len(hits)
    assert await database.read(stored) == (len(hits), 0, 0)
