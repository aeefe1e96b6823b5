"""This module creates, reads, changes and deletes trackers, the endpoints of customers that receive events.

The URL of a stored tracker is a valid template, and its host had no forbidden address when it was saved. Secrets, headers and
client certificates are encrypted in the database, and no response contains them. After a secret was replaced, requests are also
signed with the old secret for a limited time (the overlap). If the URL changes to another scheme, host or port, the static headers
and the client certificate are removed, so that they do not reach another receiver.

If a tracker is disabled, its deliveries wait until it is enabled again. If it is deleted, its pending deliveries become dead with
this reason and stay listed.

The application's `conversion_url` and `conversion_fields` (23 Telecom) are stored as a tracker with the role `conversion_url`.

The functions raise ApiError with INVALID_REQUEST, UNKNOWN_PLACEHOLDER, INVALID_TRACKER_URL, FORBIDDEN_TARGET, NOT_FOUND or
CONFLICT.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypedDict
from urllib.parse import urlsplit

import orjson
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from shortener.accounts.directory import increment_version
from shortener.delivery.client_certificate import tls_context
from shortener.delivery.guard import ForbiddenTarget, Guard, HostUnresolved
from shortener.delivery.health import TrackerHealth
from shortener.delivery.outcomes import parse_success
from shortener.delivery.pace import TrackerPace
from shortener.delivery.placeholders import Template, TemplateError, parse_template
from shortener.delivery.request import DeliveryTarget, Secrets
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.model import SUBSCRIBABLE_TOPICS, Clock, Topic
from shortener.secret import Secret, new_signing_secret
from shortener.settings import Settings
from shortener.signatures import parse_secret
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.types import to_ms

TRACKER = "tracker"
CONVERSION_URL = "conversion_url"
#: An application can have at most this many trackers, because each event can create one delivery for each of them.
MAX_TRACKERS = 100
DEFAULT_SECRET_OVERLAP_SECONDS = 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTracker:
    """The values of a tracker to create. The caller has validated them (web/tracker_requests.py).

    `events` contains the names of the events that the tracker receives. If `secret` is None, the service generates a signing
    secret, unless `signed` is False. If `name` is None, the host of the URL is the name. `timeout` and the delays in `schedule` are
    in seconds.
    """

    url: str
    events: Sequence[str]
    name: str | None = None
    enabled: bool = True
    method: str = "POST"
    format: str = "scg"
    fields: list[str] | None = None
    headers: Mapping[str, str] | None = None
    secret: str | None = None
    signed: bool = True
    success: Mapping[str, Any] | None = None
    max_attempts: int | None = None
    timeout: float | None = None
    concurrency: int | None = None
    max_per_second: float | None = None
    client_certificate: str | None = None
    schedule: list[float] | None = None
    with_suspected: bool = False


class TrackerChanges(TypedDict, total=False):
    """The new values for an existing tracker. The caller has validated them. If a key is absent, its value stays unchanged.

    None removes the value of `fields`, `headers`, `secret`, `client_certificate`, `success`, `max_attempts`, `timeout`,
    `concurrency`, `max_per_second` or `schedule`. If `rotate_secret` is true, the service generates a new
    secret. Requests are also signed with the replaced secret for `secret_overlap` seconds.
    """

    url: str
    events: Sequence[str]
    name: str
    enabled: bool
    method: str
    format: str
    fields: list[str] | None
    headers: Mapping[str, str] | None
    secret: str | None
    rotate_secret: bool
    secret_overlap: int
    success: Mapping[str, Any] | None
    max_attempts: int | None
    timeout: float | None
    concurrency: int | None
    max_per_second: float | None
    client_certificate: str | None
    schedule: list[float] | None
    with_suspected: bool


@dataclass(frozen=True, slots=True)
class Tracker:
    """A stored tracker without its secrets and headers.

    `max_attempts`, `timeout` (in seconds), `concurrency` and `schedule` are None if the default in the settings of the installation
    applies."""

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
    client_certificate_set: bool
    secret_set: bool
    previous_secret_until: datetime | None
    success: dict[str, Any]
    health: TrackerHealth
    pace: TrackerPace
    created_at: datetime
    updated_at: datetime
    max_attempts: int | None
    timeout: float | None
    concurrency: int | None
    max_per_second: float | None
    schedule: list[float] | None
    with_suspected: bool

    @property
    def events(self) -> list[str]:
        return [topic.api_name for topic in SUBSCRIBABLE_TOPICS if topic & self.topics]


@dataclass(frozen=True, slots=True)
class TrackerSaveResult:
    """A saved tracker. `secret` is the text of a signing secret that the service has just generated, otherwise None."""

    tracker: Tracker
    secret: str | None = None


class Trackers:
    """An access object for the trackers in the database.

    If the parameter `application_id` of a method is None, the method accepts the trackers of all applications."""

    def __init__(self, database: Database, secret: Secret, guard: Guard, settings: Settings, clock: Clock) -> None:
        self._database = database
        self._secret = secret
        self._guard = guard
        self._settings = settings
        self._clock = clock

    async def create(self, application_id: int, new: NewTracker) -> TrackerSaveResult:
        """Create a tracker of an application.

        Raise ApiError NOT_FOUND if the application does not exist, CONFLICT if it has too many trackers, or an error of `check_url`
        if the URL is rejected.
        """
        template = await self.check_url(new.url)
        generated = new_signing_secret() if new.signed and new.secret is None else None
        secret = generated or new.secret
        now = self._clock()
        values = {
            "application_id": application_id,
            "role": TRACKER,
            "name": new.name or template.host,
            "enabled": new.enabled,
            "disabled_reason": None if new.enabled else "created disabled",
            "url": new.url,
            "topics": _topics(new.events),
            "method": new.method,
            "format": new.format,
            "fields": new.fields,
            "headers": self._encrypt_headers(new.headers),
            "secret": self._secret.encrypt(secret) if secret else None,
            "success": _success_fields(new.success),
            "max_attempts": new.max_attempts,
            "timeout": new.timeout,
            "concurrency": new.concurrency,
            "max_per_second": new.max_per_second,
            "client_certificate": self._secret.encrypt(new.client_certificate) if new.client_certificate else None,
            "schedule": new.schedule,
            "with_suspected": new.with_suspected,
            "created_at": now,
            "updated_at": now,
        }
        return TrackerSaveResult(await self._database.write(_insert, values), generated)

    async def get(self, tracker_id: int, application_id: int | None = None) -> Tracker:
        """Return the tracker with the given id. Raise ApiError NOT_FOUND if it does not exist."""
        return await self._database.read(_get, tracker_id, application_id)

    async def all(self, application_id: int | None = None) -> list[Tracker]:
        """Return all trackers of an application (None: of all applications), oldest first."""
        return await self._database.read(_all, application_id)

    async def update(self, tracker_id: int, changes: TrackerChanges, application_id: int | None = None) -> TrackerSaveResult:
        """Change the given values of a tracker.

        Raise ApiError NOT_FOUND if the tracker does not exist, INVALID_REQUEST if the changes contradict each other or the role of
        the tracker, or an error of `check_url` if a new URL is rejected.
        """
        values: dict[str, Any] = {**changes}
        overlap = values.pop("secret_overlap", DEFAULT_SECRET_OVERLAP_SECONDS)
        generated = None
        if "url" in changes:
            await self.check_url(changes["url"])
        if values.pop("rotate_secret", False):
            if "secret" in values:
                raise _refuse("rotate_secret", "must not be combined with secret")
            values["secret"] = generated = new_signing_secret()
        if "secret" in values:
            values["secret"] = self._secret.encrypt(values["secret"]) if values["secret"] else None
        if values.get("client_certificate"):
            values["client_certificate"] = self._secret.encrypt(values["client_certificate"])
        if "headers" in values:
            values["headers"] = self._encrypt_headers(values["headers"])
        tracker = await self._database.write(_update, tracker_id, application_id, values, overlap, self._clock())
        return TrackerSaveResult(tracker, generated)

    async def delete(self, tracker_id: int, application_id: int | None = None) -> None:
        """Delete a tracker. The dispatcher then makes its pending deliveries dead. Raise ApiError NOT_FOUND if it is unknown."""
        await self._database.write(_delete, tracker_id, application_id)

    async def conversion_url(self, application_id: int) -> Tracker | None:
        """Return the tracker that stores the application's `conversion_url`, or None."""
        return await self._database.read(_conversion_url, application_id)

    def target(self, row: Row[Any]) -> DeliveryTarget:
        """Convert a row of the table `trackers` to a delivery target for the dispatcher.

        Raise SecretError or TemplateError if the row is unusable."""
        settings = self._settings
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
            tls=tls_context(self._secret.decrypt(row.client_certificate)) if row.client_certificate else None,
            secrets=self._secrets((row.secret, None), (row.previous_secret, row.previous_secret_until)),
        )

    def callback_secrets(self, connection: Connection, deliveries: Iterable[int]) -> dict[int, Secrets]:
        """Return the callback secrets with which the given deliveries are signed, by delivery id."""
        d, a = schema.deliveries.c, schema.applications.c
        columns = (d.id, a.callback_secret, a.previous_callback_secret, a.previous_callback_secret_until)
        joined = schema.deliveries.join(schema.applications, a.id == d.application_id)
        rows = connection.execute(
            select(*columns).select_from(joined).where(d.id.in_(list(deliveries)), a.callback_secret.is_not(None))
        )
        return {row.id: self._secrets((row[1], None), (row[2], row[3])) for row in rows}

    async def callback_secret_state(self, application_id: int) -> tuple[bool, datetime | None]:
        """Return whether an application has a callback secret, and the time until which the previous secret is also used."""
        return await self._database.read(_callback_secret_state, application_id)

    async def rotate_callback_secret(self, application_id: int, overlap: timedelta) -> tuple[str, datetime | None]:
        """Create a new callback secret for an application. Return it, and the time until which the previous secret is also used.

        Requests to `lt_callbackurl` are signed with it. Requests to `conversion_url` are too, unless that tracker has its own
        secret. Raise ApiError NOT_FOUND if the application does not exist."""
        plain = new_signing_secret()
        encrypted = self._secret.encrypt(plain)
        return plain, await self._database.write(_rotate_callback_secret, application_id, encrypted, self._clock(), overlap)

    def _secrets(self, *stored: tuple[str | None, datetime | None]) -> Secrets:
        """Decrypt stored secrets and return their keys. A stored secret that is None is skipped."""
        return tuple((parse_secret(self._secret.decrypt(encrypted)), until) for encrypted, until in stored if encrypted)

    async def load(self, tracker_id: int, application_id: int | None = None) -> tuple[Tracker, DeliveryTarget]:
        """Return a tracker and its delivery target. Raise ApiError NOT_FOUND if the tracker does not exist."""
        row = await self._database.read(_require, tracker_id, application_id)
        return _tracker_from_row(row), self.target(row)

    async def check_url(self, url: str, field: str = "url") -> Template:
        """Check that deliveries can be sent to a URL, and return it as a template. Errors contain `field` as the name of the field.

        Raise ApiError INVALID_TRACKER_URL, UNKNOWN_PLACEHOLDER or FORBIDDEN_TARGET.
        """
        try:
            template = parse_template(url)
        except TemplateError as error:
            raise ApiError(error.code, details=[Detail(field, error.reason, error.position)]) from None
        if template.scheme != "https" and not self._settings.allow_http_targets:
            raise ApiError(
                ErrorCode.FORBIDDEN_TARGET,
                details=[Detail(field, "must begin with https://; http:// is disabled (ALLOW_HTTP_TARGETS)")],
            )
        try:
            await self._guard.check_host(template.host, template.port)
        except ForbiddenTarget as error:
            raise ApiError(ErrorCode.FORBIDDEN_TARGET, details=[Detail(field, str(error))]) from None
        except HostUnresolved:
            pass  # the host name may get an address later, and the guard checks every connection again
        return template

    def _encrypt_headers(self, headers: Mapping[str, str] | None) -> str | None:
        return self._secret.encrypt(orjson.dumps(headers).decode()) if headers else None


