"""The endpoint that receives delivery reports from gateways. Its path contains the report key of the gateway, and the reference
of the message.

Gateways send a GET or POST request, with the parameters in the query, in a form or in JSON. The settings of the gateway define
the meaning of each parameter. A call with a wrong key gets 401, and its parameters are not read. If the key is correct, the
service stores the reports of the call and then responds with 200, because many gateways repeat a call until they get 200. Some
reports cannot be stored: they have no status or no id, or their message or their status word is unknown. They are counted and
logged (gateways/unrecorded_reports.py), and the response is 200 too.

There is one exception: a gateway can report a message before the service has recorded the id that the gateway assigned to it.
While attempts are in flight, a call about an unknown message therefore gets 503 UNAVAILABLE, so that the gateway repeats it
(gateways/early_reports.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from starlette.responses import PlainTextResponse, Response

from shortener.accounts.gateway_entries import GatewayEntry
from shortener.errors import RETRY_AFTER_SECONDS, ApiError, ErrorCode
from shortener.gateways.early_reports import MessageNotKnownYet
from shortener.gateways.http import HttpSettings
from shortener.gateways.report_calls import read_reports
from shortener.gateways.store import REPORT_PATH
from shortener.gateways.templates import parse_json
from shortener.web.callers import Caller
from shortener.web.endpoint import Call, Endpoint
from shortener.web.new_credentials import find_new_credential
from shortener.web.request_body import MAX_FORM_FIELDS, BodyLimits, read_body

_NOT_KNOWN_YET = (
    "The service does not know the message id of a report. Perhaps your response that assigned this id is not recorded yet. "
    "Repeat the call later (see Retry-After)."
)


async def report(call: Call[None, None]) -> Response:
    """Store the delivery reports of a gateway."""
    service, request = call.service, call.request
    gateway = await _authenticate(call)
    stored = await service.gateways.get(gateway.id)
    settings = stored.config.settings
    if not isinstance(settings, HttpSettings):
        raise ApiError(ErrorCode.NOT_FOUND, "Gateways of this kind do not report by HTTP.")
    body = b""
    if request.method == "POST":
        body = await read_body(request, BodyLimits.of_report(service.settings.body_limit), is_form=True)
    data = parse_json(body)
    if not isinstance(data, dict | list):  # the body is a form
        data = None
    parameters: Mapping[str, Any] = dict(request.query_params)
    if body and data is None:
        parameters = {**parameters, **_parse_form(body)}
    received = read_reports(settings, parameters, data, request.path_params.get("reference"), service.clock())
    try:
        await service.gateway_reports.receive_all(gateway.id, received, settings.report_states)
    except MessageNotKnownYet:
        raise ApiError(ErrorCode.UNAVAILABLE, _NOT_KNOWN_YET, retry_after=RETRY_AFTER_SECONDS) from None
    return PlainTextResponse(settings.report_response)


async def _authenticate(call: Call[None, None]) -> GatewayEntry:
    directory, key = call.service.directory, call.request.path_params["report_key"].strip()
    gateway = directory.find_by_report_key(key)
    if gateway is None:
        gateway = await find_new_credential(call.service, call.request, partial(directory.find_by_report_key, key))
    if gateway is None:
        raise ApiError(ErrorCode.UNAUTHORIZED, "The key in the path is not the report key of a gateway.")
    return gateway


def _parse_form(body: bytes) -> dict[str, str]:
    """Return the parameters of a form. Return an empty dictionary if the body is not a form."""
    try:
        return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS))
    except ValueError:
        return {}


def _both(endpoint: Endpoint) -> Iterator[Endpoint]:
    yield endpoint
    yield replace(endpoint, method="POST")


_ENDPOINT = Endpoint(
    "GET",
    f"{REPORT_PATH}/{{reference}}",
    report,
    "Receive delivery reports of a gateway",
    "Gateways",
    Caller.ANYONE,
    media_type="text/plain",
    has_head=False,
    errors=(
        ErrorCode.UNAUTHORIZED,
        ErrorCode.RATE_LIMITED,
        ErrorCode.UNAVAILABLE,
        ErrorCode.OUTCOME_UNKNOWN,
        ErrorCode.BODY_TOO_LARGE,
    ),
    description="Gateways call this URL. The service passes it to them with each message. The path contains the report key "
    "of the gateway and the reference of the message. The parameters may be in the query, in a form or in JSON. "
    "`UNAVAILABLE` means that the database is unavailable, or that the service does not know the id in a report yet. In both "
    "cases, repeat the call later.",
)

ENDPOINTS = [
    *_both(_ENDPOINT),
    *_both(
        replace(
            _ENDPOINT,
            path=REPORT_PATH,
            summary="Receive delivery reports at a URL without a reference",
            description="For gateways that can call only one URL. One parameter must contain the id that the gateway assigned to "
            "the message.",
        )
    ),
]
