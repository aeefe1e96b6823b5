"""Infobip's delivery reports and message logs, versions 1, 2 and 3.

As in the API of Infobip, each delivery report is returned once, oldest first, so that a client can poll until the list is empty.
The three versions of the call do not affect each other: each version returns each report once. A call with `bulkId` or
`messageId` is an exception: it returns the current reports of these messages every time. Fields without a value are left out,
because the typed clients of Infobip reject null.
"""
# Tested by tests/web/vendors/test_infobip_logs.py

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from shortener.delivery.event_fields import exact_number
from shortener.errors import ApiError, Detail, ErrorCode, StoreUnavailable
from shortener.logs import mask_parameters
from shortener.messages.phone_numbers import PhoneNumberError, parse_searched_number
from shortener.model import State
from shortener.reporting.logs import LogEntry, LogPage, log_entries, read_log
from shortener.reporting.messages import MessageFilter, shown_number, shown_reason
from shortener.reporting.report_polls import accept, read_next
from shortener.times import end_of, start_of
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.fields import Text, Time
from shortener.web.messages import may_reveal
from shortener.web.paging import Cursors
from shortener.web.vendors.error_shapes import infobip_error
from shortener.web.vendors.infobip_fields import PENDING, InfobipStatus
from shortener.web.vendors.infobip_times import serialize_infobip_time

PERIOD = timedelta(hours=48)  # The default period of logs, and the period of reports. Both are the same as in the API of Infobip.
MAX_IDS = 1000
# The maximum number of times that one call reads the next reports. It reads again if another call of the same application has
# returned these reports in the meantime.
MAX_CONCURRENT_POLLS = 10

GeneralStatus = Literal["ACCEPTED", "PENDING", "UNDELIVERABLE", "DELIVERED", "REJECTED", "EXPIRED"]
_STATES: Mapping[str, frozenset[State]] = {
    "PENDING": frozenset({State.CREATED, State.SENT}),
    "UNDELIVERABLE": frozenset({State.FAILED}),
    "DELIVERED": frozenset({State.DELIVERED, State.READ, State.CLICKTHRU}),
    "EXPIRED": frozenset({State.EXPIRED}),
}
_FINAL = _STATES["UNDELIVERABLE"] | _STATES["DELIVERED"] | _STATES["EXPIRED"]


def _as_ids(value: Any) -> Any:
    """Return the ids in a query parameter. It may be repeated, and each value may contain several ids, separated by commas."""
    parts = value if isinstance(value, list) else [value]
    return tuple(one.strip() for part in parts for one in str(part).split(",") if one.strip())


Ids = Annotated[tuple[Text, ...] | None, BeforeValidator(_as_ids), Field(max_length=MAX_IDS)]


class InfobipReportsQuery(BaseModel):
    """Filters of delivery reports. Unknown parameters are ignored."""

    model_config = ConfigDict(extra="ignore")

    bulk_id: Ids = Field(None, alias="bulkId", description="Only messages of the requests with these ids, separated by commas.")
    message_id: Ids = Field(None, alias="messageId", description="Only the messages with these ids, separated by commas.")
    limit: int = Field(50, ge=1, le=1000, description="Maximum number of reports.")


class InfobipLogsQuery(InfobipReportsQuery):
    """Filters of logs, versions 1 and 2. Unknown parameters are ignored."""

    sender: Text | None = Field(None, alias="from", max_length=100, description="Only messages of this sender.")
    destination: Text | None = Field(None, alias="to", max_length=100, description="Only messages to this phone number.")
    general_status: GeneralStatus | None = Field(
        None, alias="generalStatus", description="Only messages with this status group of Infobip."
    )
    sent_since: Time | None = Field(
        None,
        alias="sentSince",
        description="Start of the period, included. Default: 48 hours ago.",
        examples=["2026-11-20T12:00:00Z"],
    )
    sent_until: Time | None = Field(
        None, alias="sentUntil", description="End of the period, excluded. Default: now.", examples=["2026-11-21T12:00:00Z"]
    )


