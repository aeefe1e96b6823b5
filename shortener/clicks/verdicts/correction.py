"""Correcting verdicts: the transactions that change what a hit was judged as, and everything that follows from it.

`change_verdicts` changes verdicts.
are without a first click the earliest person's hit that they have. Both lock the messages first, in order of id, and look at the
hits again, so that each change is made once, whatever number of processes want it.

What a click raised when it was recorded, and so has to be taken back: the first one on a link an event, the first one of a message
its CLICKTHRU in the same event, and on links that tell every click each one an event of its own.
"""
# Tested by tests/clicks/verdicts/test_reclassify.py

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Connection, bindparam, delete, func, select, type_coerce, update

from shortener.clicks.device_counts import device_metrics, last_counted_hit
from shortener.clicks.hit_metrics import IS_CLICK, hit_metric
from shortener.clicks.verdicts.request_rules import RequestTraits, classify
from shortener.ids import IdGenerator
from shortener.model import HitFlag, LinkFlag, State, Topic, Verdict
from shortener.outbox import count_deltas, events
from shortener.outbox.count_deltas import CountDelta, time_to_click
from shortener.outbox.events import Event
from shortener.outbox.first_clicks import NO_CLICK, FirstClick, lock, release
from shortener.storage import schema
from shortener.storage.database import Database, upsert
from shortener.storage.schema import first_clicks, hits, links, messages, other_hits
from shortener.storage.types import from_ms
from shortener.storage.values_table import values_table

_FIRST = HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE
_CANDIDATES = 100  # hits of a link that are looked at for its first click


class VerdictChange(NamedTuple):
    """A hit, by row id, that gets another verdict than the one that was `seen`. `retracts`: what was told may be taken back."""

    hit: int
    message: int
    seen: Verdict
    verdict: Verdict
    rule: str
    retracts: bool


@dataclass(slots=True)
class CorrectionResult:
    """`kept`: hits whose click was told and is not taken back. `retracted`: clicks that were told; `retracted_messages`: those that
    were the first of their message. `first_clicks`: messages that moved to CLICKTHRU."""

    to_suspected: int = 0
    to_human: int = 0
    kept: int = 0
    retracted: int = 0
    retracted_messages: int = 0
    first_clicks: int = 0
    events: int = 0
    unsettled: list[int] = dataclasses.field(default_factory=list)  # messages to settle when all corrections are made

    def add(self, other: CorrectionResult) -> None:
        for field in dataclasses.fields(other):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def change_verdicts(connection: Connection, changes: Sequence[VerdictChange], ids: IdGenerator, now: datetime) -> CorrectionResult:
    """Make the changes whose hits are still as they were seen, except those that must not be taken back."""
    done = CorrectionResult()
    locked = _lock(connection, {change.message for change in changes})
    stored = _hits(connection, [change.hit for change in changes])
    untold = _untold(connection, stored)
    counted = last_counted_hit(connection)
    tally = CountDelta()
    raised: list[Event] = []
    rows: list[dict[str, Any]] = []
    for change in changes:
        message, hit = locked.get(change.message), stored.get(change.hit)
        # Purged or erased, corrected by another process, or not yet counted by device: then it is left for the next run.
        if message is None or hit is None or hit.verdict != change.seen or hit.id > counted:
            continue
        before, after = hit_metric(change.seen, hit.flags), hit_metric(change.verdict, hit.flags)
        told = "clicks" in (before, after) and bool(hit.flags & HitFlag.FIRST_FOR_LINK or hit.link_flags & LinkFlag.EVERY_CLICK)
        if told and not change.retracts:
            done.kept += 1
            continue
        for metric, amount in ((before, -1), (after, 1)):
            if metric is not None:
                tally.add(message.cohort_id, hit.at, metric, amount)
            if metric == "clicks":
                for by_device in device_metrics(hit.user_agent):
                    tally.add(message.cohort_id, hit.at, by_device, amount)
        flags = hit.flags & ~HitFlag.RETRACTED
        if change.verdict is Verdict.HUMAN:
            done.to_human += 1
            if told:  # every click of its link is
                raised.append(_event(ids, Topic.CLICK, from_ms(hit.at), message, hit))
            if after == "clicks" and change.retracts:
                done.unsettled.append(message.id)
        else:
            done.to_suspected += 1
            if told:
                done.retracted += 1
                flags &= ~_FIRST
                if hit.flags & HitFlag.FIRST_FOR_LINK:
                    flags |= HitFlag.RETRACTED
                    done.unsettled.append(message.id)
                data = _take_back(connection, message, hit, tally, told=hit.id not in untold)
                done.retracted_messages += data["first_for_message"]
                raised.append(_event(ids, Topic.CLICK_RETRACTED, now, message, hit, data))
        rows.append({"row": hit.id, "new_verdict": int(change.verdict), "new_rule": change.rule, "new_flags": int(flags)})
    _save_hits(connection, rows)
    _save_messages(connection, locked.values())
    events.append(connection, raised, count_deltas.rows(ids(), tally))
    done.events = len(raised)
    return done


