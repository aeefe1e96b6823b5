"""Trackers: the places of a customer's that events are delivered to, checked when they are saved.

What is saved can be called: the URL is a template whose placeholders exist, its host leads to no forbidden address, headers cannot
break out of their line, fields and statuses are known ones. Secrets and headers are encrypted at rest and never shown again; a
secret that is replaced goes on signing beside the new one for the overlap. Disabling parks a tracker's deliveries, they go on when
it is enabled again; those of a deleted tracker end dead, with that reason, and stay listed.

The application's `conversion_url` and `conversion_fields` (23 Telecom) are a tracker of role `conversion_url`.

Raises ApiError INVALID_REQUEST, UNKNOWN_PLACEHOLDER, INVALID_TRACKER_URL, FORBIDDEN_TARGET, NOT_FOUND, CONFLICT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from shortener.accounts.directory import increment_version
from shortener.delivery.formats import check_fields
from shortener.delivery.guard import ForbiddenTarget, Guard, HostUnresolved
from shortener.delivery.health import TrackerHealth
from shortener.delivery.outcomes import parse_success
from shortener.delivery.placeholders import Template, TemplateError, parse_template
from shortener.delivery.request import DeliveryTarget
from shortener.delivery.signatures import MAX_SECRET_LENGTH, new_secret, parse_secret
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.model import SUBSCRIBABLE, Clock, Topic
from shortener.secret import Secret
from shortener.settings import Settings
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.types import to_ms

TRACKER = "tracker"
CONVERSION_URL = "conversion_url"
#: Every event may make a delivery for each of them.
MOST_TRACKERS = 100
MOST_HEADERS, LONGEST_HEADER = 20, 2000
LONGEST_OVERLAP = 7 * 86400

EventName = Literal["state", "click", "late_click", "conversion", "delivery", "click_retracted"]
assert set(get_args(EventName)) == {topic.api_name for topic in SUBSCRIBABLE}

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_VALUE = re.compile(r"[\x20-\x7e]*")
#: Headers that belong to the connection, to the body that we make, or to the signature.
_RESERVED = frozenset(
    {
        *("host", "content-length", "content-type", "content-encoding", "transfer-encoding", "accept-encoding", "expect"),
        *("connection", "keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate", "te", "trailer", "upgrade"),
        *("webhook-id", "webhook-timestamp", "webhook-signature", "x-webhook-timestamp", "x-webhook-signature", "cookie"),
    }
)


def _check_text(value: str) -> str:
    if "\x00" in value:
        raise ValueError("cannot hold the character NUL")
    return value


def _check_headers(headers: dict[str, str]) -> dict[str, str]:
    if len(headers) > MOST_HEADERS:
        raise ValueError(f"holds more than {MOST_HEADERS} headers")
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("names a header twice")
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name[:100]!r} is not the name of a header")
        if name.lower() in _RESERVED:
            raise ValueError(f"{name} cannot be set: it belongs to the connection, the body or the signature")
        if len(value) > LONGEST_HEADER or not _VALUE.fullmatch(value) or value != value.strip():
            raise ValueError(f"the value of {name} wants up to {LONGEST_HEADER} printable ASCII characters without blanks around")
    return headers


def _check_success(value: dict[str, Any]) -> dict[str, Any]:
    success = parse_success(value)
    return {"statuses": success.statuses, "body_contains": success.body_contains}


def _check_names(value: list[str]) -> list[str]:
    if unknown := check_fields(value):
        raise ValueError(f"unknown: {', '.join(name[:50] for name in unknown[:5])}")
    return list(dict.fromkeys(value))


def _check_secret(value: str) -> str:
    parse_secret(_check_text(value))
    return value


def _check_events(value: list[EventName]) -> list[EventName]:
    return list(dict.fromkeys(value))


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_text)]
Url = Annotated[str, Field(max_length=10_000, description="http(s) URL; may hold placeholders such as {phone} in path and query.")]
Events = Annotated[list[EventName], Field(min_length=1), AfterValidator(_check_events)]
Method = Literal["POST", "GET"]
Format = Literal["scg", "json", "xoxzo", "infobip"]
Fields = Annotated[
    list[str],
    Field(min_length=1, max_length=100, description="What the `json` body holds; a usual set when absent."),
    AfterValidator(_check_names),
]
Headers = Annotated[dict[str, str], Field(description="Static headers; never shown again."), AfterValidator(_check_headers)]
SecretText = Annotated[
    str,
    Field(min_length=8, max_length=MAX_SECRET_LENGTH, description="Signing secret; never shown again."),
    AfterValidator(_check_secret),
]
SuccessCriteria = Annotated[
    dict[str, Any],
    Field(description='{"statuses": "2xx", "body_contains": null}: which answers mean that the event was taken.'),
    AfterValidator(_check_success),
]
Attempts = Annotated[int, Field(ge=1, le=50, description="Attempts in all, the first one included.")]
Timeout = Annotated[float, Field(ge=0.1, le=60, allow_inf_nan=False, description="Seconds that one attempt may take in total.")]
Concurrency = Annotated[int, Field(ge=1, le=256, description="Attempts under way at once, of all processes (DELIVERY_PROCESSES).")]
WithSuspected = Annotated[
    bool,
    Field(description="Click events also of hits that are suspected to be no person's; `verdict` and `verdict_reason` tell them."),
]
Schedule = Annotated[
    list[Annotated[float, Field(ge=0, le=30 * 86400, allow_inf_nan=False)]],
    Field(min_length=1, max_length=49, description="Seconds between attempts; the last one repeats."),
]


class NewTracker(BaseModel):
    """A tracker to make."""

    model_config = ConfigDict(extra="forbid")

    url: Url
    events: Events
    name: Name | None = Field(None, description="For people; the host of the URL when absent.")
    enabled: bool = True
    method: Method = "POST"
    format: Format = "scg"
    fields_: Fields | None = Field(None, alias="fields")
    headers: Headers | None = None
    secret: SecretText | None = Field(None, description="Signing secret. Absent: one is made and shown this once; null: unsigned.")
    success: SuccessCriteria | None = None
    max_attempts: Attempts | None = None
    timeout: Timeout | None = None
    concurrency: Concurrency | None = None
    schedule: Schedule | None = None
    with_suspected: WithSuspected = False


def _drop_default(field: dict[str, Any]) -> None:
    field.pop("default", None)


def _unchanged() -> Any:
    """The default of a field that may be absent but not null."""
    return Field(None, json_schema_extra=_drop_default)


class TrackerChanges(BaseModel):
    """What to change of a tracker; what is absent stays. null in `fields`, `headers`, `secret`, `success`, `max_attempts`,
    `timeout`, `concurrency` and `schedule` takes back what was set."""

    model_config = ConfigDict(extra="forbid")

    url: Url = _unchanged()
    events: Events = _unchanged()
    name: Name = _unchanged()
    enabled: bool = _unchanged()
    method: Method = _unchanged()
    format: Format = _unchanged()
    fields_: Fields | None = Field(None, alias="fields")
    headers: Headers | None = None
    secret: SecretText | None = Field(None, description="A new signing secret; the present one signs too for the overlap.")
    rotate_secret: bool = Field(False, description="Make a new secret; it is shown this once.")
    secret_overlap: int = Field(86400, ge=0, le=LONGEST_OVERLAP, description="Seconds that the replaced secret goes on signing.")
    success: SuccessCriteria | None = None
    max_attempts: Attempts | None = None
    timeout: Timeout | None = None
    concurrency: Concurrency | None = None
    schedule: Schedule | None = None
    with_suspected: WithSuspected = _unchanged()


@dataclass(frozen=True, slots=True)
class Tracker:
    """A tracker as it is stored, without what is never shown again. None in the last four: as the installation is set."""

    id: int
    application_id: int
    role: str
    name: str
    enabled: bool
    disabled_reason: str | None
    url: str
    topics: Topic
    method: str
    format: str
    fields: list[str] | None
    headers_set: bool
    secret_set: bool
    previous_secret_until: datetime | None
    success: dict[str, Any]
    health: TrackerHealth
    created_at: datetime
    updated_at: datetime
    max_attempts: int | None
    timeout: float | None
    concurrency: int | None
    schedule: list[float] | None
    with_suspected: bool

    @property
    def events(self) -> list[str]:
        return [topic.api_name for topic in SUBSCRIBABLE if topic & self.topics]


@dataclass(frozen=True, slots=True)
class TrackerSaveResult:
    """`secret`: the one that was just made, to be shown this once."""

    tracker: Tracker
    secret: str | None = None


class Trackers:
    def __init__(self, database: Database, secret: Secret, guard: Guard, settings: Settings, clock: Clock) -> None:
        self._database = database
        self._secret = secret
        self._guard = guard
        self._settings = settings
        self._clock = clock

    async def create(self, application_id: int, given: NewTracker) -> TrackerSaveResult:
        template = await self.check_url(given.url)
        made = new_secret() if "secret" not in given.model_fields_set else None
        signing = made or given.secret
        now = self._clock()
        values = {
            "application_id": application_id,
            "role": TRACKER,
            "name": given.name or template.host,
            "enabled": given.enabled,
            "disabled_reason": None if given.enabled else "made so",
            "url": given.url,
            "topics": _topics(given.events),
            "method": given.method,
            "format": given.format,
            "fields": given.fields_,
            "headers": self._sealed_headers(given.headers),
            "secret": self._secret.encrypt(signing) if signing else None,
            "success": given.success or _check_success({}),
            "max_attempts": given.max_attempts,
            "timeout": given.timeout,
            "concurrency": given.concurrency,
            "schedule": given.schedule,
            "with_suspected": given.with_suspected,
            "created_at": now,
            "updated_at": now,
        }
        return TrackerSaveResult(await self._database.write(_insert, values), made)

    async def get(self, tracker_id: int, application_id: int | None = None) -> Tracker:
        """`application_id` None: whosever it is (the command line). Raises ApiError NOT_FOUND."""
        return await self._database.read(_get, tracker_id, application_id)

    async def all(self, application_id: int | None = None) -> list[Tracker]:
        """In the order in which they were made."""
        return await self._database.read(_all, application_id)

    async def update(self, tracker_id: int, changes: TrackerChanges, application_id: int | None = None) -> TrackerSaveResult:
        given = {name: getattr(changes, name) for name in changes.model_fields_set}
        made = None
        if "url" in given:
            await self.check_url(changes.url)
        if changes.rotate_secret:
            if "secret" in given:
                raise _refuse("rotate_secret", "stands beside secret; one of them, not both")
            given["secret"] = made = new_secret()
        if "secret" in given:
            given["secret"] = self._secret.encrypt(given["secret"]) if given["secret"] else None
        if "headers" in given:
            given["headers"] = self._sealed_headers(given["headers"])
        tracker = await self._database.write(_update, tracker_id, application_id, given, changes.secret_overlap, self._clock())
        return TrackerSaveResult(tracker, made)

    async def delete(self, tracker_id: int, application_id: int | None = None) -> None:
        """What is still to be delivered to it ends dead; the dispatcher sees to that."""
        await self._database.write(_delete, tracker_id, application_id)

    async def conversion_url(self, application_id: int) -> Tracker | None:
        return await self._database.read(_conversion_url, application_id)

    def target(self, row: Row[Any]) -> DeliveryTarget:
        """A row of the table as the dispatcher needs it. Raises SecretError, TemplateError: what was stored cannot be used."""
        settings = self._settings
        secrets = []
        for sealed, until in ((row.secret, None), (row.previous_secret, row.previous_secret_until)):
            if sealed:
                secrets.append((parse_secret(self._secret.decrypt(sealed)), until))
        return DeliveryTarget(
            tracker_id=row.id,
            revision=row.revision,
            url=parse_template(row.url),
            method=row.method,
            format=row.format,
            max_attempts=row.max_attempts or settings.delivery_attempts,
            timeout=row.timeout or settings.delivery_timeout,
            concurrency=row.concurrency or settings.delivery_slots_per_tracker,
            schedule=tuple(row.schedule or settings.delivery_schedule),
            success=parse_success(row.success),
            fields=None if row.fields is None else tuple(row.fields),
            headers=orjson.loads(self._secret.decrypt(row.headers)) if row.headers else {},
            secrets=tuple(secrets),
        )

    async def load(self, tracker_id: int, application_id: int | None = None) -> tuple[Tracker, DeliveryTarget]:
        """Raises ApiError NOT_FOUND."""
        row = await self._database.read(_require, tracker_id, application_id)
        return _told(row), self.target(row)

    async def check_url(self, url: str, field: str = "url") -> Template:
        """Whether deliveries can go there. Raises ApiError INVALID_TRACKER_URL, UNKNOWN_PLACEHOLDER, FORBIDDEN_TARGET."""
        try:
            template = parse_template(url)
        except TemplateError as error:
            raise ApiError(error.code, details=[Detail(field, error.reason, error.position)]) from None
        if template.scheme != "https" and not self._settings.allow_http_targets:
            raise ApiError(ErrorCode.FORBIDDEN_TARGET, details=[Detail(field, "http:// is switched off here; use https://")])
        try:
            await self._guard.check_host(template.host, template.port)
        except ForbiddenTarget as error:
            raise ApiError(ErrorCode.FORBIDDEN_TARGET, details=[Detail(field, str(error))]) from None
        except HostUnresolved:
            pass  # the name may be made later; the guard judges again whenever a connection is made
        return template

    def _sealed_headers(self, headers: Mapping[str, str] | None) -> str | None:
        return self._secret.encrypt(orjson.dumps(headers).decode()) if headers else None


def effective_limits(settings: Settings, tracker: Tracker) -> dict[str, Any]:
    """The four limits as they hold: the tracker's own, else the installation's."""
    return {
        "max_attempts": tracker.max_attempts or settings.delivery_attempts,
        "timeout": tracker.timeout or settings.delivery_timeout,
        "concurrency": tracker.concurrency or settings.delivery_slots_per_tracker,
        "schedule": list(tracker.schedule or settings.delivery_schedule),
    }


def _topics(events: list[EventName]) -> int:
    return sum(Topic[name.upper()].value for name in events)


def _refuse(field: str, reason: str) -> ApiError:
    return ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(field, reason)])


# Statements. Each is a transaction, or a read, of the database.

_table = schema.trackers


def health_of(row: Row[Any]) -> TrackerHealth:
    times = (row.open_until, row.recovering_at, row.last_success_at, row.last_failure_at)
    return TrackerHealth(row.failures_in_row, *(None if at is None else to_ms(at) for at in times))


def _told(row: Row[Any]) -> Tracker:
    return Tracker(
        id=row.id,
        application_id=row.application_id,
        role=row.role,
        name=row.name,
        enabled=row.enabled,
        disabled_reason=row.disabled_reason,
        url=row.url,
        topics=Topic(row.topics),
        method=row.method,
        format=row.format,
        fields=row.fields,
        headers_set=row.headers is not None,
        secret_set=row.secret is not None,
        previous_secret_until=row.previous_secret_until,
        success=row.success,
        health=health_of(row),
        created_at=row.created_at,
        updated_at=row.updated_at,
        max_attempts=row.max_attempts,
        timeout=row.timeout,
        concurrency=row.concurrency,
        schedule=row.schedule,
        with_suspected=row.with_suspected,
    )


def _require(connection: Connection, tracker_id: int, application_id: int | None, lock: bool = False) -> Row[Any]:
    statement = select(_table).where(_table.c.id == tracker_id)
    if application_id is not None:
        statement = statement.where(_table.c.application_id == application_id)
    if lock:
        statement = statement.with_for_update()
    row = connection.execute(statement).first() if tracker_id < 1 << 31 else None
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no tracker {tracker_id}.")
    return row


def _get(connection: Connection, tracker_id: int, application_id: int | None) -> Tracker:
    return _told(_require(connection, tracker_id, application_id))


def _all(connection: Connection, application_id: int | None) -> list[Tracker]:
    statement = select(_table).order_by(_table.c.id)
    if application_id is not None:
        statement = statement.where(_table.c.application_id == application_id)
    return [_told(row) for row in connection.execute(statement)]


def _insert(connection: Connection, values: dict[str, Any]) -> Tracker:
    application_id = values["application_id"]
    applications = schema.applications
    # The lock makes the count of several processes true.
    known = select(applications.c.id).where(applications.c.id == application_id).with_for_update()
    if connection.execute(known).first() is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no application {application_id}.")
    count = select(func.count()).where(_table.c.application_id == application_id)
    if connection.execute(count).scalar_one() >= MOST_TRACKERS:
        raise ApiError(ErrorCode.CONFLICT, f"The application has {MOST_TRACKERS} trackers, the most that there can be.")
    if values.get("with_suspected"):
        increment_version(connection)
    return _told(connection.execute(insert(_table).values(values).returning(_table)).one())


def _update(
    connection: Connection, tracker_id: int, application_id: int | None, given: dict[str, Any], overlap: int, now: datetime
) -> Tracker:
    row = _require(connection, tracker_id, application_id, lock=True)
    if row.role == CONVERSION_URL and (fixed := {"events", "format"} & given.keys()):
        raise _refuse(min(fixed), "belongs to the application's conversion_url and cannot be changed")
    plain = ("url", "name", "method", "format", "headers", "max_attempts", "timeout", "concurrency", "schedule", "with_suspected")
    values: dict[str, Any] = {name: given[name] for name in plain if name in given}
    if "fields_" in given:
        values["fields"] = given["fields_"]
    if "events" in given:
        values["topics"] = _topics(given["events"])
    if "success" in given:
        values["success"] = given["success"] or _check_success({})
    if "secret" in given:
        keep = row.secret is not None and given["secret"] is not None and overlap > 0
        values["secret"] = given["secret"]
        values["previous_secret"] = row.secret if keep else None
        values["previous_secret_until"] = now + timedelta(seconds=overlap) if keep else None
    if "enabled" in given:
        values["enabled"] = given["enabled"]
        if given["enabled"]:
            values["disabled_reason"] = None
        elif row.enabled:
            values["disabled_reason"] = "switched off"
    if given.get("enabled") or values.get("url", row.url) != row.url:
        values |= _fresh_start(now)
    values |= {"updated_at": now, "revision": row.revision + 1}
    after = connection.execute(update(_table).where(_table.c.id == row.id).values(values).returning(_table)).one()
    if row.with_suspected or after.with_suspected:
        increment_version(connection)  # whether suspected hits raise events is known to every process
    return _told(after)


def _fresh_start(now: datetime) -> dict[str, Any]:
    """The breaker closed; what waited until now is released like the backlog of a recovered tracker."""
    return {"failures_in_row": 0, "open_until": None, "recovering_at": now}


def _delete(connection: Connection, tracker_id: int, application_id: int | None) -> None:
    row = _require(connection, tracker_id, application_id, lock=True)
    connection.execute(delete(_table).where(_table.c.id == row.id))
    if row.with_suspected:
        increment_version(connection)


def _conversion_row(connection: Connection, application_id: int) -> Row[Any] | None:
    return connection.execute(
        select(_table).where(_table.c.application_id == application_id, _table.c.role == CONVERSION_URL)
    ).first()


def _conversion_url(connection: Connection, application_id: int) -> Tracker | None:
    row = _conversion_row(connection, application_id)
    return None if row is None else _told(row)


def write_conversion_url(
    connection: Connection, application_id: int, url: str | None, fields: list[str] | None, now: datetime
) -> None:
    """Make, change or (`url` None) remove the tracker that the application's own fields stand for; the URL is checked already.

    `fields` None: the usual set."""
    applications = schema.applications
    connection.execute(select(applications.c.id).where(applications.c.id == application_id).with_for_update())
    row = _conversion_row(connection, application_id)
    if url is None:
        if row is not None:
            connection.execute(delete(_table).where(_table.c.id == row.id))
        return
    if row is not None:
        values = {"url": url, "fields": fields, "updated_at": now, "revision": row.revision + 1}
        if url != row.url:
            values |= _fresh_start(now)
        connection.execute(update(_table).where(_table.c.id == row.id).values(values))
        return
    _insert(
        connection,
        {
            "application_id": application_id,
            "role": CONVERSION_URL,
            "name": urlsplit(url).hostname or CONVERSION_URL,
            "enabled": True,
            "url": url,
            "topics": Topic.CONVERSION.value,
            "method": "POST",
            "format": "json",
            "fields": fields,
            "success": _check_success({}),
            "created_at": now,
            "updated_at": now,
        },
    )
