"""The caller's own application: what it has chosen, and its `conversion_url` (23 Telecom)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import Connection

from shortener.accounts.administration import update_application
from shortener.accounts.settings import ApplicationSettings
from shortener.delivery.trackers import write_conversion_url
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.tracker_requests import BodyFields, TrackerUrl

_TAG = "Application"


class ApplicationChanges(ApplicationSettings):
    """What to change; what is absent stays. null takes back what was set."""

    conversion_url: TrackerUrl | None = Field(
        None, description="Where conversions are POSTed to as flat JSON; may hold placeholders. null or empty removes it."
    )
    conversion_fields: BodyFields | None = Field(None, description="Which fields that JSON holds; a usual set when absent.")


class ApplicationFields(ResponseModel, ApplicationSettings):
    application_id: int
    name: str
    company_id: int | None
    domains: list[str]
    conversion_url: str | None
    conversion_fields: list[str] | None
    conversion_tracker_id: int | None = Field(description="The tracker that conversion_url stands for: its health, its deliveries.")


class ApplicationResponse(ApplicationFields):
    """The application as it is now."""

    status: Literal[True] = True


async def show(call: Call[None, None]) -> Mapping[str, Any]:
    service = call.service
    application = service.directory.application(call.application_id)
    if application is None:
        raise ApiError(ErrorCode.NOT_FOUND)
    tracker = await service.trackers.conversion_url(application.id)
    return {
        "status": True,
        "application_id": application.id,
        "name": application.name,
        "company_id": application.company_id,
        "domains": [domain.base_url for domain in application.domains if not domain.disabled],
        **application.settings.model_dump(mode="json"),
        "conversion_url": tracker and tracker.url,
        "conversion_fields": tracker and tracker.fields,
        "conversion_tracker_id": tracker and tracker.id,
    }


async def change(call: Call[None, ApplicationChanges]) -> Mapping[str, Any]:
    service, given = call.service, call.body
    settings = {name: getattr(given, name) for name in given.model_fields_set if name in ApplicationSettings.model_fields}
    conversion: tuple[str | None, list[str] | None] | None = None
    if {"conversion_url", "conversion_fields"} & given.model_fields_set:
        present = await service.trackers.conversion_url(call.application_id)
        url, fields = (present.url, present.fields) if present else (None, None)
        if "conversion_url" in given.model_fields_set:
            url = given.conversion_url or None
            if url is not None:
                await service.trackers.check_url(url, "conversion_url")
        if "conversion_fields" in given.model_fields_set:
            fields = given.conversion_fields
        if url is None and given.conversion_fields is not None:
            reason = "stands without a conversion_url"
            raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("conversion_fields", reason)])
        conversion = (url, fields)
    await service.database.write(_write, call.application_id, settings, conversion, service.clock())
    await service.directory.refresh()
    return await show(Call(service, call.request, call.path, None, None, call.principal))


def _write(
    connection: Connection,
    application_id: int,
    settings: dict[str, Any],
    conversion: tuple[str | None, list[str] | None] | None,
    now: datetime,
) -> None:
    if settings:
        update_application(connection, application_id, settings, now)
    if conversion is not None:
        write_conversion_url(connection, application_id, *conversion, now)


ENDPOINTS = [
    Endpoint(
        "GET",
        "/api/v1/application",
        show,
        "Show the application",
        _TAG,
        permission="trackers.write",
        response=ApplicationResponse,
    ),
    Endpoint(
        "PATCH",
        "/api/v1/application",
        change,
        "Change the application",
        _TAG,
        permission="trackers.write",
        body=ApplicationChanges,
        response=ApplicationResponse,
        errors=(
            ErrorCode.UNKNOWN_PLACEHOLDER,
            ErrorCode.INVALID_TRACKER_URL,
            ErrorCode.FORBIDDEN_TARGET,
            ErrorCode.CONFLICT,
        ),
        description="`click_events` and `click_id_param` hold for links that are made from now on.",
    ),
]
