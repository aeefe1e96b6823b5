"""The endpoint that erases the personal data of one phone number or one message."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from shortener.errors import ErrorCode
from shortener.gateways.decisions import give_up_erased
from shortener.messages.phone_numbers import parse_recipient
from shortener.retention.erasure import Subject, erase_data
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel
from shortener.web.fields import Text, number_as_text

#: The id of a stored message. A JSON number is converted to text.
StoredId = Annotated[
    Text,
    Field(max_length=255),
    BeforeValidator(number_as_text),
    WithJsonSchema({"anyOf": [{"type": "string", "maxLength": 255}, {"type": "integer"}]}),
]


class ErasureRequest(RequestModel):
    """A request to erase personal data. It contains exactly one of `phone` and `message_id`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"phone": "+14085550100"}]})

    phone: Text | None = Field(
        None,
        max_length=64,
        description="Phone number, for example +14085550100. The personal data of all messages to this number is erased.",
    )
    message_id: StoredId | None = Field(None, description="Id of the message whose personal data is erased.")

    @model_validator(mode="after")
    def _check_exactly_one(self) -> ErasureRequest:
        if (self.phone is None) == (self.message_id is None):
            raise ValueError("must have exactly one of phone and message_id")
        return self


class ErasedRows(ResponseModel):
    messages: int
    links: int
    hits: int
    conversions: int
    events: int
    attempts: int


class ErasureResponse(ResponseModel):
    """The number of database rows from which personal data was removed, for each kind of row."""

    status: Literal[True] = True
    erased: ErasedRows


async def create(call: Call[None, ErasureRequest]) -> dict[str, Any]:
    """Erase the personal data of a phone number or a message in the caller's application."""
    service, body = call.service, call.body
    subject = Subject("" if body.phone is None else parse_recipient(body.phone, "phone"), body.message_id or "")
    give_up = give_up_erased(service.gateway_dispatcher.writer, service.clock_guard.leases_wait)
    erased = await erase_data(service.database, service.cache, call.application_id, subject, service.clock(), call.audit, give_up)
    return {"status": True, "erased": dataclasses.asdict(erased)}


ENDPOINTS = [
    Endpoint(
        "POST",
        "/api/v1/erasures",
        create,
        "Erase a person's data",
        "Erasure",
        permission="privacy.erase",
        body=ErasureRequest,
        response=ErasureResponse,
        errors=(ErrorCode.INVALID_RECIPIENT, ErrorCode.MESSAGE_NOT_FOUND),
        description="Permanently removes the phone number, metadata and destinations of the messages, and the IP addresses "
        "and user agents of their hits. The same data is removed from events and deliveries. The anonymous rows stay, so that "
        "statistics stay correct. The links respond with 410. A message that waits for its gateway becomes FAILED, and its "
        "cost is refunded unless the gateway may have accepted it. A number without messages is not an error. Data that "
        "trackers have already received cannot be removed.",
    ),
]
