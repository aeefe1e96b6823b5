"""The recorder receives each hit, passes it to the objects that store hits, and sends the response to the client.

The batcher (`hit_writer`) writes a hit in the next transaction, and the response is sent after the commit. Under load, many hits
share one commit. On an idle server, a hit does not wait for other hits.

If the database does not store a hit within `deadline` seconds, the response is sent before the commit. The destination is then
read from the link cache, or from the database (`early_resolver`, `overdue`). The hit waits in memory and is written later, with
the time of its arrival. At most `waiting_limit` hits wait. While the database stores hits quickly, the hits of the two batches in
flight do not count towards this limit. If the link can be read neither from the cache nor from the database, the client gets 503
at most `RESPONSE_GRACE_SECONDS` after the deadline, and the hit is not stored.

With a spool (Redis), the recorder enters an outage (`outage`) when the database does not store a batch in time. During an outage,
hits are stored in the spool, and a response is sent when its hit is in the spool (`spool_writer`). If the spool does not store a
hit, the hit stays in memory. Later, `spool_drainer` writes the hits of the spool to the database and ends the outage.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial

import structlog

from shortener.clicks import dead_letters
from shortener.clicks.batch import HitBatchWriter
from shortener.clicks.cache_restorer import CacheRestorer
from shortener.clicks.dead_letters import DeadLetter
from shortener.clicks.early_resolver import EarlyResolver
from shortener.clicks.hit_spool import HitSpool
from shortener.clicks.hit_writer import MAX_BATCH_HITS, HitWriter
from shortener.clicks.outage import Outage, OutageState
from shortener.clicks.overdue import OverdueQueue
from shortener.clicks.recorder_totals import RecorderTotals
from shortener.clicks.resolver import Hit, LinkDirectory, LinkResolver, Resolution
from shortener.clicks.spool_writer import SpoolWriter
from shortener.clicks.waiting_hit import PendingResponse, WaitingHit
from shortener.ids import ClickIds, IdGenerator
from shortener.jobs import TaskSupervisor
from shortener.metrics import Metrics
from shortener.model import Clock, utcnow
from shortener.redis.link_cache import LinkCache, NoLinkCache
from shortener.storage.batcher import MAX_IN_FLIGHT
from shortener.storage.database import Database

log = structlog.get_logger(__name__)

RESPONSE_GRACE_SECONDS = 0.5  # maximum time between the deadline of a hit and its response
_GROUP_SECONDS = 0.05  # hits that become overdue within this time get their responses together
# if the oldest hit has waited for more than this share of the deadline, the database counts as slow (see `_has_room`)
_SLOW_PART = 0.25
_SPOOL_SECONDS = 0.1  # how long the response to an overdue hit waits for the spool to store the hit
# Time limits for finding the link of an overdue hit: the first for the link cache, the second for the database, which is read
# afterwards. RESPONSE_GRACE_SECONDS must be longer than the sum of _GROUP_SECONDS, _SPOOL_SECONDS and these two limits.
_CACHE_SECONDS, _READ_SECONDS = 0.1, 0.2


class Recorder:
    """A recorder of hits. It passes each hit to the batcher or to the spool, and sends the response. `deadline` is the number of
    seconds after which a response is sent, even if its hit is not stored yet. `on_events` is called after a commit that wrote
    events. `ignored_limit` and `suspected_limit` are passed to `HitBatchWriter`, and `trusted_ms` to `LinkResolver`."""

    def __init__(
        self,
        database: Database,
        ids: IdGenerator,
        click_ids: ClickIds,
        directory: LinkDirectory,
        *,
        deadline: float,
        waiting_limit: int,
        ignored_limit: int = 0,
        suspected_limit: int = 0,
        on_events: Callable[[], None],
        cache: LinkCache | None = None,
        spool: HitSpool | None = None,
        supervisor: TaskSupervisor | None = None,
        clock: Clock = utcnow,
        trusted_ms: Callable[[int], int] = lambda at: at,
    ) -> None:
        resolver = LinkResolver(directory, click_ids, trusted_ms)
        self._deadline = deadline
        self._waiting_limit = waiting_limit
        # If fewer hits than this wait in the batcher, the limit `waiting_limit` cannot be reached, even if the batches in flight
        # are full.
        self._sure_room = max(waiting_limit - MAX_IN_FLIGHT * MAX_BATCH_HITS, 0)
        self._spool = spool
        self._database = database
        self._clock = clock
        self.totals = RecorderTotals()
        self._outage = Outage()
        self._overdue = OverdueQueue()
        self._resolver = EarlyResolver(database, cache or NoLinkCache(), directory, resolver)
        self._writer = HitWriter(
            database,
            HitBatchWriter(ids, resolver, directory, ignored_limit, suspected_limit),
            self.totals,
            ids,
            deadline=deadline,
            on_stored=self._overdue.discard_done,
            on_unavailable=self._begin_outage,
            on_rejected=self._store_rejected,
            on_events=on_events,
            on_links=None if cache is None or isinstance(cache, NoLinkCache) else CacheRestorer(cache, self._spawn).add,
        )
        self._batcher = self._writer.batcher
        self._batcher.pause()
        self._spool_writer: SpoolWriter | None = None
        if spool is not None:
            self._spool_writer = SpoolWriter(spool, self._resolver, self.totals, deadline, keep=self._keep, spawn=self._spawn)
        # Hits for which there was no room, because the maximum number of hits was already in memory.
        self._overflow: list[WaitingHit] = []
        self._refused = 0  # the number of hits whose clients got 503, and which may still be in the batcher
        self._supervisor = supervisor or TaskSupervisor()
        self._loops: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def unrecorded(self) -> int:
        """Return the number of hits in memory that are not stored yet."""
        in_batches = sum(not waiting.is_obsolete for waiting in self._batcher.taken_items())
        return self._batcher.waiting + in_batches + (self._spool_writer.unrecorded if self._spool_writer is not None else 0)

    @property
    def outage(self) -> bool:
        """Return whether the spool receives the hits, because the database is unavailable."""
        return self._outage.uses_spool

    @property
    def is_failing(self) -> bool:
        """Return whether the last attempt to store the waiting hits failed."""
        return self.outage or (self._writer.is_failing and self.unrecorded > 0)

    @property
    def outage_state(self) -> OutageState:
        return self._outage.state

    def register_metrics(self, metrics: Metrics) -> None:
        """Register the metrics of the recorder."""
        self.totals.register_metrics(metrics, lambda: self.unrecorded, lambda: self.outage)

    def start(self) -> None:
        """Start writing hits. Hits that arrived before the start are written now."""
        self._batcher.resume()
        self._loops.append(self._supervisor.start("overdue", partial(_repeat, self._respond_to_overdue)))
        if self._spool_writer is not None:
            self._loops.append(self._supervisor.start("spool_writer", partial(_repeat, self._spool_writer.run_once)))

    async def record(self, hit: Hit) -> Resolution:
        """Record a hit. Return its resolution when the hit is stored or overdue. Raise StoreUnavailable if no resolution could be
        found."""
        response: asyncio.Future[Resolution] = asyncio.get_running_loop().create_future()
        if self.take(hit, response):
            return await response
        self._overflow.append(WaitingHit(hit, response, 0.0))
        if len(self._overflow) == 1:
            self._spawn(self._respond_to_overflow())
        return await response

    def take(self, hit: Hit, response: PendingResponse) -> bool:
        """Record a hit and send `response` later. If too many hits wait, do nothing and return False."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        waiting = WaitingHit(hit, response, loop.time() + self._deadline)
        writer = self._spool_writer
        if writer is not None and self._outage.uses_spool:
            if len(self._batcher) + len(writer) >= self._waiting_limit:
                return False
            waiting.is_in_batcher = False
            writer.put(waiting)
        elif self._batcher.waiting < self._sure_room or self._has_room(waiting.overdue_at):
            self._batcher.put(waiting)
        else:
            return False
        self._overdue.append(waiting)
        return True

    def _has_room(self, overdue_at: float) -> bool:
        """Return whether the batcher may take a new hit, which becomes overdue at `overdue_at` (time of the event loop).

        It may take the hit while fewer than `waiting_limit` hits wait. While the database stores hits quickly, the hits of the
        two batches in flight do not count, so that no hits of a burst are dropped. If the oldest hit has waited for more than a
        quarter of the deadline, the database may have stopped, and the hits in flight count too."""
        if self._batcher.waiting >= self._waiting_limit:
            return False
        oldest = self._overdue.next_at()
        is_slow = self._writer.is_failing or (oldest is not None and overdue_at - oldest > self._deadline * _SLOW_PART)
        return not is_slow or len(self._batcher) < self._waiting_limit

    async def write_spooled(self, hits: Sequence[Hit], *, others_stored: bool = False, first_probe: int = 0) -> int:
        """Write the hits from the spool that are not stored yet. Hits that the database rejects become dead letters. Return the
        number of newly stored hits, without dead letters. For `others_stored` and `first_probe`, see `HitWriter.write_spooled`.

        Raise the same errors as `HitWriter.write_spooled`. The hits must then stay in the spool."""
        stored, rejected = await self._writer.write_spooled(hits, others_stored=others_stored, first_probe=first_probe)
        if rejected:
            await self.store_dead_letters([dead_letters.from_hit(hit, dead_letters.reason_of(error)) for hit, error in rejected])
            self.totals.dead_letters += len(rejected)
        return stored

    async def store_dead_letters(self, letters: Sequence[DeadLetter]) -> None:
        """Write dead letters to their table. Raise StoreUnavailable if the database is unavailable."""
        await self._database.write(dead_letters.store, letters, self._clock())

    def begin_recovery(self) -> None:
        """Begin the recovery from an outage, after the database has accepted a transaction again."""
        self._outage.begin_recovery()

    def relapse(self) -> None:
        """Return to the state of an outage, after the database has failed again during the recovery."""
        self._outage.relapse()

    def end_outage(self) -> None:
        """End the outage. New hits are written to the database again."""
        self._outage.begin_recovery()
        self._outage.end()

    async def flush(self) -> None:
        """Wait until no hit waits in memory."""
        while len(self._batcher) or self._batcher.in_flight or (self._spool_writer is not None and len(self._spool_writer)):
            await self._batcher.flush()
            if self._spool_writer is not None:
                await self._spool_writer.flush()

    async def stop(self, grace: float) -> None:
        """Write the waiting hits, for at most `grace` seconds. Then the hits that are still in memory are lost, and their number
        is logged."""
        try:
            async with asyncio.timeout(grace):
                await self.flush()
        except TimeoutError:
            if hits := self.unrecorded:
                log.error("hits_lost_at_shutdown", hits=hits)
        await self._batcher.stop()
        tasks = [*self._loops, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _begin_outage(self, in_batch: Sequence[WaitingHit]) -> None:
        """Begin an outage: add the hits of the failed batch and all waiting hits to the spool."""
        writer = self._spool_writer
        if writer is None:
            return
        self._outage.begin()
        for waiting in in_batch:
            if not waiting.is_queued_for_spool:
                writer.put(waiting)
        # Each hit is queued for the spool only once. Hits that were queued before stay in the batcher.
        for waiting in self._batcher.withdraw(lambda waiting: not waiting.is_queued_for_spool):
            waiting.is_in_batcher = False
            writer.put(waiting)

    def _keep(self, hits: Sequence[WaitingHit]) -> None:
        """Put hits that the spool did not store back into the batcher, up to the limit of hits in memory. The others are lost."""
        room = max(self._waiting_limit - len(self._batcher), 0)
        for waiting in hits[:room]:
            waiting.is_in_batcher = True
        self._batcher.put_all(hits[:room])
        for waiting in hits[room:]:
            waiting.is_settled = True
        self.totals.dropped += len(hits[room:])

    async def _respond_to_overdue(self) -> None:
        """Take the hits that are overdue now, and send their responses in the background. If there are none, wait until the next
        hit becomes overdue."""
        loop = asyncio.get_running_loop()
        overdue = self._overdue.pop_overdue(loop.time())
        if overdue:
            self._spawn(self._respond_early(overdue))
            await asyncio.sleep(_GROUP_SECONDS)
            return
        next_at = self._overdue.next_at()
        # A hit that arrives during this pause becomes overdue only after the pause.
        await asyncio.sleep(self._deadline if next_at is None else max(next_at - loop.time(), 0.001))

    async def _respond_early(self, overdue: Sequence[WaitingHit]) -> None:
        if self._spool_writer is not None and not all(waiting.is_queued_for_spool for waiting in overdue):
            self._begin_outage(self._batcher.taken_items())
            # Usually, the spool stores the hits during this pause, and the spool writer sends the responses.
            await asyncio.sleep(_SPOOL_SECONDS)
        await self._respond_now([waiting for waiting in overdue if not waiting.response.done()])

    async def _respond_now(self, open_hits: Sequence[WaitingHit]) -> None:
        """Send the responses to these hits. The client of a hit gets 503 if the link of the hit cannot be found in time."""
        try:
            await self._resolver.resolve(open_hits, _CACHE_SECONDS, _READ_SECONDS)
        finally:
            now = asyncio.get_running_loop().time() + self._deadline
            for waiting in open_hits:
                self.totals.seconds.observe(now - waiting.overdue_at)
                if waiting.resolution is not None:
                    self.totals.late_responses += waiting.respond(waiting.resolution)
                else:
                    waiting.refuse(TimeoutError("neither the database nor the link cache responded in time"))
                    self._refused += waiting.is_refused
            self._forget_refused()

    def _forget_refused(self) -> None:
        """If the clients of at least half of the hits in the batcher got 503, remove the hits of these clients from the batcher.
        Each removal examines all hits. Removing many at once keeps the cost per hit constant."""
        if self._refused and self._refused * 2 >= self._batcher.waiting:
            self._batcher.withdraw(lambda waiting: waiting.is_obsolete)
            self._refused = 0

    async def _respond_to_overflow(self) -> None:
        """Send the responses to the hits for which there was no room in memory. One read finds the links of all these hits. The
        hits are lost if the spool does not store them."""
        await asyncio.sleep(_GROUP_SECONDS)
        hits, self._overflow = self._overflow, []
        try:
            await self._resolver.resolve(hits, _CACHE_SECONDS, _READ_SECONDS)
            to_store = [waiting for waiting in hits if waiting.resolution is not None and not waiting.is_settled]
            is_spooled = False
            if to_store and self._spool_writer is not None and self.outage:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._deadline):
                        is_spooled = await self._spool_writer.add_to_spool(to_store)
            self.totals.dropped += 0 if is_spooled else len(to_store)
        finally:
            for waiting in hits:
                if waiting.resolution is not None:
                    waiting.respond(waiting.resolution)
                else:
                    waiting.refuse(TimeoutError("too many hits wait, and the link could not be read in time"))

    async def _store_rejected(self, failures: Sequence[tuple[WaitingHit, Exception]]) -> None:
        """Store the hits that the database rejected as dead letters: in the table of dead letters or, if that fails, in Redis.
        Then send the responses to these hits."""
        hits = [waiting for waiting, _ in failures]
        await self._resolver.resolve(hits, _CACHE_SECONDS, _READ_SECONDS)
        letters = [
            # Without a resolution, it is unknown which application the hit belongs to, and whether this application permits the
            # service to store addresses.
            dead_letters.from_hit(waiting.hit, dead_letters.reason_of(error), has_address=waiting.resolution is not None)
            for waiting, error in failures
        ]
        for waiting in hits:
            waiting.is_settled = True
        self.totals.dead_letters += len(letters)
        try:
            await self.store_dead_letters(letters)
        except Exception:
            log.exception("dead_letters_not_stored", hits=len(letters))
            if self._spool is None or not await self._spool.add_dead_letters(letters):
                self.totals.dropped += len(letters)
        await self._respond_now([waiting for waiting in hits if not waiting.response.done()])


async def _repeat(step: Callable[[], Awaitable[None]]) -> None:
    """Run `step` repeatedly until the task is cancelled."""
    while True:
        await step()
