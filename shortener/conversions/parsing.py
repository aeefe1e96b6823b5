"""This module validates conversion reports. The parameters of a query, a form or a JSON body become a `ConversionReport`.

A report is rejected if an id is missing, ambiguous or an unexpanded placeholder. An invalid value, currency, disposition or time
does not reject the report, because networks do not repeat a rejected postback. The invalid text is stored in the metadata under the
name of its parameter, and the report gets a warning. Texts that are too long are cut, with a warning.

An empty parameter counts as absent, because trackers also send parameters without a value. Unknown parameters are stored as
metadata.

`parse_conversion` raises ApiError UNEXPANDED_PLACEHOLDER or INVALID_REQUEST. The details of the error contain every invalid
parameter.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from shortener.conversions import status_words
from shortener.conversions.amounts import parse_amount, parse_currency
from shortener.conversions.macros import is_unexpanded
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.model import record
from shortener.plurals import counted
from shortener.times import EARLIEST, parse_time

DEFAULT_ACTION = "conversion"
#: A report with this action and without a transaction_id ends the conversion process of a message (Infobip), at most once.
END_ACTION = "end"
MAX_METADATA_BYTES = 4096  # the maximum size of the metadata as JSON
MAX_METADATA_DEPTH = 50
MAX_ID_CHARACTERS = 255
MAX_SHORT_CHARACTERS = 64
MAX_WARNINGS = 20
MAX_WARNING_CHARACTERS = 60  # a warning quotes at most this many characters of an input

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
#: A report with an unexpanded placeholder in one of these parameters is rejected. An unexpanded placeholder in any other parameter
#: is stored.
_STRICT = (*_IDENTITY, "status")


@record
class ConversionReport:
    """A valid report of a conversion that happened at `at`. At least one of `message_id` and `click_id` is set.

    `disposition` is the reported disposition. If none was reported, it is the disposition that the status word means.
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
    """The values of a parameter that a request contains several times: in its query, in its form, in its JSON, or in both query
    and body."""


def parse_conversion(parameters: Mapping[str, Any], now: datetime, warnings: tuple[str, ...] = ()) -> ConversionReport:
    """Parse the parameters of a conversion report.

    `now` is the time of a report without a timestamp. `warnings` are warnings about the request, which are added to the report.

    Raise ApiError UNEXPANDED_PLACEHOLDER or INVALID_REQUEST."""
    return _Parser(parameters, now, warnings).report()


#: An unpaired surrogate, which JSON may contain as an escape such as \ud800.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
#: Names that other systems give to the click id, without underscores. An error about a missing id mentions them.
_OTHER_CLICK_ID_NAMES = frozenset(
    (
        *("clickid", "cid", "subid", "subid1", "sub1", "affsub", "affsub1", "s2", "externalid", "refid", "clid", "cnvid"),
        *("messageid", "msgid"),
    )
)
#: Names, without underscores, that other systems use for the amount of a conversion.
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
            metadata=self.fit_metadata() or None,
            warnings=tuple(self.warnings[:MAX_WARNINGS]),
            has_timestamp=at is not None,
        )

    def warn(self, name: str, text: str) -> None:
        self.warnings.append(f"{name}: {text}")

    def _text(self, name: str, value: Any) -> str | None:
        """Return the text of a known parameter. Store a list or object as metadata; reject it if the parameter is an id."""
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
            # A database cannot store an unpaired surrogate. Its escape keeps different ids different.
            text = text.encode("utf-8", "backslashreplace").decode()
            self.warn(name, "an unpaired surrogate was replaced by its escape")
        if not text:
            return None
        if name in _STRICT and is_unexpanded(text):
            self._unexpanded.append(Detail(name, f"is {text[:MAX_WARNING_CHARACTERS]}, a placeholder that was not replaced"))
        return text

    def _id(self, name: str) -> str | None:
        """Return a message_id or click_id, or None if it is absent. Reject the report if the id is too long.

        If the report also contains a message_id, a click_id that is too long is stored as metadata, and the report is not
        rejected."""
        text = self._texts.get(name)
        if text is None or len(text) <= MAX_ID_CHARACTERS:
            return text
        if name == "click_id" and self._texts.get("message_id") is not None:
            self._keep(name, text, f"has more than {MAX_ID_CHARACTERS} characters")
            return None
        self._invalid.append(Detail(name, f"must have at most {MAX_ID_CHARACTERS} characters"))
        return None

    def _shortened(self, name: str, limit: int) -> str | None:
        """Return an action or transaction_id. In a long text, a hash replaces the end, so that different texts stay different."""
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
        """Store a parameter in the metadata, because it cannot be parsed, and add a warning."""
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
            if value is not None:  # without a known currency, the amount counts as invalid
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

    def fit_metadata(self) -> dict[str, Any]:
        """Return metadata without characters that the database cannot store, and with at most MAX_METADATA_BYTES bytes as JSON."""
        metadata: dict[str, Any] = {}
        sizes: dict[str, int] = {}
        for name, value in self.metadata.items():
            name = _storable(name)
            try:
                value = _storable(value)
                # The size of the entry in the JSON of all metadata: without its two braces, but with a comma.
                sizes[name] = len(orjson.dumps({name: value})) - 1
            except (TypeError, RecursionError):
                self.warn(name[:MAX_WARNING_CHARACTERS], "is nested too deeply; it was not stored")
                continue
            metadata[name] = value
        excess = sum(sizes.values()) + 1 - MAX_METADATA_BYTES
        for name in sorted(sizes, key=lambda one: -sizes[one]) if excess > 0 else ():
            shown, value = name[:MAX_WARNING_CHARACTERS], metadata[name]
            shorter = _cut_json_bytes(value, len(orjson.dumps(value)) - 2 - excess) if isinstance(value, str) else ""
            if shorter:
                metadata[name] = shorter
                self.warn(shown, f"was cut to {counted(len(shorter), 'character')}")
                break
            excess -= sizes[name]
            del metadata[name]
            self.warn(shown, "was not stored, because the parameters have more than 4 KiB")
            if excess <= 0:
                break
        return metadata