def effective_limits(settings: Settings, tracker: Tracker) -> dict[str, Any]:
    """Return the limits that apply to a tracker, by name: its own value, or the default in the settings if it has none."""
    return {
        "max_attempts": tracker.max_attempts or settings.delivery_attempts,
        "timeout": tracker.timeout or settings.delivery_timeout,
        "concurrency": tracker.concurrency or settings.delivery_slots_per_tracker,
        "max_per_second": tracker.max_per_second,
        "schedule": list(tracker.schedule or settings.delivery_schedule),
    }


def _topics(events: Iterable[str]) -> int:
    return sum({Topic[name.upper()].value for name in events})


def _success_fields(success: Mapping[str, Any] | None) -> dict[str, Any]:
    criteria = parse_success(success)
    return {"statuses": criteria.statuses, "body_contains": criteria.body_contains}


def _refuse(field: str, reason: str) -> ApiError:
    return ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(field, reason)])


# The functions below run inside a database transaction.

_table = schema.trackers


def health_of(row: Row[Any]) -> TrackerHealth:
    times = (row.open_until, row.recovering_at, row.last_success_at, row.last_failure_at, row.opened_at)
    return TrackerHealth(row.failures_in_row, *(None if at is None else to_ms(at) for at in times))


def pace_of(row: Row[Any]) -> TrackerPace:
    times = (row.rate_lowered_at, row.paced_until)
    return TrackerPace(row.max_per_second, row.rate, row.rate_ceiling, *(None if at is None else to_ms(at) for at in times))