class InfobipV3LogsQuery(InfobipLogsQuery):
    """Filters of logs, version 3. Unknown parameters are ignored."""

    sender: Text | None = Field(None, max_length=100, description="Only messages of this sender.")
    destination: Text | None = Field(None, max_length=100, description="Only messages to this phone number.")
    cursor: Text | None = Field(None, max_length=100, description="`nextCursor` of the previous page. Default: the first page.")


class SparseModel(BaseModel):
    """Base class of response models. Fields without a value are left out of the response."""

    model_config = ConfigDict(extra="forbid")


class InfobipError(ResponseModel):
    """The reason why a message was not delivered, or NO_ERROR."""

    groupId: int
    groupName: str
    id: int
    name: str
    description: str
    permanent: bool


class InfobipPrice(ResponseModel):
    """The price of a message."""

    pricePerMessage: float


class InfobipReport(SparseModel):
    """One message in a delivery report or in a log, versions 1 and 2. Fields without a value are left out."""

    bulkId: str
    messageId: str
    to: str = Field(description="Phone number of the recipient without a plus.")
    sender: str | None = Field(None, alias="from")
    sentAt: str | None = None
    doneAt: str | None = Field(None, description="Time when the message got its final status.")
    smsCount: int = Field(description="Number of SMS segments.")
    callbackData: str | None = None
    price: InfobipPrice | None = None
    status: InfobipStatus
    error: InfobipError
    text: str | None = Field(None, description="Text of the message while it waits for a gateway. Otherwise absent.")


class InfobipReportsResponse(ResponseModel):
    """Messages with their delivery status, in Infobip's format."""

    results: list[InfobipReport]


class InfobipSmsContent(ResponseModel):
    """The content of a message."""

    text: str


class InfobipV3Report(SparseModel):
    """One message in a delivery report or in a log, version 3. Fields without a value are left out.

    The number of the recipient is `to` in a report and `destination` in a log."""

    bulkId: str
    messageId: str
    to: str | None = Field(None, description="Only in reports: phone number of the recipient without a plus.")
    destination: str | None = Field(None, description="Only in logs: phone number of the recipient without a plus.")
    sender: str | None = None
    sentAt: str | None = None
    doneAt: str | None = Field(None, description="Time when the message got its final status.")
    messageCount: int = Field(description="Number of SMS segments.")
    callbackData: str | None = None
    price: InfobipPrice | None = None
    status: InfobipStatus
    error: InfobipError
    content: InfobipSmsContent | None = Field(
        None, description="Text of the message. Only in logs, and only while the message waits for a gateway."
    )
    campaignReferenceId: str | None = None


class InfobipCursor(SparseModel):
    """The position of the next page."""

    limit: int
    nextCursor: str | None = Field(None, description="Cursor of the next page. Absent on the last page.")


class InfobipV3ReportsResponse(SparseModel):
    """Messages with their status, and the cursor of the next page if the response is a page of a log."""

    results: list[InfobipV3Report]
    cursor: InfobipCursor | None = None


async def reports(call: Call[InfobipReportsQuery, None]) -> dict[str, Any]:
    """Return the next delivery reports."""
    reveal = may_reveal(call)
    reader = "infobip-1" if call.request.url.path.startswith("/sms/1/") else "infobip-2"
    return {"results": [_report(entry, reveal) for entry in await _read_reports(call, reader)]}


async def v3_reports(call: Call[InfobipReportsQuery, None]) -> dict[str, Any]:
    """Return the next delivery reports, in the format of version 3."""
    reveal = may_reveal(call)
    return {"results": [_v3_report(entry, "to", reveal) for entry in await _read_reports(call, "infobip-3")]}


