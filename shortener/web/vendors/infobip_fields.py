"""This module contains what all versions of Infobip's send call share: the fields of requests and responses, and the functions
that return the paths of fields for errors."""
# Tested by tests/web/vendors/test_infobip_fields.py

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WrapValidator

from shortener.errors import ErrorCode
from shortener.ids import new_message_id
from shortener.messages.rewrite_item import RewriteItem
from shortener.web.endpoint import ResponseModel
from shortener.web.fields import RequestId, Text, check_metadata
from shortener.web.rewrite_shapes import MAX_BODY_LENGTH, MessageId
from shortener.web.validation import limit_errors
from shortener.web.vendors.vendor_model import Unsupported, VendorModel

_PLAIN_NUMBER = re.compile(r"[1-9][0-9]{6,14}")

#: The description of each send call of Infobip.
SENDS = (
    "Rewrites the messages and sends them through the gateway of the application. If the application has no gateway, nothing "
    "is sent: `sent` is false, and a warning begins with NOT_SENT. A recipient to whom the service must not send (opted "
    "out, no price) gets the status group REJECTED; the other recipients get the message. Errors also contain Infobip's "
    "`requestError`."
)


class InfobipDestination(VendorModel):
    """One recipient of a text in Infobip's format."""

    to: str = Field(description="International phone number with or without a plus, for example 41793026731.")
    message_id: MessageId | None = Field(
        None, alias="messageId", description="Id of the message to this recipient. Default: the service generates an id."
    )


def _check_callback_data(value: str) -> str:
    check_metadata({"callbackData": value})
    return value


#: The fields that the requests of all versions contain, in different places.
Destinations = Annotated[list[Annotated[InfobipDestination, WrapValidator(limit_errors)]], Field(min_length=1)]
MessageText = Annotated[
    str,
    Field(
        max_length=MAX_BODY_LENGTH,
        description='Text of the message. #track("url") and #trackurl("url","label") become short links.',
    ),
]
CallbackData = Annotated[
    Annotated[Text, AfterValidator(_check_callback_data)] | None,
    Field(description="Data of the caller, at most 4 KiB. Events in the format `infobip` contain it as callbackData."),
]
BulkId = Annotated[
    RequestId,
    Field(description="Id of the request. Events contain it as message_request_id. Default: the service generates an id."),
]

#: The fields that the responses of all versions contain.
RewrittenText = Annotated[
    str | None,
    Field(
        description="The rewritten text, which the caller must send to this recipient if `sent` is false. null: the "
        "recipient was rejected."
    ),
]
TextEncoding = Annotated[
    Literal["GSM-7", "UCS-2"] | None, Field(description="Encoding of the rewritten text. null: the recipient was rejected.")
]

#: Fields that have no meaning in this service. They are accepted for compatibility.
IgnoredField = Annotated[Any, Field(description="Field of Infobip that is accepted and ignored.")]
WARNED = Field(description="Not supported. Any value except false causes a warning and has no other effect.")
AT_ONCE = Annotated[Any, WARNED, Unsupported("is not supported; the message is sent at once")]
WITHOUT_FLASH = Annotated[Any, WARNED, Unsupported("is not supported; the message is sent as a normal SMS")]
UNCHANGED_TEXT = Annotated[Any, WARNED, Unsupported("is not supported; the characters of the text stay as they are")]
NO_REPORT_URL = Annotated[
    Any, WARNED, Unsupported("is not supported; create a tracker of the format infobip with the event delivery")
]
GATEWAY_VALIDITY = Annotated[Any, WARNED, Unsupported("is not supported; the validity period of the gateway applies")]
GATEWAY_RATE = Annotated[Any, WARNED, Unsupported("is not supported; the rate of the gateway applies")]
NO_REGIONAL = Annotated[Any, WARNED, Unsupported("is not supported; the settings of the gateway apply")]


