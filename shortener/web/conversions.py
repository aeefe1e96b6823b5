"""The four endpoints to which trackers report conversions, with a tracker token in the X-Api-Token header (23 Telecom).

The parameters are in the query, in a form or in JSON. A known parameter may occur once. Any other parameter is stored as
metadata; if it occurs several times, its values are stored as a list. HEAD, which Starlette routes to the GET handler, is
rejected.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from starlette.responses import Response

from shortener.conversions.parsing import ConversionParameters, parse_conversion
from shortener.errors import ApiError, ErrorCode
from shortener.web.endpoint import Call, Caller, Endpoint, ResponseModel, error_response, json_response


class ConversionResponse(ResponseModel):
    """The recorded conversion. A repeat returns the first response with `duplicate` true."""

    status: Literal[True] = True
    conversion_id: str
    message_id: str
    duplicate: bool = Field(description="true if this conversion was recorded before.")


async def _ingest(call: Call[Any, Any], parameters: ConversionParameters) -> ConversionResponse:
    if call.request.method == "HEAD":
        raise ApiError(ErrorCode.METHOD_NOT_ALLOWED, "HEAD is not allowed because it would record nothing; send GET.")
    recorded = await call.service.conversions.ingest(call.application_id, parse_conversion(parameters, call.service.clock()))
    return ConversionResponse(conversion_id=recorded.conversion_id, message_id=recorded.message_id, duplicate=recorded.duplicate)


async def track(call: Call[ConversionParameters, None]) -> ConversionResponse:
    """Record a conversion from the query."""
    return await _ingest(call, call.query)


async def callback(call: Call[None, ConversionParameters]) -> ConversionResponse:
    """Record a conversion from the body."""
    return await _ingest(call, call.body)


#: RFC 9745: deprecated since 2026-11-20. RFC 8288: the endpoint that replaces it.
_DEPRECATED = {"Deprecation": "@1795132800", "Link": '</api/v1/track>; rel="successor-version"'}


async def deprecated_track(call: Call[ConversionParameters, None]) -> Response:
    """Record a conversion from the query; the response says that the path is deprecated."""
    try:
        response = json_response(await _ingest(call, call.query))
    except ApiError as error:
        response = error_response(error)
    response.headers.update(_DEPRECATED)
    return response


_TAG = "Trackers"
_ERRORS = (ErrorCode.MESSAGE_NOT_FOUND, ErrorCode.CONVERSION_CONFLICT, ErrorCode.UNEXPANDED_PLACEHOLDER)
_DESCRIPTION = (
    "There is one conversion for each message, `action` and `transaction_id`. A repeat returns the first response and triggers no "
    "event. A repeat with another value or currency is rejected. Report a refund as a separate conversion with a negative `value` "
    "and another `transaction_id` or `action`. A conversion counts without a click, before a click and after the link expired. "
    "`timestamp` may be at most 24 hours in the future. Any other parameter is stored as metadata, at most 4 KiB of JSON."
)

ENDPOINTS = [
    Endpoint(
        "GET",
        "/api/v1/track",
        track,
        "Report a conversion",
        _TAG,
        Caller.TRACKER,
        query=ConversionParameters,
        response=ConversionResponse,
        errors=_ERRORS,
        description=_DESCRIPTION,
    ),
    Endpoint(
        "POST",
        "/api/v1/callback/action",
        callback,
        "Report a conversion as JSON or a form",
        _TAG,
        Caller.TRACKER,
        body=ConversionParameters,
        body_forms=True,
        response=ConversionResponse,
        errors=_ERRORS,
        description=_DESCRIPTION,
    ),
    Endpoint(
        "GET",
        "/api/v1/action/track",
        deprecated_track,
        "Report a conversion (deprecated: use /api/v1/track)",
        _TAG,
        Caller.TRACKER,
        query=ConversionParameters,
        response=ConversionResponse,
        errors=_ERRORS,
        deprecated=True,
        description="The same as GET /api/v1/track. The response has the headers `Deprecation` and `Link`.",
    ),
    Endpoint(
        "POST",
        "/action",
        callback,
        "Report a conversion (legacy: use /api/v1/callback/action)",
        _TAG,
        Caller.TRACKER,
        body=ConversionParameters,
        body_forms=True,
        response=ConversionResponse,
        errors=_ERRORS,
        deprecated=True,
        description="The same as POST /api/v1/callback/action.",
    ),
]
