"""The drainer: writes the hits of the spool to the database.

A hit that is stored already is left out (its id is its key), so a hit that was spooled twice, or drained by a process that was
killed before it could delete the entry, counts once.

One process drains at a time, under a lease: it takes many entries at once and writes them in the order of their times, so that of
several first clicks in the stream the earliest wins. A click that the database accepted meanwhile stays the first click: it was
committed first, and a tracker may have received its event. So that this is rare, a node goes on spooling until everything is
drained that it found in the stream when the database was back, for at most `CATCH_UP` seconds.
"""

from __future__ import annotations

import asyncio

import structlog
from sqlalchemy import Connection, text

from shortener.clicks.hit_spool import HitSpool, SpoolState
from shortener.clicks.recorder import BATCH, Recorder
from shortener.errors import StoreUnavailable
from shortener.redis.client import RedisUnavailable
from shortener.storage.database import Database

log = structlog.get_logger(__name__)
WINDOW = 5000  # entries that are taken and put in order at once
CATCH_UP = 10.0  # seconds
PATIENCE = 2.0  # seconds for the database to answer whether it is back


class SpoolDrainer:
    """Writes what is in the spool, and tells the recorder when the database is back."""

    def __init__(self, spool: HitSpool, recorder: Recorder, database: Database) -> None:
        self._spool = spool
        self._recorder = recorder
        self._database = database
        self._back: tuple[float, tuple[int, int]] | None = None  # since when, and the last entry that was there then

    async def step(self) -> int:
        """One window; returns the number of its entries. Raises StoreUnavailable: then what is not written stays in the stream."""
        try:
            backlog = await self._spool.look()
            drained = await self._drain() if backlog.depth and await self._spool.take_lease() else 0
            if drained:
                backlog = await self._spool.look()
        except RedisUnavailable:
            drained, backlog = 0, SpoolState(0)
        except StoreUnavailable:
            self._back = None
            raise
        if self._recorder.outage:
            await self._end_outage(backlog)
        return drained

    async def _drain(self) -> int:
        entries = await self._spool.read(WINDOW)
        unreadable = [entry for entry, hit in entries if hit is None]
        if unreadable:
            log.error("spooled_hits_unreadable", entries=len(unreadable))
            self._recorder.totals.dropped += len(unreadable)
            await self._spool.delete(unreadable)
        hits = sorted(((hit.at, hit.id, entry, hit) for entry, hit in entries if hit is not None), key=lambda one: one[:2])
        for start in range(0, len(hits), BATCH):
            piece = hits[start : start + BATCH]
            await self._recorder.write_late([hit for *_, hit in piece])
            await self._spool.delete([entry for _, _, entry, _ in piece])
        return len(entries)

    async def _end_outage(self, backlog: SpoolState) -> None:
        now = asyncio.get_running_loop().time()
        try:
            await asyncio.wait_for(self._database.write(_ask), PATIENCE)
        except (StoreUnavailable, TimeoutError) as error:
            self._back = None
            raise StoreUnavailable(str(error)) from error
        if self._back is None:
            self._back = (now, backlog.last)
        since, last = self._back
        if not backlog.depth or backlog.first > last or now - since > CATCH_UP:
            self._back = None
            self._recorder.end_outage()


def _ask(connection: Connection) -> None:
    connection.execute(text("SELECT 1"))
