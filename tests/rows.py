"""This module inserts messages, and rows of every kind that belong to a message, in the form in which the service writes them.
The test chooses the times.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select

from shortener.ids import first_id_at
from shortener.model import DeliveryStatus, HitFlag, State, Topic, Verdict
from shortener.storage import schema
from shortener.storage.types import to_ms

KINDS: tuple[Table, ...] = (
    schema.messages,
    schema.links,
    schema.first_clicks,
    schema.hits,
    schema.conversions,
    schema.first_conversions,
    schema.conversion_revisions,
    schema.events,
    schema.deliveries,
    schema.attempts,
    schema.idempotency,
    schema.sends,
    schema.send_attempts,
)


#: Tests use this query like a table. It contains the messages with their current state and their first click, as the API shows
#: them.
messages_now = (
    select(
        *(column for column in schema.messages.columns if column.name != "state"),
        schema.current_state.label("state"),
        schema.previous_state.label("previous_state"),
        schema.first_clicks.c.at.label("clicked_at"),
        schema.first_clicks.c.hit_id.label("click_hit_id"),
        func.coalesce(schema.first_clicks.c.links, 0).label("clicked_links"),
    )
    .outerjoin_from(schema.messages, schema.first_clicks, schema.first_clicks.c.id == schema.messages.c.id)
    .subquery("messages_now")
)


def count(connection: Connection) -> dict[str, int]:
    """Return the number of rows of each table, by the name of the table."""
    return {table.name: connection.execute(select(func.count()).select_from(table)).scalar_one() for table in KINDS}


_numbers = itertools.count()


@dataclass
class Rows:
    """Inserts rows with one connection. Each method returns the id of the new row. Its arguments `columns` override default
    values.

    A generated id contains the time `at` of the row. If the row has no time, the id contains the time of the last message.
    """

    connection: Connection
    at: datetime = datetime(2026, 11, 20, tzinfo=UTC)

    def id_at(self, at: datetime) -> int:
        return first_id_at(to_ms(at)) + next(_numbers)

    def insert(self, table: Table, at: datetime | None, values: Mapping[str, Any], columns: Mapping[str, Any]) -> int:
        row: int = columns["id"] if "id" in columns else self.id_at(at or self.at)
        self.connection.execute(insert(table).values({"id": row, **values, **columns}))
        return row

    def message(self, at: datetime, **columns: Any) -> int:
        self.at = at
        number = next(_numbers)
        values = {
            "application_id": 1,
            "cohort_id": 1,
            "message_id": f"message-{number}",
            "request_id": f"request-{number}",
            "content_hash": "",
            "to_address": "+14085550100",
            "state": State.CREATED.value,
            "created_at": at,
            "encoding": "GSM-7",
            "segments": 1,
        }
        return self.insert(schema.messages, at, values, columns)

    def link(self, message: int, *, expires_at: datetime | None = None, **columns: Any) -> int:
        values = {
            "code": f"code{next(_numbers)}",
            "message_id": message,
            "application_id": 1,
            "cohort_id": 1,
            "domain_id": 0,
            "position": 0,
            "flags": 0,
            "url": "https://shop.example/",
            "expires_at": expires_at or self.at + timedelta(days=90),
        }
        return self.insert(schema.links, None, values, columns)

    def hit(self, link: int, at: datetime | None = None, **columns: Any) -> int:
        values = {
            "link_id": link,
            "at": at or self.at,
            "verdict": Verdict.HUMAN.value,
            "rule": "person",
            "flags": 0,
            "address": "203.0.113.0",
            "user_agent": "Mozilla/5.0 (iPhone)",
        }
        return self.insert(schema.hits, at, values, columns)

    def first_click(self, message: int, link: int, at: datetime | None = None, **columns: Any) -> int:
        """Insert a hit that is the first click of a link and of its message. Also insert the row of `first_clicks` of the
        message."""
        flags = HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE
        hit = self.hit(link, at, flags=flags.value, **columns)
        self.clicked(message, at, hit_id=hit)
        return hit

    def clicked(self, message: int, at: datetime | None = None, **columns: Any) -> None:
        """Insert the row of `first_clicks` of a message. Without `hit_id`, the row refers to no hit."""
        values = {"id": message, "at": at or self.at, "links": 1} | columns
        self.connection.execute(insert(schema.first_clicks).values(values))

    def conversion(self, message: int, **columns: Any) -> int:
        values = {
            "application_id": 1,
            "message_id": message,
            "action": "conversion",
            "transaction_id": "",
            "at": self.at,
            "received_at": self.at,
        }
        return self.insert(schema.conversions, None, values, columns)

    def converted(self, message: int, at: datetime | None = None) -> None:
        """Insert the row of `first_conversions` of a message."""
        self.connection.execute(insert(schema.first_conversions).values(id=message, at=at or self.at))

    def revision(self, conversion: int, **columns: Any) -> int:
        values = {"conversion_id": conversion, "revision": 1, "at": self.at, "received_at": self.at, "metadata": {"sub": "1"}}
        return self.insert(schema.conversion_revisions, None, values, columns)

    def refused_conversion(self, at: datetime, **columns: Any) -> int:
        values = {
            "application_id": 1,
            "received_at": at,
            "endpoint": "GET /api/v1/track",
            "reason": "MESSAGE_NOT_FOUND",
            "description": "",
            "details": [],
            "parameters": {},
        }
        return self.insert(schema.refused_conversions, at, values, columns)

    def event(self, message: int | None, at: datetime | None = None, **columns: Any) -> int:
        values = {
            "application_id": 1,
            "topics": Topic.CLICK.value,
            "at": at or self.at,
            "message_id": message,
            "fanned_out": True,
        }
        return self.insert(schema.events, at, values, columns)

    def tracker(self, tracker_id: int, *, enabled: bool) -> None:
        application = {"id": 1, "name": "application of the tracker", "settings": {}, "created_at": self.at}
        known = self.connection.scalar(select(schema.applications.c.id).where(schema.applications.c.id == 1))
        if known is None:
            self.connection.execute(insert(schema.applications).values(application))
        values = {
            "id": tracker_id,
            "application_id": 1,
            "name": f"tracker {tracker_id}",
            "enabled": enabled,
            "url": "https://customer.example/",
            "topics": Topic.CLICK.value,
            "method": "POST",
            "format": "json",
            "success": {},
            "max_attempts": 10,
            "timeout": 5,
            "concurrency": 1,
            "created_at": self.at,
            "updated_at": self.at,
        }
        self.connection.execute(insert(schema.trackers).values(values))

    def delivery(self, event: int, **columns: Any) -> int:
        values = {
            "event_id": event,
            "topic": Topic.CLICK.value,
            "application_id": 1,
            "tracker_id": 1,
            "lane": "t1",
            "status": DeliveryStatus.DELIVERED.value,
            "attempt": 1,
            "next_at": self.at,
            "created_at": self.at,
            "finished_at": self.at,
        }
        return self.insert(schema.deliveries, None, values, columns)

    def attempt(self, delivery: int, **columns: Any) -> int:
        values = {"delivery_id": delivery, "attempt": 1, "at": self.at, "milliseconds": 12, "status": 200, "answer": "OK"}
        return self.insert(schema.attempts, None, values, columns)

    def send(self, message: int, **columns: Any) -> None:
        """Insert the row of a message that a gateway has accepted, and the row of the attempt that sent it."""
        values = {"id": message, "application_id": 1, "gateway_id": 1, "status": 1, "attempt": 1}
        times = {"next_at": self.at, "created_at": self.at, "finished_at": self.at}
        self.connection.execute(insert(schema.sends).values(values | times | columns))
        attempt = {"send_id": message, "attempt": 1, "milliseconds": 12, "outcome": "accepted", "status": 200, "detail": "OK"}
        self.insert(schema.send_attempts, None, {"at": self.at, **attempt}, {})

    def idempotent_response(self, at: datetime, key: str, **columns: Any) -> None:
        values = {"application_id": 1, "key": key, "content_hash": "", "answer": [], "created_at": at}
        self.connection.execute(insert(schema.idempotency).values(values | columns))

    def complete_message(self, at: datetime, **columns: Any) -> int:
        """Insert a message with a click, a conversion and one event that was delivered at the first attempt. Return the id of the
        message."""
        message = self.message(at, **columns)
        link = self.link(message)
        hit = self.first_click(message, link)
        self.revision(self.conversion(message, hit_id=hit, revision=2))
        self.converted(message)
        self.attempt(self.delivery(self.event(message, link_id=link, hit_id=hit)))
        self.send(message)
        return message
