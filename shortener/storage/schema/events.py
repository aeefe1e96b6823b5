"""The event log, and the SQL conditions that find events."""

# Tested by tests/storage/test_migrate.py

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    Column,
    ColumnElement,
    Integer,
    SmallInteger,
    Table,
    and_,
    false,
    or_,
    select,
    text,
    union_all,
)

from shortener.storage.schema.base import RowId, metadata, partial_index
from shortener.storage.schema.messages import first_clicks, messages
from shortener.storage.types import Instant, Json

#: The condition of the index `events_by_message`. It leaves out the events of first clicks, because `first_clicks` contains their
#: ids: the event of a first click has the id of its hit. With these events in the index, every first click would write one more
#: page. The function `events_of` finds all events of a message.
OTHER_EVENTS = "coalesce(hit_id, 0) <> id"

#: This value of `facts` means that the event is quarantined, because the fan-out could not build its facts. Such an event has no
#: deliveries.
QUARANTINED = {"set_aside": True}

#: The event log. `topics` contains the bits of the model.Topic values under which the event is published. `data` contains facts
#: that no other table contains. `facts` contains the values for the bodies of the deliveries, as they are when the fan-out stores
#: them. `facts` is NULL before the fan-out, and for an event without subscribers.
events = Table(
    "events",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("application_id", Integer, nullable=False),
    Column("topics", SmallInteger, nullable=False),
    Column("at", Instant, nullable=False),
    Column("message_id", BigInteger),
    Column("link_id", BigInteger),
    Column("hit_id", BigInteger),
    Column("conversion_id", BigInteger),
    Column("data", Json),
    Column("facts", Json),
    Column("fanned_out", Boolean, nullable=False, server_default=false()),
    partial_index("events_pending", "id", where="fanned_out = 0", postgresql_where="NOT fanned_out"),
    partial_index("events_by_message", "message_id", where=OTHER_EVENTS),
)


def is_pending_click() -> ColumnElement[bool]:
    """Return the SQL condition for events of first clicks that the fan-out has quarantined or not processed yet.

    For these events, the fan-out has not yet found the previous state of the message, and has not yet counted the time to
    click."""
    pending = or_(events.c.fanned_out == false(), events.c.facts == QUARANTINED)
    return and_(events.c.hit_id == events.c.id, events.c.data.is_(None), pending)


_others = events.alias("others")
_other = text("coalesce(others.hit_id, 0) <> others.id")


def events_of(wanted: Sequence[int] | BindParameter[int]) -> ColumnElement[bool]:
    """Return the SQL condition for the events of these messages. `wanted` contains the row ids of the messages, or is an SQL
    parameter for them."""
    other = (_other, _others.c.message_id.in_(wanted))
    return events.c.id.in_(
        union_all(
            select(first_clicks.c.hit_id).where(first_clicks.c.id.in_(wanted)),
            select(_others.c.id).where(*other),
            # Also select the events of first clicks that were retracted later. The event of the retraction contains their id in
            # `hit_id`.
            select(_others.c.hit_id).where(*other),
        )
    )


def is_event_of_message() -> tuple[ColumnElement[bool], ...]:
    """Return SQL conditions that find the events of each message of an outer query.

    Each event of the message fulfils at least one of these conditions. The conditions are separate, because each uses its own
    index."""
    other = and_(_other, _others.c.message_id == messages.c.id)
    return (
        and_(first_clicks.c.id == messages.c.id, events.c.id == first_clicks.c.hit_id),
        and_(other, events.c.id == _others.c.id),
        and_(other, events.c.id == _others.c.hit_id),
    )
