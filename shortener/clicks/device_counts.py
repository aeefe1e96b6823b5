"""Devices and browsers of clicks, counted behind the hot path.

A job walks the hits in the order of their ids, some minutes behind, parses the agents of clicks (device.py) and leaves a tally for
the counts. How far it has come is a row of the store, changed in the transaction that writes the tally: a crash neither loses nor
doubles a click, and of several processes that count the same hits one wins.

A hit whose commit comes so late (after an outage) that the job may have passed its id is counted by the transaction that writes it.
Between the two lies `LAG_MS` less `LATE_ID_DISTANCE`: time enough for commits, and for clocks of nodes that differ.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Connection, Select, func, literal_column, select, text, type_coerce, update

from shortener.clicks.hit_metrics import IS_CLICK
from shortener.clicks.user_agents import browser_name, parse_device
from shortener.ids import IdGenerator, first_id_at, id_span
from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import TIME_SLOT_MS, CountDelta
from shortener.storage.database import Database, upsert
from shortener.storage.schema import hits, installation, links

LAG_MS = 120_000  # milliseconds that the job stays behind
LATE_ID_DISTANCE = id_span(30_000)  # a hit whose id is so much older than its transaction is late
PAGE_HITS = 5000  # hits of one round
_PARSED_AT_ONCE = 16  # agents, each some tens of microseconds, before requests get their turn

_NAME = "devices"
_ROW = installation.c.name == _NAME


def device_metrics(user_agent: str) -> tuple[str, str]:
    """The two metrics that a click with this agent is counted under."""
    device = parse_device(user_agent)
    return f"device:{device.kind}", f"browser:{browser_name(device.browser)}"


def clicks_by_agent() -> Select[Any]:
    """cohort, quarter of an hour, agent, how many: of clicks; agents that were erased are empty."""
    quarter = type_coerce(hits.c.at, BigInteger) // literal_column(str(TIME_SLOT_MS), BigInteger)
    return (
        select(links.c.cohort_id, quarter.label("quarter"), hits.c.user_agent, func.count())
        .join_from(hits, links, links.c.id == hits.c.link_id)
        .where(IS_CLICK)
        .group_by(links.c.cohort_id, text("quarter"), hits.c.user_agent)
    )


class _Mark(NamedTuple):
    """How far the job has come. `token` changes when a late hit is written: a page that was read before must be read again."""

    counted: int = 0  # id of the last hit
    token: str = ""

    @property
    def text(self) -> str:
        return f"{self.counted} {self.token}"


def _mark(connection: Connection) -> _Mark:
    return _parse(connection.execute(select(installation.c.value).where(_ROW)).scalar())


def _lock(connection: Connection) -> _Mark:
    first = upsert(connection, installation).values(name=_NAME, value=_Mark().text)
    connection.execute(first.on_conflict_do_nothing())
    return _parse(connection.execute(select(installation.c.value).where(_ROW).with_for_update()).scalar())


def _parse(value: str | None) -> _Mark:
    counted, _, token = (value or _Mark().text).partition(" ")
    return _Mark(int(counted), token)


def last_counted_hit(connection: Connection) -> int:
    """The id of the last hit that the job has passed."""
    return _mark(connection).counted


def count_late(connection: Connection, tally: CountDelta, clicks: Sequence[tuple[int, int, int, str]]) -> None:
    """Add to `tally` those of these clicks, (hit, cohort, ms, agent), that the job has passed; call it in the transaction that
    writes them."""
    mark = _lock(connection)
    connection.execute(update(installation).where(_ROW).values(value=_Mark(mark.counted, secrets.token_hex(4)).text))
    for hit, cohort, at, user_agent in clicks:
        if hit <= mark.counted:
            for metric in device_metrics(user_agent):
                tally.add(cohort, at, metric)


class DeviceCounter:
    def __init__(self, database: Database, ids: IdGenerator) -> None:
        self._database = database
        self._ids = ids

    async def step(self, now_ms: int) -> int:
        """Count one page of hits that are old enough; returns their number when there may be more. Raises StoreUnavailable."""
        page = await self._database.read(_page, first_id_at(now_ms - LAG_MS))
        if page.last == page.mark.counted:
            return 0
        tally = CountDelta()
        for number, (cohort, quarter, user_agent, amount) in enumerate(page.clicks):
            for metric in device_metrics(user_agent):
                tally.add(cohort, quarter * TIME_SLOT_MS, metric, amount)
            if number % _PARSED_AT_ONCE == 0:
                await asyncio.sleep(0)  # let hits in between
        done = await self._database.write(self._keep, page, tally)
        return page.hits if done and page.hits == PAGE_HITS else 0

    async def catch_up(self, now_ms: int) -> None:
        """Count everything that is old enough."""
        while await self.step(now_ms):
            pass

    def _keep(self, connection: Connection, page: _Page, tally: CountDelta) -> bool:
        if _lock(connection) != page.mark:
            return False  # another process was faster, or a late hit is to be looked at
        connection.execute(update(installation).where(_ROW).values(value=_Mark(page.last, page.mark.token).text))
        count_deltas.append(connection, self._ids(), tally)
        return True


class _Page(NamedTuple):
    mark: _Mark
    last: int  # id of its last hit
    hits: int
    clicks: Sequence[Any]  # rows of clicks_by_agent


def _page(connection: Connection, end: int) -> _Page:
    mark = _mark(connection)
    some = select(hits.c.id).where(hits.c.id > mark.counted, hits.c.id < end).order_by(hits.c.id).limit(PAGE_HITS).subquery()
    number, last = connection.execute(select(func.count(), func.max(some.c.id))).one()
    if not number:
        return _Page(mark, mark.counted, 0, ())
    clicks = clicks_by_agent().where(hits.c.id > mark.counted, hits.c.id <= last)
    return _Page(mark, last, number, connection.execute(clicks).all())
