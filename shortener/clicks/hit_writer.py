"""Writing hits to the database in batches, and retrying them until the database takes them.

A hit whose response was 503 is never written: a batch leaves it out, and a batch in which a hit is refused before its COMMIT runs
again without it. A batch that the database rejects as a whole (a table is missing, a constraint refuses every row) is kept and
retried like one that the database could not answer. A single hit that the database rejects, while it takes others, becomes a dead
letter. To tell the two apart, a transaction writes a test row and rolls back (`HitBatchWriter.probe`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from shortener.clicks.batch import BatchResult, HitBatchWriter, ProbePassed
from shortener.clicks.recorder_totals import RecorderTotals
from shortener.clicks.resolver import Hit
from shortener.clicks.waiting_hit import WaitingHit
from shortener.errors import StoreUnavailable
from shortener.storage.batcher import MAX_PROBES, Batcher, RetryTransaction
from shortener.storage.database import Database

log = structlog.get_logger(__name__)

MIN_BATCH_HITS, MAX_BATCH_HITS = 16, 1024


@dataclass(frozen=True, slots=True)
class _WrittenHits:
    """The hits that a transaction wrote, without the obsolete ones, and its result."""

    hits: Sequence[WaitingHit]
    result: BatchResult


class HitWriter:
    """Handles the batches of hits.

    `on_stored`: called after each batch. `on_unavailable`: receives the hits that the database did not take. `on_rejected`:
    stores hits as dead letters. `on_events`: called after a commit that wrote events.
    """

    def __init__(
        self,
        database: Database,
        transaction: HitBatchWriter,
        totals: RecorderTotals,
        *,
        on_stored: Callable[[], None],
        on_unavailable: Callable[[Sequence[WaitingHit]], None],
        on_rejected: Callable[[Sequence[WaitingHit]], Awaitable[None]],
        on_events: Callable[[], None],
    ) -> None:
        self._database = database
        self._transaction = transaction
        self._totals = totals
        self._on_stored = on_stored
        self._on_unavailable = on_unavailable
        self._on_rejected = on_rejected
        self._on_events = on_events
        self.batcher: Batcher[WaitingHit, _WrittenHits] = Batcher(
            database, self, min_items=MIN_BATCH_HITS, max_items=MAX_BATCH_HITS, gives_up_early=True
        )

    # The batch handler.

    def apply(self, connection: Connection, items: Sequence[WaitingHit], is_uncertain: bool) -> _WrittenHits:
        """Write the hits that are not obsolete. Runs in the thread of the transaction."""
        hits = [waiting for waiting in items if not (waiting.is_refused or waiting.is_settled)]
        if not hits:
            return _WrittenHits([], BatchResult([]))
        result = self._transaction.write(connection, [waiting.hit for waiting in hits], is_uncertain)
        for waiting in hits:
            if waiting.is_refused:  # while this transaction ran
                raise RetryTransaction
        return _WrittenHits(hits, result)

    def committed(self, items: Sequence[WaitingHit], result: _WrittenHits) -> None:
        totals, outcome = self._totals, result.result
        totals.batches += bool(result.hits)
        totals.recorded += outcome.recorded
        totals.first_clicks += outcome.first_clicks
        totals.unknown += outcome.unknown
        for waiting, resolution in zip(result.hits, outcome.resolutions, strict=True):
            if not waiting.response.done():
                waiting.response.set_result(resolution)
        self._on_stored()
        if outcome.events:
            self._on_events()

    async def unavailable(self, items: Sequence[WaitingHit], error: StoreUnavailable) -> Sequence[WaitingHit]:
        self._on_unavailable(items)
        return [waiting for waiting in items if not waiting.is_obsolete]

    async def rejected(self, failures: Sequence[tuple[WaitingHit, Exception]], stored: int) -> Sequence[WaitingHit]:
        failures = [(waiting, error) for waiting, error in failures if not waiting.is_obsolete]
        hits = [waiting for waiting, _ in failures]
        if not hits:
            return []
        if not await self._is_fault_of_hits(len(hits), stored):
            log.error("hits_rejected", hits=len(hits), exc_info=failures[0][1])
            return await self.unavailable(hits, StoreUnavailable(str(failures[0][1])))
        rejected = [waiting for waiting in hits if waiting.is_suspect]
        for waiting, error in failures:
            if waiting.is_suspect:
                log.error("hit_not_recordable", code=waiting.hit.code, exc_info=error)
            waiting.is_suspect = True  # the fault of the database may have ended meanwhile: the hit gets a second attempt
        if rejected:
            await self._on_rejected(rejected)
        return [waiting for waiting in hits if not waiting.is_obsolete]

    # Hits from the spool.

    async def write_spooled(self, hits: Sequence[Hit]) -> list[Hit]:
        """Write hits from the spool that are not stored yet; return those that the database rejects.

        Raises StoreUnavailable if the database cannot take any of them.
        """
        try:
            await self._write_late(hits)
        except StoreUnavailable:
            raise
        except Exception as batch_error:
            first_error = batch_error
        else:
            return []
        # A hit is rejected if it fails alone twice, and the database takes others each time: its fault may have ended in between.
        failures = [(hit, first_error) for hit in hits]
        for _ in range(2):
            failures = await self._write_each([hit for hit, _ in failures])
        for hit, error in failures:
            log.error("hit_not_recordable", code=hit.code, exc_info=error)
        return [hit for hit, _ in failures]

    async def _write_each(self, hits: Sequence[Hit]) -> list[tuple[Hit, Exception]]:
        """Write each hit alone and return the failures. Raises StoreUnavailable if the database takes no hits at all."""
        failures: list[tuple[Hit, Exception]] = []
        stored = 0
        for hit in hits:
            try:
                await self._write_late([hit])
            except StoreUnavailable:
                raise
            except Exception as own_error:
                failures.append((hit, own_error))
                if len(failures) >= MAX_PROBES and not stored:
                    break
            else:
                stored += 1
        if failures and not await self._is_fault_of_hits(len(failures), stored):
            _, first_error = failures[0]
            log.error("hits_rejected", hits=len(failures), exc_info=first_error)
            raise StoreUnavailable(str(first_error)) from first_error
        return failures

    async def _write_late(self, hits: Sequence[Hit]) -> None:
        for is_last in (False, True):
            try:
                outcome = await self._database.write(self._transaction.write, hits, True)
            except IntegrityError:
                if is_last:
                    raise
                continue  # another process wrote one of the hits since this one looked
            self._totals.recorded += outcome.recorded
            self._totals.first_clicks += outcome.first_clicks
            self._totals.drained += len(hits)
            if outcome.events:
                self._on_events()
            return

    async def _is_fault_of_hits(self, failed: int, stored: int) -> bool:
        """Return whether the database takes other hits than the `failed` ones. Otherwise this is an outage."""
        if stored:
            return True
        if failed >= MAX_PROBES:
            return False
        try:
            await self._database.write(self._transaction.probe)
        except ProbePassed:
            return True
        except Exception:
            return False
        raise AssertionError("a probe never commits")
