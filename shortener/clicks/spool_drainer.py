"""The spool drainer writes the hits of the spool to the database.

The id of a hit is its primary key, so the database stores a hit only once. Therefore a hit counts once even if it was added to
the spool twice, or if a drainer was killed before it deleted the entry.

The database may reject all hits of a batch although it accepts test rows. Then either these hits or the database may be at fault.
If the database stores a hit of another batch, the rejected hits become dead letters. Otherwise all hits wait, as in an outage.
The drainer reads WINDOW_ENTRIES entries at a time. If all of their hits were rejected, the next step tries the next entries, and
so on to the end of the stream. Therefore rejected old hits do not block newer hits.

One process drains the spool at a time, under a lease. It reads many entries at once and writes their hits in the order of their
times, so that the earliest click on a link in the spool becomes the first click. If the database has already stored a later click
as the first click, that click stays the first click, because its event may have been sent to a tracker. This case is rare,
because a process still adds its new hits to the spool during the recovery.

The recovery begins when the database is available again. It ends when the drainer has written all entries that were in the stream
when the recovery began, at the latest after `MAX_CATCH_UP_SECONDS`. Then the process writes new hits to the database again. If
entries are left in the stream, the process logs `outage_ended_before_spool` and drains them later. If Redis does not respond, the
process determines the end of the recovery from the last known number of entries.
"""

from __future__ import annotations

import asyncio

import structlog
from sqlalchemy import Connection, text

from shortener.clicks.dead_letters import DeadLetter
from shortener.clicks.hit_spool import HitSpool, SpoolState
from shortener.clicks.hit_writer import MAX_BATCH_HITS, HitsRejected
from shortener.clicks.outage import OutageState
from shortener.clicks.recorder import Recorder
from shortener.clicks.resolver import Hit
from shortener.errors import StoreUnavailable
from shortener.redis.client import RedisUnavailable
from shortener.storage.batcher import MAX_PROBES
from shortener.storage.database import Database

log = structlog.get_logger(__name__)
WINDOW_ENTRIES = 5000  # maximum number of entries that are read and sorted at once
MAX_CATCH_UP_SECONDS = 10.0
MAX_DEAD_LETTERS_MOVED = 500  # maximum number of dead letters that one transaction stores
DATABASE_CHECK_SECONDS = 2.0  # the database counts as unavailable if it does not respond within this number of seconds


