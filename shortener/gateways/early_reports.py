"""This module decides whether a gateway must repeat a delivery report whose message is unknown.

A report names a message by the id that the gateway assigned to it. The service knows this id when it has recorded the response to
the message. A report can arrive earlier. If its message is not found within REPORT_WAIT seconds, the service does not acknowledge
the report, so the gateway repeats it. When the repeated report arrives, its message is known.

A report can only be about an attempt that began before the report arrived. Therefore the gateway must repeat a report until the
leases of all attempts have ended that were in flight when the report first arrived. A response can also arrive after its attempt
has ended in doubt. Therefore the gateway must repeat a report for LATE_RESPONSE_SECONDS if an attempt ended in doubt shortly
before. After that time the report is acknowledged and counted as unknown. Otherwise, if another system also uses the gateway, the
gateway would repeat the reports about the messages of that system without end. A report that the gateway does not repeat is counted
as unknown after FORGET_SECONDS.

A step of the clock changes none of these times: a monotonic clock measures them, and no wait for a lease is longer than the
longest lease of the gateway. If the lease of an attempt has ended without an outcome, the process has died, or the clock moved
ahead. Then the gateway must repeat a report for LATE_RESPONSE_SECONDS, as after an attempt that ended in doubt.

The service remembers about MAX_REPORTS reports. If more reports arrive, it acknowledges them at once.
"""
# Tested by tests/gateways/test_early_reports.py

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select

from shortener.delivery.claims import LEASE_MARGIN_MS
from shortener.gateways.submission import GatewayReport
from shortener.ids import first_id_at
from shortener.model import Clock, mutable_record
from shortener.storage.database import Database
from shortener.storage.schema import gateways, send_attempts, sends
from shortener.storage.types import to_ms

MAX_REPORTS = 10_000
LATE_RESPONSE_SECONDS = 60
FORGET_SECONDS = 3600


class MessageNotKnownYet(Exception):
    """Raised if the message of a delivery report is unknown but may become known. The gateway must repeat the report."""


@mutable_record
class _EarlyReport:
    """The first arrival of reports with the same gateway and id. The gateway must repeat them until the time `until`. Both times
    are seconds of a monotonic clock."""

    arrived_at: float
    until: float
    is_counted: bool = False


class EarlyReports:
    """The reports of this process whose message is not known yet. `count_unknown` is called with the id of the gateway for each
    report that the gateway did not repeat. `default_timeout` is the time limit of an attempt in seconds, for gateways without their
    own limit. `monotonic` returns the seconds of a monotonic clock."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        count_unknown: Callable[[int], None],
        default_timeout: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._clock = clock
        self._default_timeout = default_timeout
        self._monotonic = monotonic
        self._count_unknown = count_unknown
        self._reports: dict[tuple[int, str], _EarlyReport] = {}  # the keys are results of `_key`; the oldest report is first

    async def must_repeat(self, gateway_id: int, reports: Iterable[GatewayReport]) -> bool:
        """Return whether a gateway must repeat a call whose reports are about unknown messages. Raise StoreUnavailable if the
        database is unavailable."""
        self.forget_old()
        keys = {key for report in reports if (key := _key(gateway_id, report)) is not None}
        new = [key for key in keys if key not in self._reports]
        now = self._monotonic()
        if new and len(self._reports) < MAX_REPORTS:
            wait = await self._database.read(find_wait, gateway_id, self._clock(), self._default_timeout)
            if wait is not None:
                until = now + wait.total_seconds()
                self._reports |= {key: _EarlyReport(now, until) for key in new if key not in self._reports}
        return any(now < self._reports[key].until for key in keys if key in self._reports)

    def found(self, gateway_id: int, report: GatewayReport) -> None:
        """Forget a report, because its message is known now."""
        if self._reports and (key := _key(gateway_id, report)) is not None:
            self._reports.pop(key, None)

    def counted(self, gateway_id: int, report: GatewayReport) -> None:
        """Record that a report was acknowledged and counted as unknown."""
        key = _key(gateway_id, report)
        if key is not None and key in self._reports:
            self._reports[key].is_counted = True

    def forget_old(self) -> None:
        """Forget the reports that arrived first more than FORGET_SECONDS ago. Count those that the gateway did not repeat."""
        oldest = self._monotonic() - FORGET_SECONDS
        while self._reports:
            key, first = next(iter(self._reports.items()))
            if first.arrived_at > oldest:
                return
            del self._reports[key]
            if not first.is_counted:
                self._count_unknown(key[0])


def _key(gateway_id: int, report: GatewayReport) -> tuple[int, str] | None:
    """Return the key of a report that names its message by the id that the gateway assigned to it; None for other reports, whose
    ids were known before the message was handed on."""
    if report.reference or not report.gateway_message_id:
        return None
    return gateway_id, report.gateway_message_id


def find_wait(connection: Connection, gateway_id: int, now: datetime, default_timeout: float) -> timedelta | None:
    """Return for how long a response of the gateway can still assign an id to a message. Return None if no attempt is in flight and
    no attempt ended in doubt shortly before. `default_timeout` is the time limit of an attempt in seconds, for a gateway without
    its own limit."""
    s, a, g = sends.c, send_attempts.c, gateways.c
    late = timedelta(seconds=LATE_RESPONSE_SECONDS)
    lease: datetime | None = connection.scalar(
        select(func.max(s.lease_until)).where(s.gateway_id == gateway_id, s.lease_until.is_not(None))
    )
    if lease is not None and lease <= now:
        return late
    in_doubt = (
        select(a.id)
        .join_from(send_attempts, sends, s.id == a.send_id)
        .where(
            a.id >= first_id_at(to_ms(now - late)),
            s.gateway_id == gateway_id,
            s.doubtful,
            s.gateway_message_id.is_(None),
        )
        .limit(1)
    )
    waits = [late] if connection.execute(in_doubt).first() is not None else []
    if lease is not None:
        # If the clock was set back, a lease ends too far in the future, so the wait is limited to the longest lease.
        timeout: float = connection.scalar(select(g.timeout).where(g.id == gateway_id)) or default_timeout
        waits.append(min(lease - now, timedelta(seconds=timeout, milliseconds=LEASE_MARGIN_MS)))
    return max(waits, default=None)
