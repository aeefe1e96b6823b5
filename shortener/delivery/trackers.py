"""This module creates, reads, changes and deletes trackers, the endpoints of customers that receive events.

The URL of a stored tracker is a valid template, and its host had no forbidden address when it was saved. Secrets, headers and
client certificates are encrypted in the database, and no response contains them. After a secret was replaced, requests are also
signed with the old secret for a limited time (the overlap). If the URL changes to another scheme, host or port, the static headers
and the client certificate are removed, so that they do not reach another receiver.

If a tracker is disabled, its deliveries wait until it is enabled again. If a tracker is deleted, its pending deliveries become dead
and stay listed. Their last error states that the tracker was deleted.

The methods raise ApiError with INVALID_REQUEST, UNKNOWN_PLACEHOLDER, INVALID_TRACKER_URL, FORBIDDEN_TARGET, NOT_FOUND or
CONFLICT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY
from datetime import datetime, timedelta
from typing import Any, TypedDict

import orjson
from sqlalchemy import Connection, Row, select

from shortener.accounts.audit import AuditWriter
from shortener.delivery import conversion_url
from shortener.delivery.client_certificate import tls_context
from shortener.delivery.guard import ForbiddenTarget, Guard, HostUnresolved
from shortener.delivery.health import EndpointHealth
from shortener.delivery.outcomes import parse_success
from shortener.delivery.pace import EndpointPace
from shortener.delivery.placeholders import Template, TemplateError, parse_template
from shortener.delivery.request import DeliveryTarget, Secrets
from shortener.delivery.tracker_audit import add_tracker_change, add_tracker_row
from shortener.delivery.tracker_queries import (
    TRACKER,
    count_subscribers,
    delete_tracker,
    insert_tracker,
    list_trackers,
    refuse,
    require_tracker,
    success_fields,
    topics_of,
    update_tracker,
)
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.model import SUBSCRIBABLE_TOPICS, Clock, Topic, record
from shortener.secret import Secret, new_signing_secret
from shortener.settings import Settings
from shortener.signatures import parse_secret
from shortener.storage import schema
from shortener.storage.database import Database

DEFAULT_SECRET_OVERLAP_SECONDS = 86400
SUBSCRIBERS_SECONDS = 2.0  # The maximum age of a number that `Trackers.count_subscribers` returns.


@record
class NewTracker:
    """The values of a tracker to create. The caller has validated them (web/tracker_requests.py).

    `events` contains the names of the events that the tracker receives. If `secret` is None, the service generates a signing
    secret, unless `signed` is False. If `name` is None, the host of the URL is the name. `timeout` and the delays in `schedule` are
    in seconds.
    """

    _: KW_ONLY
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
    conversion_actions: list[str] | None = None
    conversion_dispositions: list[str] | None = None


class TrackerChanges(TypedDict, total=False):
    """The new values for an existing tracker. The caller has validated them. If a key is absent, its value stays unchanged.

    None removes the value of `fields`, `headers`, `secret`, `client_certificate`, `success`, `max_attempts`, `timeout`,
    `concurrency`, `max_per_second`, `schedule`, `conversion_actions` or `conversion_dispositions`. If `rotate_secret` is true, the
    service generates a new secret. Requests are also signed with the replaced secret for `secret_overlap` seconds.
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
    conversion_actions: list[str] | None
    conversion_dispositions: list[str] | None


@record
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
    health: EndpointHealth
    pace: EndpointPace
    created_at: datetime
    updated_at: datetime
    max_attempts: int | None
    timeout: float | None
    concurrency: int | None
    max_per_second: float | None
    schedule: list[float] | None
    with_suspected: bool
    conversion_actions: list[str] | None
    conversion_dispositions: list[str] | None

    @property
    def events(self) -> list[str]:
        return [topic.api_name for topic in SUBSCRIBABLE_TOPICS if topic & self.topics]


@record
class TrackerSaveResult:
    """A saved tracker. `secret` is the text of a signing secret that the service has just generated, otherwise None."""

    tracker: Tracker
    secret: str | None = None


#: A transaction function that saves a tracker. The values to save are checked and encrypted before the transaction begins.
TrackerTransaction = Callable[[Connection], TrackerSaveResult]


