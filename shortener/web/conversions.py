"""The endpoints to which trackers and networks report conversions.

The four endpoints of 23 Telecom require a tracker token in the X-Api-Token header. A network that can store only a URL uses a
postback key in the path. Each endpoint accepts GET and POST, and the parameters in the query, in a form, in multipart or in JSON
(`report_input.py`). A HEAD request gets 405, because it must change nothing.

A report that is rejected or not applied is stored with the reason (`conversions/refusals.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from pydantic import ConfigDict, Field

from shortener.accounts import postback_keys
from shortener.conversions.parsing import ConversionParameters, parse_conversion
from shortener.conversions.service import ConversionResult
from shortener.errors import ApiError, ErrorCode, StoreUnavailable, unavailable_error
from shortener.web.callers import Caller
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.report_input import read_report


class ConversionResponse(ResponseModel):
    """The recorded conversion. A repeated report gets the first response with `duplicate` true."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    status: Literal[True]
    conversion_id: str
    message_id: str
    duplicate: bool = Field(description="true: the same report was recorded before, so this report changed nothing.")
    updated: bool = Field(True, description="true: the report changed an existing conversion. Absent otherwise.")
    revision: int = Field(
        2, description="Number of the revision that the report created. Present only if the report updated a conversion."
    )
    warnings: list[str] = Field(
        [],
        description="Warnings about values that were cut, or could not be parsed and were stored as text. Absent without warnings.",
    )


def _response(result: ConversionResult) -> dict[str, Any]:
    body: dict[str, Any] = {
        "status": True,
        "conversion_id": result.conversion_id,
        "message_id": result.message_id,
        "duplicate": result.duplicate,
    }
    if result.updated:
        body |= {"updated": True, "revision": result.revision}
    if result.warnings:
        body["warnings"] = list(result.warnings)
    return body


async def report(call: Call[Any, Any], path: str, refusal: ApiError | None = None) -> dict[str, Any]:
    """Record the conversion that a request reports. If `refusal` is not None, reject the report with this error. `path` is the
    path of the request, without the postback key: the name of the path parameter replaces the key."""
    service, request = call.service, call.request
    received = await read_report(request, service.settings.body_limit)
    try:
        if error := refusal or received.problem:
            raise error
        parsed = parse_conversion(received.parameters, service.clock(), tuple(received.warnings))
        result = await service.conversions.ingest(call.application_id, parsed)
    except ApiError as error:
        await service.refused_conversions.record(call.application_id, f"{request.method} {path}", error, received.parameters)
        raise
    except StoreUnavailable as unavailable:
        service.refused_conversions.count(unavailable_error(unavailable))
        raise
    if result.unapplied is not None:
        await service.refused_conversions.record_unapplied(
            call.application_id, f"{request.method} {path}", result.unapplied, received.parameters
        )
    return _response(result)


async def track(call: Call[Any, Any]) -> dict[str, Any]:
    """Record the conversion that a tracker reports to the main endpoint."""
    return await report(call, "/api/v1/track")


async def callback(call: Call[Any, Any]) -> dict[str, Any]:
    """Record the conversion that a tracker reports."""
    return await report(call, "/api/v1/callback/action")


async def legacy_action(call: Call[Any, Any]) -> dict[str, Any]:
    """Record a conversion."""
    return await report(call, "/action")


def _deprecated(successor: str) -> dict[str, str]:
    """Return the headers that mark an endpoint as deprecated since 2026-11-20 (RFC 9745) and name its replacement (RFC 8288)."""
    return {"Deprecation": "@1795132800", "Link": f'<{successor}>; rel="successor-version"'}


async def deprecated_track(call: Call[Any, Any]) -> dict[str, Any]:
    """Record a conversion that is reported to the deprecated path."""
    return await report(call, "/api/v1/action/track")


async def postback(call: Call[Any, Any]) -> dict[str, Any]:
    """Record a conversion that a network reports with a postback key. Limit the number of reports per key and minute."""
    refusal = None
    if wait := call.service.rate_limits.postbacks.take(call.principal.key_id):
        description = "There are too many reports with this postback key. Try again after `Retry-After` seconds."
        refusal = ApiError(ErrorCode.RATE_LIMITED, description, retry_after=wait)
    return await report(call, postback_keys.PATH, refusal)


_TAG = "Trackers"
_ERRORS = (ErrorCode.MESSAGE_NOT_FOUND, ErrorCode.CONVERSION_CONFLICT, ErrorCode.UNEXPANDED_PLACEHOLDER)
_DESCRIPTION = (
    "Accepts GET and POST. The parameters may be in the query, in a form, in multipart or in JSON. There is one conversion "
    "for each combination of message, `action` and `transaction_id`. Upper and lower case make no difference. A repeat "
    "returns the first response and triggers no event. A later report with another status, disposition, value or "
    "currency is an update: it stores a new revision and sends a `conversion` event. Without a `transaction_id`, a report "
    "is rejected if the stored conversion has another value, or the same value in another currency. A value, a currency "
    "or a time that cannot be parsed is stored as text, with a warning. A conversion also counts if there was no click, if "
    "it was reported before the click, or if the link has expired. Any other parameter is stored as metadata, at most 4 KiB "
    "of JSON."
)


def _both_methods(endpoint: Endpoint) -> Iterator[Endpoint]:
    yield replace(endpoint, method="GET")
    yield replace(endpoint, method="POST", body=ConversionParameters, body_forms=True, body_optional=True)


def _endpoint(path: str, handler: Any, summary: str, caller: Caller, **more: Any) -> Endpoint:
    return Endpoint(
        "GET",
        path,
        handler,
        summary,
        _TAG,
        caller,
        **{
            "query": ConversionParameters,
            "reads_request": True,
            "has_head": False,
            "response": ConversionResponse,
            "errors": _ERRORS,
            "description": _DESCRIPTION,
            **more,
        },
    )


ENDPOINTS = [
    *_both_methods(_endpoint("/api/v1/track", track, "Report a conversion", Caller.TRACKER)),
    *_both_methods(_endpoint("/api/v1/callback/action", callback, "Report a conversion (callback)", Caller.TRACKER)),
    *_both_methods(
        _endpoint(
            "/api/v1/action/track",
            deprecated_track,
            "Report a conversion (deprecated: use /api/v1/track)",
            Caller.TRACKER,
            deprecated=True,
            response_headers=_deprecated("/api/v1/track"),
            description="The same as /api/v1/track. The response has the headers `Deprecation` and `Link`.",
        )
    ),
    *_both_methods(
        _endpoint(
            "/action",
            legacy_action,
            "Report a conversion (legacy: use /api/v1/callback/action)",
            Caller.TRACKER,
            deprecated=True,
            response_headers=_deprecated("/api/v1/callback/action"),
            description="The same as /api/v1/callback/action. The response has the headers `Deprecation` and `Link`.",
        )
    ),
    *_both_methods(
        _endpoint(
            postback_keys.PATH,
            postback,
            "Report a conversion with a postback key in the URL",
            Caller.POSTBACK_KEY,
            errors=(*_ERRORS, ErrorCode.RATE_LIMITED),
            description="For networks that can store only a URL. The key allows reports of conversions and nothing else. The rate "
            f"of each key is limited (POSTBACK_LIMIT). {_DESCRIPTION}",
        )
    ),
]