def _tracker_from_row(row: Row[Any]) -> Tracker:
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
        client_certificate_set=row.client_certificate is not None,
        secret_set=row.secret is not None,
        previous_secret_until=row.previous_secret_until,
        success=row.success,
        health=health_of(row),
        pace=pace_of(row),
        created_at=row.created_at,
        updated_at=row.updated_at,
        max_attempts=row.max_attempts,
        timeout=row.timeout,
        concurrency=row.concurrency,
        max_per_second=row.max_per_second,
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
    return _tracker_from_row(_require(connection, tracker_id, application_id))


def _all(connection: Connection, application_id: int | None) -> list[Tracker]:
    statement = select(_table).order_by(_table.c.id)
    if application_id is not None:
        statement = statement.where(_table.c.application_id == application_id)
    return [_tracker_from_row(row) for row in connection.execute(statement)]


def _insert(connection: Connection, values: dict[str, Any]) -> Tracker:
    application_id = values["application_id"]
    applications = schema.applications
    # The lock on the application keeps the number of trackers correct if several processes create trackers at the same time.
    known = select(applications.c.id).where(applications.c.id == application_id).with_for_update()
    if connection.execute(known).first() is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no application {application_id}.")
    count = select(func.count()).where(_table.c.application_id == application_id)
    if connection.execute(count).scalar_one() >= MAX_TRACKERS:
        raise ApiError(ErrorCode.CONFLICT, f"The application already has {MAX_TRACKERS} trackers, which is the maximum.")
    if values.get("with_suspected"):
        increment_version(connection)
    return _tracker_from_row(connection.execute(insert(_table).values(values).returning(_table)).one())


