"""This module contains the background job that counts clicks by device, browser and country of the client.

The job reads hits in the order of their ids, about two minutes after they arrived. It parses the user agents of clicks and writes
a count delta. Its position is the id of the last hit that it has counted. The transaction that writes the delta also stores the
position in the table `installation`. Therefore a crash neither loses a click nor counts it twice. If several processes count the
same hits, only one of them succeeds.

After an outage, a hit may be stored so late that the job has already counted hits with higher ids. The job would never count this
hit, so the transaction that stores the late hit also counts it. A hit is late if its id was generated more than LATE_ID_DISTANCE
before the transaction. LAG_MS is longer than LATE_ID_DISTANCE: the difference leaves time for commits and for clock differences
between the nodes.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Connection, Select, func, literal_column, select, text, type_coerce, update

from shortener.clicks.hit_metrics import IS_CLICK
from shortener.clicks.user_agents import device_and_browser, load_expressions
from shortener.ids import IdGenerator, first_id_at, id_span
from shortener.model import Clock
from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import TIME_SLOT_MS, CountDelta, sent_slot_of
from shortener.storage.clock import SharedClock
from shortener.storage.database import Database, upsert
from shortener.storage.schema import hits, installation, links
from shortener.storage.types import to_ms

LAG_MS = 120_000  # the job counts only hits that are at least this many milliseconds old
LATE_ID_DISTANCE = id_span(30_000)  # the difference between the ids of two rows that were created 30 seconds apart
PAGE_HITS = 5000  # maximum number of hits that one step counts
_MAX_AGENTS_PER_SLICE = 16  # the number of user agents that are parsed before other tasks run; each takes tens of microseconds

_NAME = "devices"
_ROW = installation.c.name == _NAME


#: The user agent of a hit, or the device class that an erasure or the purge stored instead of it.
AGENT = func.coalesce(hits.c.device_class, hits.c.user_agent)


def device_metrics(agent: str, country: str | None) -> tuple[str, ...]:
    """Return the metrics that count a click: one for its device, one for its browser, and one for its country if it is known.

    `agent` is a value of AGENT."""
    kind, browser = device_and_browser(agent)
    metrics = (f"device:{kind}", f"browser:{browser}")
    return metrics if country is None else (*metrics, f"click_country:{country}")


def clicks_by_agent() -> Select[Any]:
    """Return a statement that groups clicks by user agent and country.

    Its rows are (cohort, time slot, AGENT, country, time slot of the message, link set, number of clicks). AGENT is "" if the
    user agent was removed and no device class was stored."""
    slot = type_coerce(hits.c.at, BigInteger) // literal_column(str(TIME_SLOT_MS), BigInteger)
    sent = sent_slot_of(links.c.message_id)
    link_set = func.coalesce(links.c.link_set_id, 0)
    return (
        select(
            links.c.cohort_id,
            slot.label("quarter"),
            AGENT.label("agent"),
            hits.c.country,
            sent.label("sent"),
            link_set.label("link_set"),
            func.count(),
        )
        .join_from(hits, links, links.c.id == hits.c.link_id)
        .where(IS_CLICK)
        .group_by(links.c.cohort_id, text("quarter"), text("agent"), hits.c.country, text("sent"), text("link_set"))
    )


class _Position(NamedTuple):
    """The progress of the job. `token` changes when a late hit is stored. A page of hits that the job read before the change is
    then invalid, and the job reads it again."""

    counted: int = 0  # id of the last hit that the job has counted
    token: str = ""

    @property
    def text(self) -> str:
        return f"{self.counted} {self.token}"


def _read_position(connection: Connection) -> _Position:
    return _parse(connection.execute(select(installation.c.value).where(_ROW)).scalar())


def _lock(connection: Connection) -> _Position:
    first = upsert(connection, installation).values(name=_NAME, value=_Position().text)
    connection.execute(first.on_conflict_do_nothing())
    return _parse(connection.execute(select(installation.c.value).where(_ROW).with_for_update()).scalar())


def _parse(value: str | None) -> _Position:
    counted, _, token = (value or _Position().text).partition(" ")
    return _Position(int(counted), token)


def last_counted_hit(connection: Connection) -> int:
    """Return the id of the last hit that the job has counted."""
    return _read_position(connection).counted


def stop_counting(connection: Connection) -> int:
    """Stop the job until this transaction ends, and return the id of the last hit that the job has counted. If the job has read a
    page of hits and not stored its counts yet, the page becomes invalid. The job reads the page again later, with the verdicts
    that this transaction stores."""
    position = _lock(connection)
    connection.execute(update(installation).where(_ROW).values(value=_Position(position.counted, secrets.token_hex(4)).text))
    return position.counted


class Click(NamedTuple):
    """A click that a transaction is storing. `at` is in milliseconds since 1970. `message` is the row id of the message."""

    hit: int
    cohort: int
    at: int
    user_agent: str
    message: int
    link_set: int
    country: str | None


def count_late(connection: Connection, delta: CountDelta, clicks: Sequence[Click]) -> None:
    """Add the late clicks to `delta`. Late clicks are those whose ids the device job has already passed.

    Call this function in the transaction that stores the clicks."""
    last_counted = stop_counting(connection)
    for click in clicks:
        if click.hit <= last_counted:
            for metric in device_metrics(click.user_agent, click.country):
                delta.add(click.cohort, click.at, metric, message=click.message, link_set=click.link_set)


class DeviceCounter:
    """The background job that counts clicks by device, browser and country.

    `clock` is the clock of the installation, from which the ids of hits are made. If this clock were minutes ahead, the job would
    move past the ids of hits that are still being stored, and never count these hits. An administrator may set the clock of a
    machine at any time. Therefore the job compares a SharedClock with the clock of the database before each page."""

    def __init__(self, database: Database, ids: IdGenerator, clock: Clock) -> None:
        self._database = database
        self._ids = ids
        self._clock = clock

    async def step(self) -> int:
        """Count one page of hits that are older than LAG_MS, and return the number of its hits. Return 0 if the caller must wait
        for the interval of the job: no more hits follow, or the page must be read again.

        Raise StoreUnavailable if the database is unavailable."""
        counted, is_stored = await self._count_page()
        return counted if is_stored and counted == PAGE_HITS else 0

    async def catch_up(self) -> None:
        """Count all hits that are older than LAG_MS. Raise StoreUnavailable if the database is unavailable."""
        while True:
            counted, is_stored = await self._count_page()
            if is_stored and counted < PAGE_HITS:
                return

    async def _count_page(self) -> tuple[int, bool]:
        """Count one page. Return (number of its hits, whether its counts were stored). If they were not stored, the page must be
        read again."""
        if isinstance(self._clock, SharedClock):
            await self._clock.step()
        page = await self._database.read(read_page, first_id_at(to_ms(self._clock()) - LAG_MS))
        if page.last == page.position.counted:
            return 0, True
        delta = CountDelta()
        await load_expressions()
        for number, (cohort, slot, user_agent, country, sent, link_set, amount) in enumerate(page.clicks):
            for metric in device_metrics(user_agent, country):
                delta.add_slots(cohort, slot, metric, sent, link_set, amount)
            if number % _MAX_AGENTS_PER_SLICE == 0:
                await asyncio.sleep(0)  # let other tasks run before the next slice of user agents is parsed
        return page.hits, await self._database.write(self.store, page, delta)

    def store(self, connection: Connection, page: _Page, delta: CountDelta) -> bool:
        """Store the counts of a page of hits and the new position of the job. Return False, and store nothing, if the page must be
        read again."""
        if _lock(connection) != page.position:
            return False  # another process has counted the page, or a late hit was stored
        connection.execute(update(installation).where(_ROW).values(value=_Position(page.last, page.position.token).text))
        count_deltas.append_in_parts(connection, self._ids, delta)
        return True


class _Page(NamedTuple):
    """One page of hits: the position before the page, the id of its last hit, the number of its hits, and the rows of
    `clicks_by_agent`."""

    position: _Position
    last: int
    hits: int
    clicks: Sequence[Any]


def read_page(connection: Connection, end: int) -> _Page:
    """Read the next page of hits whose ids are below `end`."""
    position = _read_position(connection)
    page = select(hits.c.id).where(hits.c.id > position.counted, hits.c.id < end).order_by(hits.c.id).limit(PAGE_HITS).subquery()
    number, last = connection.execute(select(func.count(), func.max(page.c.id))).one()
    if not number:
        return _Page(position, position.counted, 0, ())
    clicks = clicks_by_agent().where(hits.c.id > position.counted, hits.c.id <= last)
    return _Page(position, last, number, connection.execute(clicks).all())
