"""Infobip's preview call, which returns the text that a recipient would get, with sample codes. Nothing is stored."""
# Tested by tests/web/vendors/test_infobip_logs.py

from __future__ import annotations

from typing import Any

from pydantic import Field

import shortener.messages.rewriter  # noqa: F401 - `service.rewriter` needs it. Here it is imported in a thread.
from shortener.errors import ErrorCode
from shortener.messages.rewrite_item import RewriteItem
from shortener.messages.segments import characters_left
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.rewrite_shapes import MAX_BODY_LENGTH
from shortener.web.vendors.error_shapes import infobip_error
from shortener.web.vendors.infobip_fields import UNCHANGED_TEXT
from shortener.web.vendors.vendor_model import VendorModel, field_warnings

#: The recipient of every preview. It is needed because some rules depend on the recipient's country. No message to this number is
#: stored.
_SAMPLE_NUMBER = "+14085550100"


class InfobipPreviewRequest(VendorModel):
    """The request body with the text to preview."""

    text: str = Field(
        max_length=MAX_BODY_LENGTH,
        description='Text of the message. #track("url") and #trackurl("url","label") become sample short links.',
    )
    language_code: UNCHANGED_TEXT = Field(None, alias="languageCode")
    transliteration: UNCHANGED_TEXT = None


class InfobipPreviewConfiguration(ResponseModel):
    """Always empty, because the service changes neither the language nor the script of a text."""


class InfobipPreview(ResponseModel):
    """The text as the recipient would get it."""

    textPreview: str = Field(description="The rewritten text with sample codes.")
    messageCount: int = Field(description="Number of SMS segments.")
    charactersRemaining: int = Field(description="Number of further characters that fit into the last segment.")
    configuration: InfobipPreviewConfiguration = Field(description="Settings of language and script: always empty.")


class InfobipPreviewResponse(ResponseModel):
    """A preview in Infobip's format."""

    originalText: str = Field(description="The text of the request.")
    previews: list[InfobipPreview] = Field(description="The preview of the text, as a list with one item.")
    warnings: list[str]


async def preview(call: Call[None, InfobipPreviewRequest]) -> dict[str, Any]:
    """Return the text that a rewrite would return, with sample codes. Store nothing."""
    request = call.body
    item = RewriteItem(
        to=(_SAMPLE_NUMBER,), body=request.text, field_path=lambda name, recipient: "text" if name == "body" else name
    )
    (shown,) = await call.service.rewriter.preview(call.principal.application, [item])
    return {
        "originalText": request.text,
        "previews": [
            {
                "textPreview": shown["body"],
                "messageCount": shown["segments"],
                "charactersRemaining": characters_left(shown["body"]),
                "configuration": {},
            }
        ],
        "warnings": [*shown["warnings"], *field_warnings(request)],
    }


ENDPOINTS = [
    Endpoint(
        "POST",
        "/sms/1/preview",
        preview,
        "Preview a text (Infobip)",
        "Send pipeline",
        permission="sms.send",
        body=InfobipPreviewRequest,
        error_shape=infobip_error,
        response=InfobipPreviewResponse,
        errors=(
            ErrorCode.INVALID_TRACK_DIRECTIVE,
            ErrorCode.INVALID_TRACK_URL,
            ErrorCode.FORBIDDEN_TARGET,
            ErrorCode.NO_USABLE_DOMAIN,
        ),
        stores_nothing=True,
        description="Returns the text with short links and sample codes, and stores nothing.",
    ),
]
