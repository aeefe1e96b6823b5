"""This module contains the classes of the objects that the client returns. Times are aware and UTC; money is `Decimal`. `raw` is
the JSON object of the response, which also contains fields without an attribute.

Unknown fields are ignored, so an older client works with a newer service. If a required field is missing in a response,
`UnexpectedResponseError` is raised.
"""
# Tested by tests/client/test_calls.py

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

Json = Mapping[str, Any]


def parse_time(value: str | None) -> datetime | None:
    """Parse a time in a response, which is ISO 8601 in UTC. None stays None."""
    return None if value is None else datetime.fromisoformat(value).astimezone(UTC)


def parse_decimal(value: str | int | float | None) -> Decimal | None:
    """Parse an amount in a response. None stays None."""
    return None if value is None else Decimal(str(value))


@dataclass(frozen=True, slots=True)
class ShortLink:
    """A link of a rewritten text. `label` is the label that `#trackurl` gave to the link."""

    code: str
    short_url: str
    url: str
    label: str | None
    expires_at: datetime | None

    @classmethod
    def parse(cls, raw: Json) -> ShortLink:
        return cls(raw["code"], raw["short_url"], raw["url"], raw.get("label"), parse_time(raw.get("expires_at")))


@dataclass(frozen=True, slots=True)
class RewrittenText:
    """The text for one recipient. `body` is the text to send.

    `is_tracked` is False if the service did not respond in time and the text has long URLs (`on_failure="send_long"`). Then
    `links` is empty, and `warnings` contain the reason.

    `is_sent` is True if the service sends the message through a gateway, so you must not send it. If `is_sent` is False or None,
    you must send `body`. None: the call has no `gateway`. False: the call has `gateway`, but the application has no gateway."""

    to: str
    body: str
    message_id: str
    message_request_id: str
    links: tuple[ShortLink, ...]
    encoding: str
    segments: int
    segments_without_rewriting: int
    warnings: tuple[str, ...]
    is_tracked: bool = True
    raw: Json = field(default_factory=dict, repr=False)
    is_sent: bool | None = None

    @classmethod
    def parse(cls, raw: Json) -> RewrittenText:
        return cls(
            to=raw["to"],
            body=raw["body"],
            message_id=raw["message_id"],
            message_request_id=raw.get("message_request_id", ""),
            links=tuple(ShortLink.parse(link) for link in raw["links"]),
            encoding=raw["encoding"],
            segments=raw["segments"],
            segments_without_rewriting=raw["segments_without_rewriting"],
            warnings=tuple(raw["warnings"]),
            is_sent=raw.get("sent"),
            raw=raw,
        )


@dataclass(frozen=True, slots=True)
class SkippedRecipient:
    """A recipient that `on_invalid="skip"` left out. Nothing was stored for it."""

    to: str
    message_id: str | None
    error_code: str
    field: str
    reason: str

    @classmethod
    def parse(cls, raw: Json) -> SkippedRecipient:
        return cls(raw["to"], raw.get("message_id"), raw["error_code"], raw.get("field", ""), raw.get("reason", ""))


def parse_rewritten(raw: Json) -> RewrittenText | SkippedRecipient:
    """Parse one entry of the response to a rewrite: the text for one recipient, or a skipped recipient."""
    return SkippedRecipient.parse(raw) if "error_code" in raw else RewrittenText.parse(raw)


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """A short link with its state. In the status of a message, `message_id` is the id of this message."""

    code: str
    short_url: str
    url: str
    label: str | None
    message_id: str
    expires_at: datetime | None
    clicks: int
    clicked_at: datetime | None
    state: str | None
    raw: Json = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, raw: Json, message_id: str = "") -> LinkInfo:
        return cls(
            code=raw["code"],
            short_url=raw["short_url"],
            url=raw["url"],
            label=raw.get("label"),
            message_id=raw.get("message_id", message_id),
            expires_at=parse_time(raw.get("expires_at")),
            clicks=raw.get("clicks", 0),
            clicked_at=parse_time(raw.get("clicked_at", raw.get("accessed_on"))),
            state=raw.get("state"),
            raw=raw,
        )


@dataclass(frozen=True, slots=True)
class ConversionInfo:
    """A recorded conversion with its latest revision."""

    conversion_id: str
    message_id: str
    action: str
    transaction_id: str | None
    status: str | None
    disposition: str | None
    value: Decimal | None
    currency: str | None
    timestamp: datetime | None
    revision: int
    raw: Json = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, raw: Json, message_id: str = "") -> ConversionInfo:
        return cls(
            conversion_id=raw["conversion_id"],
            message_id=raw.get("message_id", message_id),
            action=raw["action"],
            transaction_id=raw.get("transaction_id"),
            status=raw.get("status"),
            disposition=raw.get("disposition"),
            value=parse_decimal(raw.get("value")),
            currency=raw.get("currency"),
            timestamp=parse_time(raw.get("timestamp")),
            revision=raw.get("revision", 1),
            raw=raw,
        )


