"""The spool writer adds hits to the spool during an outage of the database, and sends the responses of these hits.

A response is sent when its hit is in the spool. Hits that arrive during a round trip to Redis are sent together in the next round
trip. A hit that the spool does not store stays in memory: either in the batch that contains it, or in the batcher.
"""
# Tested by tests/clicks/test_hit_spool.py

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence

import structlog

from shortener.clicks.early_resolver import EarlyResolver
from shortener.clicks.hit_spool import HitSpool
from shortener.clicks.hit_writer import MAX_BATCH_HITS
from shortener.clicks.recorder_totals import RecorderTotals
from shortener.clicks.waiting_hit import WaitingHit

log = structlog.get_logger(__name__)

CACHE_SECONDS = 2.0  # time limit for one look-up in the link cache; the Redis client usually gives up earlier
READ_SECONDS = 5.0  # time limit in seconds for one read-only query of links; a hit that becomes overdue does not wait for it
WARNING_INTERVAL_SECONDS = 1.0  # minimum time between two warnings of the same kind


class SpoolWriter:
    """Adds hits to the spool and sends their responses. `deadline` is the time in seconds after which the `Recorder` responds to
    a hit that is not stored. `keep` receives the hits that the spool did not store and that no batch contains. `spawn` runs a
    coroutine in the background."""

    def __init__(
        self,
        spool: HitSpool,
        resolver: EarlyResolver,
        totals: RecorderTotals,
        deadline: float,
        *,
        keep: Callable[[Sequence[WaitingHit]], None],
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._spool = spool
        self._resolver = resolver
        self._totals = totals
        self._deadline = deadline
        self._keep = keep
        self._spawn = spawn
        self._waiting: deque[WaitingHit] = deque()
        self._in_progress = 0  # number of hits that are being resolved or sent to Redis and are not in a batch too
        self._work = asyncio.Event()
        self._became_idle = asyncio.Event()
        self._next_warning_at = 0.0  # no further warning is logged before this time of the event loop

    def __len__(self) -> int:
        """Return the number of hits in the spool writer, including hits that are also in a batch."""
        return len(self._waiting) + self._in_progress

    @property
    def unrecorded(self) -> int:
        """Return the number of hits that are in the spool writer and nowhere else."""
        return sum(not (waiting.is_in_batcher or waiting.is_obsolete) for waiting in self._waiting) + self._in_progress

    def put(self, waiting: WaitingHit) -> None:
        """Queue one hit for the spool."""
        waiting.is_queued_for_spool = True
        self._waiting.append(waiting)
        self._work.set()

    async def flush(self) -> None:
        """Wait until the spool writer has no hits left."""
        while len(self):
            self._became_idle.clear()
            await self._became_idle.wait()

    async def run_once(self) -> None:
        """Wait for at least one hit, then process all hits that wait."""
        await self._work.wait()
        self._work.clear()
        while self._waiting:
            hits = [self._waiting.popleft() for _ in range(min(MAX_BATCH_HITS, len(self._waiting)))]
            hits = [waiting for waiting in hits if not waiting.is_obsolete]
            await self._counted(hits, self._process(hits))

    def _counted(self, hits: Sequence[WaitingHit], work: Coroutine[None, None, None]) -> Coroutine[None, None, None]:
        """Return a coroutine that runs `work`. Until it ends, `_in_progress` includes the hits."""
        own = sum(not waiting.is_in_batcher for waiting in hits)
        self._in_progress += own
        return self._run(hits, own, work)

    async def _run(self, hits: Sequence[WaitingHit], own: int, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception:  # the hits stay in memory after an unexpected error
            log.exception("spool_write_failed", hits=len(hits))
            self._keep_in_memory(hits)
        finally:
            self._in_progress -= own
            if not len(self):
                self._became_idle.set()

    async def _process(self, hits: Sequence[WaitingHit]) -> None:
        await self._resolver.from_cache(hits, CACHE_SECONDS)
        unresolved = [waiting for waiting in hits if waiting.resolution is None]
        await self._add([waiting for waiting in hits if waiting.resolution is not None])
        if unresolved:
            # This runs in the background: a database that does not respond must not delay hits whose links are in the cache.
            self._spawn(self._counted(unresolved, self._read_and_add(unresolved)))

    async def _read_and_add(self, hits: Sequence[WaitingHit]) -> None:
        await self._resolver.from_database(hits, READ_SECONDS)
        for waiting in hits:
            if waiting.resolution is None:
                waiting.refuse(ConnectionError("the link could not be read"))
        await self._add([waiting for waiting in hits if waiting.resolution is not None])
        self._keep_in_memory(hits)  # these hits already got a response, although this read did not find their links

    async def _add(self, hits: Sequence[WaitingHit]) -> None:
        """Add hits to the spool and send their responses. The hits must have a resolution."""
        to_spool = [waiting for waiting in hits if not waiting.is_obsolete]
        is_spooled = bool(to_spool) and await self.add_to_spool(to_spool)
        now = asyncio.get_running_loop().time() + self._deadline
        for waiting in hits:
            assert waiting.resolution is not None
            if waiting.respond(waiting.resolution):
                self._totals.late_responses += 1
                self._totals.seconds.observe(now - waiting.overdue_at)
        if to_spool and not is_spooled:
            self._keep_in_memory(to_spool)

    async def add_to_spool(self, hits: Sequence[WaitingHit]) -> bool:
        """Add the hits to the spool. Return False if the spool did not store all of them."""
        try:
            is_spooled = await self._spool.add([waiting.hit for waiting in hits])
        except Exception:  # one of the hits cannot be encoded; the database will reject it later
            log.exception("hits_not_spoolable")
            is_spooled = False
        if is_spooled:
            self._totals.spooled += len(hits)
            for waiting in hits:
                waiting.is_settled = True
        return is_spooled

    def _keep_in_memory(self, hits: Sequence[WaitingHit]) -> None:
        kept = [waiting for waiting in hits if not (waiting.is_obsolete or waiting.is_in_batcher)]
        if not kept:
            return
        now = asyncio.get_running_loop().time()
        if now >= self._next_warning_at:
            self._next_warning_at = now + WARNING_INTERVAL_SECONDS
            log.warning("hits_not_spooled", hits=len(kept))
        self._keep(kept)
