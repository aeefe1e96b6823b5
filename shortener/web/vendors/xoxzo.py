"""A message to rewrite in Xoxzo's words; the status in its words is in `messages.py`."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from shortener.messages.plan import RewriteItem
from shortener.web.endpoint import ResponseModel
from shortener.web.fields import Sender
from shortener.web.rewrite_shapes import MAX_BODY, MessageId, Options, RewrittenLinkFields, with_options

_EXAMPLE: JsonDict = {
    "sender": "Sender",
    "message": "test link tracking https://shop.example/en/",
    "recipient": "+818012345678",
    "track_link": "true",
}
_NAMES = {"to": "recipient", "body": "message", "from": "sender"}


class XoxzoRequest(Options):
    """One message for one recipient, as Xoxzo's send call takes it; our own options may stand beside."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    recipient: str = Field(description="E.164 number such as +818012345678.")
    message: str = Field(max_length=MAX_BODY, description="With `track_link`, its first URL or bare domain is replaced.")
    sender: Sender = ""
    message_id: MessageId | None = Field(None, description="An id of your own to be the msgid; minted when absent.")


class XoxzoSendResponse(ResponseModel):
    """Kept, and ready to be sent: `message` is the text to send. Nothing was sent."""

    msgid: str
    message: str
    links: list[RewrittenLinkFields]
    warnings: list[str]


def outgoing(message: XoxzoRequest) -> RewriteItem:
    return with_options(
        message,
        to=(message.recipient,),
        body=message.message,
        sender=message.sender,
        message_ids=None if message.message_id is None else (message.message_id,),
        field_path=lambda name, recipient: _NAMES.get(name, name),
    )


def answer(rewritten: dict[str, Any]) -> dict[str, Any]:
    return {
        "msgid": rewritten["message_id"],
        "message": rewritten["body"],
        "links": rewritten["links"],
        "warnings": rewritten["warnings"],
    }
