"""This module reads the first clicks whose time from sending to click the fan-out has not counted yet, so that reports include
them. The fan-out usually counts a click within a second. Reports do not include the clicks of quarantined events.
"""
# Tested by tests/web/test_statistics.py

from __future__ import annotations

from sqlalchemy import BigInteger, Connection, false, func, select, type_coerce

from shortener.outbox.count_deltas import TIME_SLOT_MS, sent_slot, time_to_click
from shortener.reporting.rollups import CountedEvent
from shortener.storage.schema import events, links, messages


def read_pending_clicks(connection: Connection, application_id: int, limit: int) -> tuple[dict[CountedEvent, int], bool]:
    """Return the times to click of up to `limit` pending first clicks of an application, and whether these are all of them."""
    # These conditions are those of `schema.is_pending_click`, except that they leave out quarantined events, which no index
    # contains. The condition on the id makes every query plan search the index of pending events, and never the whole table.
    is_pending = events.c.id > 0, events.c.fanned_out == false(), events.c.hit_id == events.c.id, events.c.data.is_(None)
    found = select(events.c.id).where(*is_pending, events.c.application_id == application_id).order_by(events.c.id)
    ids = list(connection.scalars(found.limit(limit + 1)))
    amounts: dict[CountedEvent, int] = {}
    if not ids:
        return amounts, True
    at, sent_at, created_at = (
        type_coerce(column, BigInteger) for column in (events.c.at, messages.c.sent_at, messages.c.created_at)
    )
    statement = (
        select(
            messages.c.cohort_id, messages.c.id, func.coalesce(links.c.link_set_id, 0), at, sent_at, created_at, messages.c.state
        )
        .join_from(events, messages, messages.c.id == events.c.message_id)
        .outerjoin(links, links.c.id == events.c.link_id)
        .where(events.c.id.in_(ids[:limit]))
    )
    for cohort, message, link_set, clicked_at, *times_and_state in connection.execute(statement):
        metric = time_to_click(clicked_at, *times_and_state)
        key = CountedEvent(cohort, clicked_at // TIME_SLOT_MS, metric, sent_slot(message), link_set)
        amounts[key] = amounts.get(key, 0) + 1
    return amounts, len(ids) <= limit
