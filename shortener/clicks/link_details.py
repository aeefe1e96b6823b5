"""This module shows short links for the API and the command line: the destination of a link, or the reason why the link does not
redirect."""
# Tested by tests/web/test_links.py

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, Protocol

from sqlalchemy import Connection, select

from shortener.accounts.directory import Directory, short_url
from shortener.errors import ApiError, ErrorCode
from shortener.storage.schema import cohorts, links, messages
from shortener.storage.types import AnyRow, to_iso

DisabledBy = Literal["link", "domain", "application", "host"]


class Clicks(Protocol):
    """An interface that returns the number of clicks on a link and the time of its first click. `reporting.links.LinkClicks`
    implements it."""

    @property
    def clicks(self) -> int: ...
    @property
    def first_at(self) -> datetime | None: ...


#: The columns that are needed to show a link. `message` is the row id of its message.
LINK_COLUMNS = (
    links.c.id,
    links.c.code,
    links.c.application_id,
    links.c.message_id.label("message"),
    links.c.position,
    links.c.domain_id,
    links.c.path,
    links.c.url,
    links.c.location,
    links.c.label,
    links.c.fallback_url,
    links.c.expires_at,
    links.c.disabled_at,
    messages.c.message_id,
    messages.c.created_at,
    cohorts.c.campaign,
)


def find_link(connection: Connection, code: str, application_id: int | None = None) -> AnyRow:
    """Return the link with this code. If `application_id` is None, search the links of all applications. Raise ApiError NOT_FOUND
    if no link has the code."""
    statement = (
        select(*LINK_COLUMNS)
        .join_from(links, messages, messages.c.id == links.c.message_id)
        .join(cohorts, cohorts.c.id == messages.c.cohort_id)
        .where(links.c.code == code)
    )
    if application_id is not None:
        statement = statement.where(links.c.application_id == application_id)
    row = connection.execute(statement).first()
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND, "There is no link with this code.")
    return row


def disabled_by(directory: Directory, link: AnyRow) -> DisabledBy | None:
    """Return what disables the link, or None if the link is enabled. The expiry of a link does not disable it."""
    domain = directory.domain_by_id(link.domain_id)
    application = directory.application(link.application_id)
    if link.disabled_at is not None:
        return "link"
    if domain is not None and domain.disabled:
        return "domain"
    if application is not None and application.disabled:
        return "application"
    return "host" if directory.hit_policies.blocks(link.application_id, link.location or link.url) else None


def serialize_link(
    link: AnyRow, directory: Directory, base_url: Callable[[int], str], now: datetime, clicks: Clicks
) -> dict[str, Any]:
    """Return a link as a JSON object. `base_url` is a function of a domain: it returns the scheme, host and port of the links on
    this domain."""
    off_by = disabled_by(directory, link)
    return {
        "code": link.code,
        "short_url": short_url(base_url(link.domain_id), link.path, link.code),
        "url": link.url,
        "label": link.label,
        "message_id": link.message_id,
        "campaign": link.campaign,
        "created_at": to_iso(link.created_at),
        "state": "off" if off_by else "expired" if link.expires_at <= now else "live",
        "off_by": off_by,
        "enabled": link.disabled_at is None,
        "disabled_at": to_iso(link.disabled_at),
        "expires_at": to_iso(link.expires_at),
        "fallback_url": link.fallback_url,
        "clicks": clicks.clicks,
        "clicked_at": to_iso(clicks.first_at),
    }
