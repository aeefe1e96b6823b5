"""This module reads, locks and saves the rows that a correction changes: messages with their first clicks, and hits."""

# Tested by tests/clicks/verdicts/test_correction.py

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Connection, bindparam, delete, func, select, type_coerce, update

from shortener.clicks.device_counts import AGENT
from shortener.clicks.hit_metrics import IS_CLICK
from shortener.clicks.resolver import CONFIRMED
from shortener.clicks.verdicts.request_rules import RequestTraits, classify
from shortener.model import HitFlag, State, Verdict, mutable_record
from shortener.outbox.first_clicks import NO_CLICK, FirstClick, lock, release
from shortener.storage import schema
from shortener.storage.database import upsert
from shortener.storage.schema import first_clicks, hits, links, messages, other_hits
from shortener.storage.types import from_ms
from shortener.storage.values_table import values_table

_MAX_CANDIDATES = 100  # maximum number of hits that are examined to find the first click on a link


@mutable_record
class LockedMessage:
    """A message that this transaction has locked, and its clicks. `state` is the state before the first click. Times are
    milliseconds since 1970."""

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
    # The state and the clicks that the database contained when the message was locked. `save_messages` compares them with the
    # current values.
    before: tuple[int, FirstClick] = (0, NO_CLICK)

    @property
    def click(self) -> FirstClick:
        return FirstClick(self.clicked_at, self.click_hit_id, self.clicked_links)

    @property
    def state_without_click(self) -> State:
        """Return the state that the message would have without its click: the state before the click, or a state that was
        reported later.

        If a failure was reported after the click, the result is FAILED, even if the report was EXPIRED: the row contains only the
        time of the failure."""
        reported = (
            (State(self.state), True),
            (State.SENT, self.sent_at),
            (State.FAILED, self.failed_at),
            (State.DELIVERED, self.delivered_at),
            (State.READ, self.read_at),
        )
        state = State.CREATED
        for candidate, at in reported:
            if at is not None and candidate.may_follow(state):
                state = candidate
        return state


class LockedHit(NamedTuple):
    """A hit on a locked message, with the position and the flags of its link."""

    id: int
    link_id: int
    at: int
    verdict: int
    rule: str
    flags: int
    user_agent: str
    agent: str
    country: str | None
    position: int
    link_flags: int
    link_set: int


_HIT = (
    hits.c.id,
    hits.c.link_id,
    type_coerce(hits.c.at, BigInteger),
    hits.c.verdict,
    hits.c.rule,
    hits.c.flags,
    hits.c.user_agent,
    AGENT.label("agent"),
    hits.c.country,
    links.c.position,
    links.c.flags,
    func.coalesce(links.c.link_set_id, 0).label("link_set"),
)


_MESSAGE = tuple(
    type_coerce(messages.c[name], BigInteger) if name.endswith("_at") else messages.c[name]
    for name in ("id", "application_id", "cohort_id", "state", "created_at", "sent_at", "delivered_at", "read_at", "failed_at")
)


def lock_messages(connection: Connection, ids: Iterable[int]) -> dict[int, LockedMessage]:
    """Lock these messages until the transaction ends. Return them by row id. Purged and erased messages are left out."""
    chosen = values_table(connection, [(message,) for message in sorted(set(ids))], id=BigInteger)
    statement = (
        select(*_MESSAGE)
        .join_from(chosen, messages, messages.c.id == chosen.c.id)
        .where(messages.c.to_address != "")
        .order_by(messages.c.id)
        .with_for_update(of=messages)
    )
    found = {row[0]: LockedMessage(*row) for row in connection.execute(statement)}
    for row, click in lock(connection, found).items():
        message = found[row]
        message.clicked_at, message.click_hit_id, message.clicked_links = click
        message.before = (message.state, click)
    return found


def lock_pending_clicks(connection: Connection, ids: Iterable[int]) -> set[int]:
    """Return the ids of the hits whose event the fan-out has not processed yet. Lock these events until the transaction ends."""
    chosen = values_table(connection, [(hit,) for hit in ids], id=BigInteger)
    statement = select(schema.events.c.id).join_from(chosen, schema.events, schema.events.c.id == chosen.c.id)
    return set(connection.scalars(statement.where(schema.is_pending_click()).with_for_update(of=schema.events)))


def read_hits(connection: Connection, ids: Sequence[int]) -> dict[int, LockedHit]:
    chosen = values_table(connection, [(hit,) for hit in ids], id=BigInteger)
    statement = select(*_HIT).join_from(chosen, hits, hits.c.id == chosen.c.id).join(links, links.c.id == hits.c.link_id)
    return {row[0]: LockedHit(*row) for row in connection.execute(statement)}


def find_first_hits(connection: Connection, ids: Iterable[int]) -> dict[int, dict[int, LockedHit]]:
    """Return one hit for each link, by message and link: the first click on the link or, if it has none, the hit that may become
    its first click.

    The first click may become the earliest click on the link that a person has confirmed on the confirmation page, or that the
    current request rules still classify as HUMAN.

    A first click that is also the first click on its message is left out, because it is not in the index `hits_by_link`. The
    caller does not need it: its message and its link already have a first click."""
    chosen = values_table(connection, [(message,) for message in ids], id=BigInteger)
    is_first = hits.c.flags.bitwise_and(int(HitFlag.FIRST_FOR_LINK))
    rank = func.row_number().over(partition_by=hits.c.link_id, order_by=(is_first.desc(), hits.c.id)).label("rank")
    ranked = (
        select(links.c.message_id, *_HIT, rank)
        .join_from(chosen, links, links.c.message_id == chosen.c.id)
        .join(hits, hits.c.link_id == links.c.id)
        .where(other_hits(), IS_CLICK)
        .subquery()
    )
    found: dict[int, dict[int, LockedHit]] = {}
    for message, *columns, _ in connection.execute(select(ranked).where(ranked.c.rank <= _MAX_CANDIDATES).order_by(ranked.c.rank)):
        hit = LockedHit(*columns)
        if hit.flags & HitFlag.FIRST_FOR_LINK or hit.rule == CONFIRMED or _is_human(hit.user_agent):
            found.setdefault(message, {}).setdefault(hit.link_id, hit)
    return found


def _is_human(user_agent: str) -> bool:
    return classify(RequestTraits("GET", user_agent)).verdict is Verdict.HUMAN


def save_hits(connection: Connection, rows: list[dict[str, Any]]) -> None:
    if rows:
        values = {
            "verdict": bindparam("new_verdict"),
            "rule": bindparam("new_rule"),
            "flags": bindparam("new_flags"),
            "first_verdict": func.coalesce(hits.c.first_verdict, hits.c.verdict),
            "first_rule": func.coalesce(hits.c.first_rule, hits.c.rule),
        }
        connection.execute(update(hits).where(hits.c.id == bindparam("row")).values(values), rows)


def save_messages(connection: Connection, locked: Collection[LockedMessage]) -> None:
    changed = [message for message in locked if (message.state, message.click) != message.before]
    new_states = [{"row": message.id, "new_state": message.state} for message in changed if message.state != message.before[0]]
    if new_states:
        statement = update(messages).where(messages.c.id == bindparam("row"))
        connection.execute(statement.values(state=bindparam("new_state")), new_states)
    if without_clicks := [message.id for message in changed if message.click == NO_CLICK]:
        connection.execute(delete(first_clicks).where(first_clicks.c.id.in_(without_clicks)))
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