@dataclass(frozen=True, slots=True)
class MessageInfo:
    """A message with its state. Lists of messages contain neither `links` nor `conversions`."""

    message_id: str
    to: str
    state: str
    campaign: str
    created_at: datetime | None
    sent_at: datetime | None
    delivered_at: datetime | None
    read_at: datetime | None
    failed_at: datetime | None
    clicked_at: datetime | None
    segments: int
    mt_price: Decimal | None
    links: tuple[LinkInfo, ...] = ()
    conversions: tuple[ConversionInfo, ...] = ()
    raw: Json = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, raw: Json) -> MessageInfo:
        message_id = raw["message_id"]
        return cls(
            message_id=message_id,
            to=raw["to"],
            state=raw["state"],
            campaign=raw.get("campaign", ""),
            created_at=parse_time(raw.get("created_at")),
            sent_at=parse_time(raw.get("sent_at")),
            delivered_at=parse_time(raw.get("delivered_at")),
            read_at=parse_time(raw.get("read_at")),
            failed_at=parse_time(raw.get("failed_at")),
            clicked_at=parse_time(raw.get("clicked_at")),
            segments=raw.get("segments", 0),
            mt_price=parse_decimal(raw.get("mt_price")),
            links=tuple(LinkInfo.parse(link, message_id) for link in raw.get("links", ())),
            conversions=tuple(ConversionInfo.parse(one, message_id) for one in raw.get("conversions", ())),
            raw=raw,
        )


@dataclass(frozen=True, slots=True)
class FigureTotals:
    """The figures of a period. `value` contains the sum of conversion values by currency. A rate is None if there are no
    messages."""

    messages: int
    sent: int
    delivered: int
    clicked_messages: int
    clicks: int
    suspected_hits: int
    converted_messages: int
    conversions: int
    value: Mapping[str, Decimal]
    click_rate: float | None
    conversion_rate: float | None
    median_seconds_to_click: float | None
    raw: Json = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, raw: Json) -> FigureTotals:
        return cls(
            messages=raw["messages"],
            sent=raw["sent"],
            delivered=raw["delivered"],
            clicked_messages=raw["clicked_messages"],
            clicks=raw["clicks"],
            suspected_hits=raw["suspected_hits"],
            converted_messages=raw.get("converted_messages", 0),
            conversions=raw["conversions"],
            value={currency: Decimal(amount) for currency, amount in raw["value"].items()},
            click_rate=raw.get("click_rate"),
            conversion_rate=raw.get("conversion_rate"),
            median_seconds_to_click=raw.get("median_seconds_to_click"),
            raw=raw,
        )


@dataclass(frozen=True, slots=True)
class ConversionReceipt:
    """The response to a reported conversion. `is_duplicate` is true if the same report was recorded before."""

    conversion_id: str
    message_id: str
    is_duplicate: bool
    is_updated: bool
    revision: int
    warnings: tuple[str, ...]

    @classmethod
    def parse(cls, raw: Json) -> ConversionReceipt:
        return cls(
            raw["conversion_id"],
            raw["message_id"],
            raw["duplicate"],
            raw.get("updated", False),
            raw.get("revision", 1),
            tuple(raw.get("warnings", ())),
        )


@dataclass(frozen=True, slots=True)
class ReportSummary:
    """The response to delivery reports. `results` has one entry per report, in order."""

    accepted: int
    refused: int
    results: tuple[Json, ...]

    @classmethod
    def parse(cls, raw: Json) -> ReportSummary:
        return cls(raw["accepted"], raw["refused"], tuple(raw["results"]))


@dataclass(frozen=True, slots=True)
class SentRecipient:
    """The result of a send for one recipient. `status` is `accepted`, or the reason why the recipient was not accepted. `body` is
    the rewritten text."""

    to: str
    message_id: str | None
    segments: int
    status: str
    body: str | None = None
    cost: Decimal | None = None

    @classmethod
    def parse(cls, raw: Json) -> SentRecipient:
        cost = parse_decimal(raw.get("cost"))
        return cls(raw["dnis"], raw.get("message_id"), raw.get("segments", 0), raw["status"], raw.get("body"), cost)


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """The response to a send, with one entry per recipient.

    `is_sent` is False if the application has no gateway: the caller must send `body` of each recipient."""

    recipients: tuple[SentRecipient, ...]
    accepted: int
    total_segments: int
    total_cost: Decimal | None
    is_sent: bool
    warnings: tuple[str, ...]
    raw: Json = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, raw: Json) -> SendOutcome:
        summary = raw["summary"]
        return cls(
            tuple(SentRecipient.parse(one) for one in raw["results"]),
            summary["accepted_count"],
            summary["total_segments"],
            parse_decimal(summary.get("total_cost")),
            raw.get("sent", True),
            tuple(raw.get("warnings", ())),
            raw,
        )
