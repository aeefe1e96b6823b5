"""The hit writer writes hits to the database in batches, and retries each batch until the database accepts it.

A hit whose client got the response 503 is never stored, and a batch leaves it out. If a client gets 503 while a batch with its
hit runs, the batch is rolled back and runs again without this hit. From the COMMIT on, the client cannot get 503: the destination
of its hit is known, so the client gets a redirect.

The database may reject hits for two reasons. If it rejects every hit (a table is missing, or a constraint rejects every row), the
batch is retried, as in an outage. If it rejects one hit but accepts others, the hit becomes a dead letter. To distinguish the two
cases, a transaction writes test rows and rolls back (`HitBatchWriter.probe`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from shortener.clicks import queries
from shortener.clicks.batch import BatchResult, HitBatchWriter, ProbePassed
from shortener.clicks.queries import LinkRow
from shortener.clicks.recorder_totals import RecorderTotals
from shortener.clicks.resolver import Hit
from shortener.clicks.user_agents import has_expressions, load_expressions
from shortener.clicks.waiting_hit import WaitingHit
from shortener.errors import StoreUnavailable
from shortener.ids import IdGenerator
from shortener.model import record
from shortener.storage.batcher import MAX_PROBES, Batcher, RetryTransaction
from shortener.storage.database import Database, is_unique_violation

log = structlog.get_logger(__name__)

MIN_BATCH_HITS, MAX_BATCH_HITS = 16, 1024


@record
class _WrittenHits:
    """The hits that a transaction has written, and the result of the batch. Obsolete hits (`WaitingHit.is_obsolete`) are not
    included."""

    hits: Sequence[WaitingHit]
    result: BatchResult


class HitsRejected(StoreUnavailable):
    """Raised if the database accepts test rows, but rejects MAX_PROBES hits of a batch one after another and stores none. If the
    database later stores a hit of another batch, the rejected hits are faulty. Otherwise the cause may be an outage."""


class HitWriter:
    """A writer that stores batches of hits in the database. `ids` generates a new id for a hit if another row already has its id.
    `deadline` is the number of seconds after which the `Recorder` responds to a hit that is not stored. `on_stored` is called
    after each batch. `on_unavailable` receives the hits that the database could not store. `on_rejected` receives each rejected
    hit with its error, and stores it as a dead letter. `on_events` is called after a commit that wrote events."""

    def __init__(
        self,
        database: Database,
        transaction: HitBatchWriter,
        totals: RecorderTotals,
        ids: IdGenerator,
        *,
        deadline: float,
        on_stored: Callable[[], None],
        on_unavailable: Callable[[Sequence[WaitingHit]], None],
        on_rejected: Callable[[Sequence[tuple[WaitingHit, Exception]]], Awaitable[None]],
        on_events: Callable[[], None],
        on_links: Callable[[Mapping[str, LinkRow]], None] | None = None,
    ) -> None:
        self._database = database
        self._deadline = deadline
        self._transaction = transaction
        self._totals = totals
        self._ids = ids
        # the task that loads the expressions with which the user agents of late hits are parsed
        self._loading: asyncio.Task[None] | None = None
        self.is_failing = False  # true if the database could not store the last batch
        self._on_stored = on_stored
        self._on_unavailable = on_unavailable
        self._on_rejected = on_rejected
        self._on_events = on_events
        self._on_links = on_links
        self.batcher: Batcher[WaitingHit, _WrittenHits] = Batcher(
            database, self, min_items=MIN_BATCH_HITS, max_items=MAX_BATCH_HITS, gives_up_early=True
        )

    # The batcher calls the following methods for a batch.

    def apply(self, connection: Connection, items: Sequence[WaitingHit], is_uncertain: bool) -> _WrittenHits:
        """Write all hits that are not obsolete. This method runs in the thread of the transaction."""
        hits = [waiting for waiting in items if not (waiting.is_refused or waiting.is_settled)]
        if not hits:
            return _WrittenHits([], BatchResult([]))
        # The database has already rejected a hit with `is_suspect`. If the hit is also in the spool, another process may have
        # stored it.
        is_uncertain = is_uncertain or any(waiting.is_suspect for waiting in hits)
        result = self._transaction.write(connection, [waiting.hit for waiting in hits], is_uncertain)
        for waiting, resolution in zip(hits, result.resolutions, strict=True):
            waiting.written = resolution  # from now on the client never gets 503, because the hit may be committed
            if waiting.is_refused:  # leave the hit out, because its client got 503 while this transaction ran
                waiting.written = None
                raise RetryTransaction
        return _WrittenHits(hits, result)

    def committed(self, items: Sequence[WaitingHit], result: _WrittenHits) -> None:
        self.is_failing = False
        totals, outcome = self._totals, result.result
        totals.batches += bool(result.hits)
        totals.recorded += outcome.recorded
        totals.not_stored += outcome.not_stored
        totals.first_clicks += outcome.first_clicks
        totals.unknown += outcome.unknown
        observe, now = totals.seconds.observe, asyncio.get_running_loop().time() + self._deadline
        for waiting, resolution in zip(result.hits, outcome.resolutions, strict=True):
            if not waiting.response.done():
                waiting.response.set_result(resolution)
                observe(now - waiting.overdue_at)
        self._on_stored()
        if outcome.events:
            self._on_events()
        if self._on_links is not None:
            self._on_links(outcome.links)

    async def unavailable(self, items: Sequence[WaitingHit], error: StoreUnavailable) -> Sequence[WaitingHit]:
        self.is_failing = True
        self._on_unavailable(items)
        # A hit that waits for the database may become a late hit. The transaction that stores a late hit parses its user agent
        # (device_counts.py). The expressions for this are loaded now, so that the transaction does not wait for them.
        if self._loading is None and not has_expressions():
            self._loading = asyncio.create_task(load_expressions())
        return [waiting for waiting in items if not waiting.is_obsolete]

    async def rejected(self, failures: Sequence[tuple[WaitingHit, Exception]], stored: int) -> Sequence[WaitingHit]:
        failures = [(waiting, error) for waiting, error in failures if not waiting.is_obsolete]
        hits = [waiting for waiting, _ in failures]
        if not hits:
            return []
        if not await self._is_fault_of_hits(len(hits), stored):
            log.error("hits_rejected", hits=len(hits), exc_info=failures[0][1])
            return await self.unavailable(hits, StoreUnavailable(str(failures[0][1])))
        rejected = [(waiting, error) for waiting, error in failures if waiting.is_suspect]
        clashes = [waiting for waiting, error in failures if is_unique_violation(error) and not waiting.is_suspect]
        if clashes and not await self._renew_ids([waiting.hit for waiting in clashes]):
            return await self.unavailable(hits, StoreUnavailable("the ids of rejected hits could not be read"))
        for waiting, error in failures:
            if waiting.is_suspect:
                log.error("hit_not_recordable", code=waiting.hit.code, exc_info=error)
            waiting.is_suspect = True  # the fault of the database may have ended, so the hit gets a second attempt
        if rejected:
            await self._on_rejected(rejected)
        return [waiting for waiting in hits if not waiting.is_obsolete]

    async def _renew_ids(self, hits: Sequence[Hit]) -> bool:
        """Give a new id to each hit whose id may belong to a row of another process. Hits that are already stored keep their ids.

        Return False if the database does not respond."""
        try:
            stored = await self._database.read(queries.find_stored_hits, hits)
        except StoreUnavailable:
            return False
        for hit in hits:
            if hit.id not in stored:
                new = self._ids()
                log.warning("hit_id_clash", id=hit.id, new=new)
                hit.id = new
                self._totals.id_clashes += 1
        return True

    # The following methods write hits from the spool.

    async def write_spooled(
        self, hits: Sequence[Hit], *, others_stored: bool = False, first_probe: int = 0
    ) -> tuple[int, list[tuple[Hit, Exception]]]:
        """Write the hits from the spool that are not stored yet. Return the number of newly stored hits, and a list of (rejected
        hit, error). `others_stored` is true if the database stored other hits just before this call.

        If the database rejects the batch, the hits are written one by one, beginning at the index `first_probe` (modulo the
        number of hits). If MAX_PROBES of them fail and none is stored, this method stops. The caller can then call it again with
        another `first_probe`, so that other hits are tried.

        Raise HitsRejected, a subclass of StoreUnavailable, if the database accepts test rows but not these hits. Raise
        StoreUnavailable if the database accepts no hits at all."""
        try:
            return await self._write_missing(hits), []
        except StoreUnavailable:
            raise
        except Exception as batch_error:
            first_error = batch_error
        # A hit counts as rejected only if it failed twice, each time alone in its transaction, while the database accepts other
        # hits. A single failure may have another cause: a fault of the database that has ended.
        failures = [(hit, first_error) for hit in hits]
        stored = int(others_stored)
        begin = first_probe % max(len(hits), 1)
        failures = [*failures[begin:], *failures[:begin]]
        for is_first in (True, False):
            stored, failures = await self._write_each([hit for hit, _ in failures], stored)
            clashes = [hit for hit, error in failures if is_unique_violation(error)]
            if is_first and clashes and not await self._renew_ids(clashes):
                raise StoreUnavailable("the ids of rejected hits could not be read")
        for hit, error in failures:
            log.error("hit_not_recordable", code=hit.code, exc_info=error)
        return stored - others_stored, failures

    async def _write_each(self, hits: Sequence[Hit], stored: int) -> tuple[int, list[tuple[Hit, Exception]]]:
        """Write each hit in its own transaction. `stored` is the number of hits that earlier calls have stored. Return the new
        total, and the failed hits with their errors. Raise the same errors as `write_spooled`."""
        failures: list[tuple[Hit, Exception]] = []
        was_accepted = stored > 0
        for hit in hits:
            try:
                is_stored = await self._write_missing([hit]) > 0
            except StoreUnavailable:
                raise
            except Exception as own_error:
                failures.append((hit, own_error))
                if len(failures) >= MAX_PROBES and not stored:
                    break
            # A transaction inserts no row if the hit is already stored, or if no link has its code. Such a transaction does not
            # show that the database accepts hits.
            else:
                stored += is_stored
                was_accepted = was_accepted and not is_stored
        if failures and not await self._is_fault_of_hits(len(failures), stored, needs_probe=was_accepted):
            _, first_error = failures[0]
            log.error("hits_rejected", hits=len(failures), exc_info=first_error)
            is_undecided = len(failures) >= MAX_PROBES and not stored and await self._accepts_test_rows()
            raise (HitsRejected if is_undecided else StoreUnavailable)(str(first_error)) from first_error
        return stored, failures

    async def _write_missing(self, hits: Sequence[Hit]) -> int:
        """Write the hits that are not stored yet, in one transaction. Return the number of newly stored hits."""
        await load_expressions()
        for is_last in (False, True):
            try:
                outcome = await self._database.write(self._transaction.write, hits, True)
            except IntegrityError:
                if is_last:
                    raise
                continue  # another process has just stored one of the hits
            self._totals.recorded += outcome.recorded
            self._totals.not_stored += outcome.not_stored
            self._totals.first_clicks += outcome.first_clicks
            self._totals.drained += len(hits)
            if outcome.events:
                self._on_events()
            return outcome.inserted
        raise AssertionError("the second attempt returns or raises")

    async def _is_fault_of_hits(self, failed: int, stored: int, *, needs_probe: bool = False) -> bool:
        """Return whether hits that the database did not store are themselves faulty. They are faulty if the database accepts
        other hits. If it accepts none, the cause may be an outage, and the result is False.

        `failed` is the number of these hits, and `stored` is the number of hits that the database has just stored. If no hit was
        stored and fewer than MAX_PROBES failed, test rows are written. `needs_probe` is true if some time has passed since the
        other hits were stored. An outage may have begun in this time, so test rows are written too."""
        if stored and not needs_probe:
            return True
        if failed >= MAX_PROBES and not stored:
            return False
        return await self._accepts_test_rows()

    async def _accepts_test_rows(self) -> bool:
        """Return whether the database accepts the statements of a batch with test rows."""
        try:
            await self._database.write(self._transaction.probe)
        except ProbePassed:
            return True
        except Exception:
            return False
        raise AssertionError("a probe never commits")
