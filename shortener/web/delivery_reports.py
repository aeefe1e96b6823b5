"""POST /api/v1/sms/status: the endpoint to which the send pipeline forwards the delivery reports of the carrier.

Each report of a list is accepted or refused separately. A report is refused only if the application has no message with its
message_id, or if the state in the report is not a known word. Any other invalid value, such as a text that is too long or an
unknown date format, is cut or left out. The rest of the report is stored, and the result of the report contains a warning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, RootModel, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.messages.delivery_reports import DeliveryReport
from shortener.messages.report_words import parse_state
from shortener.model import State, Topic, mutable_record
from shortener.plurals import counted
from shortener.times import parse_report_time
from shortener.web.damaged_json import RepairedText
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel
from shortener.web.fields import MAX_PRICE_DECIMALS, Price, Text, is_decimal, parse_price
from shortener.web.large_responses import convert_in_pieces

MAX_ID_CHARACTERS = 255
MAX_FRAGMENTS = 1000
_MAX_CHARACTERS = {"status": 64, "reason_code": 64, "reason_description": 255, "telecom_message_id": 255}


class DeliveryReportItem(RequestModel):
    """A delivery report for one message. A code or a time may be a number instead of a text."""

    model_config = ConfigDict(extra="allow")

    message_id: Text = Field(max_length=MAX_ID_CHARACTERS, description="Id of the message to which the report belongs.")
    state: Text = Field(
        description="State of the message: SENT, DELIVERED, READ, FAILED or EXPIRED in upper or lower case, or a word of SMPP, "
        "Kannel, Jasmin, playSMS, Twilio, Infobip or Vonage, for example DELIVRD. Default: the value of `status`.",
        examples=["DELIVERED"],
    )
    status: Text | None = Field(
        None, description="Status word of the carrier, for example DELIVRD. The service cuts it to 64 characters."
    )
    reason_code: Text | None = Field(None, description="Reason code of the carrier. The service cuts it to 64 characters.")
    reason_description: Text | None = Field(None, description="Reason text of the carrier. The service cuts it to 255 characters.")
    mt_price: Price | None = Field(None, description="Price of the message, a decimal string or a number.")
    fragments_count: int | None = Field(None, description="Number of SMS segments that the carrier billed, from 1 to 1000.")
    telecom_message_id: Text | None = Field(None, description="Message id of the carrier. The service cuts it to 255 characters.")
    timestamp: Text | None = Field(
        None,
        description="Time of the report (UTC without a zone): ISO 8601, RFC 2822, 2026/11/27 10:00:00, SMPP's YYMMDDhhmm, or "
        "seconds or milliseconds since 1970. Default: now. A time that cannot be read is replaced by the current time.",
    )


#: The type of the body, which only the OpenAPI document uses. The service does not validate a complete list with it, because one
#: invalid report would then cause the rejection of the whole list.
_DOCUMENTED_REPORTS: TypeAdapter[Any] = TypeAdapter(DeliveryReportItem | Annotated[list[DeliveryReportItem], Field(min_length=1)])


class DeliveryReportRequest(RootModel[Any]):
    """One delivery report, or a list of delivery reports."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler(_DOCUMENTED_REPORTS.core_schema)
        return {**handler.resolve_ref_schema(described), "description": cls.__doc__}


class DeliveryReportFields(ResponseModel):
    message_id: str | None = Field(description="The message_id of the report; null if the report has none.")
    accepted: bool
    error_code: str | None = Field(
        description="Error code of a refused report: MESSAGE_NOT_FOUND or INVALID_REQUEST. null if the report was accepted."
    )
    reason: str | None = Field(description="Text that explains why the report was refused. null if the report was accepted.")
    state: str | None = Field(description="State of the message after this report. null if the report was refused.")
    changed: bool = Field(description="true if the report changed the message, false if it changed nothing.")
    warnings: list[str] = Field(description="Warnings about values of the report that were cut or not stored.")


class DeliveryReportsResponse(ResponseModel):
    """One entry for each report, in the order of the request."""

    status: Literal[True] = True
    accepted: int = Field(description="Number of accepted reports.")
    refused: int = Field(description="Number of refused reports.")
    results: list[DeliveryReportFields]


