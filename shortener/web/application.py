"""The endpoints for the caller's own application: its settings and its `conversion_url`, a setting from 23 Telecom's API.

A `conversion_url` is stored as a separate tracker, which receives `conversion` events as flat JSON.
"""
# Tested by tests/web/test_application.py and tests/web/test_trackers.py

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import Connection, Row

from shortener.accounts.administration import lock_application
from shortener.accounts.audit import AuditWriter
from shortener.accounts.audited_accounts import update_application
from shortener.accounts.directory import Application, read_application
from shortener.accounts.own_hosts import OwnHosts
from shortener.accounts.settings import ApplicationSettings, fallback_warnings
from shortener.delivery.conversion_url import (
    callback_secret_state,
    find_conversion_tracker,
    read_conversion_url,
    write_conversion_url,
)
from shortener.delivery.trackers import DEFAULT_SECRET_OVERLAP_SECONDS, Tracker
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.gateways.store import select_gateway
from shortener.macros import entity_problems
from shortener.storage.types import to_iso
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel
from shortener.web.fields import Text
from shortener.web.tracker_requests import MAX_SECRET_OVERLAP_SECONDS, BodyFields, TrackerUrl

_TAG = "Application"


class ApplicationUpdateRequest(ApplicationSettings):
    """The settings to change. If a setting is absent, its value does not change. null resets a setting to its default."""

    conversion_url: TrackerUrl | None = Field(
        None,
        description="URL that receives each conversion by POST as flat JSON. It may contain placeholders. null or empty removes "
        "it.",
    )
    gateway: Text | None = Field(
        None,
        max_length=64,
        description="Name of the gateway that sends the messages of the application: a gateway that belongs to the application, "
        "or simulator. null or none: no gateway.",
    )
    conversion_fields: BodyFields | None = Field(
        None,
        description="Names of the fields in the JSON that is sent to `conversion_url`. Default: the default fields of the format "
        "`json`.",
    )


class ApplicationFields(ResponseModel, ApplicationSettings):
    application_id: int
    name: str
    company_id: int | None
    domains: list[str]
    gateway: str | None = Field(description="Name of the gateway that sends the messages of the application.")
    conversion_url: str | None
    conversion_fields: list[str] | None
    conversion_tracker_id: int | None = Field(
        description="Id of the tracker (the endpoint that receives events) that was created for conversion_url."
    )
    callback_secret_set: bool = Field(
        description="true: requests to lt_callbackurl are signed with the callback secret. Requests to conversion_url are signed "
        "with the same secret, unless the tracker that was created for conversion_url has its own secret."
    )
    warnings: list[str] = Field(
        description="Warnings that fallback_url or conversion_url contains `&amp;` in place of `&`, or a placeholder that is "
        "not filled in."
    )
    previous_callback_secret_until: str | None = Field(
        description=(
            "Time until which requests are also signed with the replaced callback secret. null: requests are signed with the "
            "current secret only."
        )
    )


class ApplicationResponse(ApplicationFields):
    """The application with its current settings."""

    status: Literal[True] = True


class CallbackSecretRequest(RequestModel):
    """Options for the rotation of the callback secret."""

    overlap: int = Field(
        DEFAULT_SECRET_OVERLAP_SECONDS,
        ge=0,
        le=MAX_SECRET_OVERLAP_SECONDS,
        description=(
            "Seconds for which requests are also signed with the replaced callback secret. 0: requests are signed with the new "
            "secret only."
        ),
    )


class CallbackSecretResponse(ResponseModel):
    """The new callback secret. No later response contains it."""

    status: Literal[True] = True
    callback_secret: str
    previous_valid_until: str | None = Field(
        description=(
            "Time until which requests are also signed with the replaced callback secret. null: requests are signed with the new "
            "secret only."
        )
    )


async def show(call: Call[None, None]) -> Mapping[str, Any]:
    """Return the caller's application with its current settings."""
    service = call.service
    application = service.directory.application(call.application_id)
    if application is None:
        raise ApiError(ErrorCode.NOT_FOUND)
    tracker = await service.trackers.conversion_url(application.id)
    return _fields(application, tracker, await service.trackers.callback_secret_state(application.id))


