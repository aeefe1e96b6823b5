"""The event log. One row per thing that happened; `topics` says what it is told as.

A first click is one row that raises STATE and CLICK; a delivery report is one row that raises DELIVERY, and STATE when the
message moved. `data` holds only what the maker of the event alone knew (previous_state and new_state of a report, its fields);
everything else, also what a message was before its first click, is read from the rows that the event points to, once, at fan-out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection

from shortener.ids import ALPHABET, encode
from shortener.model import Topic
from shortener.outbox import count_deltas
from shortener.storage import schema
from shortener.storage.bulk import BulkInsert, insert_all
from shortener.storage.types import to_ms

_TOPICS = list(Topic)


def encode_event_id(row: int, topic: Topic) -> str:
    """Return the public id of an event row under one topic, such as `evt_0Kq3...2`. It stays the same over attempts and replays."""
    return f"evt_{encode(row)}{ALPHABET[_TOPICS.index(topic)]}"


@dataclass(frozen=True, slots=True)
class Event:
    """A row to append. `message_id`, `link_id`, `hit_id`, `conversion_id` are row ids; `at` is when it happened."""

    id: int
    application_id: int
    topics: Topic
    at: datetime
    message_id: int | None = None
    link_id: int | None = None
    hit_id: int | None = None
    conversion_id: int | None = None
    data: Mapping[str, Any] | None = field(default=None)


_insert = BulkInsert(
    schema.events,
    "id",
    "application_id",
    "topics",
    "at",
    "message_id",
    "link_id",
    "hit_id",
    "conversion_id",
    "data",
    "fanned_out",
)


def append(connection: Connection, events: Sequence[Event], counted: Sequence[tuple[int, str]] = ()) -> None:
    """Write the events, and what they add to the counts (`tallies.rows`); call it in the transaction that makes them true."""
    rows = [
        (
            event.id,
            event.application_id,
            int(event.topics),
            to_ms(event.at),
            event.message_id,
            event.link_id,
            event.hit_id,
            event.conversion_id,
            None if event.data is None else orjson.dumps(event.data).decode(),
            False,
        )
        for event in events
    ]
    insert_all(connection, (_insert, rows), (count_deltas.insert, counted))