def assign_first_clicks(connection: Connection, wanted: Collection[int], ids: IdGenerator) -> CorrectionResult:
    """Give each link, and each message, that has no first click the earliest of its people's hits."""
    done = CorrectionResult()
    locked = _lock(connection, wanted)
    people = _people(connection, locked)
    tally = CountDelta()
    raised: list[Event] = []
    flags_of: list[dict[str, Any]] = []
    for message in locked.values():
        firsts = people.get(message.id, {}).values()
        opener = min(firsts, key=lambda hit: hit.id, default=None) if message.clicked_at is None else None
        if message.clicked_at is None and opener is None:
            message.clicked_links = 0  # hits that were purged cannot keep the next click from being the first
        for hit in sorted(firsts, key=lambda hit: hit.id):
            topics, flags, data = Topic(0), HitFlag(hit.flags), None
            if not message.clicked_links & 1 << hit.position:
                message.clicked_links |= 1 << hit.position
                flags |= HitFlag.FIRST_FOR_LINK
                if not hit.link_flags & LinkFlag.EVERY_CLICK:
                    topics |= Topic.CLICK
            if hit is opener:
                data = {"previous_state": State(message.state).name, "new_state": State.CLICKTHRU.name}
                message.clicked_at, message.click_hit_id = hit.at, hit.id
                flags |= HitFlag.FIRST_FOR_MESSAGE
                topics |= Topic.STATE
                done.first_clicks += 1
                _count_first(tally, message, 1)
            if flags != hit.flags:
                flags_of.append({"row": hit.id, "new_flags": int(flags)})
            if topics:
                raised.append(_event(ids, topics, from_ms(hit.at), message, hit, data))
    if flags_of:
        statement = update(hits).where(hits.c.id == bindparam("row")).values(flags=bindparam("new_flags"))
        connection.execute(statement, flags_of)
    _save_messages(connection, locked.values())
    events.append(connection, raised, count_deltas.rows(ids(), tally))
    done.events = len(raised)
    return done


@dataclass(slots=True)
class _LockedMessage:
    """A message, and what was clicked of it. `state`: as it is without a click, or was just before it. Times are ms since 1970."""

    id: int
    application_id: int
    cohort_id: int
    state: int
    created_at: int
    sent_at: int | None
    delivered_at: int | None
    read_at: int | None
    failed_at: int | None
    clicked_at: int | None = None
    click_hit_id: int | None = None
    clicked_links: int = 0
    before: tuple[int, FirstClick] = (0, NO_CLICK)

    @property
    def click(self) -> FirstClick:
        return FirstClick(self.clicked_at, self.click_hit_id, self.clicked_links)

    @property
    def state_without_click(self) -> State:
        """The one that it was in, or a later one that was reported since. (Whether FAILED or EXPIRED is not known then.)"""
        told = (
            (State(self.state), True),
            (State.SENT, self.sent_at),
            (State.FAILED, self.failed_at),
            (State.DELIVERED, self.delivered_at),
            (State.READ, self.read_at),
        )
        state = State.CREATED
        for one, at in told:
            if at is not None and one.may_follow(state):
                state = one
        return state


