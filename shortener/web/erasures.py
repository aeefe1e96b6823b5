"""Erasure of a person's data, on that person's request."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from shortener.errors import ApiError, ErrorCode
from shortener.retention.erasure import erase, erase_message, find_codes
from shortener.web.endpoint import RETRY_AFTER, Call, Endpoint, Model, ResponseModel
from shortener.web.fields import Text


class Erasure(Model):
    """Whose data is erased: `phone` or `message_id`, one of them."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"phone": "+14085550100"}]})

    phone: Text | None = Field(None, max_length=32, description="E.164: every message to this number.")
    message_id: Text | None = Field(None, max_length=255, description="One message.")

    @model_validator(mode="after")
    def _one_of_them(self) -> Erasure:
        if (self.phone is None) == (self.message_id is None):
            raise ValueError("wants phone or message_id, one of them")
        return self


class ErasedRows(ResponseModel):
    messages: int
    links: int
    hits: int
    conversions: int
    events: int
    attempts: int


class ErasureResponse(ResponseModel):
    """How many rows personal data was removed from."""

    status: Literal[True] = True
    erased: ErasedRows


async def create(call: Call[None, Erasure]) -> dict[str, Any]:
    service, given = call.service, call.body
    mine = call.application_id
    which = {"phone": given.phone or "", "message_id": given.message_id or ""}
    if not await service.cache.invalidate(await service.database.read(find_codes, mine, **which)):
        # The cache holds destinations, which may be personal.
        raise ApiError(ErrorCode.UNAVAILABLE, "Nothing is erased: the link cache is away.", retry_after=RETRY_AFTER)
    if given.message_id is not None:
        erased = await service.database.write(erase_message, mine, given.message_id, service.clock())
    else:
        erased = await erase(service.database, mine, given.phone or "", service.clock())
    return {"status": True, "erased": dataclasses.asdict(erased)}


ENDPOINTS = [
    Endpoint(
        "POST",
        "/api/v1/erasures",
        create,
        "Erase a person's data",
        "Erasure",
        permission="trackers.write",
        body=Erasure,
        response=ErasureResponse,
        errors=(ErrorCode.INVALID_RECIPIENT, ErrorCode.MESSAGE_NOT_FOUND),
        description="For good: the number, metadata, destinations, addresses and agents of hits, also in events and deliveries. "
        "What was sent, when it was clicked and what it brought stays, without a name, so that statistics stay right. The links "
        "answer 410. A number without messages is no error. What was delivered to trackers is beyond reach.",
    ),
]