async def logs(call: Call[InfobipLogsQuery, None]) -> dict[str, Any]:
    """Return the messages of a period."""
    reveal = may_reveal(call)
    page = await _read_logs(call, None)
    return {"results": [_report(entry, reveal) | _text(entry) for entry in page.entries]}


async def v3_logs(call: Call[InfobipV3LogsQuery, None]) -> dict[str, Any]:
    """Return a page of the messages of a period, in the format of version 3."""
    reveal, cursors = may_reveal(call), Cursors(call.service.secret, "infobip-logs")
    page = await _read_logs(call, cursors.decode(call.query.cursor))
    results = [
        _v3_report(entry, "destination", reveal) | ({"content": text} if (text := _text(entry)) else {}) for entry in page.entries
    ]
    return {"results": results, "cursor": _present(limit=call.query.limit, nextCursor=cursors.encode(page.next))}


async def _read_reports(call: Call[InfobipReportsQuery, None], reader: str) -> Sequence[LogEntry]:
    query, database, now = call.query, call.service.database, call.service.clock()
    if query.bulk_id is not None or query.message_id is not None:
        filters = MessageFilter(call.application_id, states=_FINAL, request_ids=query.bulk_id, since=now - PERIOD)
        return (await database.read(read_log, filters, query.limit, None, query.message_id)).entries
    for _ in range(MAX_CONCURRENT_POLLS):
        poll = await database.read(read_next, call.application_id, reader, now, query.limit)
        entries = await database.read(log_entries, poll.messages)
        # A HEAD request gets no body, so it must not mark reports as returned.
        if call.request.method == "HEAD" or await database.write(accept, poll):
            return entries
    raise StoreUnavailable("too many requests read delivery reports at the same time")


def _searched(number: str) -> str:
    """Return a phone number in the form in which messages store it. Return any other text unchanged; it matches no message."""
    try:
        return parse_searched_number(number)
    except PhoneNumberError:
        return number


async def _read_logs(call: Call[Any, None], below: int | None) -> LogPage:
    query: InfobipLogsQuery = call.query
    until = None if query.sent_until is None else end_of(query.sent_until)
    since = (until or call.service.clock()) - PERIOD if query.sent_since is None else start_of(query.sent_since)
    if until is not None and since >= until:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("sentUntil", "must be after sentSince")])
    filters = MessageFilter(
        call.application_id,
        states=None if query.general_status is None else _STATES.get(query.general_status, frozenset()),
        request_ids=query.bulk_id,
        sender=query.sender,
        to=None if query.destination is None else _searched(query.destination),
        since=since,
        until=until,
    )
    return await call.service.database.read(read_log, filters, query.limit, below, query.message_id)


def _report(entry: LogEntry, reveal: bool) -> dict[str, Any]:
    message = entry.message
    sender = message.from_address or None
    number = _number(message.to_address, reveal)
    return _present(to=number, smsCount=_segments(entry), **{"from": sender}, **_common_fields(entry, reveal))


def _v3_report(entry: LogEntry, recipient: str, reveal: bool) -> dict[str, Any]:
    message = entry.message
    return _present(
        **{recipient: _number(message.to_address, reveal)},
        sender=message.from_address or None,
        messageCount=_segments(entry),
        campaignReferenceId=message.campaign or None,
        **_common_fields(entry, reveal),
    )


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _common_fields(entry: LogEntry, reveal: bool) -> dict[str, Any]:
    message = entry.message
    state = State(message.state)
    done: datetime | None = message.failed_at
    if state in _STATES["DELIVERED"]:
        done = message.delivered_at or message.read_at or message.clicked_at
    price = message.mt_price if message.mt_price is not None else entry.cost
    data = (entry.metadata if reveal else mask_parameters(entry.metadata)) or {}
    return {
        "bulkId": message.request_id,
        "messageId": message.message_id,
        "sentAt": serialize_infobip_time(message.sent_at or message.created_at),
        "doneAt": serialize_infobip_time(done) if done is not None and state in _FINAL else None,
        "callbackData": str(data["callbackData"]) if "callbackData" in data else None,
        # in Infobip's format, this is a JSON number
        "price": None if price is None else {"pricePerMessage": exact_number(price)},
        "status": _status(state),
        "error": _error(entry, state, reveal),
    }


