"""An early hit is a hit on a message that was not reported as sent yet. With the setting `suspect_before_sent`, early hits are
suspected. When a delivery report of the message arrives, they are classified again. A hit whose client got the confirmation page
stays suspected, because only the press of the button is a click.

The table `early_hits` has one row for each message with early hits. The transaction that stores an early hit inserts the row, or
updates the time of the row. The transaction of a delivery report marks the row as due. The job then classifies the hits of the
message again and deletes the row.

If a report is committed while an early hit is being stored, the transaction of the report may not see the new row. Therefore the
job also examines all rows that were inserted or updated in the last minute.

On PostgreSQL, the row is also a lock. Without this lock, the job could delete the row just after a new hit was stored that the job
has not seen. To avoid deadlocks, each transaction locks rows of `messages` first, then rows of `first_clicks`, and then rows of
`early_hits`, each in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import BigInteger, Connection, delete, or_, select, update

from shortener.accounts.directory import Directory
from shortener.clicks.hit_metrics import GOT_NO_PAGE
from shortener.clicks.user_agents import load_expressions
from shortener.clicks.verdicts.contextual_rules import BEFORE_SENT, HitContext, classify_by_context, sent_at_before
from shortener.clicks.verdicts.correction import VerdictChange, assign_first_clicks, change_verdicts
from shortener.clicks.verdicts.correction_rows import lock_messages
from shortener.clicks.verdicts.request_rules import RequestTraits, classify
from shortener.ids import IdGenerator
from shortener.model import Verdict
from shortener.storage.database import Database, upsert
from shortener.storage.schema import early_hits, hits, links, messages
from shortener.storage.values_table import values_table

BATCH_MESSAGES = 100
#: The job examines every row that is younger than this. It examines an older row only if a delivery report has marked that row as
#: due.
RECENT = timedelta(minutes=1)


def add(connection: Connection, found: Collection[int], now: datetime) -> None:
    """Insert a row for each message with an early hit. If the message already has a row, update the time of the row. `found`
    contains row ids of messages. `now` is the current time and not the time of the hit, because a hit from the spool may be
    old."""
    row = upsert(connection, early_hits)
    statement = row.on_conflict_do_update(index_elements=["id"], set_={"at": row.excluded.at})
    connection.execute(statement, [{"id": message, "at": now, "is_due": False} for message in sorted(found)])


def mark_reported(connection: Connection, reported: Collection[int]) -> None:
    """Mark the rows of these messages as due. Call this in the transaction that stores the first report SENT, DELIVERED or READ
    of a message."""
    if found := _lock(connection, reported):
        chosen = values_table(connection, [(message,) for message in found], id=BigInteger)
        connection.execute(update(early_hits).where(early_hits.c.id.in_(select(chosen.c.id))).values(is_due=True))


def _lock(connection: Connection, chosen: Collection[int]) -> list[int]:
    """Lock the rows of these messages in `early_hits` until the transaction ends. Return the row ids of the messages that have
    such a row."""
    ids = values_table(connection, [(message,) for message in sorted(chosen)], id=BigInteger)
    statement = select(early_hits.c.id).join_from(ids, early_hits, early_hits.c.id == ids.c.id)
    return list(connection.scalars(statement.order_by(early_hits.c.id).with_for_update(of=early_hits)))


class EarlyHits:
    """The background job that classifies early hits again. `on_events` is called after a commit that wrote events."""

    def __init__(self, database: Database, directory: Directory, ids: IdGenerator, on_events: Callable[[], None]) -> None:
        self._database = database
        self._directory = directory
        self._ids = ids
        self._on_events = on_events

    async def step(self, now: datetime) -> int:
        """Classify again the early hits on messages that were reported as SENT, DELIVERED or READ. Return the number of these
        messages.

        Raise StoreUnavailable if the database is unavailable."""
        due = await self._database.read(_due_messages, now)
        if due:
            await load_expressions()
            events = await self._database.write(self._classify, due, now)
            if events:
                self._on_events()
        return len(due)

    def _classify(self, connection: Connection, due: Sequence[int], now: datetime) -> int:
        lock_messages(connection, due)
        locked = _lock(connection, due)  # only rows that still exist: another process may have classified some of the messages
        changes: list[VerdictChange] = []
        columns = (hits.c.id, hits.c.at, hits.c.user_agent, links.c.application_id, links.c.message_id)
        times = (messages.c.sent_at, messages.c.delivered_at)
        statement = (
            select(*columns, *times)
            .join_from(messages, links, links.c.message_id == messages.c.id)
            .join(hits, hits.c.link_id == links.c.id)
            .where(messages.c.id.in_(locked), hits.c.verdict == Verdict.SUSPECTED.value, hits.c.rule == BEFORE_SENT, GOT_NO_PAGE)
        )
        for row in connection.execute(statement):
            application = self._directory.application(row.application_id)
            found = classify(RequestTraits("GET", row.user_agent))
            if application is not None and found.verdict is Verdict.HUMAN:
                context = HitContext(row.at, sent_at=sent_at_before(row.at, row.sent_at), delivered_at=row.delivered_at)
                found = classify_by_context(application.settings, context) or found
            changes.append(VerdictChange(row.id, row.message_id, Verdict.SUSPECTED, found.verdict, found.rule, retracts=True))
        corrected = change_verdicts(connection, changes, self._ids, now, includes_newest=True)
        first = assign_first_clicks(connection, due, self._ids)
        connection.execute(delete(early_hits).where(early_hits.c.id.in_(locked)))
        return corrected.events + first.events


def _due_messages(connection: Connection, now: datetime) -> list[int]:
    reported = or_(messages.c.sent_at.is_not(None), messages.c.delivered_at.is_not(None), messages.c.read_at.is_not(None))
    statement = (
        select(early_hits.c.id)
        .join(messages, messages.c.id == early_hits.c.id)
        .where(or_(early_hits.c.is_due.is_(True), early_hits.c.at > now - RECENT), reported)
        .order_by(early_hits.c.id)
        .limit(BATCH_MESSAGES)
    )
    return list(connection.scalars(statement))
