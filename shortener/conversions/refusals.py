"""This module stores rejected conversion reports with the reason, so that an operator can find out why conversions are missing.

Some reports are accepted with a warning but do not change the conversion. They are stored in the same way, with the reason
NOT_APPLIED.

At most MAX_ROWS rejected reports are stored for each application, and the purge deletes them after 30 days. Credentials are
removed from the stored parameters.

Only a limited number of rejected reports of one application is stored per minute (redis/rate_limit.py), so that a sender in a
loop does not fill the database. With Redis, all processes share this limit. A report that is above the limit, or that the
database cannot store, is counted but not stored. Its sender gets the same response as for a stored report.
"""
# Tested by tests/conversions/test_refusals.py

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
import structlog
from sqlalchemy import Connection, delete, select

from shortener.conversions.metadata import storable_parameters
from shortener.conversions.parsing import MAX_ID_CHARACTERS
from shortener.errors import ApiError, Detail, StoreUnavailable
from shortener.ids import IdGenerator
from shortener.metrics import Metrics
from shortener.model import Clock, record
from shortener.redis.rate_limit import RateLimiter
from shortener.storage import schema
from shortener.storage.bulk import BulkInsert
from shortener.storage.database import Database
from shortener.storage.group_commit import GroupCommit
from shortener.storage.types import to_ms

MAX_ROWS = 10_000  # maximum number of rejected reports of one application; a few more exist until `trim` runs
TRIM_INTERVAL_ROWS = 200  # a process runs `trim` after it has stored this many rejected reports
MAX_DESCRIPTION_CHARACTERS = 500
#: The reason of a report that was accepted with a warning, but did not change the conversion.
NOT_APPLIED = "NOT_APPLIED"

log = structlog.get_logger(__name__)

_insert = BulkInsert(
    schema.refused_conversions,
    "id",
    "application_id",
    "received_at",
    "endpoint",
    "reason",
    "description",
    "details",
    "message_id",
    "parameters",
)


@record
class _Refusal:
    application_id: int
    received_at: datetime
    endpoint: str
    reason: str
    description: str
    details: Sequence[Detail]
    parameters: Mapping[str, Any]


class RefusedConversions:
    """A recorder that stores and counts rejected conversion reports."""

    def __init__(self, database: Database, ids: IdGenerator, clock: Clock, limiter: RateLimiter) -> None:
        self._ids = ids
        self._clock = clock
        self._group: GroupCommit[_Refusal, None, None] = GroupCommit(database, self._store)
        self._limiter = limiter
        # Already the first report of a process runs `trim`, so that `trim` also runs if the process restarts often.
        self._since_trim = TRIM_INTERVAL_ROWS
        self.counted: Counter[str] = Counter()
        self.not_stored = 0

    def register_metrics(self, metrics: Metrics) -> None:
        """Register the metrics that count rejected conversion reports."""
        metrics.counter(
            "shortener_conversions_refused",
            "Rejected reports of conversions, by error code. NOT_APPLIED: the report was accepted but had no effect.",
            lambda: {(reason,): count for reason, count in self.counted.items()},
            "reason",
        )
        metrics.counter(
            "shortener_conversions_refused_not_stored",
            "Rejected reports that were counted but not stored, because there were too many or the database was not available.",
            lambda: self.not_stored,
        )

    def count(self, error: ApiError) -> None:
        """Count a rejected report without storing it. Use this, for example, if its credential is unknown."""
        self.counted[error.code.name] += 1

    async def record(self, application_id: int, endpoint: str, error: ApiError, parameters: Mapping[str, Any]) -> None:
        """Store a rejected report. Return after the commit. Raise no error: a report that cannot be stored is only counted."""
        await self._record(application_id, endpoint, error.code.name, error.description, error.details, parameters)

    async def record_unapplied(self, application_id: int, endpoint: str, description: str, parameters: Mapping[str, Any]) -> None:
        """Store a report that was accepted but did not change the conversion. Like `record`, raise no error."""
        await self._record(application_id, endpoint, NOT_APPLIED, description, (), parameters)

    async def _record(
        self,
        application_id: int,
        endpoint: str,
        reason: str,
        description: str,
        details: Sequence[Detail],
        parameters: Mapping[str, Any],
    ) -> None:
        self.counted[reason] += 1
        now = self._clock()
        if self._limiter.take(application_id):
            self.not_stored += 1
            return
        refusal = _Refusal(application_id, now, endpoint, reason, description, details, storable_parameters(parameters))
        try:
            await self._group.submit(refusal)
        except StoreUnavailable:
            self.not_stored += 1
        except Exception:
            self.not_stored += 1
            log.exception("refused_conversion_not_stored")

    # `GroupCommit` calls the following method in a transaction.

    def _store(self, connection: Connection, items: Sequence[_Refusal]) -> tuple[list[Exception | None], None]:
        _insert(
            connection,
            [
                (
                    self._ids(),
                    item.application_id,
                    to_ms(item.received_at),
                    item.endpoint,
                    item.reason,
                    item.description[:MAX_DESCRIPTION_CHARACTERS],
                    orjson.dumps([detail.body() for detail in item.details[:20]]).decode(),
                    _text(item.parameters.get("message_id")),
                    orjson.dumps(item.parameters).decode(),
                )
                for item in items
            ],
        )
        self._since_trim += len(items)
        if self._since_trim >= TRIM_INTERVAL_ROWS:
            self._since_trim = 0
            for application_id in sorted({item.application_id for item in items}):
                trim(connection, application_id)
        return [None] * len(items), None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)[:MAX_ID_CHARACTERS]


def trim(connection: Connection, application_id: int, keep: int | None = None) -> int:
    """Keep the newest `keep` rejected reports of an application (default: MAX_ROWS). Return the number of deleted rows."""
    table = schema.refused_conversions
    of_application = table.c.application_id == application_id
    newest = select(table.c.id).where(of_application).order_by(table.c.id.desc())
    last = connection.scalar(newest.offset(MAX_ROWS if keep is None else keep).limit(1))
    if last is None:
        return 0
    return connection.execute(delete(table).where(of_application, table.c.id <= last)).rowcount
