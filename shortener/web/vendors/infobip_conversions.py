"""Infobip's calls for conversion tracking: they report the end of a conversion process, and return conversion rates.

Infobip writes times as 2026-11-20T12:00:00.000+0000.
"""
# Tested by tests/web/vendors/test_infobip.py

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from pydantic import Field

from shortener.conversions.parsing import END_ACTION, ConversionReport
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.reporting import conversion_processes
from shortener.reporting.conversion_processes import Granulation, ProcessCounts
from shortener.times import end_of, start_of
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.period import Period
from shortener.web.vendors.error_shapes import infobip_error
from shortener.web.vendors.infobip_times import serialize_infobip_time


class ConversionEndResponse(ResponseModel):
    """The key of the conversion process to which the message belongs."""

    processKey: str


async def log_end(call: Call[None, None]) -> ConversionEndResponse:
    """Record the end of the conversion process of a message."""
    service, message_id = call.service, call.path["messageId"]
    key = await service.database.read(conversion_processes.find_process_key, call.application_id, message_id)
    try:
        if key is None:
            raise ApiError(ErrorCode.MESSAGE_NOT_FOUND)
        report = ConversionReport(at=service.clock(), message_id=message_id, action=END_ACTION)
        await service.conversions.ingest(call.application_id, report)
    except ApiError as error:
        parameters = {"message_id": message_id, "action": END_ACTION}
        await service.refused_conversions.record(call.application_id, "POST /ct/1/log/end", error, parameters)
        raise
    return ConversionEndResponse(processKey=key)


class ConversionRateQuery(Period):
    """The query of the call that returns conversion rates. If `since` is absent, the period begins 24 hours before its end. If
    `intervalGranulation` is absent, the whole period is one interval."""

    aggrType: Literal["byCountry"] | None = Field(
        None,
        description="byCountry: the response contains a rate for each country in each interval. Default: one rate per interval.",
    )
    intervalGranulation: Granulation | None = Field(
        None,
        description=(
            f"Length of an interval, in UTC. Weeks start on Monday. MINUTE means 15 minutes. At most "
            f"{conversion_processes.MAX_INTERVALS} intervals."
        ),
    )


class CumulativeRate(ResponseModel):
    """The conversion rate of the whole period."""

    startCount: int = Field(
        description="Number of messages of the conversion process that were rewritten in the period or interval."
    )
    endCount: int = Field(
        description="Number of messages whose conversion process was reported as ended in the period or interval."
    )
    conversionRate: float = Field(description="Conversion rate: endCount divided by startCount. 0 if startCount is 0.")


class IntervalRate(CumulativeRate):
    """The conversion rate of one interval."""

    intervalStart: str


class CountryRate(IntervalRate):
    """The conversion rate of one country in one interval."""

    country: str | None = Field(
        description="Country of the recipients' phone numbers as ISO 3166 code. null: the country is unknown."
    )


class ConversionRateResponse(ResponseModel):
    """Conversion rates of a process by interval, oldest first. If there are rates by country, the country with the most messages
    comes first in each interval."""

    statistics: list[IntervalRate | CountryRate]
    cumulativeStatistics: CumulativeRate


async def conversion_rate(call: Call[ConversionRateQuery, None]) -> dict[str, Any]:
    """Return the conversion rate of a conversion process for each interval, and for the whole period."""
    query, service = call.query, call.service
    process_id = await service.database.read(conversion_processes.find_process, call.application_id, call.path["processKey"])
    if process_id is None:
        raise ApiError(ErrorCode.NOT_FOUND, "There is no conversion process with this key in the application.")
    # A period does not include its end. Therefore the end is one millisecond after now, so that events of the current millisecond
    # are included.
    until = service.clock() + timedelta(milliseconds=1) if query.until is None else end_of(query.until)
    since = until - timedelta(hours=24) if query.since is None else start_of(query.since)
    try:
        intervals = conversion_processes.split_interval(since, until, query.intervalGranulation)
    except ValueError as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("intervalGranulation", str(error))]) from None
    rates = await service.database.read(conversion_processes.conversion_rates, process_id, [within for _, within in intervals])
    statistics: list[dict[str, Any]] = []
    for (begins, _), by_country in zip(intervals, rates, strict=True):
        start = {"intervalStart": serialize_infobip_time(begins)}
        if query.aggrType is None:
            statistics.append({**start, **_rate_fields(ProcessCounts.total(by_country.values()))})
        else:
            ordered = sorted(by_country.items(), key=lambda item: (-item[1].starts, item[0]))
            statistics += [{**start, "country": country or None, **_rate_fields(rate)} for country, rate in ordered]
    total = ProcessCounts.total(rate for by_country in rates for rate in by_country.values())
    return {"statistics": statistics, "cumulativeStatistics": _rate_fields(total)}


def _rate_fields(rate: ProcessCounts) -> dict[str, Any]:
    return {"startCount": rate.starts, "endCount": rate.ends, "conversionRate": rate.conversion_rate}


_TAG = "Conversion processes"

ENDPOINTS = [
    Endpoint(
        "POST",
        "/ct/1/log/end/{messageId:path}",
        log_end,
        "Report the end of a message's conversion process (Infobip)",
        _TAG,
        permission="sms.send",
        error_shape=infobip_error,
        is_report=True,
        response=ConversionEndResponse,
        errors=(ErrorCode.MESSAGE_NOT_FOUND, ErrorCode.CONVERSION_CONFLICT),
        description=f"Records one conversion with the action `{END_ACTION}`. A repeat gets the same response. Messages with "
        "the same `tracking` belong to the same conversion process. All messages without `tracking` belong to one further "
        "process.",
    ),
    Endpoint(
        "GET",
        "/ct/1/processes/{processKey}/conversionrate",
        conversion_rate,
        "Conversion rate of a process (Infobip)",
        _TAG,
        permission="sms.read",
        error_shape=infobip_error,
        query=ConversionRateQuery,
        response=ConversionRateResponse,
        description="A message counts in `startCount` at the time when it is rewritten, and in `endCount` at the time when "
        "the end of its process is reported. The time slots of 15 minutes that contain `since` and `until` are included "
        "completely.",
    ),
]
