"""This module describes the calls of the HTTP API as data: the path, the parameters, and how to parse the response. Both clients
send these calls.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

from shortener.client.exceptions import UnexpectedResponseError
from shortener.client.models import (
    ConversionInfo,
    ConversionReceipt,
    FigureTotals,
    LinkInfo,
    MessageInfo,
    ReportSummary,
    RewrittenText,
    SendOutcome,
    SkippedRecipient,
    parse_rewritten,
)
from shortener.plurals import counted

T = TypeVar("T")
Json = Mapping[str, Any]
Grouping = Literal["daily", "by-country", "by-campaign", "by-destination", "by-label", "by-hour", "by-action"]

#: For each kind of statistic, the field of the response that contains the rows.
_ROWS: Mapping[str, str] = {
    "daily": "days",
    "by-country": "countries",
    "by-campaign": "campaigns",
    "by-destination": "destinations",
    "by-label": "labels",
    "by-hour": "hours",
    "by-action": "actions",
}


class RewriteOptions(TypedDict, total=False):
    """The optional fields of a message to rewrite. The page /docs of the service describes each field."""

    message_request_id: str
    external_message_request_id: str
    sender_id_id: str
    sender_id_alias: str
    campaign: str
    source: Literal["api", "campaign"]
    track: Literal["directives", "first_url", "all_urls"]
    domain: str
    gateway: str
    mt_price: Decimal | str
    expires_in: int
    expires_at: datetime | str
    fallback_url: str
    lt_callbackurl: str
    opt_out: Sequence[str]
    metadata: Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True)
class ApiCall(Generic[T]):
    """One API request. `parse` makes the result from the JSON of a successful response. `key` is the `Idempotency-Key`, or None
    without one."""

    method: str
    path: str
    parse: Callable[[Json], T]
    query: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    key: str | None = None
    uses_tracker_token: bool = False

    def read(self, body: Any) -> T:
        """Return the result that the JSON of a response contains. Raise UnexpectedResponseError if the JSON has another form."""
        if not isinstance(body, Mapping):
            raise UnexpectedResponseError("the response is not a JSON object")
        try:
            return self.parse(body)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise UnexpectedResponseError(f"a field of the response is missing or has a wrong type: {error!r}") from error


@dataclass(frozen=True, slots=True)
class ResultPage(Generic[T]):
    """One page of a list. `cursor` is the cursor of the next page; None on the last page."""

    items: tuple[T, ...]
    cursor: str | None


def encode(value: Any) -> bytes:
    """Return `value` as the JSON of a request body. A Decimal becomes a string, and a time becomes ISO 8601. Raise TypeError or
    ValueError for a type that has no JSON form."""

    def convert(one: Any) -> Any:
        if isinstance(one, Decimal):
            return format(one, "f")
        if isinstance(one, datetime):
            return _time(one)
        if isinstance(one, Mapping):
            return dict(one)
        raise TypeError(f"cannot send a value of the type {type(one).__name__}")

    return json.dumps(value, default=convert, allow_nan=False, separators=(",", ":")).encode()


def _time(value: datetime) -> str:
    if value.tzinfo is None:
        raise ValueError("a time must have a time zone, for example datetime.now(UTC)")
    return value.isoformat()


def query_of(filters: Mapping[str, Any]) -> dict[str, str]:
    """Return filters as the parameters of a query. A filter with the value None is left out."""
    query = {}
    for name, value in filters.items():
        if value is None:
            continue
        name = name.removesuffix("_")
        if isinstance(value, bool):
            query[name] = "true" if value else "false"
        elif isinstance(value, datetime):
            query[name] = _time(value)
        elif isinstance(value, date):
            query[name] = value.isoformat()
        else:
            query[name] = str(value)
    return query


def _path(*parts: str) -> str:
    return "/api/v1/" + "/".join(quote(part, safe="") for part in parts)


def _expect_list(body: Json, name: str) -> list[Any]:
    rows = body[name]
    if not isinstance(rows, list):
        raise TypeError(f"{name} is not a list")
    return rows


def rewrite(content: bytes, key: str, expected: int) -> ApiCall[list[RewrittenText | SkippedRecipient]]:
    """Return the call that rewrites the messages in the request body `content`. `expected` is the number of their recipients."""

    def parse(body: Json) -> list[RewrittenText | SkippedRecipient]:
        rows = _expect_list(body, "messages")
        if len(rows) != expected:
            raise ValueError(f"the response has {counted(len(rows), 'message')} for {counted(expected, 'recipient')}")
        return [parse_rewritten(row) for row in rows]

    return ApiCall("POST", "/api/v1/rewrite", parse, content=content, key=key)


def preview(to: str, body: str, sender: str | None, options: Mapping[str, Any]) -> ApiCall[RewrittenText]:
    fields = {**options, "to": to, "body": body, **({} if sender is None else {"from": sender})}

    def parse(answer: Json) -> RewrittenText:
        (row,) = _expect_list(answer, "messages")
        return RewrittenText.parse(row)

    return ApiCall("POST", "/api/v1/rewrite/preview", parse, content=encode(fields))


def send(
    to: Sequence[str], message: str, sender_id: str, key: str, options: Mapping[str, Any] | None = None
) -> ApiCall[SendOutcome]:
    content = encode({**(options or {}), "to": list(to), "message": message, "sender_id": sender_id})
    return ApiCall("POST", "/api/v1/sms/send", SendOutcome.parse, content=content, key=key)


def status(message_id: str) -> ApiCall[MessageInfo]:
    return ApiCall("GET", _path("sms", "status", message_id), MessageInfo.parse)


def report_delivery(reports: Iterable[Mapping[str, Any]]) -> ApiCall[ReportSummary]:
    content = encode([dict(report) for report in reports])
    return ApiCall("POST", "/api/v1/sms/status", ReportSummary.parse, content=content)


def _list_call(
    parts: Sequence[str], name: str, parse_row: Callable[[Json], T], filters: Mapping[str, Any], cursor: str | None
) -> ApiCall[ResultPage[T]]:
    def parse(body: Json) -> ResultPage[T]:
        return ResultPage(tuple(parse_row(row) for row in _expect_list(body, name)), body.get("next_cursor"))

    return ApiCall("GET", _path(*parts), parse, query=query_of({**filters, "cursor": cursor}))


def messages(filters: Mapping[str, Any], cursor: str | None) -> ApiCall[ResultPage[MessageInfo]]:
    return _list_call(["sms", "messages"], "messages", MessageInfo.parse, filters, cursor)


def links(filters: Mapping[str, Any], cursor: str | None) -> ApiCall[ResultPage[LinkInfo]]:
    return _list_call(["links"], "links", LinkInfo.parse, filters, cursor)


def conversions(filters: Mapping[str, Any], cursor: str | None) -> ApiCall[ResultPage[ConversionInfo]]:
    return _list_call(["conversions"], "conversions", ConversionInfo.parse, filters, cursor)


def clicks(filters: Mapping[str, Any], cursor: str | None) -> ApiCall[ResultPage[Json]]:
    return _list_call(["clicks"], "clicks", dict, filters, cursor)


def events(filters: Mapping[str, Any], cursor: str | None) -> ApiCall[ResultPage[Json]]:
    return _list_call(["events"], "events", dict, filters, cursor)


def link(code: str) -> ApiCall[LinkInfo]:
    return ApiCall("GET", _path("links", code), lambda body: LinkInfo.parse(body["link"]))


def update_link(code: str, changes: Mapping[str, Any]) -> ApiCall[LinkInfo]:
    if not changes:
        raise ValueError("name at least one field to change: url, expires_at, fallback_url or enabled")
    return ApiCall("PATCH", _path("links", code), lambda body: LinkInfo.parse(body["link"]), content=encode(changes))


def statistics(filters: Mapping[str, Any]) -> ApiCall[FigureTotals]:
    return ApiCall("GET", _path("sms", "stats"), FigureTotals.parse, query=query_of(filters))


def statistics_by(grouping: Grouping, filters: Mapping[str, Any], cursor: str | None) -> ApiCall[ResultPage[Json]]:
    if grouping not in _ROWS:
        raise ValueError(f"grouping must be one of {', '.join(_ROWS)}")
    return _list_call(["sms", "stats", grouping], _ROWS[grouping], dict, filters, cursor)


def report_conversion(parameters: Mapping[str, Any]) -> ApiCall[ConversionReceipt]:
    known = {name: value for name, value in parameters.items() if value is not None}
    content = encode(known)
    return ApiCall("POST", "/api/v1/callback/action", ConversionReceipt.parse, content=content, uses_tracker_token=True)
