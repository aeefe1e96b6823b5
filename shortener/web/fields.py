"""This module contains the field types that several request models share."""
# Tested by tests/web/test_validation.py

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, WithJsonSchema

from shortener.times import parse_iso, to_utc
from shortener.urls import trim_url


def _reject_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not contain the character NUL")
    return value


#: The type of a text that is stored. It must not contain the character NUL, which PostgreSQL cannot store.
Text = Annotated[str, AfterValidator(_reject_nul)]

#: The type of a URL in a request. White space and invisible characters around it are removed.
UrlText = Annotated[Text, AfterValidator(trim_url)]


def number_as_text(value: Any) -> Any:
    """Return an integer as text, and any other value unchanged."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


#: The sender of a message: a number, a name or `channel:ID`. Spaces around it are removed. A JSON number is converted to text.
Sender = Annotated[
    Text,
    BeforeValidator(number_as_text),
    AfterValidator(str.strip),
    Field(max_length=100),
    WithJsonSchema({"anyOf": [{"type": "string", "maxLength": 100}, {"type": "integer"}]}),
]

#: An id of the caller's systems, which events contain. A JSON number is converted to text.
RequestId = Annotated[
    Text,
    Field(max_length=100),
    BeforeValidator(number_as_text),
    WithJsonSchema({"anyOf": [{"type": "string", "maxLength": 100}, {"type": "integer"}]}),
]

#: The name or the id of a campaign. A JSON number is converted to text.
CampaignName = Annotated[
    Text,
    Field(max_length=200),
    BeforeValidator(number_as_text),
    WithJsonSchema({"anyOf": [{"type": "string", "maxLength": 200}, {"type": "integer"}]}),
]


MAX_PRICE_DECIMALS = 20  # the maximum number of decimal places of a price
_MAX_DECIMAL_LENGTH = 64  # the maximum number of characters of a decimal number
_PRICE_SIZE = f"must have at most 12 digits before the decimal point and {MAX_PRICE_DECIMALS} after it"
_DECIMAL = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)\s*")


def is_decimal(text: str) -> bool:
    """Return whether a text is a decimal number of ASCII digits, without exponent."""
    return _DECIMAL.fullmatch(text) is not None


def parse_price(value: Any) -> Decimal:
    """Return a price as a decimal. A string must be a decimal number without exponent. A JSON number with many digits arrives as a
    decimal (exact_amounts.py). Any other JSON number arrives as a float, and becomes the shortest decimal that identifies this
    float. Raise ValueError if the value is not a price."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError("must be a decimal such as 0.0095")
    text = str(value)
    if isinstance(value, str) and not is_decimal(value):
        raise ValueError("must be a decimal such as 0.0095, without exponent")
    if len(text) > _MAX_DECIMAL_LENGTH:
        raise ValueError(_PRICE_SIZE)
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise ValueError("must be a decimal such as 0.0095") from None
    if not amount.is_finite() or abs(amount) >= 10**12 or int(amount.as_tuple().exponent) < -MAX_PRICE_DECIMALS:
        raise ValueError(_PRICE_SIZE)
    return amount


#: A price, with its exact decimal places. Callers send a decimal string or a JSON number.
Price = Annotated[
    Decimal,
    BeforeValidator(parse_price),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": rf"^-?\d{{1,12}}(\.\d{{1,{MAX_PRICE_DECIMALS}}})?$"}, {"type": "number"}]}
    ),
]

MAX_METADATA_BYTES = 4096  # maximum size of the metadata as JSON


def check_metadata(value: dict[str, Any]) -> dict[str, Any]:
    """Return `value`. Raise ValueError if it contains a list or an object, or if its JSON has more than MAX_METADATA_BYTES
    bytes."""
    for name, member in value.items():
        if isinstance(member, dict | list):
            raise ValueError(f"{name!r} must be a string, a number, a boolean or null")
    packed = orjson.dumps(value)
    if len(packed) > MAX_METADATA_BYTES:
        raise ValueError(f"must have at most {MAX_METADATA_BYTES} bytes of JSON, not {len(packed)}")
    if b"\\u0000" in packed:
        raise ValueError("must not contain the character NUL")
    return value


#: Metadata of a message: a flat JSON object, which the service stores and sends with events.
Metadata = Annotated[dict[str, str | int | float | bool | None], AfterValidator(check_metadata)]


def _assume_utc(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return to_utc(parse_iso(value))
        except (ValueError, OverflowError):
            return value
    return value


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be between the years 1 and 9999 in UTC") from None


def _end_of_day(value: Any) -> Any:
    if isinstance(value, str):
        try:
            day = parse_iso(value)
            return to_utc(day) if isinstance(day, datetime) else to_utc(day) + timedelta(days=1)
        except (ValueError, OverflowError):
            return value
    return value


#: A time in ISO 8601, converted to UTC. A time without a zone is taken as UTC.
Time = Annotated[AwareDatetime, BeforeValidator(_assume_utc), AfterValidator(_to_utc)]

#: The end of a period: a time in ISO 8601 (UTC without a zone), or a date. The period then includes that whole day in UTC.
EndTime = Annotated[AwareDatetime, BeforeValidator(_end_of_day), AfterValidator(_to_utc)]


def _drop_default(field: dict[str, Any]) -> None:
    field.pop("default", None)


def optional_not_null(**options: Any) -> Any:
    """Return the `Field` of a request field that may be absent but must not be null. `options` are further arguments of
    `Field`."""
    return Field(None, json_schema_extra=_drop_default, **options)
