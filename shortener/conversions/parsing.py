"""This module validates conversion reports. The parameters of a query, a form or a JSON body become a `ConversionReport`.

A report is rejected if an id is missing, ambiguous or an unexpanded placeholder. An invalid value, currency, disposition or time
does not reject the report, because networks do not repeat a rejected postback. The invalid text is stored in the metadata under
the name of its parameter, and the response contains a warning. Texts that are too long are cut, with a warning.

An empty parameter counts as absent, because trackers also send parameters without a value. Unknown parameters are stored as
metadata.

`parse_conversion` raises ApiError UNEXPANDED_PLACEHOLDER or INVALID_REQUEST. The details of the error contain every invalid
parameter.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from shortener.conversions import status_words
from shortener.conversions.amounts import parse_amount, parse_currency
from shortener.conversions.macros import is_unexpanded
from shortener.conversions.metadata import MAX_WARNING_CHARACTERS, fit_metadata
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.model import record
from shortener.times import parse_time

DEFAULT_ACTION = "conversion"
#: A report with this action and without a transaction_id ends the conversion process of a message (Infobip). A message has at most
#: one such report.
END_ACTION = "end"
MAX_ID_CHARACTERS = 255
MAX_SHORT_CHARACTERS = 64
MAX_WARNINGS = 20

_Input = Annotated[Any, WithJsonSchema({"type": ["string", "number"]})]


class ConversionParameters(BaseModel):
    """A conversion that a tracker reports. `message_id` or `click_id` is required. Other parameters are stored as metadata."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    message_id: _Input = Field(
        None, description="The message_id of the message that caused the conversion. Required if click_id is absent."
    )
    click_id: _Input = Field(
        None,
        description="The id of the click that caused the conversion, as the placeholder {click_id} inserted it into the "
        "destination URL. Required if message_id is absent.",
    )
    action: _Input = Field(
        None,
        description="What the recipient did, for example sale or reply. Upper and lower case make no difference. "
        f"Default: {DEFAULT_ACTION}.",
    )
    status: _Input = Field(
        None,
        description="The tracker's own status of the conversion, for example approved. A known status word sets the disposition if "
        "the report contains no disposition. Default: none.",
    )
    disposition: _Input = Field(
        None,
        description=(
            "Whether the conversion is a success: positive or negative (Syniverse). Default: the disposition that the status word"
            " means. If the word means pending or is unknown, the conversion has no disposition."
        ),
    )
    value: _Input = Field(
        None,
        description="The amount of money of the conversion, for example 12.50; negative for a refund. An amount that cannot be "
        "parsed is stored as text in the metadata, with a warning. Default: none.",
    )
    currency: _Input = Field(
        None,
        description="The currency of the value as an ISO 4217 code, for example EUR. A code that is not in ISO 4217 is stored with "
        "a warning. Default: the currency that the value names, or none.",
    )
    transaction_id: _Input = Field(
        None,
        description=(
            "The tracker's id of the conversion. It distinguishes conversions of the same message and action. Upper and lower "
            "case make no difference. Without a transaction id, a message has one conversion for each action."
        ),
    )
    timestamp: _Input = Field(
        None,
        description="The time of the conversion: ISO 8601 (UTC if it has no zone), or seconds or milliseconds since 1970. Default: "
        "the time when the report arrives.",
    )


_NAMES = tuple(ConversionParameters.model_fields)
_IDENTITY = ("message_id", "click_id", "action", "transaction_id")
#: An unexpanded placeholder in one of these parameters causes the rejection of the report. In any other parameter, it is stored as
#: it is.
_STRICT = (*_IDENTITY, "status")


@record
class ConversionReport:
    """A valid report of a conversion that happened at `at`. At least one of `message_id` and `click_id` is set.

    `disposition` is the reported disposition or, if none was reported, the disposition that the status word means.
    `has_timestamp` is true if the tracker reported the time `at`, and false if `at` is the time of arrival."""

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
    warnings: tuple[str, ...] = ()
    has_timestamp: bool = False

    @property
    def action_key(self) -> str:
        """The case-folded action, which is a part of the identity of the conversion."""
        return self.action.casefold()

    @property
    def transaction_key(self) -> str:
        """The case-folded transaction id, which is a part of the identity of the conversion."""
        return self.transaction_id.casefold()

    @property
    def ends_process(self) -> bool:
        """Whether the report ends the conversion process of its message (Infobip)."""
        return self.action_key == END_ACTION and not self.transaction_id


