"""The statements of a rewrite: what is already there, and the rows of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, select, tuple_

from shortener.storage import schema
from shortener.storage.bulk import BulkInsert

_PIECE = 500  # keys in one IN list; SQLite allows 32,766 variables

insert_messages = BulkInsert(
    schema.messages,
    "id",
    "application_id",
    "cohort_id",
    "message_id",
    "request_id",
    "external_request_id",
    "content_hash",
    "to_address",
    "from_address",
    "sender_id_id",
    "sender_id_alias",
    "state",
    "created_at",
    "encoding",
    "segments",
    "mt_price",
    "callback_url",
    "metadata",
)

insert_links = BulkInsert(
    schema.links,
    "id",
    "code",
    "message_id",
    "application_id",
    "cohort_id",
    "domain_id",
    "position",
    "flags",
    "url",
    "location",
    "label",
    "fallback_url",
    "expires_at",
)

insert_answers = BulkInsert(schema.idempotency, "application_id", "key", "content_hash", "answer", "created_at")


class KnownMessage(NamedTuple):
    row: int
    request_id: str
    content_hash: str


class KnownLink(NamedTuple):
    code: str
    expires_at: int  # ms
    domain_id: int


def find_messages(connection: Connection, keys: Iterable[tuple[int, str]]) -> dict[tuple[int, str], KnownMessage]:
    """Which of these (application, message_id) exist."""
    table = schema.messages
    wanted = sorted(keys)
    found: dict[tuple[int, str], KnownMessage] = {}
    for start in range(0, len(wanted), _PIECE):
        statement = select(table.c.application_id, table.c.message_id, table.c.id, table.c.request_id, table.c.content_hash).where(
            tuple_(table.c.application_id, table.c.message_id).in_(wanted[start : start + _PIECE])
        )
        for row in connection.execute(statement):
            found[row.application_id, row.message_id] = KnownMessage(row.id, row.request_id, row.content_hash)
    return found


def find_links(connection: Connection, messages: Sequence[int]) -> dict[int, list[KnownLink]]:
    """The links of these messages (row ids), in the order of the directives."""
    from shortener.storage.types import to_ms

    table = schema.links
    found: dict[int, list[KnownLink]] = {}
    for start in range(0, len(messages), _PIECE):
        statement = (
            select(table.c.message_id, table.c.code, table.c.expires_at, table.c.domain_id)
            .where(table.c.message_id.in_(messages[start : start + _PIECE]))
            .order_by(table.c.message_id, table.c.position)
        )
        for row in connection.execute(statement):
            found.setdefault(row.message_id, []).append(KnownLink(row.code, to_ms(row.expires_at), row.domain_id))
    return found


def find_answers(
    connection: Connection, keys: Iterable[tuple[int, str]]
) -> dict[tuple[int, str], tuple[str, list[dict[str, Any]]]]:
    """The kept answers of these (application, Idempotency-Key): content hash and answer."""
    table = schema.idempotency
    statement = select(table).where(tuple_(table.c.application_id, table.c.key).in_(sorted(keys)))
    return {(row.application_id, row.key): (row.content_hash, row.answer) for row in connection.execute(statement)}
