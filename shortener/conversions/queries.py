"""This module contains the SQL statements for a batch of conversions: they find the messages, insert new conversions, and lock,
read and update stored ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Connection, Row, Text, and_, select

from shortener.storage import raw_sql, schema
from shortener.storage.bulk import BulkInsert
from shortener.storage.database import upsert
from shortener.storage.values_table import values_table

#: The maximum number of actions of an application that are counted separately. All other actions share one count.
MAX_COUNTED_ACTIONS = 200


class ConversionTarget(NamedTuple):
    """The message of a conversion, and the click if it is known. `row_id` is the row id of the message. `link_id` and `hit_id`
    are row ids too."""

    application_id: int
    row_id: int
    message_id: str
    cohort_id: int
    link_id: int | None = None
    hit_id: int | None = None
    link_set: int | None = None  # the id of the link set of the message
    is_erased: bool = False  # whether the personal data of the message were erased


#: The identity of a conversion: (row id of the message, case-folded action, case-folded transaction_id).
ConversionKey = tuple[int, str, str]


class StoredRevision(NamedTuple):
    """A stored revision of a conversion. `at` is the time of the conversion according to the report of the revision."""

    revision: int
    status: str | None
    disposition: str | None
    value: Decimal | None
    currency: str | None
    at: datetime
    received_at: datetime
    metadata: Mapping[str, Any] | None = None
    warnings: Sequence[str] | None = None


class StoredConversion(NamedTuple):
    """A stored conversion with its latest revision. `id` is its row id; `at` is the time of the conversion according to its first
    report."""

    id: int
    hit_id: int | None
    at: datetime
    counted_as: str | None
    latest: StoredRevision


#: Inserts conversions and returns the number of new rows. If a conversion with the same identity is already stored, its row is
#: skipped.
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
    "action_text",
    "transaction_text",
    "warnings",
    "counted_as",
    on_conflict="DO NOTHING",
)

#: Inserts earlier revisions of conversions. Each value of a row must have the form in which its column stores it.
insert_revisions = BulkInsert(
    schema.conversion_revisions,
    "id",
    "conversion_id",
    "revision",
    "status",
    "disposition",
    "value",
    "currency",
    "at",
    "received_at",
    "metadata",
    "warnings",
)


def find_targets_by_hit(connection: Connection, hits: Iterable[int]) -> Mapping[int, ConversionTarget]:
    """Return the message and the click of each hit, by the row id of the hit. Hits that are not stored are missing in the
    result."""
    requested = values_table(connection, [(hit,) for hit in hits], id=BigInteger)
    h, li, m = schema.hits.c, schema.links.c, schema.messages.c
    statement = (
        select(m.application_id, m.id, m.message_id, m.cohort_id, li.id, h.id, m.link_set_id, m.to_address == "")
        .select_from(requested)
        .join(schema.hits, h.id == requested.c.id)
        .join(schema.links, li.id == h.link_id)
        .join(schema.messages, m.id == li.message_id)
    )
    return {row[5]: ConversionTarget(*row) for row in connection.execute(statement)}


_TARGETS = "m.application_id, m.id, m.message_id, m.cohort_id, m.link_set_id, m.to_address = ''"
_BY_MESSAGE_ID = {
    "sqlite": f"SELECT json_group_array(json_array({_TARGETS})) FROM json_each(?) AS j CROSS JOIN messages AS m "
    "ON m.application_id = j.value ->> 0 AND m.message_id = j.value ->> 1",
    "postgresql": f"SELECT {_TARGETS} FROM unnest($1::int[], $2::text[]) AS j(application_id, message_id) JOIN messages AS m "
    "ON m.application_id = j.application_id AND m.message_id = j.message_id",
}


def find_targets_by_message_id(
    connection: Connection, ids: Iterable[tuple[int, str]]
) -> Mapping[tuple[int, str], ConversionTarget]:
    """Return the messages by (application_id, message_id). Unknown messages are missing in the result."""
    requested = list(ids)
    values = [requested] if connection.dialect.name == "sqlite" else [list(column) for column in zip(*requested, strict=True)]
    return {
        (row[0], row[2]): ConversionTarget(row[0], row[1], row[2], row[3], link_set=row[4], is_erased=bool(row[5]))
        for row in raw_sql.rows(connection, _BY_MESSAGE_ID, *values)
    }


def find_keys(connection: Connection, keys: Iterable[ConversionKey]) -> set[ConversionKey]:
    """Return those of the `keys` that belong to a stored conversion. The comparison is case-sensitive. A caller with capitals in
    its keys finds the conversions of releases before 0.3, which did not case-fold keys."""
    requested = values_table(connection, keys, message=BigInteger, action=Text, transaction_id=Text)
    c = schema.conversions.c
    statement = select(c.message_id, c.action, c.transaction_id).join_from(requested, schema.conversions, _has_key(requested))
    return {(row[0], row[1], row[2]) for row in connection.execute(statement)}


def lock_conversions(connection: Connection, keys: Iterable[ConversionKey]) -> Mapping[ConversionKey, StoredConversion]:
    """Return the stored conversions by key. On PostgreSQL, lock their rows in the order of their row ids."""
    requested = values_table(connection, keys, message=BigInteger, action=Text, transaction_id=Text)
    c = schema.conversions.c
    statement = (
        select(schema.conversions)
        .join_from(requested, schema.conversions, _has_key(requested))
        .order_by(c.id)
        .with_for_update(of=schema.conversions)
    )
    return {(row.message_id, row.action, row.transaction_id): _stored(row) for row in connection.execute(statement)}


def _has_key(requested: Any) -> Any:
    c = schema.conversions.c
    return and_(
        c.message_id == requested.c.message,
        c.action == requested.c.action,
        c.transaction_id == requested.c.transaction_id,
    )


def _stored(row: Row[Any]) -> StoredConversion:
    latest = StoredRevision(
        row.revision,
        row.status,
        row.disposition,
        row.value,
        row.currency,
        row.latest_at or row.at,
        row.updated_at or row.received_at,
        row.metadata,
        row.warnings,
    )
    return StoredConversion(row.id, row.hit_id, row.at, row.counted_as, latest)


def find_revisions(connection: Connection, conversions: Sequence[int]) -> dict[int, list[StoredRevision]]:
    """Return the earlier revisions of each conversion, oldest first, by row id of the conversion. Conversions with one revision
    are missing."""
    found: dict[int, list[StoredRevision]] = {}
    if conversions:
        r = schema.conversion_revisions.c
        requested = values_table(connection, [(conversion,) for conversion in conversions], id=BigInteger)
        statement = select(schema.conversion_revisions).join_from(
            requested, schema.conversion_revisions, r.conversion_id == requested.c.id
        )
        for row in connection.execute(statement.order_by(r.conversion_id, r.revision)):
            found.setdefault(row.conversion_id, []).append(StoredRevision(*row[2:]))
    return found


# The columns of an updated row: row id, hit_id, status, disposition, value, currency, metadata, warnings, revision, updated_at,
# latest_at, counted_as.
_COLUMNS = (
    ("hit_id", "bigint"),
    ("status", "text"),
    ("disposition", "text"),
    ("value", "text"),
    ("currency", "text"),
    ("metadata", "text"),
    ("warnings", "text"),
    ("revision", "int"),
    ("updated_at", "bigint"),
    ("latest_at", "bigint"),
    ("counted_as", "text"),
)
_UPDATE = {
    "sqlite": "UPDATE conversions SET "
    + ", ".join(f"{name} = j.value ->> {index}" for index, (name, _) in enumerate(_COLUMNS, 1))
    + " FROM json_each(?) AS j WHERE conversions.id = j.value ->> 0",
    "postgresql": "UPDATE conversions SET "
    + ", ".join(f"{name} = b.{name}" for name, _ in _COLUMNS)
    + " FROM unnest($1::bigint[], "
    + ", ".join(f"${index}::{kind}[]" for index, (_, kind) in enumerate(_COLUMNS, 2))
    + f") AS b(id, {', '.join(name for name, _ in _COLUMNS)}) WHERE conversions.id = b.id",
}


def update_conversions(connection: Connection, rows: Sequence[tuple[object, ...]]) -> None:
    """Store the latest revision of each conversion. Each row has the values of `_COLUMNS`."""
    raw_sql.execute_bulk(connection, _UPDATE, rows)


class CountedActions:
    """The actions that are counted separately: at most MAX_COUNTED_ACTIONS of each application."""

    def __init__(self) -> None:
        self._known: dict[int, set[str]] = {}

    def select(self, connection: Connection, actions: set[tuple[int, str]]) -> set[tuple[int, str]]:
        """Return those (application_id, action) pairs that are counted separately. An application's new actions are added to them
        until it has MAX_COUNTED_ACTIONS such actions."""
        unknown = sorted(one for one in actions if one[1] not in self._known.get(one[0], ()))
        if not unknown:
            return actions
        table = schema.conversion_actions
        counted = {one for one in actions if one[1] in self._known.get(one[0], ())}
        for application_id in sorted({application_id for application_id, _ in unknown}):
            # This transaction may be rolled back, so only rows that were committed before are cached.
            stored = set(connection.scalars(select(table.c.action).where(table.c.application_id == application_id)))
            self._known[application_id] = stored
            room = MAX_COUNTED_ACTIONS - len(stored)
            for _, action in (one for one in unknown if one[0] == application_id):
                if action not in stored:
                    if room <= 0:
                        continue
                    room -= 1
                    values = {"application_id": application_id, "action": action}
                    connection.execute(upsert(connection, table).values(values).on_conflict_do_nothing())
                counted.add((application_id, action))
        return counted
