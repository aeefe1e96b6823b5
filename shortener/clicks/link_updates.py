"""Link updates: changes of many links at once. The links are selected by campaign, by destination, by label, or by several of
these.

An update is a row in the database. Any process performs it in batches, under a lease. Therefore the update continues after a
restart or a crash. The update first counts its links exactly, and then changes them; `done` of `total` shows the progress. A user
can stop the update between two batches. Links that were changed before stay changed. An update does not change the links of
messages that are created after the update.

The updates of one application are performed in the order in which they were created. If several of them change the same link, the
link therefore gets the values of the latest update. The updates of different applications take turns, so that a short update does
not wait for a long update of another application.

For each batch, the process reads the links of some messages and deletes their cache entries. One transaction changes the links
and stores how far the update has come. Then the current values of the links are stored in the cache, even if the transaction
failed or changed nothing. If a batch is repeated after a crash, it changes no link twice. If the database is unavailable, the
batch is tried again later. If a batch fails for another reason, the background job stops the update, because the later updates of
the application would otherwise wait for ever.
"""
# Tested by tests/web/test_link_updates.py

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Connection, exists, insert, or_, select, update

from shortener.accounts.audit import BACKGROUND_JOB, Actor, AuditWriter
from shortener.accounts.link_targets import spellings_of
from shortener.clicks.link_changes import audited_value, find_changeable_by_ids, refresh_cache, write_changes
from shortener.errors import ApiError, ErrorCode, StoreUnavailable
from shortener.ids import LINK_UPDATE_IDS, IdGenerator
from shortener.jobs import WakeUp
from shortener.model import Clock, record
from shortener.redis.link_cache import LinkCache
from shortener.storage.database import Database
from shortener.storage.schema import cohorts, link_updates, links, messages
from shortener.storage.types import AnyRow, to_iso

log = structlog.get_logger(__name__)


BATCH_MESSAGES = 200
LEASE = timedelta(seconds=30)
#: A new lease ends after LEASE, and the clocks of two processes may differ by LEASE. If a stored lease ends later than MAX_LEASE
#: from now, the clock was set back after the lease was taken. Such a lease counts as expired.
MAX_LEASE = 2 * LEASE
STEP_SECONDS = 1.0  # maximum time in seconds for which one step performs batches
COUNTING, RUNNING, DONE, STOPPED = "counting", "running", "done", "stopped"