class InfobipUrlOptions(VendorModel):
    """Options for the URLs in all texts. Short links are always tracked, and always begin with https:// or http://."""

    shorten_url: bool = Field(True, alias="shortenUrl", description="true: every URL in the texts becomes a short link.")
    track_clicks: bool = Field(
        True,
        alias="trackClicks",
        description="false causes a warning if shortenUrl is true, because a short link is always tracked.",
    )
    tracking_url: Annotated[
        Any, WARNED, Unsupported("is not supported; create a tracker of the format infobip with the event click")
    ] = Field(None, alias="trackingUrl")
    remove_protocol: Annotated[
        bool, Unsupported("is not supported, because some phones do not recognize a link without https://")
    ] = Field(
        False,
        alias="removeProtocol",
        description="true causes a warning, because short links always begin with https:// or http://.",
    )
    custom_domain: Text | None = Field(
        None,
        alias="customDomain",
        max_length=255,
        description="Host of one of the application's own domains. Other hosts are rejected.",
    )


class InfobipStatus(ResponseModel):
    """Infobip's status object. The response to a send call contains PENDING_ENROUTE, or the reason why the recipient was
    rejected."""

    groupId: int
    groupName: str
    id: int
    name: str
    description: str


#: The status object that Infobip returns for a message that was just accepted.
PENDING = {
    "groupId": 1,
    "groupName": "PENDING",
    "id": 7,
    "name": "PENDING_ENROUTE",
    "description": "Message sent to next instance",
}


#: The status of a recipient to whom the service must not send. As in the API of Infobip, the other recipients get their messages.
_REJECTED: Mapping[ErrorCode, tuple[int, str, str]] = {
    ErrorCode.NO_PRICE: (6, "REJECTED_NETWORK", "Network is forbidden"),
    ErrorCode.OPTED_OUT: (14, "REJECTED_DESTINATION", "The destination number is blacklisted"),
}
REJECTED_CODES = frozenset(_REJECTED)


def rejected_fields(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the response fields of a rejected recipient; they are the same in all versions of the send call. Return None if the
    entry is a rewritten message."""
    if "error_code" not in entry:
        return None
    number, name, description = _REJECTED[ErrorCode[entry["error_code"]]]
    return {
        "status": {"groupId": 5, "groupName": "REJECTED", "id": number, "name": name, "description": description},
        "messageId": entry["message_id"] or new_message_id(),
        "text": None,
        "links": [],
        "encoding": None,
        "warnings": [f"{entry['error_code']}: the recipient {entry['reason']}; nothing was stored or sent"],
        "sent": False,
    }


class FieldPath:
    """A function for error texts: it returns the path of a field in a request in Infobip's format. `path` is the path of the
    message, and `domain` is the path of the field with the domain. `names` maps field names of the service to field names in
    Infobip's message."""

    def __init__(self, path: str, domain: str, names: Mapping[str, str]) -> None:
        self._path = path
        self._domain = domain
        self._names = names

    def __call__(self, name: str, recipient: int | None) -> str:
        if recipient is not None:
            return f"{self._path}.destinations.{recipient}.{'messageId' if name == 'message_id' else name}"
        return self._domain if name == "domain" else f"{self._path}.{self._names.get(name, name)}"


def with_plus(number: str) -> str:
    return f"+{number}" if _PLAIN_NUMBER.fullmatch(number) else number


def bulk_id_of(rewritten: Sequence[Mapping[str, Any]], items: Sequence[RewriteItem]) -> str:
    """Return the bulkId of a request. For a repeat, this is the id in the first response."""
    found: str = next((message["message_request_id"] for message in rewritten if "error_code" not in message), items[0].request_id)
    return found


def accepted_fields(message: Mapping[str, Any], warnings: Sequence[str]) -> dict[str, Any]:
    """Return the response fields of a rewritten message that are the same in all versions of the send call."""
    return {
        "status": PENDING,
        "messageId": message["message_id"],
        "text": message["body"],
        "links": message["links"],
        "encoding": message["encoding"],
        "warnings": [*message["warnings"], *warnings],
        "sent": message.get("sent", False),
    }
