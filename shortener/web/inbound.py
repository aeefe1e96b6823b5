"""The endpoint POST /api/v1/sms/inbound, which receives the replies of recipients, and the endpoints for the opt-out list that
replies change.

A reply with a stop word (STOP, UNSUBSCRIBE, ...) puts the recipient on the opt-out list of the application. The reply START removes
the recipient from the list. A reply also counts as a conversion of the latest message to the recipient (Syniverse: "Replying to a
message can also be a conversion event", with a positive or negative disposition). The text of a reply is not stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import AliasChoices, ConfigDict, Field
from sqlalchemy import Connection

from shortener.accounts.audit import AuditWriter
from shortener.errors import ApiError, ErrorCode
from shortener.messages.audited_billing import add_opt_out, remove_opt_out
from shortener.messages.opt_outs import find_opt_out, list_opt_outs
from shortener.messages.phone_numbers import parse_recipient
from shortener.storage.types import to_iso
from shortener.web.endpoint import Call, DeletedResponse, Endpoint, RequestModel, ResponseModel
from shortener.web.fields import RequestId, Text, Time
from shortener.web.paging import Cursor, Cursors, NextCursor

_TAG = "Send pipeline"


class InboundMessage(RequestModel):
    """A reply of a recipient, as the carrier delivers it. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    from_: Text = Field(
        max_length=64,
        validation_alias=AliasChoices("from", "phone", "from_address"),
        description="Phone number of the person who replies, in E.164.",
        examples=["+14085550100"],
    )
    to: Text = Field("", max_length=64, description="Number or name that received the reply.", examples=["18775550100"])
    text: str = Field(
        max_length=20_000,
        validation_alias=AliasChoices("text", "body", "message"),
        description="Text of the reply. It is not stored.",
        examples=["Yes, please"],
    )
    inbound_id: RequestId = Field(
        "",
        validation_alias=AliasChoices("inbound_id", "id", "message_id"),
        description=(
            "Id of the reply. Calls with the same id count as one reply. Without ids, all replies to a message count as one reply."
        ),
        examples=["mo-1"],
    )
    timestamp: Time | None = Field(
        None,
        description=(
            "Time of the reply (UTC without a zone). Default: now. A time before the year 2000 or more than 24 hours in the "
            "future is replaced by the current time."
        ),
    )


class InboundResponse(ResponseModel):
    """The changes that the reply has made."""

    status: Literal[True] = True
    opted_out: bool = Field(description="Whether the person is on the opt-out list after this reply.")
    keyword: Literal["stop", "start"] | None = Field(
        description="stop: the text is a stop word, such as STOP. start: the text is a word that ends an opt-out, such as "
        "START. null: it is neither."
    )
    message_id: str | None = Field(
        description="Id of the latest message to the person, to which the reply belongs. null: there is no such message."
    )
    conversion_id: str | None = Field(
        description="Id of the conversion with the action `reply` that was recorded. null: there is no message to the person."
    )
    duplicate: bool = Field(description="true: the same reply was recorded before.")


class OptOutRequest(RequestModel):
    """A recipient who refused further messages."""

    phone: Text = Field(max_length=64, description="Phone number in E.164.", examples=["+14085550100"])


class OptOutFields(ResponseModel):
    """An entry of the opt-out list."""

    phone: str = Field(description="Phone number in E.164.")
    at: str
    source: str = Field(description="Origin of the entry: STOP (reply of the recipient), api (API call), operator (command line).")


class OptOutsResponse(ResponseModel):
    """A page of the opt-out list, in the order of the numbers."""

    status: Literal[True] = True
    opt_outs: list[OptOutFields] = Field(description="Entries of this page.")
    next_cursor: NextCursor


class OptOutsQuery(RequestModel):
    """The position of the page in the opt-out list."""

    limit: int = Field(1000, ge=1, le=1000, description="Maximum number of entries in a page.")
    cursor: Cursor = None


class OptOutResponse(OptOutFields):
    """The entry of the opt-out list."""

    status: Literal[True] = True