class RepeatedValues(list[Any]):
    """All values of a parameter that a request contains more than once: in its query, its form or its JSON, or in both query and
    body."""


def parse_conversion(parameters: Mapping[str, Any], now: datetime, warnings: tuple[str, ...] = ()) -> ConversionReport:
    """Parse the parameters of a conversion report.

    `now` is the time of a report without a timestamp. `warnings` are warnings about the request, which are added to the report.

    Raise ApiError with the code UNEXPANDED_PLACEHOLDER or INVALID_REQUEST."""
    return _Parser(parameters, now, warnings).report()


#: A surrogate without its other half. JSON may contain one as an escape such as \ud800.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
#: Names that other systems give to the click id, written without underscores. If an id is missing and a report has one of these
#: names, the error mentions the name.
_OTHER_CLICK_ID_NAMES = frozenset(
    (
        *("clickid", "cid", "subid", "subid1", "sub1", "affsub", "affsub1", "s2", "externalid", "refid", "clid", "cnvid"),
        *("messageid", "msgid"),
    )
)
#: Names that other systems give to the amount of a conversion, written without underscores.
_OTHER_VALUE_NAMES = frozenset({"amount", "payout", "price", "profit", "revenue", "sum"})


class _Parser:
    """A parser of one conversion report. It collects the invalid parameters, the warnings and the metadata."""

    def __init__(self, parameters: Mapping[str, Any], now: datetime, warnings: tuple[str, ...]) -> None:
        self._now = now
        self._invalid: list[Detail] = []
        self._unexpanded: list[Detail] = []
        self.warnings = list(warnings)
        self.metadata = {
            name: list(value) if isinstance(value, RepeatedValues) else value
            for name, value in parameters.items()
            if name not in _NAMES
        }
        self._texts = {name: self._text(name, parameters[name]) for name in _NAMES if name in parameters}

    def report(self) -> ConversionReport:
        message_id, click_id = self._id("message_id"), self._id("click_id")
        transaction_id = self._shortened("transaction_id", MAX_ID_CHARACTERS) or ""
        action = self._shortened("action", MAX_SHORT_CHARACTERS) or DEFAULT_ACTION
        status = self._cut("status", MAX_SHORT_CHARACTERS)
        if self._unexpanded:
            raise ApiError(ErrorCode.UNEXPANDED_PLACEHOLDER, details=self._unexpanded)
        if message_id is None and click_id is None and not any(one.field in ("message_id", "click_id") for one in self._invalid):
            similar = next((name for name in self.metadata if name.replace("_", "").lower() in _OTHER_CLICK_ID_NAMES), None)
            hint = "" if similar is None else f"; {similar} is not a parameter of this service: use click_id instead"
            self._invalid.insert(0, Detail("message_id", f"is required if there is no click_id{hint}"))
        if self._invalid:
            raise ApiError(ErrorCode.INVALID_REQUEST, details=self._invalid)
        value, currency = self._money()
        at = self._time()
        disposition = self._disposition(status)
        return ConversionReport(
            at=at or self._now,
            message_id=message_id,
            click_id=click_id,
            action=action,
            transaction_id=transaction_id,
            status=status,
            disposition=disposition,
            value=value,
            currency=currency,
            metadata=fit_metadata(self.metadata, self.warn) or None,
            warnings=tuple(self.warnings[:MAX_WARNINGS]),
            has_timestamp=at is not None,
        )

    def warn(self, name: str, text: str) -> None:
        self.warnings.append(f"{name}: {text}")

    def _text(self, name: str, value: Any) -> str | None:
        """Return the text of a known parameter. If its value is a list or an object, store it as metadata, or reject it if the
        parameter is an id."""
        if isinstance(value, RepeatedValues):
            given = list(dict.fromkeys(text for one in value if (text := self._text(name, one)) is not None))
            if len(given) > 1:
                if name in _IDENTITY:
                    self._invalid.append(Detail(name, "occurs several times with different values"))
                else:
                    self.warn(name, "occurs several times; the last value was used")
            return given[-1] if given else None
        if value is None:
            return None
        if isinstance(value, bool | dict | list):
            if name in _IDENTITY:
                self._invalid.append(Detail(name, "must be one text or number"))
            else:
                self._keep(name, value, "is not a text or a number")
            return None
        text = str(value).strip()
        if "\x00" in text:
            if name in ("message_id", "click_id"):
                self._invalid.append(Detail(name, "must not contain the character NUL"))
                return None
            text = text.replace("\x00", "").strip()
            self.warn(name, "the character NUL was removed")
        if not text.isascii() and _LONE_SURROGATE.search(text):
            # A database cannot store such a surrogate. Its escape is stored, so that different ids stay different.
            text = text.encode("utf-8", "backslashreplace").decode()
            self.warn(name, "an unpaired surrogate was replaced by its escape")
        if not text:
            return None
        if name in _STRICT and is_unexpanded(text):
            self._unexpanded.append(Detail(name, f"is {text[:MAX_WARNING_CHARACTERS]}, a placeholder that was not replaced"))
        return text

    def _id(self, name: str) -> str | None:
        """Return a message_id or click_id, or None if it is absent. If the id is too long, reject the report.

        There is one exception: if a click_id is too long and the report also contains a message_id, store the click_id as
        metadata and return None."""
        text = self._texts.get(name)
        if text is None or len(text) <= MAX_ID_CHARACTERS:
            return text
        if name == "click_id" and self._texts.get("message_id") is not None:
            self._keep(name, text, f"has more than {MAX_ID_CHARACTERS} characters")
            return None
        self._invalid.append(Detail(name, f"must have at most {MAX_ID_CHARACTERS} characters"))
        return None

    def _shortened(self, name: str, limit: int) -> str | None:
        """Return an action or transaction_id. If the text is too long, a hash replaces its end, so that different texts stay
        different."""
        text = self._texts.get(name)
        if text is None or len(text) <= limit:
            return text
        self.warn(name, f"was shortened to {limit} characters")
        digest = hashlib.sha256(text.casefold().encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return f"{text[: limit - 17]}~{digest}"

    def _cut(self, name: str, limit: int) -> str | None:
        text = self._texts.get(name)
        if text is None or len(text) <= limit:
            return text
        self.warn(name, f"was cut to {limit} characters")
        return text[:limit]

    def _keep(self, name: str, value: Any, reason: str) -> None:
        """Store a parameter that cannot be parsed in the metadata, and add a warning."""
        self.metadata[name] = value
        if isinstance(value, str):
            self.warn(name, f"{value[:MAX_WARNING_CHARACTERS]!r} {reason}; it was stored as text")
            return
        kind = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else "true or false"
        self.warn(name, f"{kind} {reason}; it was stored as metadata")

    def _money(self) -> tuple[Decimal | None, str | None]:
        value_text, currency_text = self._texts.get("value"), self._texts.get("currency")
        value, currency, named = None, None, None
        if value_text is None:
            similar = next((name for name in self.metadata if name.replace("_", "").lower() in _OTHER_VALUE_NAMES), None)
            if similar is not None:
                self.warn(similar[:MAX_WARNING_CHARACTERS], "was stored as metadata and does not count; send an amount as value")
        else:
            try:
                value, named, warning = parse_amount(value_text)
                if warning:
                    self.warn("value", warning)
            except ValueError as error:
                self._keep("value", value_text, str(error))
        if currency_text is None:
            return value, named
        try:
            currency, warning = parse_currency(currency_text)
            if warning:
                self.warn("currency", warning)
        except ValueError as error:
            self._keep("currency", currency_text, str(error))
            if value is not None:  # an amount without a known currency counts as invalid
                self.metadata["value"] = value_text
            return None, None
        if named not in (None, currency):
            self.warn("value", f"names the currency {named}; {currency} was used")
        return value, currency

    def _time(self) -> datetime | None:
        text = self._texts.get("timestamp")
        if text is None:
            return None
        try:
            return parse_time(text, self._now)
        except ValueError as error:
            self._keep("timestamp", text, f"{error}; the time of receipt was used".removeprefix(" "))
            return None

    def _disposition(self, status: str | None) -> str | None:
        text = self._texts.get("disposition")
        if text is not None:
            word = status_words.classify(text)
            if word in ("positive", "negative"):
                return word
            if word is None:
                self._keep("disposition", text, "is neither positive nor negative")
        return status_words.derive_disposition(status)
