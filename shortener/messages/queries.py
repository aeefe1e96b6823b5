"""This module contains the SQL statements of a rewrite: they find stored messages, links and responses, and insert new rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, select, tuple_

from shortener.clicks import link_changes
from shortener.messages.spans import TRACK_MODES, TrackMode
from shortener.storage import schema
from shortener.storage.bulk import BulkInsert, ForbiddenTexts
from shortener.storage.types import to_ms

MAX_KEYS_PER_QUERY = 500  # a key has up to two SQL variables, and SQLite permits 32,766 variables per statement

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
    "link_set_id",
    "track",
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
    "link_set_id",
    "path",
)

purged_codes = ForbiddenTexts(schema.purged_codes.c.code)

insert_responses = BulkInsert(schema.idempotency, "application_id", "key", "content_hash", "answer", "created_at")


class StoredMessage(NamedTuple):
    """A stored message. `content_hash` is empty if the service generated its message_id, or if the message was erased."""

    row_id: int
    request_id: str
    content_hash: str
    track: TrackMode | None = None  # the mode in which the message was rewritten; None: unknown


class StoredLink(NamedTuple):
    """A stored short link. `domain_id` is 0 for BASE_URL. `path` is the path before the code, or ""."""

    code: str
    url: str
    label: str | None
    expires_at: int  # the time at which the link expires, in milliseconds since 1970
    domain_id: int
    path: str = ""


class StoredResponse(NamedTuple):
    """The stored response to a request with an Idempotency-Key. `content_hash` is the hash of the content of that request."""

    content_hash: str
    messages: list[dict[str, Any]]


def find_messages(connection: Connection, keys: Iterable[tuple[int, str]]) -> dict[tuple[int, str], StoredMessage]:
    """Return the stored messages by (application_id, message_id). Unknown messages are missing in the result."""
    table = schema.messages
    requested = sorted(keys)
    found: dict[tuple[int, str], StoredMessage] = {}
    for start in range(0, len(requested), MAX_KEYS_PER_QUERY):
        columns = [table.c[name] for name in ("application_id", "message_id", "id", "request_id", "content_hash", "track")]
        statement = select(*columns).where(
            tuple_(table.c.application_id, table.c.message_id).in_(requested[start : start + MAX_KEYS_PER_QUERY])
        )
        for row in connection.execute(statement):
            track = None if row.track is None else TRACK_MODES[row.track]
            found[row.application_id, row.message_id] = StoredMessage(row.id, row.request_id, row.content_hash, track)
    return found


def find_links(connection: Connection, message_rows: Sequence[int]) -> dict[int, list[StoredLink]]:
    """Return the links of the messages with these row ids, by row id of the message, in the order of their positions."""
    table = schema.links
    found: dict[int, list[StoredLink]] = {}
    for start in range(0, len(message_rows), MAX_KEYS_PER_QUERY):
        statement = (
            select(table.c.id, *(table.c[name] for name in ("message_id", *StoredLink._fields)))
            .where(table.c.message_id.in_(message_rows[start : start + MAX_KEYS_PER_QUERY]))
            .order_by(table.c.message_id, table.c.position)
        )
        rows = connection.execute(statement).all()
        # Read the original destination, because a repeated message gets its first response even if a link was changed later.
        original = link_changes.read_original(connection, [row.id for row in rows]) if rows else {}
        for row in rows:
            first = original.get(row.id, {})
            url, expires_at = first.get("url", row.url), first.get("expires_at", to_ms(row.expires_at))
            link = StoredLink(row.code, url, row.label, expires_at, row.domain_id, row.path or "")
            found.setdefault(row.message_id, []).append(link)
    return found


def find_responses(connection: Connection, keys: Iterable[tuple[int, str]]) -> dict[tuple[int, str], StoredResponse]:
    """Return the stored responses by (application_id, Idempotency-Key). Unknown keys are missing in the result."""
    table = schema.idempotency
    requested = sorted(keys)
    found: dict[tuple[int, str], StoredResponse] = {}
    for start in range(0, len(requested), MAX_KEYS_PER_QUERY):
        statement = select(table).where(
            tuple_(table.c.application_id, table.c.key).in_(requested[start : start + MAX_KEYS_PER_QUERY])
        )
        for row in connection.execute(statement):
            found[row.application_id, row.key] = StoredResponse(row.content_hash, row.answer)
    return found
