"""This module reads the delivery reports in the HTTP calls of gateways.

The settings of a gateway state which JSON members, or which parameters of the query and form, contain the id, the status and the
other parts of a report. A call may contain several reports. A report that cannot be read is counted by its reason and does not
affect the other reports of the call. A report with an invalid time, or without an optional part, is valid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from shortener.gateways import templates
from shortener.gateways.http import HttpSettings
from shortener.gateways.submission import GatewayReport
from shortener.gateways.unrecorded_reports import LossReason
from shortener.model import record
from shortener.times import parse_report_time

MAX_ITEMS = 1000  # At most this many reports of one call are recorded. Further reports are only counted.


@record
class ReportCall:
    """The delivery reports that a gateway sent in one call. `unreadable` maps each reason to the number of further reports in the
    call that cannot be recorded for this reason."""

    reports: Sequence[GatewayReport]
    unreadable: Mapping[LossReason, int]


def read_reports(
    settings: HttpSettings, parameters: Mapping[str, Any], data: Any, reference: str | None, now: datetime
) -> ReportCall:
    """Return the delivery reports in an HTTP request of a gateway. `parameters` are the parameters of the query and of a form.
    `data` is the JSON body or None. `reference` is the message reference in the URL path. A report without a status or without an
    id is unreadable."""
    items: Any = [data] if isinstance(data, dict) else data if isinstance(data, list) else [{}]
    if settings.report_items and isinstance(data, dict):
        items = templates.find_member(settings.report_items, data)
    if not isinstance(items, list):
        return ReportCall([], {LossReason.NO_LIST: 1})
    found: list[GatewayReport] = []
    unreadable: Counter[LossReason] = Counter()
    if len(items) > MAX_ITEMS:
        unreadable[LossReason.TOO_MANY] = len(items) - MAX_ITEMS
    for item in items[:MAX_ITEMS]:
        values = {name: _read(path, item, parameters) for name, path in settings.report_fields.items()}
        report = GatewayReport(
            word=values.get("status") or "",
            reference=reference or values.get("reference") or None,
            gateway_message_id=values.get("id") or None,
            message_id=values.get("message_id") or None,
            at=_time(values.get("timestamp"), now),
            error_code=values.get("error_code") or None,
            description=values.get("description") or None,
            price=values.get("price") or None,
        )
        if not report.word:
            unreadable[LossReason.NO_STATUS] += 1
        elif not (report.reference or report.gateway_message_id or report.message_id):
            unreadable[LossReason.NO_ID] += 1
        else:
            found.append(report)
    return ReportCall(found, unreadable)


def _read(path: str, item: Any, parameters: Mapping[str, Any]) -> str | None:
    value = templates.read_member(path, item)
    if value is None and path in parameters:
        value = str(parameters[path])
    return value[: templates.MAX_VALUE_CHARACTERS].strip() if value is not None else None


def _time(text: str | None, now: datetime) -> datetime | None:
    try:
        return parse_report_time(text, now) if text else None
    except ValueError:
        return None
