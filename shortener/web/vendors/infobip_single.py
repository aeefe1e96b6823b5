"""Infobip's older send calls, which its first client libraries use: one text to one or more numbers (`single`), and several such
texts (`multi`). They work like the call `advanced` (infobip.py). Only the format of their requests differs from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, Field, WrapValidator
from pydantic.config import JsonDict

from shortener.ids import new_message_id
from shortener.messages.rewrite_item import RewriteItem
from shortener.web.endpoint import Call, Endpoint
from shortener.web.rewrite_call import REWRITE_ERRORS, REWRITE_HEADERS, rewrite_items
from shortener.web.rewrite_shapes import MessageSender
from shortener.web.validation import limit_errors
from shortener.web.vendors.error_shapes import infobip_error
from shortener.web.vendors.infobip import InfobipResponse, response_fields
from shortener.web.vendors.infobip_fields import REJECTED_CODES, SENDS, MessageText, with_plus
from shortener.web.vendors.vendor_model import VendorModel, field_warnings

_EXAMPLE: JsonDict = {"from": "InfoSMS", "to": "41793026731", "text": 'Your PIN is 1a2B3c, see #track("https://shop.example/pin")'}


class InfobipSingleRequest(VendorModel):
    """One text for one or more numbers, in Infobip's short format."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_EXAMPLE]})

    from_: MessageSender = Field("", alias="from")
    to: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="International phone number with or without a plus, or a list of numbers, for example 41793026731."
    )
    text: MessageText


class InfobipMultiRequest(VendorModel):
    """Several texts in Infobip's short format."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"messages": [_EXAMPLE]}]})

    messages: list[Annotated[InfobipSingleRequest, WrapValidator(limit_errors)]] = Field(min_length=1)


class _ShortFieldPath:
    """A function for error texts: it returns the path of a field in a request in the short format. `prefix` is the path of the
    message with a dot at its end."""

    def __init__(self, prefix: str, has_list: bool) -> None:
        self._prefix = prefix
        self._has_list = has_list

    def __call__(self, name: str, recipient: int | None) -> str:
        if name == "to" and recipient is not None and self._has_list:
            return f"{self._prefix}to.{recipient}"
        return f"{self._prefix}{'text' if name == 'body' else name}"


def _items(messages: Sequence[InfobipSingleRequest], prefixes: Sequence[str]) -> list[RewriteItem]:
    bulk_id = new_message_id()
    return [
        RewriteItem(
            to=tuple(map(with_plus, [message.to] if isinstance(message.to, str) else message.to)),
            body=message.text,
            field_path=_ShortFieldPath(prefix, isinstance(message.to, list)),
            from_address=message.from_,
            request_id=bulk_id,
            gateway="",
            skipped_codes=REJECTED_CODES,
        )
        for message, prefix in zip(messages, prefixes, strict=True)
    ]


async def send_single(call: Call[None, InfobipSingleRequest]) -> dict[str, Any]:
    """Rewrite one text, and send it through the gateway of the application."""
    items = _items([call.body], [""])
    rewritten = await rewrite_items(call, items)
    return response_fields(items, rewritten, [field_warnings(call.body)] * len(rewritten), [])


async def send_multi(call: Call[None, InfobipMultiRequest]) -> dict[str, Any]:
    """Rewrite several texts, and send them through the gateway of the application."""
    items = _items(call.body.messages, [f"messages.{index}." for index in range(len(call.body.messages))])
    rewritten = await rewrite_items(call, items)
    about_text = [
        field_warnings(message, f"messages.{index}")
        for index, (message, item) in enumerate(zip(call.body.messages, items, strict=True))
        for _ in item.to
    ]
    return response_fields(items, rewritten, about_text, field_warnings(call.body, without="messages"))


ENDPOINTS = [
    Endpoint(
        "POST",
        f"/sms/{version}/text/{kind}",
        handler,
        f"Send {what} in the short format (Infobip, version {version})",
        "Send pipeline",
        permission="sms.send",
        body=body,
        error_shape=infobip_error,
        response=InfobipResponse,
        headers=REWRITE_HEADERS,
        errors=REWRITE_ERRORS,
        description=SENDS,
    )
    for version in (1, 2)
    for kind, handler, body, what in (
        ("single", send_single, InfobipSingleRequest, "one message"),
        ("multi", send_multi, InfobipMultiRequest, "messages"),
    )
]
