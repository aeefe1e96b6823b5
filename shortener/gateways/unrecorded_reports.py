"""This module counts the delivery reports of gateways that were not recorded, by gateway and reason, and logs them.

A gateway gets the same response for such a report as for a recorded report. Otherwise the gateway would repeat the report without
end. So only the counts and the log show that the settings of a gateway do not match its reports. Each process counts from its
start. For each gateway and reason, a process writes at most one log line in LOG_INTERVAL.
"""
# Tested by tests/gateways/test_reports.py and tests/web/test_gateway_reports.py

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from shortener.metrics import Metrics
from shortener.model import Clock

log = structlog.get_logger(__name__)

LOG_INTERVAL = timedelta(minutes=1)


class LossReason(enum.StrEnum):
    """Why a delivery report of a gateway was not recorded."""

    NO_LIST = "no_list"  # `report_items` does not name a list in the body
    NO_STATUS = "no_status"
    NO_ID = "no_id"
    TOO_MANY = "too_many"  # a call had more than MAX_ITEMS reports
    UNREADABLE_RECEIPT = "unreadable_receipt"  # an SMPP receipt without an id or a state
    UNKNOWN_MESSAGE = "unknown_message"
    UNKNOWN_WORD = "unknown_word"


class UnrecordedReports:
    """The counts of the delivery reports that this process did not record."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: Counter[tuple[int, LossReason]] = Counter()
        # By (gateway id, reason): the time of the latest log line, and the number of reports up to that time.
        self._logged: dict[tuple[int, LossReason], tuple[datetime, int]] = {}

    def register_metrics(self, metrics: Metrics, before_reading: Callable[[], None] = lambda: None) -> None:
        """Register the metric of reports that were not recorded. `before_reading` is called before each reading of the metric, so
        that it can count further reports."""

        def read() -> dict[tuple[str, ...], float]:
            before_reading()
            return {(str(gateway_id), reason.value): count for (gateway_id, reason), count in self._counts.items()}

        metrics.counter(
            "shortener_gateway_reports_unknown",
            "Delivery reports that were not recorded, by id of the gateway and reason: no_list, no_status, no_id, too_many, "
            "unreadable_receipt, unknown_message or unknown_word.",
            read,
            "gateway",
            "reason",
        )

    def count(self, gateway_id: int, reason: LossReason, number: int = 1) -> None:
        """Count reports of a gateway that were not recorded. The caller writes the log line."""
        self._counts[gateway_id, reason] += number

    def count_and_log(self, gateway_id: int, reason: LossReason, number: int = 1) -> None:
        """Count reports of a gateway that were not recorded. If the latest log line is older than LOG_INTERVAL, write a new line
        with the number of reports since then."""
        self.count(gateway_id, reason, number)
        key, now = (gateway_id, reason), self._clock()
        logged_at, logged = self._logged.get(key, (None, 0))
        if logged_at is not None and timedelta() <= now - logged_at < LOG_INTERVAL:
            return
        self._logged[key] = now, self._counts[key]
        reports = self._counts[key] - logged
        log.warning("gateway_report_not_recorded", gateway=gateway_id, reason=reason.value, reports=reports)

    def of_gateway(self, gateway_id: int) -> dict[LossReason, int]:
        """Return the number of reports of a gateway that this process did not record, by reason."""
        return {reason: self._counts[gateway_id, reason] for reason in LossReason if (gateway_id, reason) in self._counts}
