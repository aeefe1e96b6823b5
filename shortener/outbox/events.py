"""This module writes the event log, which has one row for each event. `topics` contains every topic under which the event is
published.

A first click is one row with the topics STATE and CLICK. A delivery report is one row with DELIVERY, and also with STATE if the
message changed its state. `data` contains only values that no other row contains, such as previous_state and new_state of a
report. The fan-out reads everything else from the rows to which the event refers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, select

from shortener.ids import ALPHABET, encode
from shortener.model import Topic, record
from shortener.outbox import count_deltas
from shortener.storage import schema
from shortener.storage.bulk import BulkInsert, insert_all
from shortener.storage.types import to_ms

_TOPICS = list(Topic)


def encode_event_id(row: int, topic: Topic) -> str:
    """Return the public id of an event under one of its topics, such as `evt_0Kq3...2`. `row` is the row id of the event. The
    public id is the same in all attempts and replays."""
    return f"evt_{encode(row)}{ALPHABET[_TOPICS.index(topic)]}"


@record
class Event:
    """A row of the event log. `message_id`, `link_id`, `hit_id` and `conversion_id` are row ids; `at` is the time of the event."""

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


def append(connection: Connection, events: Sequence[Event], counted: Sequence[tuple[int, str, str]] = ()) -> None:
    """Insert events and the rows of count deltas. Call this in the transaction that makes the change.

    `counted` is the result of `count_deltas.rows`."""
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


def find_sent_clicks(connection: Connection, message_ids: Collection[int]) -> dict[int, bool]:
    """Find the hits on these messages whose clicks were sent or retracted. Return a boolean for each, by hit id: True if the last
    event of the hit is a click event, False if it is `click_retracted`. Hits without such events are missing. Click events of
    suspected hits are ignored."""
    click, retracted = int(Topic.CLICK), int(Topic.CLICK_RETRACTED)
    columns = schema.events.c
    statement = select(columns.hit_id, columns.topics).where(
        schema.events_of(list(message_ids)),
        columns.topics.bitwise_and(click | retracted) != 0,
        columns.topics.bitwise_and(int(Topic.SUSPECTED)) == 0,
    )
    # The events are in the order of their ids, so the last event of each hit overwrites the earlier ones.
    return {hit_id: bool(topics & click) for hit_id, topics in connection.execute(statement.order_by(columns.id))}
