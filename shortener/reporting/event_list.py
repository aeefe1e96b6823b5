"""This module lists the events of an application, newest first, in keyset pages. The lists also contain events that no tracker
receives.

A row of the event log with several topics is several events, one for each topic. To build a page, the service reads the log
backwards by id and examines at most MAX_SCANNED_ROWS rows.
"""

# Tested by tests/web/test_lists.py

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, case, select, type_coerce

from shortener.ids import ALPHABET, CONVERSION_IDS, decode
from shortener.model import State, Topic, Verdict, record
from shortener.outbox.events import encode_event_id
from shortener.reporting.queries import id_range
from shortener.storage.schema import cohorts, conversions, deliveries, events, hits, links, messages
from shortener.storage.types import AnyRow, to_iso

MAX_SCANNED_ROWS = 10_000  # The maximum number of rows of the event log that are read to fill one page.
# The maximum difference between the time of an event and the time in its id. They can differ, because delivery reports and
# conversions contain their own times.
_TIME_TOLERANCE = timedelta(days=2)
_TOPICS = list(Topic)
_PUBLISHED: Sequence[Topic] = [topic for topic in Topic if topic not in (Topic.TEST, Topic.SUSPECTED)]
ALL_TOPICS = len(_PUBLISHED)  # If a position has this number of topics, all events of its row are already listed.


@record
class EventFilter:
    """The conditions of a list of events. `since` is inclusive, `until` is exclusive. `message` is a message_id."""

    application_id: int
    topic: Topic | None = None
    message: str | None = None
    campaign: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@record
class ListedEvent:
    """One event of the list: a row of the event log, and one topic of this row."""

    row: AnyRow
    topic: Topic


class EventPosition(NamedTuple):
    """The place in the list at which a page ends.

    A row contains one event for each of its topics. For the row `row_id`, the first `topics` topics of `_PUBLISHED` are already
    listed. The next page begins with the later topics of this row, and continues with rows with smaller ids."""

    row_id: int
    topics: int = ALL_TOPICS


@record
class EventPage:
    """A page of a list of events. The next page begins at `next`. On the last page, `next` is None."""

    rows: Sequence[ListedEvent]
    next: EventPosition | None


_COLUMNS = (
    events.c.id,
    events.c.topics,
    events.c.at,
    events.c.data,
    events.c.hit_id,
    events.c.conversion_id,
    events.c.fanned_out,
    # For a first click, the fan-out stores the previous state of the message in the facts of the event.
    type_coerce(case((events.c.hit_id == events.c.id, events.c.facts)), events.c.facts.type).label("click_facts"),
    messages.c.state,
    messages.c.message_id,
    cohorts.c.campaign,
    cohorts.c.source,
    cohorts.c.country,
    links.c.code,
    links.c.url,
    links.c.label,
    hits.c.verdict,
    hits.c.rule,
    hits.c.country.label("click_country"),
    conversions.c.action,
    conversions.c.transaction_id,
    conversions.c.status.label("conversion_status"),
)


def _select() -> Any:
    return (
        select(*_COLUMNS)
        .select_from(events)
        .outerjoin(messages, messages.c.id == events.c.message_id)
        .outerjoin(cohorts, cohorts.c.id == messages.c.cohort_id)
        .outerjoin(links, links.c.id == events.c.link_id)
        .outerjoin(hits, hits.c.id == events.c.hit_id)
        .outerjoin(conversions, conversions.c.id == events.c.conversion_id)
    )


