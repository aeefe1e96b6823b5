"""Gateways with an HTTP interface: URL, method, headers and body of a request are templates, and paths find the values in the
response. The rules for responses (`classify`):

- A status in `success_statuses` accepts the message. With `success_path`, the value at this path must also be in
  `success_values`. Another value there rejects the message, unless this value or the error code is in `retry_codes`. If the value
  is missing, the response is unreadable.
- 429 and 503 mean that the gateway accepts messages later. 401, 402, 403, 404, 405, 407 and redirects mean that the set-up is
  wrong or the account is empty, so the message waits. 408, 425 and 5xx, except 502 and 504, are temporary. Every other status
  rejects the message, unless the error code is in `retry_codes`.
- 502 and 504 come from a proxy that got no answer, so the gateway may have accepted the message. The same is true if the response
  is missing after the request was sent. In both cases the message is doubtful.

The requests are sent by `delivery/sender.py`: within the time limit, with limited memory, without redirects, and only to permitted
addresses. A request on an idle connection is sent again if the gateway has just closed this connection. The message is then
doubtful, because the gateway may have received the first request too. If doubtful messages must not be repeated, each request uses
a new connection.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from shortener.delivery.dot_segments import encode_dot_segments
from shortener.delivery.http_exchange import OutgoingRequest, SendResult
from shortener.delivery.outcomes import SuccessCriteria, parse_success
from shortener.gateways import templates
from shortener.gateways.masking import mask_url
from shortener.gateways.submission import (
    GatewayConfig,
    GatewayConnection,
    GatewayContext,
    OutgoingMessage,
    SubmitOutcome,
    SubmitResult,
)
from shortener.messages.segments import encode_text
from shortener.model import record
from shortener.urls import UrlError, parse_destination

#: The placeholders that every template may contain, each with an example value.
PLACEHOLDERS: Mapping[str, str] = {
    "phone": "+14085550100",
    "phone_digits": "14085550100",
    "text": "test",
    "text_hex": "74657374",
    "sender_id": "Brand",
    "message_id": "test",
    "reference": "00000000000",
    "encoding": "GSM-7",
    "segments": "1",
    "report_url": "https://go.example/api/v1/gateways/reports/key/00000000000",
}
#: The errors of requests that certainly did not reach the gateway.
_NOT_ARRIVED = frozenset(
    {"dns_error", "connection_refused", "network_unreachable", "blocked_address", "proxy_error", "internal_error"}
    | {"resolver_down", "no_slot", "local_error"}
)
_SETUP_STATUSES = frozenset({401, 402, 403, 404, 405, 407})
_TEMPORARY_STATUSES = frozenset({408, 425})
_THROTTLED_STATUSES = frozenset({429, 503})
_PROXY_STATUSES = frozenset({502, 504})
_MAX_TEMPLATE = 8192
#: The settings that contain the path of a value in the response.
_RESPONSE_PATHS = ("success_path", "id_path", "error_path", "error_code_path")


class HttpSettings(BaseModel):
    """The settings of an HTTP gateway. Templates contain placeholders in braces."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    url: str = Field(
        max_length=_MAX_TEMPLATE,
        description="URL of the requests. Its path and query may contain placeholders. Query parameters without a value are left "
        "out.",
    )
    method: Literal["GET", "POST", "PUT"] = Field("POST", description="HTTP method of the requests. Default: POST.")
    headers: dict[str, str] = Field({}, description="Headers of the requests. Their values may contain placeholders.")
    content_type: str = Field(
        "application/json",
        max_length=100,
        description="Content-Type of the body. It decides how the values of placeholders are encoded: JSON, XML, "
        "form or plain text.",
    )
    body: str = Field("", max_length=_MAX_TEMPLATE, description="Body of the requests. It may contain placeholders.")
    variables: dict[str, str] = Field(
        {}, description="Further placeholders with fixed values, such as user and password. Their values are never shown."
    )
    basic_auth: bool = Field(
        False, description="true: send the variables `username` and `password` as HTTP Basic credentials. Default: false."
    )
    encodings: dict[Literal["GSM-7", "UCS-2"], str] = Field(
        {"GSM-7": "GSM-7", "UCS-2": "UCS-2"},
        description="Values of the placeholder {encoding}: one value for messages in GSM-7 and one for messages in UCS-2.",
    )
    success_statuses: str = Field("2xx", description="HTTP statuses that accept a message, such as 2xx or 200,202.")
    success_path: str = Field(
        "", description="Path of a value in the response. The message is accepted if `success_values` contains this value."
    )
    success_values: tuple[str, ...] = Field((), description="Values at `success_path` that accept a message.")
    retry_codes: tuple[str, ...] = Field(
        (),
        description="Values at `success_path` or `error_code_path` that mean a temporary failure, such as a code for throttling.",
    )
    id_path: str = Field("", description="Path of the id that the gateway assigned to the message, in the response.")
    error_path: str = Field("", description="Path of the error text in the response.")
    error_code_path: str = Field("", description="Path of the error code in the response.")
    report_items: str = Field(
        "", description="Path of the list of reports in the body of a report call. Empty: the body is one report."
    )
    report_fields: dict[
        Literal["status", "id", "reference", "message_id", "error_code", "description", "timestamp", "price"], str
    ] = Field(
        {"status": "status"},
        description=(
            "For each part of a report: the name of the parameter of the report call that contains it, or a path in the JSON "
            "body such as status.groupName."
        ),
    )
    report_states: dict[str, str] = Field(
        {},
        description=(
            "State for each status word of this gateway: SENT, DELIVERED, READ, FAILED or EXPIRED, or - if the word means none of"
            " these states."
        ),
    )
    report_response: str = Field(
        "", max_length=200, description="Body of the response to a report call, if the gateway expects one."
    )

    @field_validator(*_RESPONSE_PATHS)
    @classmethod
    def _check_path(cls, value: str) -> str:
        return templates.check_path(value)

    @field_validator("success_statuses")
    @classmethod
    def _check_statuses(cls, value: str) -> str:
        parse_success({"statuses": value})
        return value

    @field_validator("variables")
    @classmethod
    def _check_variables(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not templates.PLACEHOLDER.fullmatch(f"{{{name}}}") or name in PLACEHOLDERS:
                raise ValueError(
                    f"{name!r} must be a name of lower-case letters, digits and _, and not the name of a built-in placeholder"
                )
        return value

    @field_validator("report_states")
    @classmethod
    def _check_states(cls, value: dict[str, str]) -> dict[str, str]:
        for word, state in value.items():
            if state not in ("SENT", "DELIVERED", "READ", "FAILED", "EXPIRED", "-"):
                raise ValueError(f"the state of {word!r} must be SENT, DELIVERED, READ, FAILED, EXPIRED or -")
        return value

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not name.isascii() or not name.replace("-", "").isalnum() or not text.isascii() or not text.isprintable():
                raise ValueError(f"{name!r} must be a header name, and its value printable ASCII")
            if name.lower() in ("content-type", "content-length", "host", "transfer-encoding", "connection"):
                raise ValueError(f"{name!r} is set by the service; use content_type")
        return value

    @model_validator(mode="after")
    def _check_templates(self) -> HttpSettings:
        names = {**PLACEHOLDERS, **self.variables}
        for where, template in (("url", self.url), ("body", self.body), *(("headers", text) for text in self.headers.values())):
            if unknown := templates.unknown_placeholders(template, names):
                known = ", ".join(sorted(names))
                raise ValueError(
                    f"{where} contains {{{unknown[0]}}}, which is not a placeholder or a variable; known: {known}. A new "
                    f"value of variables replaces all variables; variables.{unknown[0]} sets one"
                )
        if self.success_path and not self.success_values:
            raise ValueError("success_path requires success_values")
        _parse_url(self.url)
        if self.body and templates.escaping_of(self.content_type) == "json":
            try:
                json.loads(templates.fill(self.body, names, "json"))
            except ValueError:
                raise ValueError("body must be JSON; a placeholder for a text must be in quotes") from None
        return self


def _parse_url(url: str) -> tuple[str, int]:
    """Return host and port of a URL template. Raise ValueError if the URL is not absolute, or if host or port contains a
    placeholder."""
    sample = templates.PLACEHOLDER.sub("x", url)
    if not url.isascii():
        raise ValueError("url must be ASCII: write a host in punycode, and percent-encode the rest")
    try:
        location = parse_destination(sample).location.decode()
    except UrlError as error:
        raise ValueError(f"url {error.reason}") from None
    parts = urlsplit(location)
    prefix = url.partition("?")[0].partition("//")[2].partition("/")[0]
    if "{" in prefix:
        raise ValueError("url must not contain a placeholder in scheme, host or port")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def classify(settings: HttpSettings, response: SendResult) -> SubmitResult:
    """Return what the response to a request means for the message."""
    data = templates.parse_json(response.body) if response.body else None

    def read(path: str) -> str | None:
        return templates.read_path(path, response.body, data) if path else None

    def result(outcome: SubmitOutcome, reason: str, detail: str = "", **fields: Any) -> SubmitResult:
        code = read(settings.error_code_path) or ""
        return SubmitResult(
            outcome,
            reason,
            detail or read(settings.error_path) or "",
            error_code=code,
            status=response.status,
            milliseconds=response.milliseconds,
            **fields,
        )

    status = response.status
    if status is None:
        error = response.error or "no_answer"
        is_doubtful = response.may_have_arrived and error not in _NOT_ARRIVED
        outcome = SubmitOutcome.DOUBT if is_doubtful else SubmitOutcome.RETRY
        return result(outcome, error, response.detail, is_local=response.is_local)
    if SuccessCriteria(settings.success_statuses).matches(status):
        return _classify_success(settings, read, result)
    if status in _THROTTLED_STATUSES:
        return result(SubmitOutcome.RETRY, "throttled", retry_after=response.retry_after, is_throttled=status == 429)
    if status in _PROXY_STATUSES:
        return result(SubmitOutcome.DOUBT, "gateway_timeout")
    if status in _SETUP_STATUSES or 300 <= status < 400:
        return result(SubmitOutcome.RETRY, "refused_by_gateway")
    if status in _TEMPORARY_STATUSES or status >= 500:
        return result(SubmitOutcome.RETRY, "gateway_error", retry_after=response.retry_after)
    if (read(settings.error_code_path) or "") in settings.retry_codes:
        return result(SubmitOutcome.RETRY, "temporary_error")
    return result(SubmitOutcome.REJECTED, "rejected")


def _classify_success(
    settings: HttpSettings, read: Callable[[str], str | None], result: Callable[..., SubmitResult]
) -> SubmitResult:
    """Return what a response with a status of `success_statuses` means. `read` returns the value at a path of the response, and
    `result` creates the result."""
    if settings.success_path:
        value = read(settings.success_path)
        if value is None:
            return result(SubmitOutcome.UNREADABLE, "unreadable_response")
        if value not in settings.success_values:
            if value in settings.retry_codes or read(settings.error_code_path) in settings.retry_codes:
                return result(SubmitOutcome.RETRY, "temporary_error")
            return result(SubmitOutcome.REJECTED, "rejected")
    return result(SubmitOutcome.ACCEPTED, "accepted", gateway_message_id=read(settings.id_path))


@record
class HttpGateway:
    """A gateway connection that sends messages to an HTTP gateway. It uses the HTTP connections of the senders in `context`."""

    config: GatewayConfig
    context: GatewayContext

    async def submit(self, message: OutgoingMessage, timeout: float) -> SubmitResult:
        """Send the request of a message within `timeout` seconds, and return what the response means."""
        settings = self.config.settings
        assert isinstance(settings, HttpSettings)
        sender = self.context.private_sender if self.config.allow_private else self.context.public_sender
        response = await sender.send(build_request(settings, message, repeats=self.config.repeats_doubtful), timeout)
        result = classify(settings, response)
        return replace(result, is_repeated=True) if response.is_repeated else result

    async def close(self) -> None:
        """Do nothing. The sender closes its connections."""


def build_request(settings: HttpSettings, message: OutgoingMessage, *, repeats: bool) -> OutgoingRequest:
    """Return the request of a message. If `repeats` is False, the request uses a new connection and is never sent twice."""
    values = {
        **settings.variables,
        "phone": message.phone,
        "phone_digits": message.phone.removeprefix("+"),
        "text": message.text,
        "text_hex": encode_text(message.text).hex(),
        "sender_id": message.sender_id,
        "message_id": message.message_id,
        "reference": message.reference,
        "encoding": settings.encodings.get("UCS-2" if message.encoding == "UCS-2" else "GSM-7", message.encoding),
        "segments": str(message.segments),
        "report_url": message.report_url,
    }
    headers = {
        name: templates.fill(text, values, "header").encode("ascii", "replace").decode() for name, text in settings.headers.items()
    }
    if settings.basic_auth:
        headers["Authorization"] = _basic(settings.variables)
    body = None
    if settings.method != "GET":
        body = templates.fill(settings.body, values, templates.escaping_of(settings.content_type)).encode("utf-8", "replace")
        headers["Content-Type"] = settings.content_type
    if not repeats:
        headers["Connection"] = "close"
    return OutgoingRequest(settings.method, _fill_url(settings.url, values), headers, body, may_repeat=repeats)


def _fill_url(template: str, values: Mapping[str, str]) -> str:
    path, separator, query = templates.fill(template, values, "url").partition("?")
    return encode_dot_segments(path, template.partition("?")[0]) + separator + query


def _basic(variables: Mapping[str, str]) -> str:
    user = f"{variables.get('username', '')}:{variables.get('password', '')}"
    return "Basic " + base64.b64encode(user.encode()).decode()


class _HttpKind:
    """The gateway kind `http`, whose gateways have an HTTP interface."""

    name = "http"
    settings_model: type[BaseModel] = HttpSettings

    def describe(self, settings: BaseModel) -> Mapping[str, Any]:
        """Return the settings for display. The values of headers and variables, and the body, are left out, because they may
        contain credentials."""
        assert isinstance(settings, HttpSettings)
        shown = settings.model_dump(mode="json", exclude={"headers", "variables", "body"})
        return {
            **shown,
            "url": mask_url(settings.url),
            "headers": sorted(settings.headers),
            "variables": sorted(settings.variables),
            "body_set": bool(settings.body),
        }

    def target(self, settings: BaseModel) -> tuple[str, int] | None:
        """Return the host and the port of the gateway's URL."""
        assert isinstance(settings, HttpSettings)
        return _parse_url(settings.url)

    def operator_values(self, settings: BaseModel) -> Mapping[str, object]:
        """Return the settings that determine which resource a request addresses, and which values of the response are read. A
        variable is included only if the path of the URL contains it, because the other variables may be credentials."""
        assert isinstance(settings, HttpSettings)
        path = settings.url.partition("?")[0]
        return {
            **{name: getattr(settings, name) for name in ("url", "method", "headers", "content_type", "body", *_RESPONSE_PATHS)},
            "variables": templates.fill(path, settings.variables, "url"),
        }

    def open(self, config: GatewayConfig, context: GatewayContext) -> GatewayConnection:
        return HttpGateway(config, context)


KIND = _HttpKind()