class _LockedHit(NamedTuple):
    id: int
    link_id: int
    at: int
    verdict: int
    flags: int
    user_agent: str
    position: int
    link_flags: int


_HIT = (
    hits.c.id,
    hits.c.link_id,
    type_coerce(hits.c.at, BigInteger),
    hits.c.verdict,
    hits.c.flags,
    hits.c.user_agent,
    links.c.position,
    links.c.flags,
)


_ROW = tuple(
    type_coerce(messages.c[name], BigInteger) if name.endswith("_at") else messages.c[name]
    for name in ("id", "application_id", "cohort_id", "state", "created_at", "sent_at", "delivered_at", "read_at", "failed_at")
)


def _lock(connection: Connection, wanted: Iterable[int]) -> dict[int, _LockedMessage]:
    """These messages, theirs alone to this transaction; without those that are purged or erased."""
    chosen = values_table(connection, [(message,) for message in sorted(set(wanted))], id=BigInteger)
    statement = (
        select(*_ROW)
        .join_from(chosen, messages, messages.c.id == chosen.c.id)
        .where(messages.c.to_address != "")
        .order_by(messages.c.id)
        .with_for_update(of=messages)
    )
    found = {row[0]: _LockedMessage(*row) for row in connection.execute(statement)}
    for row, click in lock(connection, found).items():
        message = found[row]
        message.clicked_at, message.click_hit_id, message.clicked_links = click
        message.before = (message.state, click)
    return found


def _untold(connection: Connection, wanted: Iterable[int]) -> set[int]:
    """Of these hits the first clicks of messages whose event the fan-out has not seen; it will not before this transaction ends."""
    chosen = values_table(connection, [(hit,) for hit in wanted], id=BigInteger)
    statement = select(schema.events.c.id).join_from(chosen, schema.events, schema.events.c.id == chosen.c.id)
    return set(connection.scalars(statement.where(schema.is_pending_click()).with_for_update(of=schema.events)))


def _hits(connection: Connection, wanted: Sequence[int]) -> dict[int, _LockedHit]:
    chosen = values_table(connection, [(hit,) for hit in wanted], id=BigInteger)
    statement = select(*_HIT).join_from(chosen, hits, hits.c.id == chosen.c.id).join(links, links.c.id == hits.c.link_id)
    return {row[0]: _LockedHit(*row) for row in connection.execute(statement)}


def _people(connection: Connection, wanted: Iterable[int]) -> dict[int, dict[int, _LockedHit]]:
    """By message and link: the click that is the first of the link, or else its earliest hit that is a person's by today's rules.

    The first click of a message is not among them, which is in no index of its link; a message that has one needs none."""
    chosen = values_table(connection, [(message,) for message in wanted], id=BigInteger)
    is_first = hits.c.flags.bitwise_and(int(HitFlag.FIRST_FOR_LINK))
    place = func.row_number().over(partition_by=hits.c.link_id, order_by=(is_first.desc(), hits.c.id)).label("place")
    ranked = (
        select(links.c.message_id, *_HIT, place)
        .join_from(chosen, links, links.c.message_id == chosen.c.id)
        .join(hits, hits.c.link_id == links.c.id)
        .where(other_hits(), IS_CLICK)
        .subquery()
    )
    found: dict[int, dict[int, _LockedHit]] = {}
    for message, *columns, _ in connection.execute(select(ranked).where(ranked.c.place <= _CANDIDATES).order_by(ranked.c.place)):
        hit = _LockedHit(*columns)
        if hit.flags & HitFlag.FIRST_FOR_LINK or classify(RequestTraits("GET", hit.user_agent)).verdict is Verdict.HUMAN:
            found.setdefault(message, {}).setdefault(hit.link_id, hit)
    return found


