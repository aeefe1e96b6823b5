"""Moving an installation from one database to another: SQLite to PostgreSQL when it outgrows its machine, or back.

Both are at the schema of this version, and nobody writes to the source meanwhile. Rows go table by table, in batches by the order
of the primary key; a batch is a transaction, and a row that is there already is left alone. A copy that is cut off goes on where
it was when it is run again, and until one has come to its end the target refuses to serve (`is_unfinished`). At the end both sides
are read and compared, row for row.

The keys of an installation are not in its database: the target is served with the same SECRET.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Boolean, ColumnElement, Connection, Table, delete, func, select, text, true, tuple_, type_coerce
from sqlalchemy.types import BigInteger, Integer, SmallInteger, Text, TypeEngine

from shortener.storage.bulk import BulkInsert
from shortener.storage.database import Database, upsert
from shortener.storage.schema import installation, metadata

BATCH = 2000  # rows of one transaction
_MARK = "copy"  # in `installation`, while a copy into the database is not finished

#: As they are stored, without the meaning that the schema's own types give them: the same on both engines.
_STORED: tuple[type[TypeEngine[Any]], ...] = (Boolean, SmallInteger, BigInteger, Integer, Text)


class CopyError(Exception):
    """The copy cannot be made, or did not come out right; the text says why."""


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of about `total` rows; `doing` is "copied" or "compared"."""

    table: str
    doing: str
    done: int
    total: int


class Sum(NamedTuple):
    """How many rows a table has, and the sum of their hashes: the same for the same rows in any order."""

    rows: int = 0
    hashes: int = 0


def is_unfinished(connection: Connection) -> bool:
    """Whether a copy into this database was begun and did not come to its end."""
    return connection.execute(select(installation.c.value).where(installation.c.name == _MARK)).first() is not None


async def copy(source: Database, target: Database, progress: Callable[[Progress], None]) -> dict[str, int]:
    """Copy and compare everything; returns the number of rows of each table. Raises CopyError, StoreUnavailable."""
    if await source.read(is_unfinished):
        raise CopyError("the source is itself a copy that did not come to its end")
    await target.write(_begin, await source.read(_identity))
    tables = sorted(metadata.sorted_tables, key=lambda table: table is not installation)  # the first claims the target
    totals = {table.name: await source.read(_count, table) for table in tables}
    for table in tables:
        await _copy_table(source, target, table, totals[table.name], progress)
    for table in tables:
        here = await _sum(source, table, totals[table.name], progress)
        there = await _sum(target, table, totals[table.name], progress)
        if here != there:
            raise CopyError(
                f"{table.name} differs: {here.rows} rows in the source, {there.rows} in the target; was somebody writing to either?"
            )
        totals[table.name] = here.rows
    await target.write(_end)
    return totals


def _identity(connection: Connection) -> str:
    """What tells the source from others: the fingerprint of its SECRET."""
    value: str | None = connection.execute(select(installation.c.value).where(installation.c.name == "secret")).scalar()
    if value is None:
        raise CopyError("the source has never been served: there is nothing to copy")
    return value


def _begin(connection: Connection, identity: str) -> None:
    kept = connection.execute(select(installation.c.value).where(installation.c.name == _MARK)).scalar()
    if kept is None:
        if connection.execute(select(installation.c.name).limit(1)).first() is not None:
            raise CopyError("the target is in use: a copy wants a database of its own")
        connection.execute(upsert(connection, installation).values(name=_MARK, value=identity))
    elif kept != identity:
        raise CopyError("the target holds a part of another installation")


def _end(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        for table in metadata.sorted_tables:
            for column in table.primary_key.columns:
                if column.autoincrement and isinstance(column.type, Integer) and len(table.primary_key.columns) == 1:
                    # What the database numbers by itself goes on after the rows that came with their numbers.
                    place = f"pg_get_serial_sequence('{table.name}', '{column.name}')"
                    highest = f"(SELECT max({column.name}) FROM {table.name})"
                    connection.execute(text(f"SELECT setval({place}, {highest}) WHERE {place} IS NOT NULL AND {highest} > 0"))
    connection.execute(delete(installation).where(installation.c.name == _MARK))


async def _copy_table(source: Database, target: Database, table: Table, total: int, progress: Callable[[Progress], None]) -> None:
    insert = BulkInsert(table, *table.columns.keys(), on_conflict="DO NOTHING")
    done = await target.read(_count, table)
    if done == total:
        return  # an earlier run did it
    after = await target.read(_highest, table) if done else None
    if after is None:
        done = 0
    while rows := await source.read(_page, table, after):
        await target.write(insert, rows)
        after = _key(table, rows[-1])
        done += len(rows)
        progress(Progress(table.name, "copied", done, total))


async def _sum(database: Database, table: Table, total: int, progress: Callable[[Progress], None]) -> Sum:
    after: tuple[Any, ...] | None = None
    result = Sum()
    while rows := await database.read(_page, table, after):
        after = _key(table, rows[-1])
        hashes = result.hashes
        for row in rows:
            hashes += int.from_bytes(hashlib.blake2b(orjson.dumps(row), digest_size=8).digest())
        result = Sum(result.rows + len(rows), hashes % 2**64)
        progress(Progress(table.name, "compared", result.rows, total))
    return result


def _count(connection: Connection, table: Table) -> int:
    count: int = connection.execute(select(func.count()).select_from(table).where(_others(table))).scalar_one()
    return count


def _highest(connection: Connection, table: Table) -> tuple[Any, ...] | None:
    """The key that an earlier run came to; None: begin at the beginning. Keys with text in them are in another order in another
    database, and so tell nothing."""
    keys = list(table.primary_key.columns)
    if any(not isinstance(key.type, Integer) for key in keys):
        return None
    row = connection.execute(select(*keys).order_by(*(key.desc() for key in keys)).limit(1)).first()
    return None if row is None else tuple(row)


def _page(connection: Connection, table: Table, after: tuple[Any, ...] | None) -> Sequence[tuple[Any, ...]]:
    """The next rows by primary key, as they are stored."""
    keys = list(table.primary_key.columns)
    statement = select(*(type_coerce(column, _stored(column.type)) for column in table.columns))
    statement = statement.where(_others(table)).order_by(*keys).limit(BATCH)
    if after is not None:
        statement = statement.where(tuple_(*keys) > tuple_(*after) if len(keys) > 1 else keys[0] > after[0])
    return [tuple(row) for row in connection.execute(statement)]


def _others(table: Table) -> ColumnElement[bool]:
    """All rows but the mark."""
    return installation.c.name != _MARK if table is installation else true()


def _stored(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    plain = getattr(kind, "impl_instance", kind)
    return next(stored() for stored in _STORED if isinstance(plain, stored))


def _key(table: Table, row: Sequence[Any]) -> tuple[Any, ...]:
    places = list(table.columns.keys())
    return tuple(row[places.index(key.name)] for key in table.primary_key.columns)
