"""The statements of a batch of conversions: whose they are, writing those that are new, reading what stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import BigInteger, Connection, Text, and_, select

from shortener.storage import raw_sql, schema
from shortener.storage.bulk import BulkInsert
from shortener.storage.values_table import values_table


class ConversionTarget(NamedTuple):
    """The message that a conversion belongs to, and the click that it follows if that is known. `row`, `link`, `hit`: row ids."""

    application_id: int
    row: int
    message_id: str
    cohort_id: int
    link: int | None = None
    hit: int | None = None


#: message (row id), action, transaction_id
Key = tuple[int, str, str]


class StoredConversion(NamedTuple):
    """What stands under a key."""

    id: int
    value: Decimal | None
    currency: str | None


#: Columns as they are stored; rows whose key is taken are left out.
insert_new = BulkInsert(
    schema.conversions,
    "id",
    "application_id",
    "message_id",
    "hit_id",
    "action",
    "transaction_id",
    "status",
    "disposition",
    "value",
    "currency",
    "at",
    "received_at",
    "metadata",
    on_conflict="DO NOTHING",
)


def by_hit(connection: Connection, hits: Iterable[int]) -> Mapping[int, ConversionTarget]:
    """The targets of these hits, as far as they are stored."""
    wanted = values_table(connection, [(hit,) for hit in hits], id=BigInteger)
    h, li, m = schema.hits.c, schema.links.c, schema.messages.c
    statement = (
        select(m.application_id, m.id, m.message_id, m.cohort_id, li.id, h.id)
        .select_from(wanted)
        .join(schema.hits, h.id == wanted.c.id)
        .join(schema.links, li.id == h.link_id)
        .join(schema.messages, m.id == li.message_id)
    )
    return {row[5]: ConversionTarget(*row) for row in connection.execute(statement)}


_TARGETS = "m.application_id, m.id, m.message_id, m.cohort_id"
_BY_MESSAGE_ID = {
    "sqlite": f"SELECT json_group_array(json_array({_TARGETS})) FROM json_each(?) AS j CROSS JOIN messages AS m "
    "ON m.application_id = j.value ->> 0 AND m.message_id = j.value ->> 1",
    "postgresql": f"SELECT {_TARGETS} FROM unnest($1::int[], $2::text[]) AS j(application_id, message_id) JOIN messages AS m "
    "ON m.application_id = j.application_id AND m.message_id = j.message_id",
}


def by_message_id(connection: Connection, ids: Iterable[tuple[int, str]]) -> Mapping[tuple[int, str], ConversionTarget]:
    """The targets by (application, message_id)."""
    wanted = list(ids)
    values = [wanted] if connection.dialect.name == "sqlite" else [list(column) for column in zip(*wanted, strict=True)]
    return {(row[0], row[2]): ConversionTarget(*row) for row in raw_sql.rows(connection, _BY_MESSAGE_ID, *values)}


def stored(connection: Connection, keys: Iterable[Key]) -> Mapping[Key, StoredConversion]:
    """The conversions that stand under these keys."""
    wanted = values_table(connection, keys, message=BigInteger, action=Text, transaction_id=Text)
    c = schema.conversions.c
    statement = select(c.message_id, c.action, c.transaction_id, c.id, c.value, c.currency).join_from(
        wanted,
        schema.conversions,
        and_(
            c.message_id == wanted.c.message,
            c.action == wanted.c.action,
            c.transaction_id == wanted.c.transaction_id,
        ),
    )
    return {(row[0], row[1], row[2]): StoredConversion(*row[3:]) for row in connection.execute(statement)}
