"""The request bodies that create or change a tracker. The HTTP API and the command line use them.

The models check everything except the URL: names, headers, secrets, success rules and limits. delivery/trackers.py checks the
URL, because that needs the network.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shortener.conversions.parsing import MAX_SHORT_CHARACTERS
from shortener.delivery.client_certificate import MAX_CERTIFICATE_LENGTH
from shortener.delivery.client_certificate import check as check_certificate
from shortener.delivery.conversion_filter import MAX_ACTIONS, DispositionName
from shortener.delivery.formats import check_fields
from shortener.delivery.outcomes import parse_success
from shortener.delivery.trackers import DEFAULT_SECRET_OVERLAP_SECONDS, NewTracker, TrackerChanges
from shortener.model import EventName
from shortener.signatures import MAX_SECRET_LENGTH, MIN_KEY_BYTES, SIGNING_PREFIX, parse_secret
from shortener.urls import trim_url
from shortener.web.fields import optional_not_null

MAX_HEADERS = 20
MAX_HEADER_VALUE_LENGTH = 2000
MAX_SECRET_OVERLAP_SECONDS = 7 * 86400

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
#: Static headers must not have these names. The service itself sets these headers, for the connection, the body or the signature.
_RESERVED_HEADERS = frozenset(
    {
        *("host", "content-length", "content-type", "content-encoding", "transfer-encoding", "accept-encoding", "expect"),
        *("connection", "keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate", "te", "trailer", "upgrade"),
        *("webhook-id", "webhook-timestamp", "webhook-signature", "x-webhook-timestamp", "x-webhook-signature", "cookie"),
    }
)


def _check_text(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not contain the character NUL")
    return value


def _check_headers(headers: dict[str, str]) -> dict[str, str]:
    if len(headers) > MAX_HEADERS:
        raise ValueError(f"must not contain more than {MAX_HEADERS} headers")
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("must not contain a header twice (names ignore case)")
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"{name[:100]!r} is not a valid header name")
        if name.lower() in _RESERVED_HEADERS:
            raise ValueError(f"{name!r} is reserved: the service sets it")
        if len(value) > MAX_HEADER_VALUE_LENGTH or not _HEADER_VALUE.fullmatch(value) or value != value.strip():
            raise ValueError(
                f"the value of {name} must be at most {MAX_HEADER_VALUE_LENGTH} printable ASCII characters "
                "without leading or trailing spaces"
            )
    return headers


def _check_success(value: dict[str, Any]) -> dict[str, Any]:
    success = parse_success(value)
    return {"statuses": success.statuses, "body_contains": success.body_contains}


def _check_field_names(value: list[str]) -> list[str]:
    if unknown := check_fields(value):
        raise ValueError(f"unknown fields: {', '.join(name[:50] for name in unknown[:5])}")
    return list(dict.fromkeys(value))


_SECRET_RULE = (
    f"a text of 1 to {MAX_SECRET_LENGTH} characters, or `whsec_` and the base64 of a key of at least {MIN_KEY_BYTES} bytes"
)


def _check_secret(value: str) -> str:
    _check_text(value)
    try:
        key = parse_secret(value).keys[0]
    except ValueError:
        key = b""
    if not key or (value.startswith(SIGNING_PREFIX) and len(key) < MIN_KEY_BYTES):
        raise ValueError(f"must be {_SECRET_RULE}")
    return value


def _remove_duplicates(value: list[EventName]) -> list[EventName]:
    return list(dict.fromkeys(value))


def _check_actions(value: list[str]) -> list[str] | None:
    """Return the actions without surrounding spaces; None if there are none. If actions differ only in upper and lower case,
    return only the first of them."""
    distinct: dict[str, str] = {}
    for action in map(str.strip, value):
        if not action:
            raise ValueError("must not contain an empty action")
        if len(action) > MAX_SHORT_CHARACTERS:
            raise ValueError(f"{action[:20] + '…'!r} must have at most {MAX_SHORT_CHARACTERS} characters")
        if _CONTROL.search(action):
            raise ValueError(f"{action!a} must not contain control characters")
        distinct.setdefault(action.casefold(), action)
    return list(distinct.values()) or None


def _distinct_dispositions(value: list[DispositionName]) -> list[DispositionName] | None:
    return list(dict.fromkeys(value)) or None


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_text)]
TrackerUrl = Annotated[
    str,
    Field(
        max_length=10_000,
        description="http or https URL. Its path and query may contain placeholders, for example {phone}.",
    ),
    AfterValidator(trim_url),
]
Events = Annotated[
    list[EventName], Field(min_length=1, description="Events that the tracker receives."), AfterValidator(_remove_duplicates)
]
Method = Literal["POST", "GET"]
Format = Literal["scg", "json", "xoxzo", "infobip"]
BodyFields = Annotated[
    list[str],
    Field(
        min_length=1,
        max_length=100,
        description="Fields of the body in the `json` format. Default: the default fields of the format.",
    ),
    AfterValidator(_check_field_names),
]
Headers = Annotated[
    dict[str, str],
    Field(description="Static headers that are sent with each request. No response shows them."),
    AfterValidator(_check_headers),
]
ClientCertificate = Annotated[
    str,
    Field(
        max_length=MAX_CERTIFICATE_LENGTH,
        description="Client certificate with its chain and its private key in PEM format, for receivers that require a "
        "client certificate. It is stored encrypted and never shown again. It is removed if the URL changes to another "
        "scheme, host or port.",
    ),
    AfterValidator(check_certificate),
]
# This Field declares no limits of length. `_check_secret` checks them, because its error text contains the complete rule.
SecretText = Annotated[str, Field(json_schema_extra={"maxLength": MAX_SECRET_LENGTH}), AfterValidator(_check_secret)]
Success = Annotated[
    dict[str, Any],
    Field(
        description="Which responses count as success: `statuses` (default 2xx), and optionally `body_contains`, a text that "
        'the response body must contain, too. Example: {"statuses": "200,202-204", "body_contains": "ok"}.'
    ),
    AfterValidator(_check_success),
]
MaxAttempts = Annotated[int, Field(ge=1, le=50, description="Maximum number of attempts per delivery, including the first.")]
Timeout = Annotated[float, Field(ge=0.1, le=60, allow_inf_nan=False, description="Total time limit of one attempt, in seconds.")]
Concurrency = Annotated[
    int,
    Field(ge=1, le=256, description="Maximum number of simultaneous attempts, for all processes together."),
]
MaxPerSecond = Annotated[
    float,
    Field(
        ge=0.01,
        le=1000,
        allow_inf_nan=False,
        description=(
            "Maximum number of attempts per second, for all processes together. Default: no limit. After responses with the "
            "status 429, the service sends fewer requests per second."
        ),
    ),
]
WithSuspected = Annotated[
    bool,
    Field(
        description="Also send click events for hits that probably come from a program, not a person. "
        "Their `verdict` is `suspected`, and `verdict_reason` names the rule."
    ),
]
ConversionActions = Annotated[
    list[str],
    Field(
        max_length=MAX_ACTIONS,
        description=(
            "Actions of the conversions that the tracker receives, each of at most 64 characters, in upper or lower case. A reply"
            " has the action `reply`. A click that is sent as a conversion has the action `clickthru`. null or an empty list: all"
            " actions. A change applies to later events only."
        ),
        examples=[["sale", "deposit"]],
    ),
    AfterValidator(_check_actions),
]
ConversionDispositions = Annotated[
    list[DispositionName],
    Field(
        description=(
            "Dispositions of the conversions that the tracker receives. `none`: conversions without a disposition, for example "
            "pending ones. null or an empty list: all conversions. A change applies to later events only."
        ),
        examples=[["positive"]],
    ),
    AfterValidator(_distinct_dispositions),
]
Schedule = Annotated[
    list[Annotated[float, Field(ge=0, le=30 * 86400, allow_inf_nan=False)]],
    Field(
        min_length=1,
        max_length=49,
        description="Pauses between the attempts of a delivery, in seconds. If there are more "
        "attempts than pauses, the last pause is repeated.",
    ),
]


class TrackerCreateRequest(BaseModel):
    """A tracker (the endpoint that receives events) to create."""

    model_config = ConfigDict(extra="forbid")

    url: TrackerUrl
    events: Events
    name: Name | None = Field(None, description="Name of the tracker. It is only displayed. Default: the host of the URL.")
    enabled: bool = True
    method: Method = "POST"
    format: Format = "scg"
    fields_: BodyFields | None = Field(None, alias="fields")
    headers: Headers | None = None
    secret: SecretText | None = Field(
        None,
        description=f"Signing secret: {_SECRET_RULE}. Absent: the service generates one and returns it once. null: requests are "
        "not signed.",
    )
    success: Success | None = None
    max_attempts: MaxAttempts | None = None
    timeout: Timeout | None = None
    concurrency: Concurrency | None = None
    max_per_second: MaxPerSecond | None = None
    client_certificate: ClientCertificate | None = None
    schedule: Schedule | None = None
    with_suspected: WithSuspected = False
    conversion_actions: ConversionActions | None = None
    conversion_dispositions: ConversionDispositions | None = None

    def to_tracker(self) -> NewTracker:
        values = {name.rstrip("_"): getattr(self, name) for name in type(self).model_fields}
        return NewTracker(**values, signed=self.secret is not None or "secret" not in self.model_fields_set)


class TrackerUpdateRequest(BaseModel):
    """Changes of a tracker. Fields that are absent do not change. null in `fields`, `headers`, `secret`, `success`,
    `max_attempts`, `timeout`, `concurrency`, `max_per_second`, `schedule`, `conversion_actions` or `conversion_dispositions`
    removes the stored value. If `url` changes to another scheme, host or port, `headers` are removed unless the request sets
    them."""

    model_config = ConfigDict(extra="forbid")

    url: TrackerUrl = optional_not_null()
    events: Events = optional_not_null()
    name: Name = optional_not_null()
    enabled: bool = optional_not_null()
    method: Method = optional_not_null()
    format: Format = optional_not_null()
    fields_: BodyFields | None = Field(None, alias="fields")
    headers: Headers | None = None
    secret: SecretText | None = Field(
        None,
        description=f"New signing secret: {_SECRET_RULE}. For `secret_overlap` seconds, requests are also signed with the replaced "
        "secret. null: no signature.",
    )
    rotate_secret: bool = Field(False, description="Generate a new signing secret. The response returns it once.")
    secret_overlap: int = Field(
        DEFAULT_SECRET_OVERLAP_SECONDS,
        ge=0,
        le=MAX_SECRET_OVERLAP_SECONDS,
        description="Seconds for which requests are also signed with the replaced secret.",
    )
    success: Success | None = None
    max_attempts: MaxAttempts | None = None
    timeout: Timeout | None = None
    concurrency: Concurrency | None = None
    max_per_second: MaxPerSecond | None = None
    client_certificate: ClientCertificate | None = None
    schedule: Schedule | None = None
    with_suspected: WithSuspected = optional_not_null()
    conversion_actions: ConversionActions | None = None
    conversion_dispositions: ConversionDispositions | None = None

    def to_changes(self) -> TrackerChanges:
        """Return the changes of a tracker that the request contains. A field that is absent from the request is absent from the
        result."""
        values: Any = {name.rstrip("_"): getattr(self, name) for name in self.model_fields_set}
        changes: TrackerChanges = values
        return changes
