"""SQL statements for a batch of conversions: find their messages, insert new conversions, read existing ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import BigInteger, Connection, Text, and_, select

from shortener.storage import raw_sql, schema
from shortener.storage.bulk import BulkInsert
from shortener.storage.values_table import values_table


class ConversionTarget(NamedTuple):
    """The message of a conversion, and its click if the click is known. `row_id`, `link_id` and `hit_id` are row ids."""

    application_id: int
    row_id: int
    message_id: str
    cohort_id: int
    link_id: int | None = None
    hit_id: int | None = None
    link_set: int | None = None  # of the message


#: Identity of a conversion: message (row id), action, transaction_id.
ConversionKey = tuple[int, str, str]


class StoredConversion(NamedTuple):
    """An existing conversion. `id` is its row id."""

    id: int
    value: Decimal | None
    currency: str | None


#: Inserts rows with stored column values. It skips a row if a conversion with its key exists, and returns the number of new rows.
insert_new_conversions = BulkInsert(
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


def find_targets_by_hit(connection: Connection, hits: Iterable[int]) -> Mapping[int, ConversionTarget]:
    """Return the targets of these hits (row ids). Hits that are not stored are missing in the result."""
    requested = values_table(connection, [(hit,) for hit in hits], id=BigInteger)
    h, li, m = schema.hits.c, schema.links.c, schema.messages.c
    statement = (
        select(m.application_id, m.id, m.message_id, m.cohort_id, li.id, h.id, m.link_set_id)
        .select_from(requested)
        .join(schema.hits, h.id == requested.c.id)
        .join(schema.links, li.id == h.link_id)
        .join(schema.messages, m.id == li.message_id)
    )
    return {row[5]: ConversionTarget(*row) for row in connection.execute(statement)}


_TARGETS = "m.application_id, m.id, m.message_id, m.cohort_id, m.link_set_id"
_BY_MESSAGE_ID = {
    "sqlite": f"SELECT json_group_array(json_array({_TARGETS})) FROM json_each(?) AS j CROSS JOIN messages AS m "
    "ON m.application_id = j.value ->> 0 AND m.message_id = j.value ->> 1",
    "postgresql": f"SELECT {_TARGETS} FROM unnest($1::int[], $2::text[]) AS j(application_id, message_id) JOIN messages AS m "
    "ON m.application_id = j.application_id AND m.message_id = j.message_id",
}


def find_targets_by_message_id(
    connection: Connection, ids: Iterable[tuple[int, str]]
) -> Mapping[tuple[int, str], ConversionTarget]:
    """Return the targets of these (application_id, message_id). Unknown messages are missing in the result."""
    requested = list(ids)
    values = [requested] if connection.dialect.name == "sqlite" else [list(column) for column in zip(*requested, strict=True)]
    return {
        (row[0], row[2]): ConversionTarget(row[0], row[1], row[2], row[3], link_set=row[4])
        for row in raw_sql.rows(connection, _BY_MESSAGE_ID, *values)
    }


def find_conversions(connection: Connection, keys: Iterable[ConversionKey]) -> Mapping[ConversionKey, StoredConversion]:
    """Return the existing conversions with these keys."""
    requested = values_table(connection, keys, message=BigInteger, action=Text, transaction_id=Text)
    c = schema.conversions.c
    statement = select(c.message_id, c.action, c.transaction_id, c.id, c.value, c.currency).join_from(
        requested,
        schema.conversions,
        and_(
            c.message_id == requested.c.message,
            c.action == requested.c.action,
            c.transaction_id == requested.c.transaction_id,
        ),
    )
    return {(row[0], row[1], row[2]): StoredConversion(*row[3:]) for row in connection.execute(statement)}