def _number(number: str, reveal: bool) -> str:
    return shown_number(number, reveal=reveal).removeprefix("+")


def _segments(entry: LogEntry) -> int:
    count: int | None = entry.message.fragments_count
    return entry.message.segments if count is None else count


def _text(entry: LogEntry) -> dict[str, str]:
    return {} if entry.text is None else {"text": entry.text}


def _status(state: State) -> dict[str, Any]:
    if state in _STATES["DELIVERED"]:
        group, number, name, text = (3, "DELIVERED"), 5, "DELIVERED_TO_HANDSET", "Message delivered to handset"
    elif state is State.FAILED:
        group, number, name, text = (2, "UNDELIVERABLE"), 9, "UNDELIVERABLE_NOT_DELIVERED", "Message sent not delivered"
    elif state is State.EXPIRED:
        group, number, name, text = (4, "EXPIRED"), 15, "EXPIRED_EXPIRED", "Message expired"
    else:
        return PENDING
    return {"groupId": group[0], "groupName": group[1], "id": number, "name": name, "description": text}


def _error(entry: LogEntry, state: State, reveal: bool) -> dict[str, Any]:
    """Return Infobip's error object: NO_ERROR, or the reason of the latest delivery report."""
    message = entry.message
    if state not in (State.FAILED, State.EXPIRED):
        return {"groupId": 0, "groupName": "OK", "id": 0, "name": "NO_ERROR", "description": "No Error", "permanent": False}
    code = message.reason_code or ""
    reason = shown_reason(message.reason_description, message.to_address, reveal=reveal)
    return {
        "groupId": 3,
        "groupName": "OPERATOR_ERRORS",
        "id": int(code) if code.isdecimal() and len(code) <= 9 else 0,
        "name": code or "UNKNOWN",
        "description": reason or message.report_status or "Unknown",
        "permanent": state is State.FAILED,
    }


def _reading(path: str, handler: Any, summary: str, query: type[BaseModel], response: type[BaseModel], text: str) -> Endpoint:
    return Endpoint(
        "GET",
        path,
        handler,
        summary,
        "Messages",
        permission="sms.read",
        query=query,
        error_shape=infobip_error,
        response=response,
        errors=(ErrorCode.INVALID_CURSOR,) if query is InfobipV3LogsQuery else (),
        description=text,
    )


_REPORTS = (
    "Delivery reports of the last 48 hours. Each call returns the next reports, oldest first. Each report is returned once. "
    "A click is not a report. A call with `bulkId` or `messageId` is different: every time, it returns all these "
    "messages that have a final status, newest first. A clicked message has the final status DELIVERED. A call without "
    "ids reads at most 200,000 entries of the event log. In a large installation, the first calls can therefore return "
    "an empty list."
)
_LOGS = "Messages of a period, by default the last 48 hours. Without ids, one call examines at most 100,000 messages."

ENDPOINTS = [
    *(
        _reading(
            f"/sms/{version}/reports",
            v3_reports if version == 3 else reports,
            f"List delivery reports (Infobip, version {version})",
            InfobipReportsQuery,
            InfobipV3ReportsResponse if version == 3 else InfobipReportsResponse,
            _REPORTS,
        )
        for version in (1, 2, 3)
    ),
    *(
        _reading(
            f"/sms/{version}/logs",
            v3_logs if version == 3 else logs,
            f"List messages (Infobip, version {version})",
            InfobipV3LogsQuery if version == 3 else InfobipLogsQuery,
            InfobipV3ReportsResponse if version == 3 else InfobipReportsResponse,
            _LOGS,
        )
        for version in (1, 2, 3)
    ),
]