class Trackers:
    """The functions that read and change the trackers in the database.

    If the parameter `application_id` of a method is None, the method accepts the trackers of all applications."""

    def __init__(self, database: Database, secret: Secret, guard: Guard, settings: Settings, clock: Clock) -> None:
        self._database = database
        self._secret = secret
        self._guard = guard
        self._settings = settings
        self._clock = clock
        self._subscribers: dict[tuple[int, Topic], tuple[datetime, int]] = {}  # see count_subscribers

    async def count_subscribers(self, application_id: int, topic: Topic) -> int:
        """Return the number of enabled trackers of an application that receive events of a topic.

        The number may be SUBSCRIBERS_SECONDS old, so that frequent calls need no query."""
        now = self._clock()
        read_at, count = self._subscribers.get((application_id, topic), (None, 0))
        if read_at is None or not timedelta() <= now - read_at < timedelta(seconds=SUBSCRIBERS_SECONDS):
            count = await self._database.read(count_subscribers, application_id, topic)
            self._subscribers[application_id, topic] = now, count
        return count

    async def create(self, audit: AuditWriter, application_id: int, new: NewTracker) -> TrackerSaveResult:
        """Create a tracker of an application.

        Raise ApiError NOT_FOUND if the application does not exist. Raise ApiError CONFLICT if the application has too many
        trackers. Raise an error of `check_url` if the URL is rejected.
        """
        return await self._database.write(await self.prepare_creation(audit, application_id, new))

    async def prepare_creation(self, audit: AuditWriter, application_id: int, new: NewTracker) -> TrackerTransaction:
        """Return the transaction function that creates a tracker and adds the audit row. This is for callers that write other rows
        in the same transaction. Raise an error of `check_url` if the URL is rejected. The returned function raises the other errors
        of `create`."""
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
            "topics": topics_of(new.events),
            "method": new.method,
            "format": new.format,
            "fields": new.fields,
            "headers": self._encrypt_headers(new.headers),
            "secret": self._secret.encrypt(secret) if secret else None,
            "success": success_fields(new.success),
            "max_attempts": new.max_attempts,
            "timeout": new.timeout,
            "concurrency": new.concurrency,
            "max_per_second": new.max_per_second,
            "client_certificate": self._secret.encrypt(new.client_certificate) if new.client_certificate else None,
            "schedule": new.schedule,
            "with_suspected": new.with_suspected,
            "conversion_actions": new.conversion_actions,
            "conversion_dispositions": new.conversion_dispositions,
            "created_at": now,
            "updated_at": now,
        }

        def save(connection: Connection) -> TrackerSaveResult:
            row = insert_tracker(connection, values)
            add_tracker_row(connection, audit, now, "tracker_created", row)
            return TrackerSaveResult(tracker_from_row(row), generated)

        return save

    async def get(self, tracker_id: int, application_id: int | None = None) -> Tracker:
        """Return the tracker with the given id. Raise ApiError NOT_FOUND if it does not exist."""
        return tracker_from_row(await self._database.read(require_tracker, tracker_id, application_id))

    async def all(self, application_id: int | None = None) -> list[Tracker]:
        """Return all trackers of an application (None: of all applications), oldest first."""
        return [tracker_from_row(row) for row in await self._database.read(list_trackers, application_id)]

    async def update(
        self, audit: AuditWriter, tracker_id: int, changes: TrackerChanges, application_id: int | None = None
    ) -> TrackerSaveResult:
        """Change the given values of a tracker.

        Raise ApiError NOT_FOUND if the tracker does not exist. Raise ApiError INVALID_REQUEST if the changes contradict each
        other or the role of the tracker. Raise an error of `check_url` if a new URL is rejected.
        """
        return await self._database.write(await self.prepare_update(audit, tracker_id, changes, application_id))

    async def prepare_update(
        self, audit: AuditWriter, tracker_id: int, changes: TrackerChanges, application_id: int | None = None
    ) -> TrackerTransaction:
        """Return the transaction function that changes a tracker and adds the audit row. This is for callers that write other rows
        in the same transaction. Raise INVALID_REQUEST if the changes contain both a secret and its rotation, or an error of
        `check_url` if a new URL is rejected. The returned function raises the other errors of `update`."""
        values: dict[str, Any] = {**changes}
        overlap = values.pop("secret_overlap", DEFAULT_SECRET_OVERLAP_SECONDS)
        generated = None
        if "url" in changes:
            await self.check_url(changes["url"])
        if values.pop("rotate_secret", False):
            if "secret" in values:
                raise refuse("rotate_secret", "must not be combined with secret")
            values["secret"] = generated = new_signing_secret()
        plain = values.get("secret")
        if "secret" in values:
            values["secret"] = self._secret.encrypt(plain) if plain else None
        if values.get("client_certificate"):
            values["client_certificate"] = self._secret.encrypt(values["client_certificate"])
        if "headers" in values:
            values["headers"] = self._encrypt_headers(values["headers"])
        now = self._clock()

        def save(connection: Connection) -> TrackerSaveResult:
            old = require_tracker(connection, tracker_id, application_id, lock=True)
            if overlap and self._secret.is_encrypted(old.secret, plain):
                # A repeated request with the same secret must not end the overlap of the replaced secret.
                values.pop("secret", None)
            row = update_tracker(connection, tracker_id, application_id, values, overlap, now)
            add_tracker_change(connection, audit, now, old, row)
            return TrackerSaveResult(tracker_from_row(row), generated)

        return save

    async def delete(self, audit: AuditWriter, tracker_id: int, application_id: int | None = None) -> None:
        """Delete a tracker. The dispatcher then makes its pending deliveries dead. Raise ApiError NOT_FOUND if the tracker is
        unknown."""

        def delete(connection: Connection) -> None:
            row = delete_tracker(connection, tracker_id, application_id)
            add_tracker_row(connection, audit, self._clock(), "tracker_deleted", row)

        await self._database.write(delete)

    async def conversion_url(self, application_id: int) -> Tracker | None:
        """Return the tracker that stores the application's `conversion_url`, or None."""
        row = await self._database.read(conversion_url.find_conversion_tracker, application_id)
        return None if row is None else tracker_from_row(row)

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
        return await self._database.read(conversion_url.callback_secret_state, application_id)

    async def rotate_callback_secret(
        self, audit: AuditWriter, application_id: int, overlap: timedelta
    ) -> tuple[str, datetime | None]:
        """Create a new callback secret for an application. Return the secret, and the time until which the previous secret is also
        used.

        Requests to `lt_callbackurl` are signed with the new secret. Requests to `conversion_url` are also signed with it, unless
        the tracker that stores this URL has a secret of its own. Raise ApiError NOT_FOUND if the application does not exist."""
        plain = new_signing_secret()
        until = await self._database.write(
            conversion_url.rotate_callback_secret, audit, application_id, self._secret.encrypt(plain), self._clock(), overlap
        )
        return plain, until

    def _secrets(self, *stored: tuple[str | None, datetime | None]) -> Secrets:
        """Decrypt stored secrets and return their keys. A stored secret that is None is skipped."""
        return tuple((parse_secret(self._secret.decrypt(encrypted)), until) for encrypted, until in stored if encrypted)

    async def load(self, tracker_id: int, application_id: int | None = None) -> tuple[Tracker, DeliveryTarget]:
        """Return a tracker and its delivery target. Raise ApiError NOT_FOUND if the tracker does not exist."""
        row = await self._database.read(require_tracker, tracker_id, application_id)
        return tracker_from_row(row), self.target(row)

    async def check_url(self, url: str, field: str = "url") -> Template:
        """Check that deliveries can be sent to a URL, and return it as a template. `field` is the name of the field in errors.

        Raise ApiError with the code INVALID_TRACKER_URL, UNKNOWN_PLACEHOLDER or FORBIDDEN_TARGET.
        """
        try:
            template = parse_template(url)
        except TemplateError as error:
            details = [Detail(field, one.reason, one.position) for one in (error, *error.further)]
            raise ApiError(error.code, details=details) from None
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


def tracker_from_row(row: Row[Any]) -> Tracker:
    """Return the tracker in a row of the table `trackers`."""
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
        health=EndpointHealth.from_row(row),
        pace=EndpointPace.from_row(row),
        created_at=row.created_at,
        updated_at=row.updated_at,
        max_attempts=row.max_attempts,
        timeout=row.timeout,
        concurrency=row.concurrency,
        max_per_second=row.max_per_second,
        schedule=row.schedule,
        with_suspected=row.with_suspected,
        conversion_actions=row.conversion_actions,
        conversion_dispositions=row.conversion_dispositions,
    )
