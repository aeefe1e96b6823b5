"""What a tracker sent, checked and put into one form, whether it came in a query, a form or JSON.

Empty parameters count as absent: trackers send those that they have no value for. A macro that the tracker left unexpanded
(`{click_id}`) is refused, because as a transaction id it would make every conversion a repeat of the first. Amounts are exact
decimals. What is not a parameter of ours is kept as metadata.

`parse_conversion` raises ApiError UNEXPANDED_PLACEHOLDER or INVALID_REQUEST and names every parameter that is wrong.
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
#: Under this action, without a transaction_id, stands the end of a message's conversion process (Infobip): one for each message.
END_ACTION = "end"
MAX_METADATA_BYTES = 4096  # bytes of JSON
_EXACT_DIGITS = 15  # a float gives back any decimal of so many digits

ShortText = Annotated[str, Field(max_length=64), WithJsonSchema({"type": ["string", "number"], "maxLength": 64})]
Identifier = Annotated[str, Field(max_length=255), WithJsonSchema({"type": ["string", "number"], "maxLength": 255})]


class ConversionParameters(BaseModel):
    """A conversion as a tracker reports it. `message_id` or `click_id` is required; other parameters are kept as metadata."""

    model_config = ConfigDict(extra="allow")

    message_id: Identifier | None = Field(None, description="The message that the conversion belongs to.")
    click_id: Identifier | None = Field(None, description="The click, as {click_id} put it into the destination.")
    action: ShortText | None = Field(None, description=f"What happened, for example sale or reply; {DEFAULT_ACTION} when absent.")
    status: ShortText | None = Field(None, description="The tracker's own word, for example approved; kept as it is.")
    disposition: ShortText | None = Field(None, description="positive or negative (Syniverse).")
    value: ShortText | None = Field(None, description="Decimal such as 12.50, at most 18.6 digits; negative for a refund.")
    currency: ShortText | None = Field(None, description="ISO 4217 code such as EUR.")
    transaction_id: Identifier | None = Field(None, description="Tells conversions of the same message and action apart.")
    timestamp: ShortText | None = Field(
        None, description="ISO 8601 (UTC without a zone), or seconds or milliseconds since 1970; now when absent."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        if isinstance(value, list):
            raise ValueError("wants one value, not several")
        if isinstance(value, float):
            return _spell(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str):
            if "\x00" in value:
                raise ValueError("cannot hold the character NUL")
            return value.strip() or None
        return value


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """A conversion to record. `at`: when it happened. One of `message_id` and `click_id` is there."""

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
        return self.action == END_ACTION and not self.transaction_id


T = TypeVar("T")


def parse_conversion(parameters: ConversionParameters, now: datetime) -> ConversionReport:
    """Raises ApiError UNEXPANDED_PLACEHOLDER, INVALID_REQUEST."""
    known: dict[str, str | None] = {name: getattr(parameters, name) for name in ConversionParameters.model_fields}
    metadata = parameters.model_extra or {}
    unexpanded = [name for name, text in known.items() if text is not None and is_unexpanded(text)]
    unexpanded += [name for name, value in metadata.items() if isinstance(value, str) and _IN_BRACES.fullmatch(value.strip())]
    if unexpanded:
        details = [Detail(name, "holds a placeholder that the tracker did not fill in") for name in unexpanded]
        raise ApiError(ErrorCode.UNEXPANDED_PLACEHOLDER, details=details)

    wrong: list[Detail] = []

    def check(name: str, parse: Callable[[str], T]) -> T | None:
        text = known[name]
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError as error:
            wrong.append(Detail(name, str(error)))
            return None

    if known["message_id"] is None and known["click_id"] is None:
        wrong.append(Detail("message_id", "is missing: message_id or click_id is required"))
    value = check("value", parse_amount)
    currency = check("currency", parse_currency)
    disposition = check("disposition", _parse_disposition)
    at = check("timestamp", lambda text: parse_time(text, now))
    if reason := _refuse_metadata(metadata):
        wrong.append(Detail("metadata", reason))
    if wrong:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=wrong)
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


# A macro's name; not the hexadecimal of a GUID in braces, which is an id that somebody may well use.
_NAME = r"\s?(?![0-9a-f]{8}-[0-9a-f]{4}-)[a-z_][\w .:|-]{0,63}"
_IN_BRACES = re.compile(rf"\$?(?:\{{|%7b){{1,2}}{_NAME}(?:\}}|%7d){{1,2}}", re.IGNORECASE | re.ASCII)
_IN_BRACKETS = re.compile(rf"(?:\[|%5b){{1,2}}{_NAME}(?:\]|%5d){{1,2}}", re.IGNORECASE | re.ASCII)


def is_unexpanded(text: str) -> bool:
    """Whether a macro is left in the text: `{x}`, `{{x}}`, `${x}` or their percent-encoded forms anywhere, `[x]` as the whole."""
    return bool(_IN_BRACES.search(text) or _IN_BRACKETS.fullmatch(text))


_AMOUNT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")


def parse_amount(text: str) -> Decimal:
    """An exact amount, at most 18 digits before the point and 6 after it. Raises ValueError."""
    if not _AMOUNT.fullmatch(text):
        if "," in text:
            raise ValueError("holds a comma: write 1234.50, with a point and without separators of thousands")
        raise ValueError("wants a decimal such as 12.50 or -3")
    whole, _, fraction = text.lstrip("+-").partition(".")
    if len(whole) > 18 or len(fraction) > 6:
        raise ValueError("wants at most 18 digits before the point and 6 after it")
    return Decimal(text)


def parse_currency(text: str) -> str:
    """The code in capitals. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z]{3}", text):
        raise ValueError("wants a code of three letters such as EUR (ISO 4217)")
    return text.upper()


def _parse_disposition(text: str) -> str:
    if text.lower() not in ("positive", "negative"):
        raise ValueError("wants positive or negative")
    return text.lower()


def _spell(number: float) -> str:
    """A JSON number as its sender wrote it. Raises ValueError when reading it may have changed it."""
    exact = Decimal(repr(number))
    if len(exact.as_tuple().digits) > _EXACT_DIGITS:
        raise ValueError(f"is a number of more than {_EXACT_DIGITS} digits, which JSON does not carry exactly: send it as text")
    return format(exact, "f")


def _refuse_metadata(metadata: Mapping[str, Any]) -> str | None:
    try:
        packed = orjson.dumps(metadata)
    except TypeError:
        return "is nested too deeply"
    if len(packed) > MAX_METADATA_BYTES:
        return f"is {len(packed)} bytes of JSON, at most {MAX_METADATA_BYTES} are kept"
    return "cannot hold the character NUL" if b"\\u0000" in packed else None
