"""The period of a list or a statistic: `since` is included, `until` is excluded. A date as `until` includes that whole day."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Annotated, Any

from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema, field_validator

from shortener.web.endpoint import RequestModel

# No data is older or newer than this; a time outside is replaced by the nearest bound.
_MIN_TIME, _MAX_TIME = datetime(1970, 1, 2, tzinfo=UTC), datetime(2999, 12, 31, tzinfo=UTC)

_DATE = re.compile(r"\d{4}-\d\d-\d\d")
# The plus sign of a zone arrives as a space if the caller did not encode it in the query.
_ZONE_WITHOUT_PLUS = re.compile(r"(.+T.+\d) (\d\d:?\d\d)")


def _parse(value: Any) -> date:
    if isinstance(value, date):
        return value
    if not isinstance(value, str):
        raise ValueError("must be one time, not several")
    text = value.strip()
    if match := _ZONE_WITHOUT_PLUS.fullmatch(text):
        text = f"{match[1]}+{match[2]}"
    try:
        return date.fromisoformat(text) if _DATE.fullmatch(text) else datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("must be a date such as 2026-11-20, or a time in ISO 8601 such as 2026-11-20T12:00:00Z") from None


#: A date, or a time in ISO 8601. Without a zone it is in the time zone of the request, by default UTC.
DateOrTime = Annotated[
    date,  # datetime is a subclass of date
    PlainValidator(_parse),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "format": "date"}]}),
]


def start_of(moment: date, zone: tzinfo = UTC) -> datetime:
    """Return `moment` in UTC; a date means its first moment. `zone` applies to a date and to a time without a zone."""
    if not isinstance(moment, datetime):
        moment = datetime.combine(moment, time(), zone)
    elif moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    return min(max(moment, _MIN_TIME), _MAX_TIME).astimezone(UTC)


def end_of(moment: date, zone: tzinfo = UTC) -> datetime:
    """Return `moment` in UTC; a date means the end of its day. `zone` applies to a date and to a time without a zone."""
    if not isinstance(moment, datetime) and moment < _MAX_TIME.date():
        moment += timedelta(days=1)
    return start_of(moment, zone)


class Period(RequestModel):
    """Base class of queries with a period."""

    since: DateOrTime | None = Field(
        None,
        description="Start of the period, included. A date, or a time in ISO 8601 (UTC without a zone); a date means its first "
        "moment.",
    )
    until: DateOrTime | None = Field(
        None,
        description="End of the period, excluded. A date, or a time in ISO 8601 (UTC without a zone); a date includes the whole "
        "day.",
    )

    @field_validator("until")
    @classmethod
    def _check_order(cls, until: date | None, info: ValidationInfo) -> date | None:
        since = info.data.get("since")
        if since is not None and until is not None and start_of(since) >= end_of(until):
            raise ValueError("must be after since")
        return until
