"""POST /api/v1/sms/send: rewrite a message for up to 100 recipients and send it through a gateway (23 Telecom).

The names of the fields, the statuses and the error codes are those of 23 Telecom. Recipients to whom the service must not send
(opted out, no price for the country) are left out; `results` contains their status. A call is atomic: the messages to all other
recipients are queued, or none. If all recipients are left out, the response is the error of the first recipient. The body may
also contain the options of a rewrite, such as `campaign` and `metadata`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from shortener.accounts.directory import Application, Principal
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.messages.item_plan import NOT_SENT
from shortener.messages.rewrite_item import RewriteItem
from shortener.messages.sender_rules import check_sender
from shortener.web import rewrite_errors
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.fields import Sender
from shortener.web.rewrite_call import REWRITE_ERRORS, REWRITE_HEADERS, rewrite_items
from shortener.web.rewrite_shapes import MAX_BODY_LENGTH, MessageId, MessageOptions, RewrittenLinkFields, with_options
from shortener.web.validation import InvalidInput

if TYPE_CHECKING:
    from shortener.container import Service

MAX_RECIPIENTS = 100
MAX_UNKNOWN_FIELDS = 20
#: The `status` in `results` for a recipient who was left out, by the code of the error.
_STATUSES = {ErrorCode.NO_PRICE.name: "blocked_country", ErrorCode.OPTED_OUT.name: "opted_out"}
_SKIPPED = frozenset({ErrorCode.NO_PRICE, ErrorCode.OPTED_OUT})
#: The error code of 23 Telecom for an invalid field, by name of the field.
_FIELD_CODES = {"to": ErrorCode.INVALID_TO, "message": ErrorCode.INVALID_MESSAGE, "sender_id": ErrorCode.INVALID_SENDER}
#: The error codes of 23 Telecom for other errors, by the error code of this service.
_OTHER_CODES = {
    ErrorCode.INVALID_JSON: ErrorCode.INVALID_BODY,
    ErrorCode.UNAVAILABLE: ErrorCode.DB_ERROR,
    ErrorCode.INVALID_RECIPIENT: ErrorCode.INVALID_TO,
    ErrorCode.BATCH_TOO_LARGE: ErrorCode.TOO_MANY_RECIPIENTS,
}


class SendRequest(MessageOptions):
    """A message for up to 100 recipients. Unknown fields are ignored, with a warning."""

    model_config = ConfigDict(extra="allow")

    to: str | list[str] = Field(
        description="List of 1 to 100 phone numbers in E.164, for example +14085550100.", examples=[["+14085550100"]]
    )
    message: str = Field(
        min_length=1,
        max_length=MAX_BODY_LENGTH,
        description='Text of the message. #track("url") and #trackurl("url","label") are replaced by short links.',
        examples=['Hello Kola, please visit us at #track("https://shop.example/a?b=1") for new information'],
    )
    sender_id: Sender = Field(
        min_length=1,
        description="Sender of the message: 3 to 11 letters and digits that start with a letter, or a number.",
        examples=["18775550100"],
    )
    message_id: MessageId | list[MessageId] | None = Field(
        None,
        description="Id of the message, unique in the application. If `to` has several numbers, a list with one id for each "
        "recipient. Default: the service generates an id.",
        examples=[None],
    )


class AcceptedSend(ResponseModel):
    """The result for an accepted recipient."""

    dnis: str = Field(description="Phone number of the recipient.")
    message_id: str
    segment_num: int = Field(description="Number of SMS segments.")


class SendResultFields(ResponseModel):
    """The result for one recipient."""

    dnis: str = Field(description="Phone number of the recipient.")
    message_id: str | None = Field(description="Id of the message. null: nothing was stored for this recipient.")
    segments: int
    status: Literal["accepted", "blocked_country", "opted_out"]
    error_code: str | None = Field(description="NO_PRICE or OPTED_OUT for a recipient that was left out. null: accepted.")
    reason: str | None = Field(description="Text that explains why the recipient was left out. null: the recipient was accepted.")
    cost: str | None = Field(description="Price of the message as a decimal string. null: the message has no price.")
    body: str | None = Field(description="The rewritten text.")
    links: list[RewrittenLinkFields]
    warnings: list[str]


class SendSummaryFields(ResponseModel):
    """Totals over all recipients of a call."""

    total_recipients: int = Field(description="Number of recipients of the call.")
    total_segments: int = Field(description="Number of SMS segments of all accepted recipients.")
    total_cost: str = Field(description="Cost of all accepted recipients as a decimal string.")
    encoding: Literal["GSM-7", "UCS-2"]
    accepted_count: int = Field(description="Number of accepted recipients.")
    blocked_count: int = Field(description="Number of recipients that were left out.")
    queue_error_count: int = Field(
        description="Number of recipients that could not be queued. Always 0, because a call is queued completely or rejected."
    )
    config_error_count: int = Field(
        description=(
            "Number of recipients with the status config_error. Always 0: if the application has no gateway, the call is "
            "accepted, with `sent` false."
        )
    )
    db_error_count: int = Field(
        description="Number of recipients that could not be stored. Always 0, because a call is stored completely or rejected."
    )


class SendResponse(ResponseModel):
    """The results for all recipients, in the order of the request."""

    status: Literal[True] = True
    sent: bool = Field(
        description="Whether the messages are queued for a gateway. false: the caller must send the rewritten texts."
    )
    messages: list[AcceptedSend]
    results: list[SendResultFields]
    summary: SendSummaryFields = Field(description="Totals over all recipients of the call.")
    warnings: list[str] = Field(description="Warnings about the whole call. Without a gateway, a warning begins with NOT_SENT.")


async def send(call: Call[None, SendRequest]) -> Mapping[str, Any]:
    """Rewrite and send a message to all its recipients."""
    request = call.body
    to = request.to if isinstance(request.to, list) else [request.to]
    if not to:
        raise ApiError(ErrorCode.INVALID_TO, details=[Detail("to", "must have at least 1 item")])
    if len(to) > MAX_RECIPIENTS:
        reason = f"must have at most {MAX_RECIPIENTS} items, not {len(to)}"
        raise ApiError(ErrorCode.TOO_MANY_RECIPIENTS, details=[Detail("to", reason)])
    if check_sender(request.sender_id) is not None:
        details = await _find_problems(call.service, call.principal.application, request, to, is_complete=True)
        raise ApiError(ErrorCode.INVALID_SENDER, details=details)
    entries = await rewrite_items(call, [_item(request, to)])
    if all("error_code" in entry for entry in entries):
        codes = [ErrorCode[entry["error_code"]] for entry in entries]
        details = [
            Detail(entry["field"], entry["reason"], index=0, recipient=recipient, code=code)
            for recipient, (entry, code) in enumerate(zip(entries, codes, strict=True))
        ]
        raise ApiError(codes[0], details=details)
    return _response(entries, [f"{name[:64]} is not a known field; it was ignored" for name in request.model_extra or {}])


async def _find_problems(
    service: Service, application: Application, request: SendRequest, to: Sequence[str], *, is_complete: bool
) -> list[Detail]:
    """Return all problems that cause the rejection of a call. A problem with the sender comes first. `is_complete` is false if
    invalid fields of the call were left out of `request`; the message is then not compared with stored messages."""
    item = _item(request, to)
    problems = await service.rewriter.find_problems(application, [item], incomplete=() if is_complete else (0,))
    details = [problem.full_detail for problem in problems if not item.skips(problem.code)]
    if (reason := check_sender(request.sender_id)) is not None:
        details.insert(0, Detail("sender_id", reason, code=ErrorCode.INVALID_SENDER))
    return details


async def complete_error(service: Service, principal: Principal | None, error: InvalidInput) -> ApiError:
    """Return an error with the details of `error` and the problems that the rewriter finds in the other fields."""
    if principal is None or not isinstance(error.data, Mapping):
        return error
    invalid = {detail.field for detail in error.details}
    valid, is_complete = rewrite_errors.valid_part(error.data, invalid)
    try:
        request = SendRequest.model_validate({"to": [], "message": "x", "sender_id": "12345"} | valid)
    except ValidationError:
        return error
    to = request.to if isinstance(request.to, list) else [request.to]
    if len(to) > MAX_RECIPIENTS:
        return error
    own = [replace(detail, code=detail.code or error.code) for detail in error.details]
    others = [
        detail
        for detail in await _find_problems(service, principal.application, request, to, is_complete=is_complete)
        if not rewrite_errors.is_inside(detail.field, invalid)
    ]
    return ApiError(error.code, details=[*own, *others], hidden_details=error.details_total - len(error.details))


def _item(request: SendRequest, to: Sequence[str]) -> RewriteItem:
    ids = request.message_id
    names = {"to": "to", "body": "message", "from": "sender_id", "message_id": "message_id"}

    def field_path(name: str, recipient: int | None) -> str:
        is_list = (name == "to" and isinstance(request.to, list)) or (name == "message_id" and isinstance(ids, list))
        return f"{names.get(name, name)}.{recipient}" if is_list and recipient is not None else names.get(name, name)

    item = with_options(
        request,
        to=tuple(to),
        body=request.message,
        sender=request.sender_id,
        message_ids=None if ids is None else (ids,) if isinstance(ids, str) else tuple(ids),
        field_path=field_path,
    )
    gateway = item.gateway if "gateway" in request.model_fields_set else ""
    return replace(item, gateway=gateway, skipped_codes=_SKIPPED)


def _response(entries: Sequence[Mapping[str, Any]], unknown: Sequence[str]) -> Mapping[str, Any]:
    accepted = [entry for entry in entries if "error_code" not in entry]
    sent = bool(accepted) and all(entry.get("sent") for entry in accepted)
    costs = [Decimal(entry["cost"]) for entry in accepted if entry.get("cost") is not None]
    return {
        "status": True,
        "sent": sent,
        "messages": [
            {"dnis": entry["to"], "message_id": entry["message_id"], "segment_num": entry["segments"]} for entry in accepted
        ],
        "results": [_result(entry) for entry in entries],
        "summary": {
            "total_recipients": len(entries),
            "total_segments": sum(entry["segments"] for entry in accepted),
            "total_cost": format(sum(costs, Decimal()), "f"),
            "encoding": accepted[0]["encoding"] if accepted else "GSM-7",
            "accepted_count": len(accepted),
            "blocked_count": len(entries) - len(accepted),
            "queue_error_count": 0,
            "config_error_count": 0,
            "db_error_count": 0,
        },
        "warnings": [*([] if sent or not accepted else [_not_sent(accepted)]), *unknown[:MAX_UNKNOWN_FIELDS]],
    }


def _not_sent(accepted: Sequence[Mapping[str, Any]]) -> str:
    """Return the warning that explains why the messages are not sent."""
    warnings = (warning for entry in accepted for warning in entry.get("warnings", ()) if warning.startswith("NOT_SENT"))
    return next(warnings, NOT_SENT)


def _result(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    code = entry.get("error_code")
    return {
        "dnis": entry["to"],
        "message_id": entry["message_id"] if code is None else None,
        "segments": entry["segments"] if code is None else 0,
        "status": "accepted" if code is None else _STATUSES[code],
        "error_code": code,
        "reason": entry.get("reason"),
        "cost": entry.get("cost"),
        "body": entry.get("body"),
        "links": entry.get("links", []),
        "warnings": entry.get("warnings", []),
    }


def translate_error(error: ApiError) -> ApiError:
    """Return an error with the code of 23 Telecom in place of the code of this service."""
    code = _translate(error.code, error.details[0].field if error.details else "")
    hidden = error.details_total - len(error.details)
    details = [
        detail if detail.code is None else replace(detail, code=_translate(detail.code, detail.field)) for detail in error.details
    ]
    if code is error.code and details == list(error.details):
        return error
    description = None if error.description == error.code.meaning else error.description
    return ApiError(code, description, details, retry_after=error.retry_after, hidden_details=hidden, fields=error.fields)


def _translate(code: ErrorCode, field: str) -> ErrorCode:
    """Return the code of 23 Telecom for an error code of this service. `field` is the path of the invalid field."""
    if code is ErrorCode.INVALID_REQUEST:
        name = field.partition(".")[0]
        return _FIELD_CODES.get(name, code if name else ErrorCode.INVALID_BODY)
    return _OTHER_CODES.get(code, code)


ENDPOINTS = [
    Endpoint(
        "POST",
        "/api/v1/sms/send",
        send,
        "Send a message to 1 to 100 recipients",
        "Send pipeline",
        permission="sms.send",
        body=SendRequest,
        translate_error=translate_error,
        complete_error=complete_error,
        response=SendResponse,
        headers=REWRITE_HEADERS,
        errors=(
            ErrorCode.INVALID_BODY,
            ErrorCode.INVALID_TO,
            ErrorCode.INVALID_MESSAGE,
            ErrorCode.INVALID_SENDER,
            ErrorCode.TOO_MANY_RECIPIENTS,
            ErrorCode.DB_ERROR,
            *REWRITE_ERRORS,
        ),
        description="In one transaction, the service rewrites the message, stores it and queues it for the gateway of the "
        "application. Therefore a call is queued completely or not at all. `DB_ERROR` means that nothing was stored; the "
        "call can be repeated. Recipients who opted out, or whose country has no price, are left out; if all are left out, "
        "the response is the error of the first recipient. Without a gateway nothing is sent: `sent` is false, and the "
        "caller sends the rewritten texts of `results`.",
    ),
]
