"""POST /api/v1/sms/status: the send pipeline forwards the delivery reports of the carrier."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, RootModel, Tag, field_validator

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.messages.delivery_reports import DeliveryReport
from shortener.model import State
from shortener.times import parse_time
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel
from shortener.web.fields import Price, Text
from shortener.web.validation import MAX_DETAILS


class DeliveryReportItem(RequestModel):
    """A delivery report for one message. Codes and times may also be numbers."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    message_id: Text = Field(max_length=255)
    state: Literal["SENT", "DELIVERED", "READ", "FAILED", "EXPIRED"]
    status: Text | None = Field(None, max_length=64, description="Status word of the carrier, for example DELIVRD.")
    reason_code: Text | None = Field(None, max_length=64)
    reason_description: Text | None = Field(None, max_length=255)
    mt_price: Price | None = Field(None, description="Price of the message, a decimal string or a number.")
    fragments_count: int | None = Field(None, ge=1, le=1000, description="Number of segments that the carrier billed.")
    telecom_message_id: Text | None = Field(None, max_length=255)
    timestamp: Text | None = Field(
        None,
        max_length=64,
        description="Time of the report: ISO 8601 (UTC without a zone), or seconds or milliseconds since 1970. Default: now.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _empty_to_none(cls, value: object) -> object:
        return None if value == "" else value


def _form_of(value: Any) -> str:
    return "batch" if isinstance(value, list) else "single"


class DeliveryReportRequest(
    RootModel[
        Annotated[
            Annotated[DeliveryReportItem, Tag("single")] | Annotated[list[DeliveryReportItem], Field(min_length=1), Tag("batch")],
            Discriminator(_form_of),
        ]
    ]
):
    """One delivery report, or a list of delivery reports."""


class DeliveryReportFields(ResponseModel):
    message_id: str
    state: str = Field(description="State of the message after this report.")
    changed: bool = Field(description="false if the report changed nothing.")


class DeliveryReportsResponse(ResponseModel):
    """One entry for each report, in the order of the request."""

    status: Literal[True] = True
    reports: list[DeliveryReportFields]


async def report(call: Call[None, DeliveryReportRequest]) -> DeliveryReportsResponse:
    """Store one delivery report or a batch; a batch is stored completely or not at all."""
    body = call.body.root
    items = [("", body)] if isinstance(body, DeliveryReportItem) else [(str(index), item) for index, item in enumerate(body)]
    limit = call.service.settings.batch_limit
    if len(items) > limit:
        raise ApiError(ErrorCode.BATCH_TOO_LARGE, f"One request must have at most {limit} reports (BATCH_LIMIT), not {len(items)}.")
    now = call.service.clock()
    reports, invalid = [], []
    for path, item in items:
        try:
            at = parse_time(item.timestamp, now) if item.timestamp else now
        except ValueError as error:
            invalid.append(Detail(f"{path}.timestamp".lstrip("."), str(error)))
            continue
        reports.append(
            DeliveryReport(
                message_id=item.message_id,
                state=State[item.state],
                at=at,
                report_status=item.status,
                reason_code=item.reason_code,
                reason_description=item.reason_description,
                telecom_message_id=item.telecom_message_id,
                mt_price=item.mt_price,
                fragments_count=item.fragments_count,
                path=path,
            )
        )
    if invalid:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=invalid[:MAX_DETAILS])
    taken = await call.service.delivery_reports.record(call.application_id, reports)
    return DeliveryReportsResponse(
        reports=[DeliveryReportFields(message_id=one.message_id, state=one.state.name, changed=one.changed) for one in taken]
    )


ENDPOINTS = [
    Endpoint(
        "POST",
        "/api/v1/sms/status",
        report,
        "Report the delivery state of messages",
        "Send pipeline",
        permission="sms.send",
        body=DeliveryReportRequest,
        response=DeliveryReportsResponse,
        errors=(ErrorCode.MESSAGE_NOT_FOUND, ErrorCode.BATCH_TOO_LARGE),
        description="The body is one report or a list. A list is stored completely or not at all. A state only moves forward: "
        "CREATED < SENT < FAILED, EXPIRED < DELIVERED < READ < CLICKTHRU. A late report stores its time and never moves the "
        "state back.",
    )
]