def _update(
    connection: Connection, tracker_id: int, application_id: int | None, changes: dict[str, Any], overlap: int, now: datetime
) -> Tracker:
    row = _require(connection, tracker_id, application_id, lock=True)
    if row.role == CONVERSION_URL and (fixed := {"events", "format"} & changes.keys()):
        raise _refuse(min(fixed), "must not be changed: this tracker stores the application's conversion_url")
    values: dict[str, Any] = {
        name: value for name, value in changes.items() if name not in ("events", "success", "secret", "enabled")
    }
    if "events" in changes:
        values["topics"] = _topics(changes["events"])
    if "success" in changes:
        values["success"] = _success_fields(changes["success"])
    if "secret" in changes:
        keeps_old = row.secret is not None and changes["secret"] is not None and overlap > 0
        values["secret"] = changes["secret"]
        values["previous_secret"] = row.secret if keeps_old else None
        values["previous_secret_until"] = now + timedelta(seconds=overlap) if keeps_old else None
    if "enabled" in changes:
        values["enabled"] = changes["enabled"]
        if changes["enabled"]:
            values["disabled_reason"] = None
        elif row.enabled:
            values["disabled_reason"] = "switched off"
    if changes.get("enabled") or values.get("url", row.url) != row.url:
        values |= _fresh_start(now)
    if "url" in values:
        values = _values_of_another_origin(row.url, values["url"]) | values
    values |= {"updated_at": now, "revision": row.revision + 1}
    after = connection.execute(update(_table).where(_table.c.id == row.id).values(values).returning(_table)).one()
    if row.with_suspected or after.with_suspected:
        increment_version(connection)  # every process caches which applications send events for suspected hits
    return _tracker_from_row(after)


