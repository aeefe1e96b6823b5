"""This module returns delivery reports to clients that poll for them. Each report is returned once, in the order of arrival.

A report is the first event in which a message reaches a final state. A reader is one version of a vendor's API, such as
infobip-3. For each application and reader, the database stores the position up to which the client has read the event log.

Transactions of other processes may still commit events with ids below this position. Therefore each call reads the events of the
last minute again. It leaves out the events that the client has already got; their ids are in the column `returned`.

`read_next` only reads. `accept` stores the new position. It fails if another request of the same reader has stored a position in
the meantime.
"""
# Tested by tests/web/vendors/test_infobip_logs.py

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, and_, select, text, update

from shortener.ids import first_id_at, id_span
from shortener.model import State, Topic
from shortener.storage.database import upsert
from shortener.storage.schema import OTHER_EVENTS, events, report_polls
from shortener.storage.types import AnyRow, to_ms

PERIOD = timedelta(hours=48)  # Reports that are older than this are not returned.
OVERLAP_MS = 60_000
MAX_RETURNED = 20_000  # The maximum number of event ids in the column `returned`.
MAX_PAGES, PAGE_ROWS = 20, 10_000  # One call reads at most MAX_PAGES times PAGE_ROWS rows of the event log.
_FINAL = frozenset(state.name for state in (State.DELIVERED, State.READ, State.FAILED, State.EXPIRED))
_MESSAGES_PER_STATEMENT = 500


class Poll(NamedTuple):
    """The result of `read_next`: the row ids of the messages of the next reports, and the new position that `accept` stores."""

    application_id: int
    reader: str
    messages: Sequence[int]
    after: int
    returned: Sequence[int]
    revision: int


def read_next(connection: Connection, application_id: int, reader: str, now: datetime, limit: int) -> Poll:
    """Return the next reports for a reader, at most `limit`."""
    oldest = first_id_at(to_ms(now - PERIOD))
    c = report_polls.c
    row = connection.execute(select(report_polls).where(c.application_id == application_id, c.reader == reader)).first()
    after, returned, revision = (oldest, [], 0) if row is None else (max(row.after_event_id, oldest), row.returned, row.revision)
    known = set(returned)
    newest: int = connection.execute(select(events.c.id).order_by(events.c.id.desc()).limit(1)).scalar() or 0
    reached = after
    found: list[AnyRow] = []
    for _ in range(MAX_PAGES):
        page_end: int | None = connection.execute(
            select(events.c.id).where(events.c.id > reached).order_by(events.c.id).offset(PAGE_ROWS - 1).limit(1)
        ).scalar()
        end = newest if page_end is None else page_end
        found += _first_reports(connection, application_id, reached, end, known)
        reached = max(reached, end)
        if len(found) >= limit or page_end is None:
            break
    if len(found) > limit:
        found = found[:limit]
        reached = found[-1].id
    kept = sorted({*returned, *(row.id for row in found)})[-MAX_RETURNED:]
    start = max(after, reached - id_span(OVERLAP_MS), kept[0] - 1 if len(kept) == MAX_RETURNED else 0)
    return Poll(application_id, reader, [row.message_id for row in found], start, [one for one in kept if one > start], revision)


def accept(connection: Connection, poll: Poll) -> bool:
    """Store that a reader got the reports of a `Poll`. If another request of the reader has already got them, store nothing and
    return False."""
    c = report_polls.c
    key = {"application_id": poll.application_id, "reader": poll.reader}
    values = {"after_event_id": poll.after, "returned": list(poll.returned), "revision": poll.revision + 1}
    if poll.revision == 0:
        return connection.execute(upsert(connection, report_polls).values(key | values).on_conflict_do_nothing()).rowcount == 1
    unchanged = and_(c.application_id == poll.application_id, c.reader == poll.reader, c.revision == poll.revision)
    return connection.execute(update(report_polls).where(unchanged).values(values)).rowcount == 1


def _first_reports(connection: Connection, application_id: int, after: int, end: int, known: set[int]) -> list[AnyRow]:
    """Return the events in a range of ids in which a message reached a final state for the first time. Leave out events whose ids
    are in `known`."""
    c = events.c
    in_range = (c.id > after, c.id <= end, c.application_id == application_id, c.topics.bitwise_and(int(Topic.DELIVERY)) != 0)
    rows = connection.execute(select(c.id, c.message_id, c.data).where(*in_range).order_by(c.id)).all()
    final = [row for row in rows if row.id not in known and _is_final(row)]
    first: dict[int, int] = {}
    ids = sorted({row.message_id for row in final})
    for start in range(0, len(ids), _MESSAGES_PER_STATEMENT):
        of_messages = (text(OTHER_EVENTS), c.message_id.in_(ids[start : start + _MESSAGES_PER_STATEMENT]))
        reports = select(c.id, c.message_id, c.data).where(*of_messages, c.topics.bitwise_and(int(Topic.DELIVERY)) != 0)
        for row in connection.execute(reports):
            if _is_final(row):
                first[row.message_id] = min(row.id, first.get(row.message_id, row.id))
    return [row for row in final if first.get(row.message_id) == row.id]


def _is_final(row: AnyRow) -> bool:
    return (row.data or {}).get("state") in _FINAL
