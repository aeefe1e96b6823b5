"""The column types for times, amounts of money and JSON values. They store the same values on SQLite and PostgreSQL. The module
also contains the type of rows."""

# Tested by tests/storage/test_database.py

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any

import orjson
from sqlalchemy import BigInteger, Dialect, Row, Text
from sqlalchemy.types import TypeDecorator

#: The type of a row that a query returns, whatever its columns are.
AnyRow = Row[*tuple[Any, ...]]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def to_ms(at: datetime) -> int:
    """Return the milliseconds since 1970 of an aware datetime."""
    return (at - _EPOCH) // _MILLISECOND


def from_ms(ms: int) -> datetime:
    """Return the UTC time of milliseconds since 1970."""
    return _EPOCH + ms * _MILLISECOND


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime, stored as milliseconds since 1970."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else to_ms(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else from_ms(value)


class Money(TypeDecorator[Decimal]):
    """A Decimal, stored as text. Sums are computed in Python, never in floating point."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> str | None:
        return None if value is None else format(value, "f")

    def process_result_value(self, value: str | None, dialect: Dialect) -> Decimal | None:
        return None if value is None else Decimal(value)


class Json(TypeDecorator[Any]):
    """A JSON value, stored as text. None is stored as NULL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else orjson.dumps(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else orjson.loads(value)


def _iso(utc: datetime, timespec: str) -> str:
    """Return a UTC time as ISO 8601 without its zone. The year always has four digits. `strftime` does not guarantee this."""
    return utc.isoformat(timespec=timespec)[:-6]


@lru_cache(maxsize=4096)
def _iso_second(second: int) -> str:
    return _iso(from_ms(second * 1000), "seconds")


def iso_of_ms(ms: int | None) -> str | None:
    """Return `to_iso(from_ms(ms))`. The text of each whole second is cached, so the function is fast if many times are close to
    each other."""
    if ms is None:
        return None
    second, rest = divmod(ms, 1000)
    return f"{_iso_second(second)}.{rest:03d}Z" if rest else f"{_iso_second(second)}Z"


def iso_with_ms(ms: int) -> str:
    """Return milliseconds since 1970 as ISO 8601 in UTC with a Z. The text always contains milliseconds."""
    second, rest = divmod(ms, 1000)
    return f"{_iso_second(second)}.{rest:03d}Z"


def to_iso(at: datetime | None) -> str | None:
    """Return the time as ISO 8601 in UTC with a Z. The year has four digits. The text contains milliseconds unless they are 0."""
    if at is None:
        return None
    utc = at.astimezone(UTC)
    return _iso(utc, "milliseconds" if utc.microsecond >= 1000 else "seconds") + "Z"