class SpoolDrainer:
    """A job that writes the hits of the spool to the database. When the database is available again, the job also ends the outage
    of the recorder."""

    def __init__(self, spool: HitSpool, recorder: Recorder, database: Database) -> None:
        self._spool = spool
        self._recorder = recorder
        self._database = database
        self._first_probe = 0  # If a batch is rejected, its hits are written one by one, beginning with the hit at this index.
        self._recovery_began_at = 0.0  # the time of the event loop at which the recovery began
        # If all hits of a window were rejected: the id of its last entry. The next step reads the entries after it. None: the
        # next step begins with the oldest entry.
        self._after: bytes | None = None
        # True while the drainer retries rejected hits, because the database has stored a hit of a later entry.
        self._later_stored = False
        # The id of the last entry in the stream when the recovery began; None if it is unknown.
        self._recovery_ends_with: tuple[int, int] | None = None

    async def step(self) -> int:
        """Read one window of entries, write their hits to the database, delete the entries, and return their number.

        Raise StoreUnavailable if the database is unavailable. Hits that are not stored then stay in the stream."""
        state: SpoolState | None
        try:
            state = await self._spool.look()
            drained = await self._drain() if state.depth and await self._spool.take_lease() else 0
            if drained:
                state = await self._spool.look()
        except RedisUnavailable:
            drained, state = 0, None
        except StoreUnavailable:
            self._recorder.relapse()
            raise
        if self._recorder.outage:
            await self._recover(state)
        elif not drained and state is not None:
            await self._move_dead_letters()
        return drained

    async def _move_dead_letters(self) -> None:
        """Move dead letters from Redis to the table of dead letters. If the process is killed during the move, some of them may
        be in both places."""
        try:
            found = await self._spool.read_dead_letters(MAX_DEAD_LETTERS_MOVED)
            if found and await self._spool.take_lease():
                await self._recorder.store_dead_letters([letter for _, letter in found])
                await self._spool.delete_dead_letters([entry for entry, _ in found])
        except RedisUnavailable:
            return

    async def _drain(self) -> int:
        after, self._after = self._after, None
        later_stored, self._later_stored = self._later_stored, False
        entries = await self._spool.read(WINDOW_ENTRIES, after)
        # This is the end of the stream. The database has rejected the hits of all entries, so the drainer begins again with the
        # oldest entry.
        if after is not None and not entries:
            after, entries = None, await self._spool.read(WINDOW_ENTRIES)
            self._first_probe += MAX_PROBES
        unreadable = [(entry, letter) for entry, letter in entries if isinstance(letter, DeadLetter)]
        if unreadable:
            log.error("spooled_hits_unreadable", entries=len(unreadable))
            await self._recorder.store_dead_letters([letter for _, letter in unreadable])
            self._recorder.totals.dead_letters += len(unreadable)
            await self._spool.delete([entry for entry, _ in unreadable])
        hits = sorted(((hit.at, hit.id, entry, hit) for entry, hit in entries if isinstance(hit, Hit)), key=lambda row: row[:2])
        rejected: HitsRejected | None = None
        stored, undecided = 0, []
        # Each batch that the database rejects is searched for a hit that the database accepts. If it has rejected the hits of the
        # whole stream, the next pass over the stream tries other hits of each batch. After some passes, all hits were tried.
        first_probe = self._first_probe
        for start in range(0, len(hits), MAX_BATCH_HITS):
            batch = hits[start : start + MAX_BATCH_HITS]
            try:
                stored += await self._recorder.write_spooled(
                    [hit for *_, hit in batch], others_stored=later_stored or stored > 0, first_probe=first_probe
                )
            except HitsRejected as error:
                rejected = error
                undecided.append(batch)
                continue
            await self._spool.delete([entry for _, _, entry, _ in batch])
        if rejected is not None and not stored:
            if len(entries) == WINDOW_ENTRIES:
                self._after = entries[-1][0]
            else:
                self._first_probe += MAX_PROBES
            raise rejected
        self._first_probe = 0
        # If the database has stored a hit of a later entry, the next steps write the rejected hits again, one window after the
        # other. Hits that are rejected again become dead letters.
        self._later_stored = (after is not None and stored > 0) or (later_stored and len(entries) == WINDOW_ENTRIES)
        for batch in undecided:
            await self._recorder.write_spooled([hit for *_, hit in batch], others_stored=True)
            await self._spool.delete([entry for _, _, entry, _ in batch])
        return len(entries)

    async def _recover(self, state: SpoolState | None) -> None:
        """Begin the recovery if the database accepts a transaction. End the outage when enough entries are drained.

        `state` is the state of the stream; None if Redis does not respond."""
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(DATABASE_CHECK_SECONDS):
                await self._database.write(_check)
        except (StoreUnavailable, TimeoutError) as error:
            self._recorder.relapse()
            raise StoreUnavailable(str(error)) from error
        if self._recorder.outage_state is OutageState.OUTAGE:
            self._recorder.begin_recovery()
            self._recovery_began_at, self._recovery_ends_with = now, None if state is None else state.last
        if state is None:
            # the last known number of hits, plus the hits that this process has added since then
            is_drained = not self._spool.depth
        else:
            if self._recovery_ends_with is None:  # Redis did not respond when the recovery began
                self._recovery_ends_with = state.last
            is_drained = not state.depth or state.first > self._recovery_ends_with
        if is_drained or now - self._recovery_began_at > MAX_CATCH_UP_SECONDS:
            if not is_drained:
                log.error("outage_ended_before_spool", hits=self._spool.depth, redis=state is not None)
            self._recorder.end_outage()


def _check(connection: Connection) -> None:
    connection.execute(text("SELECT 1"))
