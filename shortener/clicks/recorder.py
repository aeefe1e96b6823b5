"""Recording hits: group commit, and what happens while the store is away.

Hits that arrive while a commit is running form the next batch, which is one transaction (`record.HitBatchWriter`). Under load
the cost of
a commit is shared; at rest a hit waits for nobody.

Promises. A landing is given out once its hit is durable. If the store does not take the hit within `deadline` seconds, the
redirect goes on from the link cache or a plain read, and the hit waits in memory (at most `waiting_limit` of them, counted by
`unrecorded`) and is written, with its own time, when the store is back. If the code cannot even be read, `StoreUnavailable` is
raised, and the hit, which was never answered, is not kept.

With a spool (Redis), a store that refuses a batch, or does not take it in time, is in an `outage`: from then on hits go to the
spool at once, and their landings out when they are there; memory is for what the spool does not take. `spool.SpoolDrainer`
writes them
later and ends the outage.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from shortener.clicks import queries
from shortener.clicks.batch import BatchResult, HitBatchWriter
from shortener.clicks.client_address import shorten_address
from shortener.clicks.resolver import UNKNOWN_LINK, Hit, LinkDirectory, LinkResolver, Resolution
from shortener.clicks.verdicts.contextual_rules import RULES as CIRCUMSTANCES
from shortener.clicks.verdicts.request_rules import RULES
from shortener.errors import StoreUnavailable
from shortener.ids import ClickIds, IdGenerator
from shortener.metrics import Metrics
from shortener.model import Verdict
from shortener.redis.link_cache import LinkCache, NoLinkCache
from shortener.storage.database import Database
from shortener.storage.rounds import Rounds

if TYPE_CHECKING:
    from shortener.clicks.hit_spool import HitSpool

log = structlog.get_logger(__name__)

LEAST, BATCH = 16, 1024  # hits of a commit, as far as there are any
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between attempts of a batch that the store did not take
_QUIET = 1.0  # seconds between two warnings of the same thing


class PendingResponse(Protocol):
    """Who waits for a landing: a future, or something that answers there and then. Its setters raise nothing."""

    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def exception(self) -> BaseException | None: ...
    def set_result(self, resolution: Resolution, /) -> None: ...
    def set_exception(self, error: StoreUnavailable, /) -> None: ...


@dataclass(slots=True)
class _WaitingHit:
    hit: Hit
    resolution: PendingResponse
    overdue_at: float  # loop time
    sent_on: bool = False  # somebody looks after its landing, without the store's commit
    spooled: bool = False  # durable in the spool: memory need not hold it


@dataclass(slots=True)
class RecorderTotals:
    """For /metrics, since the process began."""

    recorded: int = 0
    first_clicks: int = 0
    batches: int = 0
    late_answers: int = 0  # redirects that did not wait for the store
    spooled: int = 0
    drained: int = 0
    dropped: int = 0  # hits given up because too many were waiting
    unknown: int = 0
    verdicts: dict[tuple[Verdict, str], int] = field(  # hits that were answered, by verdict and rule
        default_factory=lambda: dict.fromkeys((*RULES, *((Verdict.SUSPECTED, name) for name in CIRCUMSTANCES)), 0)
    )
    answers: dict[int, int] = field(default_factory=dict)  # of the redirect, by status


class Recorder:
    def __init__(
        self,
        database: Database,
        ids: IdGenerator,
        click_ids: ClickIds,
        directory: LinkDirectory,
        *,
        deadline: float,
        waiting_limit: int,
        on_events: Callable[[], None],
        cache: LinkCache | None = None,
        spool: HitSpool | None = None,
    ) -> None:
        self._database = database
        self._directory = directory
        self._resolver = LinkResolver(directory, click_ids)
        self._record = HitBatchWriter(ids, self._resolver, directory)
        self._deadline = deadline
        self._waiting_limit = waiting_limit
        self._on_events = on_events
        self._cache = cache or NoLinkCache()
        self._spool = spool
        self.outage = False
        self._rounds: Rounds[_WaitingHit] = Rounds(self._write, least=LEAST, limit=BATCH, idle=self._look_idle)
        self._rounds.hold()
        self._aside: deque[_WaitingHit] = deque()  # came during an outage
        self._going: list[_WaitingHit] = []  # on their way to the spool
        self._wake_aside = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._quiet_until = 0.0  # loop time of the next warning
        self._tasks: set[asyncio.Task[None]] = set()
        self.totals = RecorderTotals()

    @property
    def unrecorded(self) -> int:
        """Hits in memory that no commit holds yet."""
        return len(self._rounds) + len(self._aside) + len(self._going)

    def register_metrics(self, metrics: Metrics) -> None:
        """Show the totals on /metrics."""
        totals = self.totals
        metrics.counter(
            "shortener_redirects",
            "Answers to requests for a code, by status.",
            lambda: {(str(status),): count for status, count in totals.answers.items()},
            "status",
        )
        metrics.counter(
            "shortener_hits",
            "Hits on links, by verdict and the rule that gave it.",
            lambda: {(verdict.api_name, rule): count for (verdict, rule), count in totals.verdicts.items()},
            "verdict",
            "rule",
        )
        metrics.counter("shortener_hits_recorded", "Hits that are durable.", lambda: totals.recorded)
        metrics.gauge("shortener_hits_unrecorded", "Hits in memory that no commit holds yet.", lambda: self.unrecorded)
        metrics.counter("shortener_hits_dropped", "Hits given up, most because too many were waiting.", lambda: totals.dropped)
        metrics.counter("shortener_hits_unknown", "Requests for codes that no link has.", lambda: totals.unknown)
        metrics.counter("shortener_hit_batches", "Commits that hits shared.", lambda: totals.batches)
        metrics.counter("shortener_first_clicks", "Messages that moved to CLICKTHRU.", lambda: totals.first_clicks)
        metrics.gauge("shortener_store_outage", "1 while hits go to the spool.", lambda: self.outage)
        metrics.counter("shortener_hits_spooled", "Hits that the spool took for the store.", lambda: totals.spooled)
        metrics.counter("shortener_hits_drained", "Hits that were written from the spool.", lambda: totals.drained)
        metrics.counter("shortener_late_answers", "Redirects that did not wait for the store.", lambda: totals.late_answers)

    def start(self) -> None:
        self._rounds.start()
        self._spawn(self._answer_overdue())
        if self._spool is not None:
            self._spawn(self._set_aside())

    async def record(self, hit: Hit) -> Resolution:
        """Where the hit leads, once it is durable (see the module's promises). Raises StoreUnavailable."""
        resolution: asyncio.Future[Resolution] = asyncio.get_running_loop().create_future()
        if self.take(hit, resolution):
            return await resolution
        self.totals.dropped += 1
        return (await self._read([hit]))[0]

    def take(self, hit: Hit, resolution: PendingResponse) -> bool:
        """The same for who is told. False: too many hits wait, and this one was not taken."""
        waiting = _WaitingHit(hit, resolution, asyncio.get_running_loop().time() + self._deadline)
        if self.outage:
            self._aside.append(waiting)
            self._wake_aside.set()
        elif self._rounds.waiting < self._waiting_limit:
            self._rounds.put_one(waiting)
        else:
            return False
        self._idle.clear()
        return True

    async def write_late(self, hits: Sequence[Hit]) -> None:
        """Write hits that the spool kept, leaving out those that are stored already. Raises StoreUnavailable."""
        for last in (False, True):
            try:
                outcome = await self._database.write(self._record.write, hits, True)
            except StoreUnavailable:
                raise
            except IntegrityError as error:  # written by another process since this one looked
                fault: Exception = error
                if not last:
                    continue
            except Exception as error:
                fault = error
            else:
                self.totals.recorded += outcome.recorded
                self.totals.first_clicks += outcome.first_clicks
                self.totals.drained += len(hits)
                if outcome.events:
                    self._on_events()
                return
            break
        if len(hits) > 1:
            for hit in hits:
                await self.write_late([hit])
        else:
            log.error("hit_not_recordable", code=hits[0].code, exc_info=fault)
            self.totals.dropped += 1

    def end_outage(self) -> None:
        """The store takes hits again."""
        self.outage = False
        log.warning("store_back", unrecorded=self.unrecorded)

    async def flush(self) -> None:
        """Return when nothing waits any more."""
        await self._idle.wait()

    async def stop(self, grace: float) -> None:
        """Write what waits, for at most `grace` seconds."""
        try:
            await asyncio.wait_for(self._idle.wait(), grace)
        except TimeoutError:
            log.error("hits_lost_at_shutdown", hits=self.unrecorded)
        await self._rounds.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _look_idle(self) -> None:
        if not (len(self._rounds) or self._rounds.batches or self._aside or self._going):
            self._idle.set()

    async def _write(self, batch: list[_WaitingHit]) -> None:
        """Write one batch, however long that takes; answer those that still wait."""
        pause = _FIRST_PAUSE
        again = False
        while True:
            try:
                outcome = await self._database.write(self._record_batch, batch, again)
            except StoreUnavailable:
                if not batch:
                    self._rounds.take(batch)
                # The commit may have arrived all the same (a connection lost at the wrong moment): look before writing again.
                again = True
                if self._spool is not None:
                    await self._begin_outage(batch)
            except Exception as error:
                if not any(waiting.spooled for waiting in batch):
                    await self._isolate(batch, error)
                    return
                # The drainer was faster.
                again = True
            else:
                self._done(batch, outcome)
                return
            if not self._shed(batch):
                return
            await asyncio.sleep(pause)  # the store is away
            pause = min(pause * 2, _LONGEST_PAUSE)
            if not self._shed(batch):
                return

    def _shed(self, batch: list[_WaitingHit]) -> bool:
        """Let go of hits that the spool holds, and of those that nobody could be sent on for: they were never answered and are
        no clicks. Returns whether any are left."""
        batch[:] = [waiting for waiting in batch if not waiting.spooled and not _is_refused(waiting)]
        return bool(batch)

    async def _isolate(self, batch: list[_WaitingHit], error: Exception) -> None:
        """A fault of ours with one hit must not hold up the others: each goes alone, and the one is let go, loudly."""
        if len(batch) != 1:
            for waiting in batch:
                await self._write([waiting])
            return
        log.error("hit_not_recordable", code=batch[0].hit.code, exc_info=error)
        self.totals.dropped += 1
        await self._send_on([waiting for waiting in batch if not waiting.sent_on])

    def _done(self, batch: list[_WaitingHit], outcome: BatchResult) -> None:
        totals = self.totals
        totals.batches += bool(batch)
        totals.recorded += outcome.recorded
        totals.first_clicks += outcome.first_clicks
        totals.unknown += len(batch) - outcome.recorded
        for waiting, resolution in zip(batch, outcome.resolutions, strict=True):
            if not waiting.resolution.done():
                waiting.resolution.set_result(resolution)
        if outcome.events:
            self._on_events()

    async def _answer_overdue(self) -> None:
        """Send people on whose hit the store did not take in time."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            overdue = [w for w in self._rounds.all() if w.overdue_at <= now and not w.resolution.done() and not w.sent_on]
            if overdue and self._spool is not None:
                await self._begin_outage(self._rounds.taken())
            else:
                await self._send_on(overdue)
            oldest = next((w for w in self._rounds.all() if not w.resolution.done() and not w.sent_on), None)
            # Nobody who comes meanwhile is overdue before this one.
            await asyncio.sleep(self._deadline if oldest is None else max(0.005, oldest.overdue_at - loop.time()))

    async def _begin_outage(self, batch: Sequence[_WaitingHit]) -> None:
        """The store is away, and nobody waits for it any longer. `batch`: what it was given and did not take."""
        if not self.outage:
            self.outage = True
            log.warning("store_outage", unrecorded=self.unrecorded)
        # Those that were sent on already stay: they are in memory because the spool did not take them.
        self._aside.extend(self._rounds.withdraw(lambda waiting: not waiting.sent_on))
        self._wake_aside.set()
        await self._send_on([waiting for waiting in batch if not waiting.sent_on])

    async def _set_aside(self) -> None:
        """Bring the hits of an outage to the spool; those that arrive during a round trip go together with the next one."""
        while True:
            await self._wake_aside.wait()
            self._wake_aside.clear()
            while self._aside:
                self._going = [self._aside.popleft() for _ in range(min(BATCH, len(self._aside)))]
                await self._send_on(self._going, keep=True)
                self._going = []
            self._look_idle()

    async def _send_on(self, waiting: Sequence[_WaitingHit], *, keep: bool = False) -> None:
        """Send people on without the store's commit: from the cache, else from a plain read; the hits go to the spool.

        `keep`: they are nowhere else in memory."""
        if not waiting:
            return
        for one in waiting:
            one.sent_on = True
        cached = await self._cache.find({one.hit.code for one in waiting})
        known = [one for one in waiting if one.hit.code in cached]
        if known:
            hit_policies = self._directory.hit_policies
            await self._go_on(known, [self._resolver.resolve(one.hit, cached[one.hit.code], hit_policies) for one in known], keep)
        if len(known) < len(waiting):
            # Not waited for: a database that hangs must not hold up those that are known.
            self._spawn(self._read_and_go_on([one for one in waiting if one.hit.code not in cached], keep))

    async def _read_and_go_on(self, waiting: Sequence[_WaitingHit], keep: bool) -> None:
        try:
            resolutions = await asyncio.wait_for(self._read([one.hit for one in waiting]), self._deadline)
        except (StoreUnavailable, TimeoutError) as error:
            for one in waiting:
                if not one.resolution.done():
                    one.resolution.set_exception(StoreUnavailable(str(error)))
            return
        await self._go_on(waiting, resolutions, keep)

    async def _go_on(self, waiting: Sequence[_WaitingHit], resolutions: Sequence[Resolution], keep: bool) -> None:
        stricter = self._directory.hit_policies.ip_privacy
        hits: list[Hit] = []
        for one, resolution in zip(waiting, resolutions, strict=True):
            if resolution is not UNKNOWN_LINK:
                hits.append(one.hit)
                if (privacy := stricter.get(resolution.application_id)) is not None:
                    one.hit.address = shorten_address(one.hit.address, privacy)
        spooled = bool(hits) and await self._is_spooled(hits)
        if spooled:
            self.totals.spooled += len(hits)
        elif asyncio.get_running_loop().time() >= self._quiet_until:
            self._quiet_until = asyncio.get_running_loop().time() + _QUIET
            log.warning("redirects_without_the_store", hits=len(hits), unrecorded=self.unrecorded)
        for one, resolution in zip(waiting, resolutions, strict=True):
            one.spooled = spooled or resolution is UNKNOWN_LINK
            if not one.resolution.done():
                one.resolution.set_result(resolution)
                self.totals.late_answers += 1
        if keep and not spooled:
            room = max(self._waiting_limit - len(self._rounds), 0)
            kept = [one for one in waiting if not one.spooled]
            self._rounds.put(kept[:room])
            self.totals.dropped += len(kept[room:])
            self._idle.clear()

    async def _is_spooled(self, hits: Sequence[Hit]) -> bool:
        try:
            return self._spool is not None and await self._spool.add(hits)
        except Exception:  # a fault of ours with one hit: memory holds them, and the store tells which
            log.exception("hits_not_spoolable")
            return False

    async def _read(self, hits: Sequence[Hit]) -> list[Resolution]:
        targets = await self._database.read(queries.find_links, {hit.code for hit in hits})
        hit_policies = self._directory.hit_policies
        return [self._resolver.resolve(hit, targets.get(hit.code), hit_policies) for hit in hits]

    def _record_batch(self, connection: Connection, batch: list[_WaitingHit], again: bool) -> BatchResult:
        """In the transaction."""
        if not batch:
            self._rounds.take(batch)
        return self._record.write(connection, [waiting.hit for waiting in batch], again) if batch else BatchResult([])


def _is_refused(waiting: _WaitingHit) -> bool:
    resolution = waiting.resolution
    return resolution.done() and not resolution.cancelled() and resolution.exception() is not None