#: A regular expression for API keys, tracker tokens and postback keys. These credentials are removed from stored parameters, so
#: that no list shows them.
_CREDENTIAL = re.compile(r"\b(?:sk|tt|pk)_[A-Za-z0-9_-]{20,}")
_SECRET_NAME = re.compile(r"token|secret|passw|api.?key|authorization|signature", re.IGNORECASE)
#: A regular expression for a name and its value in a text such as a URL, incomplete JSON, XML or a header. No part before the name
#: can match a long text, so the search takes linear time.
_SECRET_IN_TEXT = re.compile(
    rf"""((?:{_SECRET_NAME.pattern})[\w.-]{{0,20}}\\?["']?\s{{0,5}}(?:[=:>]|%3D)\s{{0,5}})"""
    r"""(\\?"[^"]*"?|'[^']*'?|(?:(?:Bearer|Basic|App)\s+)?[^\s"'&,;<>{}\[\]]+)""",
    re.IGNORECASE,
)
#: A regular expression for the password in a URL such as https://user:password@host/.
_PASSWORD_OF_URL = re.compile(r"(://[^\s/?#@:]*:)[^\s/?#@]+(?=@)")
REMOVED = "[removed]"


def _storable(value: Any, depth: int = 0) -> Any:
    """Return a parameter without credentials, and without NUL and lone surrogates, which PostgreSQL and JSON cannot store.

    Raise TypeError if the value is nested more deeply than MAX_METADATA_DEPTH."""
    if isinstance(value, str):
        if not value.isascii():
            value = value.encode("utf-8", "replace").decode()
        return _CREDENTIAL.sub(REMOVED, value.replace("\x00", ""))
    if isinstance(value, Decimal):
        return number if _is_exact(number := float(value) if not value.is_snan() else math.nan, value) else str(value)
    if isinstance(value, int) and not isinstance(value, bool) and not -(1 << 63) <= value < 1 << 63:
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict | list) and depth > MAX_METADATA_DEPTH:
        raise TypeError("nested too deeply")
    if isinstance(value, dict):
        return {_storable(str(name)): _storable(one, depth + 1) for name, one in value.items()}
    if isinstance(value, list):
        return [_storable(one, depth + 1) for one in value]
    return value


def _is_exact(number: float, value: Decimal) -> bool:
    """Return whether the JSON number of a float is the decimal `value`. Otherwise the value is stored as text, with all digits."""
    return math.isfinite(number) and Decimal(repr(number)) == value


def storable_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a refused report for storage: without credentials, and with at most 4 KiB as JSON.

    The value of each name that contains a word such as token or password is removed, in nested objects and in texts too."""
    parser = _Parser({}, EARLIEST, ())
    parser.metadata = _without_secrets(parameters)
    return parser.fit_metadata()


def _without_secrets(value: Any, depth: int = 0) -> Any:
    """Return a value without secrets. Parts that are nested more deeply than MAX_METADATA_DEPTH stay unchanged, because
    `fit_metadata` does not store them."""
    if isinstance(value, str):
        return _PASSWORD_OF_URL.sub(rf"\1{REMOVED}", _SECRET_IN_TEXT.sub(rf"\1{REMOVED}", value))
    if depth > MAX_METADATA_DEPTH:
        return value
    if isinstance(value, Mapping):
        return {
            _without_secrets(str(name)): REMOVED if _SECRET_NAME.search(str(name)) else _without_secrets(one, depth + 1)
            for name, one in value.items()
        }
    return [_without_secrets(one, depth + 1) for one in value] if isinstance(value, list) else value


def _cut_json_bytes(text: str, limit: int) -> str:
    """Cut a text so that its JSON string has at most `limit` bytes between the quotation marks. Return the cut text."""
    low, high = 0, max(min(len(text), limit), 0)
    while low < high:
        middle = (low + high + 1) // 2
        if len(orjson.dumps(text[:middle])) - 2 <= limit:
            low = middle
        else:
            high = middle - 1
    return text[:low]
