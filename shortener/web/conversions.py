"""Conversions in: the four calls that customers' trackers make, with the X-Api-Token header (23 Telecom).

GET and POST are alike: the parameters come in the query, as a form or as JSON. A parameter of ours may be given once; one that is
kept as metadata and given several times is kept as a list. HEAD, which Starlette routes to GET, records nothing.
"""

from __future__ import annotations

from typing import Any, Literal

from starlette.responses import Response

from shortener.conversions.parsing import ConversionParameters, parse_conversion
from shortener.errors import ApiError, ErrorCode
from shortener.web.endpoint import Call, Caller, Endpoint, ResponseModel, error_response, json_response


class ConversionResponse(ResponseModel):
    """A repeat answers as the first did, with `duplicate` true."""

    status: Literal[True] = True
    conversion_id: str
    message_id: str
    duplicate: bool


async def _ingest(call: Call[Any, Any], parameters: ConversionParameters) -> ConversionResponse:
    if call.request.method == "HEAD":
        raise ApiError(ErrorCode.METHOD_NOT_ALLOWED, "HEAD records nothing; send GET.")
    recorded = await call.service.conversions.ingest(call.application_id, parse_conversion(parameters, call.service.clock()))
    return ConversionResponse(conversion_id=recorded.conversion_id, message_id=recorded.message_id, duplicate=recorded.duplicate)


async def track(call: Call[ConversionParameters, None]) -> ConversionResponse:
    return await _ingest(call, call.query)


async def callback(call: Call[None, ConversionParameters]) -> ConversionResponse:
    return await _ingest(call, call.body)


#: RFC 9745: since when (2026-11-20), and RFC 8288: what to call instead.
_DEPRECATED = {"Deprecation": "@1795132800", "Link": '</api/v1/track>; rel="successor-version"'}


async def deprecated_track(call: Call[ConversionParameters, None]) -> Response:
    try:
        response = json_response(await _ingest(call, call.query))
    except ApiError as error:
        response = error_response(error)
    response.headers.update(_DEPRECATED)
    return response


_TAG = "Trackers"
_ERRORS = (ErrorCode.MESSAGE_NOT_FOUND, ErrorCode.CONVERSION_CONFLICT, ErrorCode.UNEXPANDED_PLACEHOLDER)
_DESCRIPTION = (
    "One conversion per message, `action` and `transaction_id`: a repeat answers as the first did and fires nothing, a repeat "
    "with another value or currency is refused. Refunds are conversions of their own, with a negative `value` and another "
    "`transaction_id` or `action`. Counted whether it comes before a click, without one or after the link expired. Times may lie "
    "up to 24 hours ahead. Any other parameter is kept as metadata, at most 4 KiB of JSON."
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
        "Report a conversion (deprecated: call /api/v1/track)",
        _TAG,
        Caller.TRACKER,
        query=ConversionParameters,
        response=ConversionResponse,
        errors=_ERRORS,
        deprecated=True,
        description="The same as GET /api/v1/track, with the headers `Deprecation` and `Link` in the answer.",
    ),
    Endpoint(
        "POST",
        "/action",
        callback,
        "Report a conversion (legacy: call /api/v1/callback/action)",
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
