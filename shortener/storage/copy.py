"""This module copies an installation to another database, from SQLite to PostgreSQL or the reverse.

Both databases must have the schema of this version, and no process may write to the source during the copy. The tables are copied
one after the other, in batches by primary key. Each batch is one transaction, and skips rows that the target already has. If a
copy is interrupted, a second run continues it. Until a copy is complete, the service does not start on the target
(`is_unfinished`). At the end, all rows of both databases are read and compared.

The secret of an installation is not in its database, so the target must be served with the same SECRET.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Boolean, ColumnElement, Connection, Table, delete, func, select, text, true, tuple_, type_coerce
from sqlalchemy.types import BigInteger, Float, Integer, SmallInteger, Text, TypeEngine

from shortener.model import record
from shortener.storage.bulk import BulkInsert
from shortener.storage.database import Database, upsert
from shortener.storage.installation import FINGERPRINT, get
from shortener.storage.references import ENFORCED
from shortener.storage.schema import installation, metadata

BATCH_ROWS = 2000  # The number of rows that one transaction copies.
#: The name of a row in the table `installation`. The row means that the database is the target of an incomplete copy.
UNFINISHED_COPY = "copy"

#: With these plain types, stored values are read and written unchanged. The column types of the schema would convert them.
_STORED: tuple[type[TypeEngine[Any]], ...] = (Boolean, SmallInteger, BigInteger, Integer, Float, Text)


class CopyError(Exception):
    """Raised if a copy to another database is impossible, or if the copied rows differ. The text states the reason."""


@record
class Progress:
    """The progress of one table: `done` rows are copied or compared, of about `total` rows. `doing` is "copied" or "compared"."""

    table: str
    doing: str
    done: int
    total: int


class _Checksum(NamedTuple):
    """A checksum of a table: the number of its rows and the sum of their hashes. The order of the rows does not change it."""

    rows: int = 0
    hashes: int = 0


def is_unfinished(connection: Connection) -> bool:
    """Return whether a copy into this database has begun and is not complete."""
    return get(connection, UNFINISHED_COPY) is not None


async def copy(source: Database, target: Database, progress: Callable[[Progress], None]) -> dict[str, int]:
    """Copy and compare all tables. Return the number of rows of each table, by table name. Raise CopyError, or StoreUnavailable if
    a database is unavailable."""
    if await source.read(is_unfinished):
        raise CopyError("the source is an incomplete copy; complete it first with `shortener copy`")
    await target.write(_begin, await source.read(_identity))
    # Copy `installation` first: its rows show that the target is in use. Then copy each table after the tables to which it
    # refers.
    parents = {reference.parent for reference in ENFORCED}
    tables = sorted(metadata.sorted_tables, key=lambda table: (table is not installation, table not in parents))
    totals = {str(table.name): await source.read(_count, table) for table in tables}
    for table in tables:
        await _copy_table(source, target, table, totals[table.name], progress)
    for table in tables:
        here = await _checksum(source, table, totals[table.name], progress)
        there = await _checksum(target, table, totals[table.name], progress)
        if here != there:
            raise CopyError(
                f"the rows of {table.name} differ: {here.rows} in the source, {there.rows} in the target. "
                "Stop every process that writes to either database, then run the copy again with an empty target"
            )
        totals[table.name] = here.rows
    await target.write(_end)
    return totals


def _identity(connection: Connection) -> str:
    """Return the fingerprint of the SECRET, which identifies the installation."""
    value = get(connection, FINGERPRINT)
    if value is None:
        raise CopyError("the source is empty: no server has started on it")
    return value


def _begin(connection: Connection, identity: str) -> None:
    mark = get(connection, UNFINISHED_COPY)
    if mark is None:
        if connection.execute(select(installation.c.name).limit(1)).first() is not None:
            raise CopyError("the target already contains an installation: use an empty database")
        connection.execute(upsert(connection, installation).values(name=UNFINISHED_COPY, value=identity))
    elif mark != identity:
        raise CopyError("the target contains an incomplete copy of another installation: use an empty database")


def _end(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        for table in metadata.sorted_tables:
            for column in table.primary_key.columns:
                if column.autoincrement and isinstance(column.type, Integer) and len(table.primary_key.columns) == 1:
                    # The id sequence of PostgreSQL must continue after the copied ids.
                    place = f"pg_get_serial_sequence('{table.name}', '{column.name}')"
                    highest = f"(SELECT max({column.name}) FROM {table.name})"
                    connection.execute(text(f"SELECT setval({place}, {highest}) WHERE {place} IS NOT NULL AND {highest} > 0"))
    connection.execute(delete(installation).where(installation.c.name == UNFINISHED_COPY))


async def _copy_table(source: Database, target: Database, table: Table, total: int, progress: Callable[[Progress], None]) -> None:
    insert = BulkInsert(table, *table.columns.keys(), on_conflict="DO NOTHING")
    done = await target.read(_count, table)
    if done == total:
        return  # An earlier run has already copied this table.
    after = await target.read(_highest, table) if done else None
    if after is None:
        done = 0
    rows = await source.read(_page, table, after)
    while rows:
        done += len(rows)
        # Read the next rows while the target writes the current rows. If one of them fails, wait for the other before the error
        # is raised, because the caller then closes both databases.
        following, written = await asyncio.gather(
            source.read(_page, table, _key(table, rows[-1])), target.write(insert, rows), return_exceptions=True
        )
        for result in (written, following):
            if isinstance(result, BaseException):
                raise result
        rows = following
        progress(Progress(table.name, "copied", done, total))


async def _checksum(database: Database, table: Table, total: int, progress: Callable[[Progress], None]) -> _Checksum:
    after: tuple[Any, ...] | None = None
    result = _Checksum()
    while rows := await database.read(_page, table, after):
        after = _key(table, rows[-1])
        # Python's hash has 64 bits and differs between processes. It can be used here, because one process computes both
        # checksums.
        hashes = result.hashes + sum(hash(orjson.dumps(row)) for row in rows)
        result = _Checksum(result.rows + len(rows), hashes % 2**64)
        progress(Progress(table.name, "compared", result.rows, total))
    return result


def _count(connection: Connection, table: Table) -> int:
    count: int = connection.execute(select(func.count()).select_from(table).where(_without_mark(table))).scalar_one()
    return count


def _highest(connection: Connection, table: Table) -> tuple[Any, ...] | None:
    """Return the highest primary key in the target, after which an interrupted copy continues.

    Return None if the copy must begin with the first row. There are two cases: the table is empty, or its keys contain text,
    which SQLite and PostgreSQL sort differently."""
    keys = list(table.primary_key.columns)
    if any(not isinstance(key.type, Integer) for key in keys):
        return None
    row = connection.execute(select(*keys).order_by(*(key.desc() for key in keys)).limit(1)).first()
    return None if row is None else tuple(row)


def _page(connection: Connection, table: Table, after: tuple[Any, ...] | None) -> Sequence[tuple[Any, ...]]:
    """Return the next rows of a table, whose primary keys are larger than `after`. They are sorted by key and have their stored
    form."""
    keys = list(table.primary_key.columns)
    statement = select(*(type_coerce(column, _stored_type(column.type)) for column in table.columns))
    statement = statement.where(_without_mark(table)).order_by(*keys).limit(BATCH_ROWS)
    if after is not None:
        statement = statement.where(tuple_(*keys) > tuple_(*after) if len(keys) > 1 else keys[0] > after[0])
    return list(map(tuple, connection.execute(statement).all()))


def _without_mark(table: Table) -> ColumnElement[bool]:
    """Return the SQL condition that leaves out the row that means an incomplete copy."""
    return installation.c.name != UNFINISHED_COPY if table is installation else true()


def _stored_type(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    plain = getattr(kind, "impl_instance", kind)
    return next(stored() for stored in _STORED if isinstance(plain, stored))


def _key(table: Table, row: Sequence[Any]) -> tuple[Any, ...]:
    places = list(table.columns.keys())
    return tuple(row[places.index(key.name)] for key in table.primary_key.columns)
