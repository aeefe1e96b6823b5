"""Many rows with one statement, and those of several tables with one, on both engines."""

import pytest
from sqlalchemy import Connection, event, select
from sqlalchemy.exc import IntegrityError

from shortener.storage import schema
from shortener.storage.bulk import MAX_ROWS_PER_STATEMENT, BulkInsert, insert_all
from shortener.storage.database import Database

insert_tallies = BulkInsert(schema.count_deltas, "id", "data")
insert_hits = BulkInsert(schema.hits, "id", "link_id", "at", "verdict", "rule", "flags", "address", "user_agent")
insert_answers = BulkInsert(
    schema.idempotency, "application_id", "key", "content_hash", "answer", "created_at", on_conflict="DO NOTHING"
)

HITS = [(2**62 + number, 7, 1_790_000_000_000, 1, "browser", 3, "", 'it\'s "ü"') for number in range(3)]
TALLIES = [(5, '[[1,2,"clicks","3"]]')]
ANSWERS = [(1, "a", "x", "{}", 1_790_000_000_000)]


def stored(connection: Connection) -> tuple[int, int, int]:
    hits, count_deltas, answers = (
        len(connection.execute(select(table)).all()) for table in (schema.hits, schema.count_deltas, schema.idempotency)
    )
    return hits, count_deltas, answers


async def test_rows_of_several_tables_are_written_as_they_are(database: Database) -> None:
    await database.write(insert_all, (insert_hits, HITS), (insert_answers, ANSWERS), (insert_tallies, TALLIES))
    assert await database.read(stored) == (3, 1, 1)
    kept = await database.read(lambda connection: connection.execute(select(schema.hits).order_by(schema.hits.c.id)).all())
    assert [(row.id, row.user_agent) for row in kept] == [(hit[0], hit[-1]) for hit in HITS]


async def test_what_has_no_rows_is_left_out(database: Database) -> None:
    await database.write(insert_all, (insert_hits, []), (insert_answers, []), (insert_tallies, TALLIES))
    await database.write(insert_all, (insert_hits, []))
    assert await database.read(stored) == (0, 1, 0)


async def test_rows_that_clash_are_left_out_where_that_was_asked_for(database: Database) -> None:
    await database.write(insert_all, (insert_answers, ANSWERS), (insert_tallies, TALLIES))
    await database.write(insert_all, (insert_answers, ANSWERS), (insert_hits, HITS))
    assert await database.read(stored) == (3, 1, 1)


async def test_one_row_that_clashes_keeps_all_of_them_out(database: Database) -> None:
    await database.write(insert_all, (insert_tallies, TALLIES))
    with pytest.raises(IntegrityError):
        await database.write(insert_all, (insert_hits, HITS), (insert_tallies, TALLIES))
    assert await database.read(stored) == (0, 1, 0)


async def test_postgresql_is_asked_once(database: Database) -> None:
    def statements_of(connection: Connection) -> list[str]:
        heard: list[str] = []

        def hear(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            heard.append(statement)

        event.listen(connection, "before_cursor_execute", hear)
        insert_all(connection, (insert_hits, HITS), (insert_answers, ANSWERS), (insert_tallies, TALLIES))
        event.remove(connection, "before_cursor_execute", hear)
        return heard

    heard = await database.write(statements_of)
    if database.dialect == "postgresql":
        assert len(heard) == 1


async def test_more_rows_than_a_statement_takes_are_written_too(database: Database) -> None:
    hits = [(number, *HITS[0][1:]) for number in range(2 * MAX_ROWS_PER_STATEMENT + 1)]
    assert await database.write(insert_hits, hits) == len(hits)
    assert await database.read(stored) == (len(hits), 0, 0)