def _fresh_start(now: datetime) -> dict[str, Any]:
    """Return new column values of a tracker that close its circuit breaker and remove its learned rate.

    The waiting deliveries of the tracker are then sent at the recovery rate."""
    return {
        "failures_in_row": 0,
        "open_until": None,
        "opened_at": None,
        "recovering_at": now,
        "rate": None,
        "rate_ceiling": None,
        "rate_lowered_at": None,
        "paced_until": None,
    }


#: The columns with credentials, which must not be sent to another scheme, host or port than that for which they were stored.
_COLUMNS_OF_ORIGIN = ("headers", "client_certificate")


def _values_of_another_origin(old: str, new: str) -> dict[str, None]:
    """Return the credential columns with the value None if the two URLs differ in scheme, host or port, otherwise nothing."""
    try:
        known, wanted = parse_template(old), parse_template(new)
        is_same = (known.scheme, known.host, known.port) == (wanted.scheme, wanted.host, wanted.port)
    except TemplateError:  # an older release accepted this URL
        is_same = False
    return {} if is_same else dict.fromkeys(_COLUMNS_OF_ORIGIN)


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
    return None if row is None else _tracker_from_row(row)


def read_conversion_url(connection: Connection, application_id: int) -> tuple[str | None, list[str] | None]:
    """Return `conversion_url` and `conversion_fields` of an application. Both are None if it has no `conversion_url`."""
    row = _conversion_row(connection, application_id)
    return (None, None) if row is None else (row.url, row.fields)


def _callback_secret_state(connection: Connection, application_id: int) -> tuple[bool, datetime | None]:
    a = schema.applications.c
    columns = (a.callback_secret, a.previous_callback_secret_until)
    row = connection.execute(select(*columns).where(a.id == application_id)).first()
    return (False, None) if row is None else (row[0] is not None, row[1])


def _rotate_callback_secret(
    connection: Connection, application_id: int, encrypted: str, now: datetime, overlap: timedelta
) -> datetime | None:
    applications = schema.applications
    row = connection.execute(select(applications).where(applications.c.id == application_id).with_for_update()).first()
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no application {application_id}.")
    keeps_old = row.callback_secret is not None and overlap > timedelta()
    until = now + overlap if keeps_old else None
    connection.execute(
        update(applications)
        .where(applications.c.id == application_id)
        .values(
            callback_secret=encrypted,
            previous_callback_secret=row.callback_secret if keeps_old else None,
            previous_callback_secret_until=until,
        )
    )
    tracker = _conversion_row(connection, application_id)
    if tracker is not None and tracker.secret in (None, row.callback_secret):
        values = {
            "secret": encrypted,
            "previous_secret": tracker.secret if keeps_old else None,
            "previous_secret_until": until if tracker.secret else None,
            "updated_at": now,
            "revision": tracker.revision + 1,
        }
        connection.execute(update(_table).where(_table.c.id == tracker.id).values(values))
    return until


def write_conversion_url(
    connection: Connection, application_id: int, url: str | None, fields: list[str] | None, now: datetime
) -> None:
    """Create or change the tracker for the `conversion_url` of an application, or delete it if `url` is None.

    The caller has checked the URL and runs the function in a transaction. If `fields` is None, the tracker gets the default fields
    of the format `json`. Requests to a new tracker are signed with the callback secret of the application.
    """
    applications = schema.applications
    statement = select(applications.c.callback_secret).where(applications.c.id == application_id).with_for_update()
    callback_secret = connection.execute(statement).scalar()
    row = _conversion_row(connection, application_id)
    if url is None:
        if row is not None:
            connection.execute(delete(_table).where(_table.c.id == row.id))
        return
    if row is not None:
        values = {"url": url, "fields": fields, "updated_at": now, "revision": row.revision + 1}
        if url != row.url:
            values |= _fresh_start(now) | _values_of_another_origin(row.url, url)
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
            "secret": callback_secret,
            "success": _success_fields(None),
            "created_at": now,
            "updated_at": now,
        },
    )
