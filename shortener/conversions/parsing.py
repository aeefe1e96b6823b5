"""Validation of a conversion report. Query, form and JSON reports all become a `ConversionReport`.

An empty parameter counts as absent, because trackers also send parameters without a value. A placeholder that the tracker did not
expand (`{click_id}`) is rejected: as a transaction id it would make every conversion a repeat of the first one. Amounts are exact
decimals. Unknown parameters are stored as metadata.

`parse_conversion` raises ApiError UNEXPANDED_PLACEHOLDER or INVALID_REQUEST. The details name every invalid parameter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.times import parse_time

DEFAULT_ACTION = "conversion"
#: This action without a transaction_id ends the conversion process of a message (Infobip). A message has at most one such report.
END_ACTION = "end"
MAX_METADATA_BYTES = 4096  # bytes of JSON
_MAX_EXACT_DIGITS = 15  # a float represents any decimal with this many digits exactly

ShortText = Annotated[str, Field(max_length=64), WithJsonSchema({"type": ["string", "number"], "maxLength": 64})]
Identifier = Annotated[str, Field(max_length=255), WithJsonSchema({"type": ["string", "number"], "maxLength": 255})]


class ConversionParameters(BaseModel):
    """A conversion as a tracker reports it. `message_id` or `click_id` is required. Other parameters are stored as metadata."""

    model_config = ConfigDict(extra="allow")

    message_id: Identifier | None = Field(None, description="The message that the conversion belongs to.")
    click_id: Identifier | None = Field(None, description="The click id that {click_id} inserted into the destination.")
    action: ShortText | None = Field(None, description=f"The event, for example sale or reply. Default: {DEFAULT_ACTION}.")
    status: ShortText | None = Field(None, description="The tracker's own status, for example approved. Stored unchanged.")
    disposition: ShortText | None = Field(None, description="positive or negative (Syniverse).")
    value: ShortText | None = Field(
        None, description="Decimal such as 12.50, at most 18 digits before and 6 after the point. Negative for a refund."
    )
    currency: ShortText | None = Field(None, description="ISO 4217 code such as EUR.")
    transaction_id: Identifier | None = Field(None, description="Distinguishes conversions of the same message and action.")
    timestamp: ShortText | None = Field(
        None, description="ISO 8601 (UTC if it has no zone), or seconds or milliseconds since 1970. Default: now."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        if isinstance(value, list):
            raise ValueError("must be one value, not a list")
        if isinstance(value, float):
            return _format_float(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str):
            if "\x00" in value:
                raise ValueError("must not contain the character NUL")
            return value.strip() or None
        return value


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """A conversion to record, which happened at `at`. At least one of `message_id` and `click_id` is set."""

    at: datetime
    message_id: str | None = None
    click_id: str | None = None
    action: str = DEFAULT_ACTION
    transaction_id: str = ""
    status: str | None = None
    disposition: str | None = None
    value: Decimal | None = None
    currency: str | None = None
    metadata: Mapping[str, Any] | None = None

    @property
    def ends_process(self) -> bool:
        """Whether the report ends the conversion process of its message (Infobip)."""
        return self.action == END_ACTION and not self.transaction_id


T = TypeVar("T")


def parse_conversion(parameters: ConversionParameters, now: datetime) -> ConversionReport:
    """Validate all parameters. `now` is the time of a report without a timestamp.

    Raise ApiError UNEXPANDED_PLACEHOLDER or INVALID_REQUEST."""
    known: dict[str, str | None] = {name: getattr(parameters, name) for name in ConversionParameters.model_fields}
    metadata = parameters.model_extra or {}
    unexpanded = [name for name, text in known.items() if text is not None and is_unexpanded(text)]
    unexpanded += [name for name, value in metadata.items() if isinstance(value, str) and _IN_BRACES.fullmatch(value.strip())]
    if unexpanded:
        details = [Detail(name, "contains a placeholder that the tracker did not expand") for name in unexpanded]
        raise ApiError(ErrorCode.UNEXPANDED_PLACEHOLDER, details=details)

    invalid: list[Detail] = []

    def check(name: str, parse: Callable[[str], T]) -> T | None:
        text = known[name]
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError as error:
            invalid.append(Detail(name, str(error)))
            return None

    if known["message_id"] is None and known["click_id"] is None:
        invalid.append(Detail("message_id", "is required if there is no click_id"))
    value = check("value", parse_amount)
    currency = check("currency", parse_currency)
    disposition = check("disposition", _parse_disposition)
    at = check("timestamp", lambda text: parse_time(text, now))
    if reason := _metadata_problem(metadata):
        invalid.append(Detail("metadata", reason))
    if invalid:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=invalid)
    return ConversionReport(
        at=at or now,
        message_id=known["message_id"],
        click_id=known["click_id"],
        action=known["action"] or DEFAULT_ACTION,
        transaction_id=known["transaction_id"] or "",
        status=known["status"],
        disposition=disposition,
        value=value,
        currency=currency,
        metadata=metadata or None,
    )


# The name of a placeholder. A GUID in braces is not one, because a tracker may use it as an id.
_NAME = r"\s?(?![0-9a-f]{8}-[0-9a-f]{4}-)[a-z_][\w .:|-]{0,63}"
_IN_BRACES = re.compile(rf"\$?(?:\{{|%7b){{1,2}}{_NAME}(?:\}}|%7d){{1,2}}", re.IGNORECASE | re.ASCII)
_IN_BRACKETS = re.compile(rf"(?:\[|%5b){{1,2}}{_NAME}(?:\]|%5d){{1,2}}", re.IGNORECASE | re.ASCII)


def is_unexpanded(text: str) -> bool:
    """Return whether a text contains `{x}`, `{{x}}`, `${x}` or their percent-encoded forms, or is `[x]` as a whole."""
    return bool(_IN_BRACES.search(text) or _IN_BRACKETS.fullmatch(text))


_AMOUNT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")


def parse_amount(text: str) -> Decimal:
    """Return an exact amount of at most 18 digits before the point and 6 after it. Raise ValueError otherwise."""
    if not _AMOUNT.fullmatch(text):
        if "," in text:
            raise ValueError("must not contain a comma: write 1234.50, with a point and without thousands separators")
        raise ValueError("must be a decimal such as 12.50 or -3")
    whole, _, fraction = text.lstrip("+-").partition(".")
    if len(whole) > 18 or len(fraction) > 6:
        raise ValueError("must have at most 18 digits before the point and 6 after it")
    return Decimal(text)


def parse_currency(text: str) -> str:
    """Return the code in capitals. Raise ValueError if it does not have three letters."""
    if not re.fullmatch(r"[A-Za-z]{3}", text):
        raise ValueError("must be a code of three letters such as EUR (ISO 4217)")
    return text.upper()


def _parse_disposition(text: str) -> str:
    if text.lower() not in ("positive", "negative"):
        raise ValueError("must be positive or negative")
    return text.lower()


def _format_float(number: float) -> str:
    """Return a JSON number as its sender wrote it. Raise ValueError if parsing it may have changed its value."""
    exact = Decimal(repr(number))
    if len(exact.as_tuple().digits) > _MAX_EXACT_DIGITS:
        raise ValueError(
            f"has more than {_MAX_EXACT_DIGITS} digits, which a JSON number does not represent exactly: send it as text"
        )
    return format(exact, "f")


def _metadata_problem(metadata: Mapping[str, Any]) -> str | None:
    try:
        serialized = orjson.dumps(metadata)
    except TypeError:
        return "must not be nested so deeply"
    if len(serialized) > MAX_METADATA_BYTES:
        return f"must be at most {MAX_METADATA_BYTES} bytes of JSON; it has {len(serialized)}"
    return "must not contain the character NUL" if b"\\u0000" in serialized else None