def _fields(
    application: Application, tracker: Tracker | Row[Any] | None, secret_state: tuple[bool, datetime | None]
) -> Mapping[str, Any]:
    """Return the fields of the response that describes an application. `tracker` is the tracker that was created for its
    conversion_url. `secret_state` is the result of `callback_secret_state`."""
    is_set, until = secret_state
    return {
        "status": True,
        "application_id": application.id,
        "name": application.name,
        "company_id": application.company_id,
        "domains": [domain.base_url + domain.path for domain in application.domains if not domain.disabled],
        "gateway": application.gateway and application.gateway.name,
        **application.settings.model_dump(mode="json"),
        "conversion_url": tracker and tracker.url,
        "conversion_fields": tracker and tracker.fields,
        "conversion_tracker_id": tracker and tracker.id,
        "warnings": [
            *(f"fallback_url {problem}" for problem in fallback_warnings(application.settings.fallback_url)),
            *(f"conversion_url {problem}" for problem in entity_problems(tracker.url if tracker else "")),
        ],
        "callback_secret_set": is_set,
        "previous_callback_secret_until": to_iso(until),
    }


async def rotate_callback_secret(call: Call[None, CallbackSecretRequest | None]) -> CallbackSecretResponse:
    """Create a new callback secret and return it once."""
    overlap = timedelta(seconds=(call.body or CallbackSecretRequest(overlap=DEFAULT_SECRET_OVERLAP_SECONDS)).overlap)
    secret, until = await call.service.trackers.rotate_callback_secret(call.audit, call.application_id, overlap)
    return CallbackSecretResponse(callback_secret=secret, previous_valid_until=to_iso(until))


async def update(call: Call[None, ApplicationUpdateRequest]) -> Mapping[str, Any]:
    """Change the caller's application and return it."""
    service, changes = call.service, call.body
    settings = {name: getattr(changes, name) for name in changes.model_fields_set if name in ApplicationSettings.model_fields}
    conversion: dict[str, Any] = {}
    if "conversion_url" in changes.model_fields_set:
        conversion["url"] = changes.conversion_url or None
        if conversion["url"] is not None:
            await service.trackers.check_url(conversion["url"], "conversion_url")
    if "conversion_fields" in changes.model_fields_set:
        conversion["fields"] = changes.conversion_fields
    gateway = {"name": changes.gateway} if "gateway" in changes.model_fields_set else {}
    own_hosts = OwnHosts.of(service.settings)
    stored = await service.database.write(
        _write, call.audit, call.application_id, settings, conversion, gateway, service.clock(), own_hosts
    )
    await service.directory.refresh_if_available()
    return _fields(*stored)


def _write(
    connection: Connection,
    audit: AuditWriter,
    application_id: int,
    settings: dict[str, Any],
    conversion: dict[str, Any],
    gateway: dict[str, Any],
    now: datetime,
    own_hosts: OwnHosts,
) -> tuple[Application, Row[Any] | None, tuple[bool, datetime | None]]:
    """Store the settings of the request. Lock the application, so that concurrent requests do not overwrite each other's changes.
    Return the arguments of `_fields`. They are read in the same transaction, because a read after the commit could fail."""
    lock_application(connection, application_id)
    if settings:
        update_application(connection, audit, application_id, settings, now, own_hosts=own_hosts)
    if gateway:
        select_gateway(connection, audit, application_id, gateway["name"], now, is_operator=False)
    if conversion:
        url, fields = read_conversion_url(connection, application_id)
        url, fields = conversion.get("url", url), conversion.get("fields", fields)
        if url is None and conversion.get("fields") is not None:
            reason = "requires a conversion_url"
            raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("conversion_fields", reason)])
        write_conversion_url(connection, audit, application_id, url, fields, now)
    application = read_application(connection, application_id)
    return application, find_conversion_tracker(connection, application_id), callback_secret_state(connection, application_id)


ENDPOINTS = [
    Endpoint(
        "GET",
        "/api/v1/application",
        show,
        "Show the application",
        _TAG,
        permission="trackers.read",
        response=ApplicationResponse,
    ),
    Endpoint(
        "PATCH",
        "/api/v1/application",
        update,
        "Change the application",
        _TAG,
        permission="admin",
        body=ApplicationUpdateRequest,
        response=ApplicationResponse,
        errors=(
            ErrorCode.UNKNOWN_PLACEHOLDER,
            ErrorCode.INVALID_TRACKER_URL,
            ErrorCode.FORBIDDEN_TARGET,
            ErrorCode.CONFLICT,
        ),
        description="`click_events: every` and `click_id_param` apply to all links of the application, including existing links. "
        "If `click_events` becomes `first`, links that were created with `every` still create an event for every click.",
    ),
    Endpoint(
        "POST",
        "/api/v1/application/callback-secret",
        rotate_callback_secret,
        "Rotate the callback secret",
        _TAG,
        permission="trackers.write",
        body=CallbackSecretRequest,
        body_optional=True,
        response=CallbackSecretResponse,
        description="Creates a new secret, with which requests to `lt_callbackurl` and `conversion_url` are signed. Only this "
        "response contains the new secret. For `overlap` seconds, requests are signed with both secrets.",
    ),
]
