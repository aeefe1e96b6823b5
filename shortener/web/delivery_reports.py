"""POST /api/v1/sms/status: the send pipeline passes on what the carrier reports."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, RootModel, Tag, field_validator

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.messages.delivery_reports import DeliveryReport
from shortener.model import State
from shortener.times import parse_time
from shortener.web.endpoint import Call, Endpoint, Model, ResponseModel
from shortener.web.fields import Price, Text


class DeliveryReportBody(Model):
    """What became of one message. Codes and times may also be numbers."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    message_id: Text = Field(max_length=255)
    state: Literal["SENT", "DELIVERED", "READ", "FAILED", "EXPIRED"]
    status: Text | None = Field(None, max_length=64, description="The carrier's own word, for example DELIVRD.")
    reason_code: Text | None = Field(None, max_length=64)
    reason_description: Text | None = Field(None, max_length=255)
    mt_price: Price | None = Field(None, description="Decimal string or number.")
    fragments_count: int | None = Field(None, ge=1, le=1000, description="Segments that the carrier billed.")
    telecom_message_id: Text | None = Field(None, max_length=255)
    timestamp: Text | None = Field(
        None,
        max_length=64,
        description="When it was: ISO 8601 (UTC without a zone), or seconds or milliseconds since 1970; now when absent.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_blanks(cls, value: object) -> object:
        return None if value == "" else value


def _form_of(value: Any) -> str:
    return "batch" if isinstance(value, list) else "single"


class DeliveryReportRequest(
    RootModel[
        Annotated[
            Annotated[DeliveryReportBody, Tag("single")] | Annotated[list[DeliveryReportBody], Field(min_length=1), Tag("batch")],
            Discriminator(_form_of),
        ]
    ]
):
    """One report, or a list of them."""


class DeliveryReportFields(ResponseModel):
    message_id: str
    state: str = Field(description="The message's state after this report.")
    changed: bool = Field(description="False for a report that brought nothing new.")


class DeliveryReportsResponse(ResponseModel):
    """One entry per report, in request order."""

    status: Literal[True] = True
    reports: list[DeliveryReportFields]


async def report(call: Call[None, DeliveryReportRequest]) -> DeliveryReportsResponse:
    given = call.body.root
    items = [("", given)] if isinstance(given, DeliveryReportBody) else [(str(index), item) for index, item in enumerate(given)]
    limit = call.service.settings.batch_limit
    if len(items) > limit:
        raise ApiError(ErrorCode.BATCH_TOO_LARGE, f"{len(items)} reports; at most {limit} are taken in one request.")
    now = call.service.clock()
    reports, wrong = [], []
    for path, item in items:
        try:
            at = parse_time(item.timestamp, now) if item.timestamp else now
        except ValueError as error:
            wrong.append(Detail(f"{path}.timestamp".lstrip("."), str(error)))
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
    if wrong:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=wrong[:100])
    taken = await call.service.delivery_reports.record(call.application_id, reports)
    return DeliveryReportsResponse(
        reports=[DeliveryReportFields(message_id=one.message_id, state=one.state.name, changed=one.changed) for one in taken]
    )


ENDPOINTS = [
    Endpoint(
        "POST",
        "/api/v1/sms/status",
        report,
        "Report what became of messages",
        "Send pipeline",
        permission="sms.send",
        body=DeliveryReportRequest,
        response=DeliveryReportsResponse,
        errors=(ErrorCode.MESSAGE_NOT_FOUND, ErrorCode.BATCH_TOO_LARGE),
        description="One report or a list of them, all of them kept or none. States only move forward, CREATED < SENT < FAILED, "
        "EXPIRED < DELIVERED < READ < CLICKTHRU; a late report fills in its time and never moves the state back.",
    )
]
