"""This module reads the period of a list or of statistics from a query. The period includes `since` and excludes `until`. If
`until` is a date, the period includes that whole day."""
# Tested by tests/web/test_messages.py

from __future__ import annotations

from datetime import date, datetime, tzinfo
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo, WithJsonSchema, field_validator

from shortener.times import end_of, parse_iso, start_of, time_zone
from shortener.web.endpoint import RequestModel


def _parse(value: Any) -> date:
    if isinstance(value, date):
        return value
    if not isinstance(value, str):
        raise ValueError("must be one time, not several")
    return parse_iso(value)


#: A date, or a time in ISO 8601. A value without a zone is in the time zone of the parameter `tz`, by default UTC.
DateOrTime = Annotated[
    date,  # `_parse` returns a date or a datetime. A datetime is also a date, because its class is a subclass of date.
    PlainValidator(_parse),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "format": "date"}]}),
]


def _check_time_zone(name: str) -> str:
    time_zone(name)
    return name


#: The type of the parameter `tz`.
TimeZoneName = Annotated[
    str,
    AfterValidator(_check_time_zone),
    Field(
        max_length=64,
        description="Time zone, for example Europe/Berlin. It applies to the days and hours of statistics, and to dates and times "
        "in the request that have no zone.",
    ),
]


class Period(RequestModel):
    """Base class of queries with a period."""

    tz: TimeZoneName = "UTC"  # `zone` must be the first field, because the validation of `until` needs its value

    since: DateOrTime | None = Field(
        None,
        description="Start of the period, included: a time in ISO 8601, or a date, which means the start of the day. A value "
        "without a zone is in the time zone `tz`.",
    )
    until: DateOrTime | None = Field(
        None,
        description="End of the period, excluded: a time in ISO 8601, or a date, which means the end of the day. A value "
        "without a zone is in the time zone `tz`.",
    )

    @property
    def zone(self) -> tzinfo:
        """The time zone that applies to dates and times without a zone."""
        return time_zone(self.tz)

    def limits(self) -> tuple[datetime | None, datetime | None]:
        """Return the start (included) and the end (excluded) of the period; None for a limit that the query does not have."""
        zone = self.zone
        since = None if self.since is None else start_of(self.since, zone)
        until = None if self.until is None else end_of(self.until, zone)
        return since, until

    @field_validator("until")
    @classmethod
    def _check_order(cls, until: date | None, info: ValidationInfo) -> date | None:
        since, zone = info.data.get("since"), time_zone(info.data.get("tz", "UTC"))
        if since is not None and until is not None and start_of(since, zone) >= end_of(until, zone):
            raise ValueError("must be after since")
        return until
