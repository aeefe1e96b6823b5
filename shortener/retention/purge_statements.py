"""The SQL statements of the purge. They are built once: building a statement takes longer than running it, and the writer thread
of SQLite would be occupied in this time.

A statement of a page (`_page_of`) selects the oldest rows between two ids, each with a flag that states whether the row must be
kept. A `Deletion` removes at most `max_rows` rows.
"""
# Tested by tests/retention/test_purge.py and tests/retention/test_purge_devices.py

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Insert,
    Integer,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    false,
    func,
    insert,
    or_,
    select,
    update,
)

from shortener.model import DeliveryStatus, HitFlag
from shortener.storage.schema import (
    attempts,
    audit_log,
    conversion_revisions,
    conversions,
    deliveries,
    early_hits,
    events,
    events_of,
    first_clicks,
    first_conversions,
    hits,
    is_event_of_message,
    link_changes,
    links,
    messages,
    other_hits,
    purged_codes,
    refused_conversions,
    send_attempts,
    sends,
    trackers,
)
from shortener.storage.types import Instant

#: The parameters of a DELETE statement: row ids, and the maximum number of rows to delete.
_IDS, _LIMIT = bindparam("ids", expanding=True, type_=BigInteger), bindparam("max_rows", type_=Integer)


class Deletion:
    """A DELETE of at most `max_rows` rows of a table that match a condition on `ids`. If `copy` is not None, it must run before
    the DELETE, with the same parameters and in the same transaction."""

    copy: Insert | None = None

    def __init__(self, table: Table, condition: ColumnElement[bool]) -> None:
        self.table = table
        self.statement = delete(table).where(table.c.id.in_(select(table.c.id).where(condition).limit(_LIMIT)))


class _LinkDeletion(Deletion):
    """The deletion of links. `copy` first copies their codes to `purged_codes`. Both statements select the same links: those with
    the lowest ids."""

    def __init__(self, condition: ColumnElement[bool]) -> None:
        super().__init__(links, condition)
        is_selected = links.c.id.in_(select(links.c.id).where(condition).order_by(links.c.id).limit(_LIMIT))
        self.statement = delete(links).where(is_selected)
        is_present = exists().where(purged_codes.c.code == links.c.code)
        self.copy = insert(purged_codes).from_select(["code"], select(links.c.code).where(is_selected, ~is_present))


def _event_deletions(condition: ColumnElement[bool]) -> tuple[Deletion, ...]:
    """Return the deletions of attempts, deliveries and events, in this order. `condition` selects the events."""
    of_events = deliveries.c.event_id.in_(select(events.c.id).where(condition))
    return (
        Deletion(attempts, attempts.c.delivery_id.in_(select(deliveries.c.id).where(of_events))),
        Deletion(deliveries, of_events),
        Deletion(events, condition),
    )


def _is_pending() -> ColumnElement[bool]:
    """Return the SQL condition for a pending delivery whose tracker is not disabled."""
    parked = exists().where(trackers.c.id == deliveries.c.tracker_id, trackers.c.enabled == false())
    return and_(deliveries.c.status == DeliveryStatus.PENDING.value, ~parked)


def _page_of(table: Table, is_kept: ColumnElement[bool]) -> Select[int, bool]:
    """Return a statement that selects the oldest rows between two ids, each with a flag that states whether the row must be kept.
    Kept rows also count towards the limit of rows."""
    # The subquery selects a limited number of rows first. Without it, PostgreSQL would evaluate `is_kept` for all rows of the
    # range.
    in_range = table.c.id > bindparam("after", type_=BigInteger), table.c.id < bindparam("end", type_=BigInteger)
    ids = select(table.c.id).where(*in_range).order_by(table.c.id).limit(_LIMIT).subquery("page")
    return select(table.c.id, is_kept).join_from(ids, table, table.c.id == ids.c.id).order_by(table.c.id)