@mutable_record
class ReadReport:
    """The result of `read_report`. If the report is refused, `report` is None. Then `invalid_field` is the name of the invalid
    field, and `reason` says what is wrong."""

    message_id: str | None
    report: DeliveryReport | None = None
    invalid_field: str = ""
    reason: str = ""
    warnings: list[str] = field(default_factory=list)


def read_report(item: Any, now: datetime) -> ReadReport:
    """Read one report of a request. The report is refused only if its message_id or its state is invalid. Other invalid values
    cause warnings."""
    if not isinstance(item, Mapping):
        return ReadReport(None, reason="must be an object")
    message_id = _text(item.get("message_id"))
    if not message_id:
        return ReadReport(None, invalid_field="message_id", reason="is required")
    if len(message_id) > MAX_ID_CHARACTERS:
        return ReadReport(
            message_id[:MAX_ID_CHARACTERS], invalid_field="message_id", reason=f"must have at most {MAX_ID_CHARACTERS} characters"
        )
    read = ReadReport(message_id)
    word = _text(item.get("state")) or _text(item.get("status"))
    if not word:
        read.invalid_field, read.reason = "state", "is required"
        return read
    try:
        state, is_own_name = parse_state(word)
    except ValueError as error:
        read.invalid_field, read.reason = "state", str(error)
        return read
    texts = {name: _cut(item.get(name), name, limit, read.warnings) for name, limit in _MAX_CHARACTERS.items()}
    unknown = [name for name in item if name not in DeliveryReportItem.model_fields]
    read.warnings += [f"{name[:64]} is not a known field" for name in unknown[:10]]
    read.warnings += [
        f"{name} is not UTF-8; its invalid characters were replaced"
        for name in DeliveryReportItem.model_fields
        if isinstance(item.get(name), RepairedText)
    ]
    read.report = DeliveryReport(
        message_id=message_id,
        state=state,
        at=_time(item.get("timestamp"), now, read.warnings),
        report_status=texts["status"] or (None if is_own_name else word[: _MAX_CHARACTERS["status"]].replace("\x00", "\ufffd")),
        reason_code=texts["reason_code"],
        reason_description=texts["reason_description"],
        telecom_message_id=texts["telecom_message_id"],
        mt_price=_price(item.get("mt_price"), read.warnings),
        fragments_count=_fragments(item.get("fragments_count"), read.warnings),
    )
    return read


def _text(value: Any) -> str:
    """Return a text or a number as text without surrounding spaces. Return the empty string for any other value."""
    return str(value).strip() if isinstance(value, str | int | float | Decimal) and not isinstance(value, bool) else ""


def _cut(value: Any, name: str, limit: int, warnings: list[str]) -> str | None:
    if value is None or value == "":
        return None
    text = _text(value).replace("\x00", "\ufffd")
    if not text:
        warnings.append(f"{name} is not a text, so it is not stored")
    elif len(text) > limit:
        warnings.append(f"{name} is cut to {limit} characters")
    return text[:limit] or None


def _time(value: Any, now: datetime, warnings: list[str]) -> datetime:
    if value is None or value == "":
        return now
    try:
        return parse_report_time(_text(value), now)
    except ValueError as error:
        warnings.append(f"timestamp {error}; the current time is stored")
        return now


def _price(value: Any, warnings: list[str]) -> Decimal | None:
    if value is None or value == "":
        return None
    try:
        return parse_price(value)
    except ValueError as error:
        reason = error
    try:
        if isinstance(value, str) and not is_decimal(value):
            raise ValueError
        rounded = parse_price(str(round(Decimal(_text(value)), MAX_PRICE_DECIMALS)))
    except (ValueError, ArithmeticError):
        warnings.append(f"mt_price {reason}; it is not stored")
        return None
    warnings.append(f"mt_price is rounded to {MAX_PRICE_DECIMALS} digits after the decimal point")
    return rounded


def _fragments(value: Any, warnings: list[str]) -> int | None:
    if value is None or value == "":
        return None
    text = _text(value)
    if text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= MAX_FRAGMENTS:
        return int(text)
    warnings.append(f"fragments_count must be a number from 1 to {MAX_FRAGMENTS}; it is not stored")
    return None