async def inbound(call: Call[None, InboundMessage]) -> Mapping[str, Any]:
    """Record a reply: update the opt-out list, and count the reply as a conversion."""
    service, body = call.service, call.body
    phone = parse_recipient(body.from_, "from")
    reply = await service.replies.record(call.application_id, phone, body.text, reply_id=body.inbound_id, at=body.timestamp)
    return {
        "status": True,
        "opted_out": reply.is_opted_out,
        "keyword": reply.keyword,
        "message_id": reply.message_id,
        "conversion_id": reply.conversion_id,
        "duplicate": reply.is_duplicate,
    }


def _add(connection: Connection, audit: AuditWriter, application_id: int, phone: str, now: datetime) -> dict[str, Any]:
    """Add a number to the opt-out list, and return its entry. If the number is on the list already, return that entry."""
    add_opt_out(connection, audit, application_id, phone, now, "api")
    return find_opt_out(connection, application_id, phone)


async def index(call: Call[OptOutsQuery, None]) -> Mapping[str, Any]:
    """Return a page of the opt-out list."""
    query, cursors = call.query, Cursors(call.service.secret, "opt-outs")
    digits = cursors.decode(query.cursor)  # the cursor is the last phone number of the previous page, without its plus sign
    after = "" if digits is None else f"+{digits}"
    rows = await call.service.database.read(list_opt_outs, call.application_id, after, query.limit + 1)
    found = [{"phone": row["phone"], "at": to_iso(row["at"]), "source": row["source"]} for row in rows[: query.limit]]
    last = int(found[-1]["phone"].removeprefix("+")) if len(rows) > query.limit else None
    return {"status": True, "opt_outs": found, "next_cursor": cursors.encode(last)}


async def add(call: Call[None, OptOutRequest]) -> Mapping[str, Any]:
    """Add a number to the opt-out list."""
    phone, now = parse_recipient(call.body.phone, "phone"), call.service.clock()
    row = await call.service.database.write_later(_add, call.audit, call.application_id, phone, now)
    return {"status": True, "phone": phone, "at": to_iso(row["at"]), "source": row["source"]}


async def remove(call: Call[None, None]) -> DeletedResponse:
    """Remove a number from the opt-out list."""
    phone = parse_recipient(call.path["number"], "number")
    service = call.service
    if not await service.database.write_later(remove_opt_out, call.audit, call.application_id, phone, service.clock()):
        raise ApiError(ErrorCode.NOT_FOUND, f"{phone} is not on the opt-out list.")
    return DeletedResponse()


_PATH = "/api/v1/opt-outs"

ENDPOINTS = [
    Endpoint(
        "POST",
        "/api/v1/sms/inbound",
        inbound,
        "Report a reply of a recipient",
        _TAG,
        permission="sms.send",
        body=InboundMessage,
        body_forms=True,
        response=InboundResponse,
        errors=(ErrorCode.INVALID_RECIPIENT,),
        description="A reply with a stop word such as STOP puts the number on the opt-out list of the application, and the "
        "reply START removes the number. Later messages to a number on the list are rejected with `OPTED_OUT`. The reply "
        "also counts as a conversion of the latest message to the number, with the action `reply`. Its disposition is "
        "negative after a stop word and positive after START. The text of the reply is not stored.",
    ),
    Endpoint(
        "GET",
        _PATH,
        index,
        "List the opt-out list",
        _TAG,
        permission="privacy.reveal",
        query=OptOutsQuery,
        response=OptOutsResponse,
        errors=(ErrorCode.INVALID_CURSOR,),
    ),
    Endpoint(
        "POST",
        _PATH,
        add,
        "Add a number to the opt-out list",
        _TAG,
        permission="sms.send",
        body=OptOutRequest,
        response=OptOutResponse,
        status=201,
        errors=(ErrorCode.INVALID_RECIPIENT,),
    ),
    Endpoint(
        "DELETE",
        f"{_PATH}/{{number}}",
        remove,
        "Remove a number from the opt-out list",
        _TAG,
        permission="admin",
        response=DeletedResponse,
        errors=(ErrorCode.INVALID_RECIPIENT,),
        description="Removes a number from the opt-out list. Use this only if the recipient has agreed to receive messages again.",
    ),
]
