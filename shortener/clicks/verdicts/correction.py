"""A correction is a transaction that changes the verdicts of stored hits, and the counts, events and states that depend on these
verdicts.

`change_verdicts` changes verdicts, corrects the counts and retracts clicks that were sent as events. Then `assign_first_clicks`
finds messages and links without a first click, and makes their earliest hit by a human the first click. Both functions first lock
the messages in the order of their ids, and read the hits again. Therefore each change is made once, even if several processes
attempt it.

A retraction undoes the effects of a recorded click. The first click on a link created an event. The first click on a message
changed the state of the message to CLICKTHRU, in the same event. On links that send every click (`LinkFlag.EVERY_CLICK`), each
click created an event.

The event log determines whether a click has an event. The setting `click_events` does not, because it may have changed since the
click. But the event log is incomplete for hits older than `event_retention_days`, whose events may already be purged. For these
hits, the current settings decide whether the click counts as sent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, select, update

from shortener.accounts.settings import from_stored
from shortener.clicks.device_counts import device_metrics, last_counted_hit, stop_counting
from shortener.clicks.hit_metrics import CLICKED_LINKS, CLICKED_MESSAGES, CLICKS, hit_metric
from shortener.clicks.user_agents import load_expressions
from shortener.clicks.verdicts.correction_rows import (
    LockedHit,
    LockedMessage,
    find_first_hits,
    lock_messages,
    lock_pending_clicks,
    read_hits,
    save_hits,
    save_messages,
)
from shortener.ids import IdGenerator
from shortener.model import HitFlag, LinkFlag, State, Topic, Verdict, mutable_record
from shortener.outbox import count_deltas, events
from shortener.outbox.count_deltas import CountDelta, time_to_click
from shortener.outbox.events import Event
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.schema import applications, hits
from shortener.storage.types import from_ms

_FIRST = HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE


class VerdictChange(NamedTuple):
    """A new verdict for a hit. `hit` and `message` are row ids.

    `seen` is the verdict that the hit had when the change was computed. `retracts` states whether the change may retract a click
    that was sent as an event."""

    hit: int
    message: int
    seen: Verdict
    verdict: Verdict
    rule: str
    retracts: bool


@mutable_record
class CorrectionResult:
    """The numbers of changes that a correction has made. `kept` counts hits that keep their verdict, because their click was sent
    and must not be retracted. `retracted` counts sent clicks that were retracted. `retracted_messages` counts the retracted
    clicks that were the first click on their message. `first_clicks` counts messages whose state changed to CLICKTHRU.
    `unsettled` contains the row ids of messages for which `assign_first_clicks` must be called after all corrections."""

    to_suspected: int = 0
    to_human: int = 0
    kept: int = 0
    retracted: int = 0
    retracted_messages: int = 0
    first_clicks: int = 0
    events: int = 0
    unsettled: list[int] = dataclasses.field(default_factory=list)

    def add(self, other: CorrectionResult) -> None:
        """Add the numbers of another result, and append its `unsettled` messages."""
        for field in dataclasses.fields(other):
            value = getattr(self, field.name)
            value += getattr(other, field.name)
            setattr(self, field.name, value)


def change_verdicts(
    connection: Connection,
    changes: Sequence[VerdictChange],
    ids: IdGenerator,
    now: datetime,
    *,
    includes_newest: bool = False,
    oldest_event: int = 0,
) -> CorrectionResult:
    """Change the verdicts of hits. A hit that does not have the verdict `seen` any more is skipped. A click that was sent as an
    event changes only if the field `retracts` of the change is true. `oldest_event` is the smallest id that an event within the
    event retention can have. Events of hits with smaller ids may already be purged.

    Hits that are not counted by device yet are skipped unless `includes_newest` is true. The device job counts these hits later,
    with their new verdicts."""
    result = CorrectionResult()
    locked = lock_messages(connection, {change.message for change in changes})
    stored = read_hits(connection, [change.hit for change in changes])
    pending = lock_pending_clicks(connection, stored)
    last_counted = stop_counting(connection) if includes_newest else last_counted_hit(connection)
    sent = events.find_sent_clicks(connection, locked)
    every_click = _find_applications_with_every_click(connection, locked.values())
    delta = CountDelta()
    new_events: list[Event] = []
    rows: list[dict[str, Any]] = []
    for change in changes:
        message, hit = locked.get(change.message), stored.get(change.hit)
        # A hit is skipped if it was purged or erased, if another process has corrected it, or if it is not counted by device yet.
        is_counted = hit is not None and hit.id <= last_counted
        if message is None or hit is None or hit.verdict != change.seen or not (is_counted or includes_newest):
            continue
        before, after = hit_metric(change.seen, hit.flags), hit_metric(change.verdict, hit.flags)
        sends_every_click = bool(hit.link_flags & LinkFlag.EVERY_CLICK) or message.application_id in every_click
        # a suspected hit creates an event only on an opt-out link
        was_sent = sends_every_click if before == CLICKS else bool(hit.link_flags & LinkFlag.OPT_OUT)
        is_sent = sent.get(hit.id, was_sent and hit.id < oldest_event)
        if before == CLICKS:
            is_event = bool(hit.flags & HitFlag.FIRST_FOR_LINK) or is_sent
        else:
            is_event = after == CLICKS and sends_every_click
        if is_event and not change.retracts:
            result.kept += 1
            continue
        _count(delta, message, hit, before, -1, by_device=is_counted)
        _count(delta, message, hit, after, 1, by_device=is_counted)
        flags = hit.flags & ~HitFlag.RETRACTED
        if change.verdict is Verdict.HUMAN:
            result.to_human += 1
            if is_event and not is_sent:
                new_events.append(_event(ids, Topic.CLICK, from_ms(hit.at), message, hit))
            if after == CLICKS and change.retracts:
                result.unsettled.append(message.id)
        else:
            result.to_suspected += 1
            if is_event:
                result.retracted += 1
                flags &= ~_FIRST
                if hit.flags & HitFlag.FIRST_FOR_LINK:
                    flags |= HitFlag.RETRACTED
                    result.unsettled.append(message.id)
                data = _retract(connection, message, hit, delta, is_sent=hit.id not in pending)
                result.retracted_messages += data["first_for_message"]
                new_events.append(_event(ids, Topic.CLICK_RETRACTED, now, message, hit, data))
        rows.append({"row": hit.id, "new_verdict": int(change.verdict), "new_rule": change.rule, "new_flags": int(flags)})
    save_hits(connection, rows)
    save_messages(connection, locked.values())
    events.append(connection, new_events, count_deltas.rows(ids(), delta))
    result.events = len(new_events)
    return result


def assign_first_clicks(
    connection: Connection, message_ids: Collection[int], ids: IdGenerator, oldest_event: int = 0
) -> CorrectionResult:
    """Assign a first click to these messages and to their links: the earliest hit by a human. A message or a link that already
    has a first click does not change. `oldest_event` has the same meaning as in `change_verdicts`."""
    result = CorrectionResult()
    locked = lock_messages(connection, message_ids)
    candidates = find_first_hits(connection, locked)
    sent = events.find_sent_clicks(connection, locked)
    every_click = _find_applications_with_every_click(connection, locked.values())
    delta = CountDelta()
    new_events: list[Event] = []
    changed_flags: list[dict[str, Any]] = []
    for message in locked.values():
        first_hits = candidates.get(message.id, {}).values()
        first_click = min(first_hits, key=lambda hit: hit.id, default=None) if message.clicked_at is None else None
        if message.clicked_at is None and first_click is None:
            message.clicked_links = 0  # all clicks were purged; the next click can become the first click
        for hit in sorted(first_hits, key=lambda hit: hit.id):
            topics, flags, data = Topic(0), HitFlag(hit.flags), None
            if not message.clicked_links & 1 << hit.position:
                message.clicked_links |= 1 << hit.position
                flags |= HitFlag.FIRST_FOR_LINK
                if hit.link_set:
                    delta.add(message.cohort_id, hit.at, CLICKED_LINKS, message=message.id, link_set=hit.link_set)
                was_sent = bool(hit.link_flags & LinkFlag.EVERY_CLICK) or message.application_id in every_click
                if not sent.get(hit.id, was_sent and hit.id < oldest_event):
                    topics |= Topic.CLICK
            if hit is first_click:
                data = {"previous_state": State(message.state).name, "new_state": State.CLICKTHRU.name}
                message.clicked_at, message.click_hit_id = hit.at, hit.id
                flags |= HitFlag.FIRST_FOR_MESSAGE
                topics |= Topic.STATE
                result.first_clicks += 1
                _count_first(delta, message, 1, hit.link_set)
            if flags != hit.flags:
                changed_flags.append({"row": hit.id, "new_flags": int(flags)})
            if topics:
                new_events.append(_event(ids, topics, from_ms(hit.at), message, hit, data))
    if changed_flags:
        statement = update(hits).where(hits.c.id == bindparam("row")).values(flags=bindparam("new_flags"))
        connection.execute(statement, changed_flags)
    save_messages(connection, locked.values())
    events.append(connection, new_events, count_deltas.rows(ids(), delta))
    result.events = len(new_events)
    return result


def _find_applications_with_every_click(connection: Connection, locked: Iterable[LockedMessage]) -> set[int]:
    """Return the ids of the applications of these messages that have the setting `click_events: every`."""
    columns = applications.c
    chosen = columns.id.in_({message.application_id for message in locked})
    rows = connection.execute(select(columns.id, columns.settings).where(chosen))
    return {row.id for row in rows if from_stored(row.settings).click_events == "every"}


def _retract(connection: Connection, message: LockedMessage, hit: LockedHit, delta: CountDelta, *, is_sent: bool) -> dict[str, Any]:
    """Undo the effects of this click on its message and on the counts. If it is the first click on the message, the message gets
    the state that it would have without the click. Return the data of the event `click_retracted`.

    `is_sent` is true if the fan-out has already processed the event of the click."""
    data: dict[str, Any] = {"first_for_message": False, "first_for_link": bool(hit.flags & HitFlag.FIRST_FOR_LINK)}
    if data["first_for_link"]:
        message.clicked_links &= ~(1 << hit.position)
        if hit.link_set:
            delta.add(message.cohort_id, hit.at, CLICKED_LINKS, -1, message=message.id, link_set=hit.link_set)
    if message.click_hit_id == hit.id:
        _count_first(delta, message, -1, hit.link_set, timed=is_sent)
        # The fan-out will send the click later. The message will then not contain the state before the click any more, so the
        # event stores this state.
        if not is_sent:
            states = {"previous_state": State(message.state).name, "new_state": State.CLICKTHRU.name}
            connection.execute(update(schema.events).where(schema.events.c.id == hit.id).values(data=states))
        state = message.state_without_click
        message.clicked_at = message.click_hit_id = None
        message.state = int(state)
        data |= {"first_for_message": True, "previous_state": State.CLICKTHRU.name, "new_state": state.name}
    return data


def _count(delta: CountDelta, message: LockedMessage, hit: LockedHit, metric: str | None, amount: int, *, by_device: bool) -> None:
    """Add a hit to the counts of `metric` (`amount` 1) or remove it from them (`amount` -1). None means that the hit has no metric.
    If `by_device` is true, also change the counts of clicks by device and browser."""
    metrics = [] if metric is None else [metric]
    if metric == CLICKS and by_device:
        metrics += device_metrics(hit.agent, hit.country)
    for each in metrics:
        delta.add(message.cohort_id, hit.at, each, amount, message=message.id, link_set=hit.link_set)


def _count_first(delta: CountDelta, message: LockedMessage, amount: int, link_set: int, *, timed: bool = True) -> None:
    """Add the first click on a message to the counts (`amount` 1) or remove it from them (`amount` -1). If `timed` is true, also
    change the count of the bucket that contains the time from sending to this click (`time_to_click`)."""
    assert message.clicked_at is not None
    delta.add(message.cohort_id, message.clicked_at, CLICKED_MESSAGES, amount, message=message.id, link_set=link_set)
    if timed:
        bucket = time_to_click(message.clicked_at, message.sent_at, message.created_at, message.state)
        delta.add(message.cohort_id, message.clicked_at, bucket, amount, message=message.id, link_set=link_set)


def _event(
    ids: IdGenerator, topics: Topic, at: datetime, message: LockedMessage, hit: LockedHit, data: dict[str, Any] | None = None
) -> Event:
    return Event(ids(), message.application_id, topics, at, message_id=message.id, link_id=hit.link_id, hit_id=hit.id, data=data)


class _DryRun(Exception):
    """An exception that rolls a transaction back. `result` contains the changes that the transaction would have made."""

    def __init__(self, result: CorrectionResult) -> None:
        self.result = result


async def apply_changes(
    database: Database,
    changes: Sequence[VerdictChange],
    ids: IdGenerator,
    now: datetime,
    *,
    oldest_event: int = 0,
    dry_run: bool = False,
) -> CorrectionResult:
    """Run `change_verdicts` in a transaction and return the result. If `dry_run` is true, roll the transaction back and return what
    it would have changed.

    Raise StoreUnavailable if the database is unavailable."""

    def change(connection: Connection) -> CorrectionResult:
        result = change_verdicts(connection, changes, ids, now, oldest_event=oldest_event)
        if dry_run:
            raise _DryRun(result)
        return result

    await load_expressions()
    try:
        return await database.write_later(change)
    except _DryRun as rolled_back:
        return rolled_back.result
