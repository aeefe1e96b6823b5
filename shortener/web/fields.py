"""Field types that several requests share."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, WithJsonSchema


def _no_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("cannot hold the character NUL")
    return value


#: Text that is stored: PostgreSQL has no NUL.
Text = Annotated[str, AfterValidator(_no_nul)]

#: A number, a name or `channel:ID`. What a sample was pasted with around it is no part of it.
Sender = Annotated[Text, AfterValidator(str.strip), Field(max_length=100)]


def _as_decimal(value: Any) -> Any:
    """A number of JSON was read as a float; its shortest spelling is what the caller wrote."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("wants a decimal such as 0.0095")
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        raise ValueError("wants a decimal such as 0.0095") from None
    if not amount.is_finite() or abs(amount) >= 10**12 or (exponent := amount.as_tuple().exponent) is None or int(exponent) < -8:
        raise ValueError("wants at most 12 digits before the point and 8 after it")
    return amount


#: A price, exact; given as a decimal string or a JSON number.
Price = Annotated[
    Decimal,
    BeforeValidator(_as_decimal),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": r"^-?\d{1,12}(\.\d{1,8})?$"}, {"type": "number"}]}),
]

METADATA_LIMIT = 4096  # bytes of JSON


def check_metadata(value: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError unless it is flat and small."""
    for name, one in value.items():
        if isinstance(one, dict | list):
            raise ValueError(f"{name!r} is not flat: only text, numbers, booleans and null")
    packed = orjson.dumps(value)
    if len(packed) > METADATA_LIMIT:
        raise ValueError(f"is {len(packed)} bytes of JSON, at most {METADATA_LIMIT} are kept")
    if b"\\u0000" in packed:
        raise ValueError("cannot hold the character NUL")
    return value


#: A flat object that is kept and echoed.
Metadata = Annotated[
    dict[str, str | int | float | bool | None],
    AfterValidator(check_metadata),
]


def _assume_utc(value: Any) -> Any:
    if isinstance(value, str):
        try:
            parsed = datetime.fromisoformat(value)
        except ValueError:
            return value
        return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    return value


#: A point in time, ISO 8601; without a zone it is UTC.
Time = Annotated[AwareDatetime, BeforeValidator(_assume_utc)]