async def report(call: Call[None, DeliveryReportRequest]) -> dict[str, Any]:
    """Store one delivery report or a list. Each report of a list is accepted or refused separately."""
    body = call.body.root
    items = body if isinstance(body, list) else [body]
    if not items:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("", "must have at least 1 item")])
    limit = call.service.settings.batch_limit
    if len(items) > limit:
        raise ApiError(ErrorCode.BATCH_TOO_LARGE, f"One request must have at most {limit} reports (BATCH_LIMIT), not {len(items)}.")
    await _limit_deliveries(call, len(items))
    now = call.service.clock()
    read = await convert_in_pieces(lambda item: read_report(item, now), items)
    valid = [one.report for one in read if one.report is not None]
    stored = iter(await call.service.delivery_reports.record(call.application_id, valid) if valid else ())
    results: list[dict[str, Any]] = []
    details: list[Detail] = []
    codes: Counter[ErrorCode] = Counter()
    for index, one in enumerate(read):
        result = next(stored) if one.report is not None else None
        if result is not None:
            results.append(_accepted(result.message_id, result.state, result.changed, one.warnings))
            continue
        code, name, reason = ErrorCode.INVALID_REQUEST, one.invalid_field, one.reason
        if one.report is not None:
            code, name, reason = ErrorCode.MESSAGE_NOT_FOUND, "message_id", "is not the id of a message of this application"
        codes[code] += 1
        details.append(Detail(f"{index}.{name}".rstrip(".") if isinstance(body, list) else name, reason))
        refusal = f"{name} {reason}".strip()
        results.append(
            {
                "message_id": one.message_id,
                "accepted": False,
                "error_code": code.name,
                "reason": refusal,
                "state": None,
                "changed": False,
                "warnings": one.warnings,
            }
        )
    refused = codes.total()
    if refused == len(items):
        only_unknown = set(codes) == {ErrorCode.MESSAGE_NOT_FOUND}
        raise ApiError(ErrorCode.MESSAGE_NOT_FOUND if only_unknown else ErrorCode.INVALID_REQUEST, details=details)
    return {"status": True, "accepted": len(items) - refused, "refused": refused, "results": results}


async def _limit_deliveries(call: Call[None, DeliveryReportRequest], reports: int) -> None:
    """Raise ApiError RATE_LIMITED if the reports would create more deliveries to trackers than REPORT_DELIVERY_LIMIT permits in a
    minute.

    Each report counts once for each tracker that subscribes to its event."""
    service = call.service
    trackers = await service.trackers.count_subscribers(call.application_id, Topic.DELIVERY)
    wait = service.rate_limits.reported_deliveries.take(call.application_id, cost=max(reports * trackers, 1))
    if wait:
        permitted = counted(service.settings.report_delivery_limit, "delivery", "deliveries")
        reason = (
            f"The delivery reports of an application may create {permitted} to trackers in a minute "
            "(REPORT_DELIVERY_LIMIT). No report of this request was stored. Send the request again after Retry-After."
        )
        raise ApiError(ErrorCode.RATE_LIMITED, reason, retry_after=wait)


def _accepted(message_id: str, state: State, changed: bool, warnings: list[str]) -> dict[str, Any]:
    return {
        "message_id": message_id,
        "accepted": True,
        "error_code": None,
        "reason": None,
        "state": state.name,
        "changed": changed,
        "warnings": warnings,
    }


ENDPOINTS = [
    Endpoint(
        "POST",
        "/api/v1/sms/status",
        report,
        "Report the delivery state of messages",
        "Send pipeline",
        permission="sms.send",
        body=DeliveryReportRequest,
        repairs_text=True,
        is_report=True,
        response=DeliveryReportsResponse,
        errors=(ErrorCode.MESSAGE_NOT_FOUND, ErrorCode.BATCH_TOO_LARGE, ErrorCode.RATE_LIMITED),
        description="The body is one report or a list. Each report is accepted or refused separately, and `results` has one "
        "entry for each report. The call returns an error only if no report was accepted. Texts that are too long are cut, "
        "text that is not UTF-8 is read as Windows-1252, and values that cannot be read are left out, with a warning. A "
        "state only moves forward: CREATED < SENT < FAILED, EXPIRED < DELIVERED < READ < CLICKTHRU. A late report stores its "
        "time and never moves the state back. The words of SMPP, Kannel, Jasmin, playSMS, Twilio, Infobip and Vonage are "
        "accepted too; ACCEPTD, ENROUTE and UNKNOWN are stored and do not change the state.",
    )
]
