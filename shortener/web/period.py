"""The time that a list or a statistic is asked for: `since` is included, `until` is not, a date as `until` means that whole day."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Annotated, Any

from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema, field_validator

from shortener.web.endpoint import Model

# Outside of these nothing ever happened; a time that is, is taken as the nearest one.
_FIRST, _LAST = datetime(1970, 1, 2, tzinfo=UTC), datetime(2999, 12, 31, tzinfo=UTC)

_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_LOST_PLUS = re.compile(r"(.+T.+\d) (\d\d:?\d\d)")


def _parse(value: Any) -> date:
    if isinstance(value, date):
        return value
    if not isinstance(value, str):
        raise ValueError("wants one time, not several")
    text = value.strip()
    if lost := _LOST_PLUS.fullmatch(text):
        text = f"{lost[1]}+{lost[2]}"  # the + of a zone, sent in a query without being encoded, arrives as a space
    try:
        return date.fromisoformat(text) if _DATE.fullmatch(text) else datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("wants a date such as 2026-11-20, or ISO 8601 such as 2026-11-20T12:00:00Z") from None


#: ISO 8601; without a zone, or as a date, in the zone of the question (UTC if it has none).
Moment = Annotated[
    date,  # a datetime is one too
    PlainValidator(_parse),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "format": "date"}]}),
]


def start_of(moment: date, zone: tzinfo = UTC) -> datetime:
    if not isinstance(moment, datetime):
        moment = datetime.combine(moment, time(), zone)
    elif moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    return min(max(moment, _FIRST), _LAST).astimezone(UTC)


def end_of(moment: date, zone: tzinfo = UTC) -> datetime:
    """As `start_of`, but a date ends with its last moment."""
    if not isinstance(moment, datetime) and moment < _LAST.date():
        moment += timedelta(days=1)
    return start_of(moment, zone)


class Period(Model):
    since: Moment | None = Field(
        None, description="From this time on. ISO 8601, without a zone in UTC; a date is its first moment."
    )
    until: Moment | None = Field(None, description="Before this time. As `since`; a date includes the whole day.")

    @field_validator("until")
    @classmethod
    def _in_order(cls, until: date | None, info: ValidationInfo) -> date | None:
        since = info.data.get("since")
        if since is not None and until is not None and start_of(since) >= end_of(until):
            raise ValueError("is not after since")
        return until