_links_of_messages = links.c.message_id.in_(_IDS)
MESSAGE_DELETIONS = (
    *_event_deletions(events_of(_IDS)),
    Deletion(
        conversion_revisions,
        conversion_revisions.c.conversion_id.in_(select(conversions.c.id).where(conversions.c.message_id.in_(_IDS))),
    ),
    Deletion(conversions, conversions.c.message_id.in_(_IDS)),
    Deletion(first_conversions, first_conversions.c.id.in_(_IDS)),
    Deletion(hits, hits.c.id.in_(select(first_clicks.c.hit_id).where(first_clicks.c.id.in_(_IDS)))),
    Deletion(hits, and_(other_hits(), hits.c.link_id.in_(select(links.c.id).where(_links_of_messages)))),
    Deletion(link_changes, link_changes.c.link_id.in_(select(links.c.id).where(_links_of_messages))),
    _LinkDeletion(_links_of_messages),
    Deletion(first_clicks, first_clicks.c.id.in_(_IDS)),
    Deletion(early_hits, early_hits.c.id.in_(_IDS)),
    Deletion(send_attempts, send_attempts.c.send_id.in_(_IDS)),
    Deletion(sends, sends.c.id.in_(_IDS)),
    Deletion(messages, messages.c.id.in_(_IDS)),
)
EVENT_DELETIONS = _event_deletions(events.c.id.in_(_IDS))
_END = bindparam("end", type_=BigInteger)
REFUSED_DELETION = Deletion(refused_conversions, refused_conversions.c.id < _END)
#: Deletes first conversions whose messages were purged. They exist because a process of a release before 0.3 purges messages
#: without their first conversions: it does not know this table. A message was purged if its id is lower than the ids of all stored
#: messages.
FIRST_CONVERSION_DELETION = Deletion(first_conversions, first_conversions.c.id < select(func.min(messages.c.id)).scalar_subquery())
AUDIT_DELETION = Deletion(audit_log, audit_log.c.id < _END)
HIT_DELETIONS = (Deletion(hits, hits.c.id.in_(_IDS)),)

_event_conditions = is_event_of_message()
MESSAGE_PAGE = _page_of(
    messages,
    or_(
        exists().where(
            links.c.message_id == messages.c.id, links.c.expires_at > bindparam("now", type_=Instant), links.c.disabled_at.is_(None)
        ),
        *(exists().where(one, events.c.fanned_out == false()) for one in _event_conditions),
        *(exists().where(one, deliveries.c.event_id == events.c.id, _is_pending()) for one in _event_conditions),
    ),
)
_since = bindparam("since", type_=Instant)
_unfinished = or_(
    _is_pending(),
    deliveries.c.finished_at >= _since,
    # A delivery that waits because its tracker is disabled counts as ended at `next_at`. A replay sets `next_at` to a newer time.
    and_(deliveries.c.status == DeliveryStatus.PENDING.value, deliveries.c.next_at >= _since),
)
EVENT_PAGE = _page_of(
    events, or_(events.c.fanned_out == false(), exists().where(deliveries.c.event_id == events.c.id, _unfinished))
)
#: Locks the deliveries of events, so that no other process replays them.
LOCK_DELIVERIES = select(deliveries.c.id).where(deliveries.c.event_id.in_(_IDS)).order_by(deliveries.c.id).with_for_update()
_is_first = hits.c.flags.bitwise_and(int(HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE)) != 0
HIT_PAGE = _page_of(hits, _is_first)
USER_AGENTS = select(hits.c.id, hits.c.user_agent).where(hits.c.id.in_(_IDS), hits.c.user_agent != "").order_by(hits.c.id)
KEEP_DEVICES = update(hits).where(hits.c.id == bindparam("row")).values(device_class=bindparam("kept"))
EMPTY_HITS = (
    update(hits).where(hits.c.id.in_(_IDS), or_(hits.c.address != "", hits.c.user_agent != "")).values(address="", user_agent="")
)