def _take_back(
    connection: Connection, message: _LockedMessage, hit: _LockedHit, tally: CountDelta, *, told: bool
) -> dict[str, Any]:
    """Give the message what it was without this click; what the event says of it. `told`: the fan-out has seen the click."""
    data: dict[str, Any] = {"first_for_message": False, "first_for_link": bool(hit.flags & HitFlag.FIRST_FOR_LINK)}
    if data["first_for_link"]:
        message.clicked_links &= ~(1 << hit.position)
    if message.click_hit_id == hit.id:
        _count_first(tally, message, -1, timed=told)
        if not told:  # it is still told afterwards, as what it was
            moved = {"previous_state": State(message.state).name, "new_state": State.CLICKTHRU.name}
            connection.execute(update(schema.events).where(schema.events.c.id == hit.id).values(data=moved))
        state = message.state_without_click
        message.clicked_at = message.click_hit_id = None
        message.state = int(state)
        data |= {"first_for_message": True, "previous_state": State.CLICKTHRU.name, "new_state": state.name}
    return data


def _count_first(tally: CountDelta, message: _LockedMessage, amount: int, *, timed: bool = True) -> None:
    """`timed`: also by how soon it came."""
    assert message.clicked_at is not None
    tally.add(message.cohort_id, message.clicked_at, "clicked_messages", amount)
    if timed:
        how_soon = time_to_click(message.clicked_at, message.sent_at, message.created_at, message.state)
        tally.add(message.cohort_id, message.clicked_at, how_soon, amount)


def _event(
    ids: IdGenerator, topics: Topic, at: datetime, message: _LockedMessage, hit: _LockedHit, data: dict[str, Any] | None = None
) -> Event:
    return Event(ids(), message.application_id, topics, at, message_id=message.id, link_id=hit.link_id, hit_id=hit.id, data=data)


def _save_hits(connection: Connection, rows: list[dict[str, Any]]) -> None:
    if rows:
        values = {
            "verdict": bindparam("new_verdict"),
            "rule": bindparam("new_rule"),
            "flags": bindparam("new_flags"),
            "first_verdict": func.coalesce(hits.c.first_verdict, hits.c.verdict),
            "first_rule": func.coalesce(hits.c.first_rule, hits.c.rule),
        }
        connection.execute(update(hits).where(hits.c.id == bindparam("row")).values(values), rows)


def _save_messages(connection: Connection, locked: Collection[_LockedMessage]) -> None:
    changed = [message for message in locked if (message.state, message.click) != message.before]
    moved = [{"row": message.id, "new_state": message.state} for message in changed if message.state != message.before[0]]
    if moved:
        statement = update(messages).where(messages.c.id == bindparam("row"))
        connection.execute(statement.values(state=bindparam("new_state")), moved)
    if gone := [message.id for message in changed if message.click == NO_CLICK]:
        connection.execute(delete(first_clicks).where(first_clicks.c.id.in_(gone)))
    rows = [
        {
            "id": message.id,
            "at": None if message.clicked_at is None else from_ms(message.clicked_at),
            "hit_id": message.click_hit_id,
            "links": message.clicked_links,
        }
        for message in changed
        if message.click != NO_CLICK
    ]
    if rows:
        row = upsert(connection, first_clicks)
        values = {name: row.excluded[name] for name in ("at", "hit_id", "links")}
        connection.execute(row.on_conflict_do_update(index_elements=["id"], set_=values), rows)
    release(connection, [message.id for message in locked])


class _Undone(Exception):
    """Rolls a transaction back and carries what it would have done."""

    def __init__(self, done: CorrectionResult) -> None:
        self.done = done


async def apply_changes(
    database: Database, changes: Sequence[VerdictChange], ids: IdGenerator, now: datetime, *, dry_run: bool = False
) -> CorrectionResult:
    """`change_verdicts` as a transaction; with `dry_run` what it would do, and nothing is kept. Raises StoreUnavailable."""

    def undo(connection: Connection) -> CorrectionResult:
        raise _Undone(change_verdicts(connection, changes, ids, now))

    try:
        return await (database.write(undo) if dry_run else database.write(change_verdicts, changes, ids, now))
    except _Undone as undone:
        return undone.done