def list_events(connection: Connection, filters: EventFilter, limit: int, after: EventPosition | None = None) -> EventPage:
    """Return the newest events that match the filter, at most `limit`. If `after` is not None, begin after this position.

    One row can contain several events. If not all of them fit into the page, the next page begins with the remaining events of
    the row."""
    low, high = id_range(filters.since, filters.until, _TIME_TOLERANCE)
    if after is not None:
        high = min(high, after.row_id + (after.topics < ALL_TOPICS))
    in_range = select(events.c.id).where(events.c.id >= low, events.c.id < high).order_by(events.c.id.desc())
    floor: int | None = connection.scalar(in_range.offset(MAX_SCANNED_ROWS - 1).limit(1))
    conditions = [
        events.c.application_id + 0 == filters.application_id,
        events.c.id >= (low if floor is None else floor),
        events.c.id < high,
    ]
    if filters.topic is not None:
        conditions.append(events.c.topics.bitwise_and(int(filters.topic)) != 0)
    if filters.message is not None:
        conditions.append(messages.c.message_id == filters.message)
    if filters.campaign is not None:
        conditions.append(cohorts.c.campaign == filters.campaign)
    if filters.since is not None:
        conditions.append(events.c.at >= filters.since)
    if filters.until is not None:
        conditions.append(events.c.at < filters.until)
    rows = connection.execute(_select().where(*conditions).order_by(events.c.id.desc()).limit(limit + 1)).all()
    listed = [
        ListedEvent(row, topic)
        for row in rows[:limit]
        for topic in _PUBLISHED[after.topics if after is not None and row.id == after.row_id else 0 :]
        if row.topics & topic and filters.topic in (None, topic)
    ]
    if len(listed) > limit:
        last = listed[limit - 1]
        return EventPage(listed[:limit], EventPosition(last.row.id, _PUBLISHED.index(last.topic) + 1))
    end = rows[limit - 1].id if len(rows) > limit else floor
    return EventPage(listed, None if end is None else EventPosition(end))


def find_event(connection: Connection, application_id: int, event_id: str) -> tuple[ListedEvent, Sequence[AnyRow]] | None:
    """Find an event by its public id. Return the event and its deliveries, or None if the application has no such event."""
    row_id = decode(event_id.removeprefix("evt_")[:-1])
    place = ALPHABET.find(event_id[-1:])
    if row_id is None or not event_id.startswith("evt_") or not 0 <= place < len(_TOPICS):
        return None
    row = connection.execute(_select().where(events.c.id == row_id, events.c.application_id == application_id)).first()
    topic = _TOPICS[place]
    if row is None or not row.topics & topic:
        return None
    c = deliveries.c
    sent = connection.execute(
        select(deliveries).where(c.event_id == row_id, c.topic == int(topic)).order_by(c.id).limit(1000)
    ).all()
    return ListedEvent(row, topic), sent


def serialize_event(event: ListedEvent, click_id: Callable[[int], str]) -> dict[str, Any]:
    """Return an event in the format of the API."""
    row, data = event.row, event.row.data or {}
    return {
        "event_id": encode_event_id(row.id, event.topic),
        "event": event.topic.api_name,
        "at": to_iso(row.at),
        "message_id": row.message_id,
        "campaign": row.campaign,
        "source": row.source,
        "country": row.country or None,
        "previous_state": data.get("previous_state") or _state_before_click(event),
        "new_state": data.get("new_state") or ("CLICKTHRU" if event.topic is Topic.STATE and row.hit_id else None),
        "click_id": None if row.hit_id is None else click_id(row.hit_id),
        "code": row.code,
        "url": row.url,
        "label": row.label,
        "verdict": None if row.verdict is None else Verdict(row.verdict).api_name,
        "rule": row.rule,
        "click_country": row.click_country,
        "conversion_id": None if row.conversion_id is None else CONVERSION_IDS.encode(row.conversion_id),
        "action": row.action,
        "transaction_id": row.transaction_id or None,
        "status": row.conversion_status or data.get("status"),
        "fanned_out": row.fanned_out,
    }


def _state_before_click(event: ListedEvent) -> str | None:
    """Return the state of the message before a first click; None for other events. The fan-out stores this state in the facts of
    the event. If the event has no facts, return the column `state` of the message, which a click does not change."""
    row = event.row
    if event.topic is not Topic.STATE or row.hit_id != row.id or row.state is None:
        return None
    stored: str | None = (row.click_facts or {}).get("previous_state")
    return stored or State(row.state).name


EVENT_CSV_COLUMNS = (
    "event_id",
    "event",
    "at",
    "message_id",
    "campaign",
    "source",
    "country",
    "previous_state",
    "new_state",
    "click_id",
    "code",
    "url",
    "label",
    "verdict",
    "rule",
    "click_country",
    "conversion_id",
    "action",
    "transaction_id",
    "status",
    "fanned_out",
)