@record
class LinkSelection:
    """The selection of the links of an application that an update changes. A field with the value None does not restrict the
    selection. `campaign` "" selects messages without a campaign."""

    campaign: str | None = None
    url: str | None = None
    label: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the SQL conditions that select the links. The condition on the campaign is not included, because it selects
        messages."""
        found: list[ColumnElement[bool]] = []
        if self.url is not None:
            found.append(links.c.url.in_(spellings_of(self.url)))
        if self.label is not None:
            found.append(links.c.label == self.label)
        return found


@record
class _MessageBatch:
    """The messages of the next batch of an update. An update reads the messages range by range. For an update of one campaign,
    each cohort of the campaign is a range. Any other update has a single range: all messages of the application. `range_index` is
    the index of the current range, and `ids` are the row ids of its next messages. If `ids` is empty, the range is finished;
    `is_end` is then true if it was the last range."""

    range_index: int
    ids: list[int]
    is_end: bool = False


def create_update(
    connection: Connection,
    application_id: int,
    selection: LinkSelection,
    changes: Mapping[str, Any],
    *,
    actor: Actor,
    ids: IdGenerator,
    clock: Clock,
) -> int:
    """Create a link update, add it to the audit log, and return its id. `changes` is the result of `link_changes.parse_changes`."""
    update_id = ids()
    selected = {f"selected_{name}": value for name, value in asdict(selection).items() if value is not None}
    _record(
        connection,
        AuditWriter(actor, ids),
        clock,
        "links_changed",
        update_id,
        application_id,
        after={name: audited_value(name.removeprefix("selected_"), value) for name, value in {**selected, **changes}.items()},
    )
    connection.execute(
        insert(link_updates).values(
            id=update_id,
            application_id=application_id,
            state=COUNTING,
            actor=actor.name,
            filter=asdict(selection),
            changes=dict(changes),
            # The update changes only messages with smaller ids. Ids increase with time, so later messages are left out.
            last_message_id=update_id,
            created_at=clock(),
        )
    )
    return update_id


def find_update(connection: Connection, encoded_id: str, application_id: int) -> AnyRow:
    """Return a link update of an application. Raise ApiError NOT_FOUND if it does not exist."""
    statement = select(link_updates).where(link_updates.c.id == (LINK_UPDATE_IDS.decode(encoded_id) or 0))
    row = connection.execute(statement.where(link_updates.c.application_id == application_id)).first()
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND, "There is no update of links with this id.")
    return row


def list_updates(connection: Connection, application_id: int, limit: int = 100) -> list[AnyRow]:
    """Return the latest link updates of an application, newest first."""
    statement = select(link_updates).where(link_updates.c.application_id == application_id)
    return list(connection.execute(statement.order_by(link_updates.c.id.desc()).limit(limit)))


def _record(
    connection: Connection,
    audit: AuditWriter,
    clock: Clock,
    action: str,
    update_id: int,
    application_id: int,
    after: dict[str, Any] | None = None,
) -> None:
    """Add a row about a link update to the audit log."""
    encoded_id = LINK_UPDATE_IDS.encode(update_id)
    audit.add(connection, clock(), action, encoded_id, application_id=application_id, after=after)


def stop_update(
    connection: Connection, encoded_id: str, application_id: int, clock: Clock, *, actor: Actor, ids: IdGenerator
) -> AnyRow:
    """Stop a link update, add this to the audit log, and return the update. An update that has ended does not change.

    Raise ApiError NOT_FOUND if it does not exist."""
    row = find_update(connection, encoded_id, application_id)
    stopped = connection.execute(
        update(link_updates)
        .where(link_updates.c.id == row.id, link_updates.c.state.in_((COUNTING, RUNNING)))
        .values(state=STOPPED, finished_at=clock(), lease_until=None)
    )
    if stopped.rowcount:
        _record(connection, AuditWriter(actor, ids), clock, "links_update_stopped", row.id, application_id)
    return find_update(connection, encoded_id, application_id)


def serialize_update(row: AnyRow) -> dict[str, Any]:
    """Return a link update as a JSON object for the API and the command line."""
    return {
        "update_id": LINK_UPDATE_IDS.encode(row.id),
        "state": row.state,
        "total": row.total,
        "done": row.done,
        "changed": row.changed,
        "by": row.actor,
        "filter": {name: value for name, value in row.filter.items() if value is not None},
        "changes": row.changes,
        "created_at": to_iso(row.created_at),
        "finished_at": to_iso(row.finished_at),
    }


class LinkUpdates:
    """A job that applies link updates in batches. The background job calls `step`; `perform` applies the next batches of one given
    update."""

    def __init__(self, database: Database, cache: LinkCache, ids: IdGenerator, clock: Clock) -> None:
        self._database = database
        self._cache = cache
        self._ids = ids
        self._clock = clock
        self._owner = secrets.token_hex(8)
        self._latest_application = 0  # the application whose update was performed in the latest step
        # The codes of links whose cache entries a failed batch has deleted. `step` stores these entries again, because a stopped
        # update does not repeat its batch.
        self._without_entry: set[str] = set()
        self.wake_up = WakeUp()

    async def step(self) -> int:
        """Perform batches of one link update. Return the number of batches. If a batch fails and the error is not
        StoreUnavailable, stop the update and raise the error."""
        if codes := list(self._without_entry):
            try:
                await refresh_cache(self._database, self._cache, codes)
            except StoreUnavailable:
                raise
            except Exception:  # if this fails, it is not repeated: the next redirect of each link stores its cache entry again
                log.exception("links_not_cached", links=len(codes))
            self._without_entry.difference_update(codes)
        free = await self._database.read(self._find_free)
        if free is None:
            return 0
        update_id, self._latest_application = free
        try:
            return await self.perform(update_id)
        except StoreUnavailable:
            raise
        except Exception:
            await self._database.write(self._stop_failed, update_id)
            raise

    async def perform(self, update_id: int, *, seconds: float = STEP_SECONDS, until_counted: bool = False) -> int:
        """Perform batches of a link update for at most `seconds`. Return the number of batches. Return 0 if another process
        performs the update, or if the update waits for an earlier update of its application."""
        loop = asyncio.get_running_loop()
        end, batches = loop.time() + seconds, 0
        while loop.time() < end:
            row = await self._database.write(self._claim, update_id)
            if row is None or (until_counted and row.state == RUNNING):
                break
            await self._perform_batch(row)
            batches += 1
        await self._database.write(self._release, update_id)
        return batches

    async def _perform_batch(self, row: AnyRow) -> None:
        batch = await self._database.read(_next_messages, row)
        found = await self._database.read(_find_links, row, batch.ids) if batch.ids else []
        if row.state == COUNTING:
            await self._database.write(self._advance, row, batch, len(found))
            return
        codes = [code for _, code in found]
        await self._cache.invalidate(codes)  # if Redis is unavailable, the link cache deletes the entries later
        try:
            await self._database.write_later(self._change, row, batch, [link_id for link_id, _ in found])
            # The cache entries were deleted above. They are stored again even if the update was stopped and the links did not
            # change.
            await refresh_cache(self._database, self._cache, codes)
        except Exception:
            self._without_entry.update(codes)
            raise

    def _find_free(self, connection: Connection) -> tuple[int, int] | None:
        """Return (id, id of the application) of the update that must be performed next, or None. The applications take turns."""
        c = link_updates.c
        turn = c.application_id <= self._latest_application, c.application_id, c.id
        row = connection.execute(select(c.id, c.application_id).where(*self._is_free()).order_by(*turn).limit(1)).first()
        return None if row is None else (row.id, row.application_id)

    def _is_free(self) -> tuple[ColumnElement[bool], ...]:
        c = link_updates.c
        now = self._clock()
        free = or_(c.lease_until.is_(None), c.lease_until < now, c.lease_until > now + MAX_LEASE, c.owner == self._owner)
        earlier = link_updates.alias("earlier").c
        waits = exists().where(
            earlier.application_id == c.application_id, earlier.id < c.id, earlier.state.in_((COUNTING, RUNNING))
        )
        # An update counts its links even while it waits for an earlier update, because counting changes nothing.
        return c.state.in_((COUNTING, RUNNING)), free, or_(c.state == COUNTING, ~waits)

    def _claim(self, connection: Connection, update_id: int) -> AnyRow | None:
        done = connection.execute(
            update(link_updates)
            .where(link_updates.c.id == update_id, *self._is_free())
            .values(owner=self._owner, lease_until=self._clock() + LEASE)
        )
        return connection.execute(select(link_updates).where(link_updates.c.id == update_id)).first() if done.rowcount else None

    def _release(self, connection: Connection, update_id: int) -> None:
        c = link_updates.c
        connection.execute(update(link_updates).where(c.id == update_id, c.owner == self._owner).values(lease_until=None))

    def _stop_failed(self, connection: Connection, update_id: int) -> None:
        """Stop an update whose batch failed. If another process has taken over the update, change nothing."""
        c = link_updates.c
        stopped = connection.execute(
            update(link_updates)
            .where(c.id == update_id, c.owner == self._owner, c.state.in_((COUNTING, RUNNING)))
            .values(state=STOPPED, finished_at=self._clock(), lease_until=None)
            .returning(c.application_id)
        ).first()
        if stopped is not None:
            audit, after = AuditWriter(BACKGROUND_JOB, self._ids), {"reason": "failed"}
            _record(connection, audit, self._clock, "links_update_stopped", update_id, stopped.application_id, after)

    def _change(self, connection: Connection, row: AnyRow, batch: _MessageBatch, link_ids: list[int]) -> None:
        """Change the links of a batch. Do nothing if the update was stopped or another process has taken it over."""
        rows = find_changeable_by_ids(connection, link_ids) if link_ids else []
        if not self._advance(connection, row, batch, len(rows)):
            return
        changed = write_changes(
            connection, rows, row.changes, actor=Actor(name=row.actor), now=self._clock(), ids=self._ids, update_id=row.id
        )
        if changed:
            c = link_updates.c
            connection.execute(update(link_updates).where(c.id == row.id).values(changed=c.changed + changed))

    def _advance(self, connection: Connection, row: AnyRow, batch: _MessageBatch, found: int) -> bool:
        """Store how far the update has come and return True. If the update was stopped or another process has taken it over,
        store nothing and return False."""
        values: dict[str, Any] = {"range_index": batch.range_index, "cursor": batch.ids[-1] if batch.ids else 0}
        if not batch.ids:
            values["range_index"] += 1
        counter = "counted" if row.state == COUNTING else "done"
        values[counter] = getattr(row, counter) + found
        if batch.is_end and row.state == COUNTING:
            values |= {"state": RUNNING, "total": values["counted"], "range_index": 0, "cursor": 0}
        elif batch.is_end:
            values |= {"state": DONE, "finished_at": self._clock(), "lease_until": None}
        c = link_updates.c
        is_unchanged = (c.state == row.state, c.owner == self._owner, c.range_index == row.range_index, c.cursor == row.cursor)
        return bool(connection.execute(update(link_updates).where(c.id == row.id, *is_unchanged).values(values)).rowcount)


def _next_messages(connection: Connection, row: AnyRow) -> _MessageBatch:
    """Return the messages of the next batch of an update."""
    selection = LinkSelection(**row.filter)
    m = messages.c
    if selection.campaign is None:
        ranges: list[ColumnElement[bool]] = [m.application_id == row.application_id]
    else:
        of_campaign = cohorts.c.application_id == row.application_id, cohorts.c.campaign == selection.campaign
        ids = connection.scalars(select(cohorts.c.id).where(*of_campaign).order_by(cohorts.c.id))
        ranges = [m.cohort_id == cohort for cohort in ids]
    if row.range_index >= len(ranges):
        return _MessageBatch(row.range_index, [], is_end=True)
    statement = select(m.id).where(ranges[row.range_index], m.id > row.cursor, m.id < row.last_message_id)
    found = list(connection.scalars(statement.order_by(m.id).limit(BATCH_MESSAGES)))
    return _MessageBatch(row.range_index, found, is_end=not found and row.range_index + 1 >= len(ranges))


def _find_links(connection: Connection, row: AnyRow, message_ids: list[int]) -> list[tuple[int, str]]:
    """Return (id, code) of each link of these messages that the update changes."""
    selection = LinkSelection(**row.filter)
    statement = select(links.c.id, links.c.code).where(links.c.message_id.in_(message_ids), *selection.conditions())
    return [(found.id, found.code) for found in connection.execute(statement.order_by(links.c.id))]
