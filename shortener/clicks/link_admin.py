"""The administration of one link: find it by its code, show it, disable it and enable it again.

A redirect reads the link's row each time, so a change applies at once on every node. The caller must also invalidate the link
cache, which responds while the database is unavailable. A link whose message was erased has no destination and stays disabled.
"""
# Tested by tests/web/test_links.py

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, func, literal, select, update

from shortener.accounts.directory import Directory, short_url
from shortener.errors import ApiError, ErrorCode
from shortener.storage.schema import links, messages
from shortener.storage.types import to_iso

AnyRow = Row[*tuple[Any, ...]]
DisabledBy = Literal["link", "domain", "application", "host"]

_COLUMNS = (
    links.c.code,
    links.c.application_id,
    links.c.domain_id,
    links.c.path,
    links.c.url,
    links.c.location,
    links.c.label,
    links.c.expires_at,
    links.c.disabled_at,
    messages.c.message_id,
)


def find_link(connection: Connection, code: str, application_id: int | None = None) -> AnyRow:
    """Return the link with this code; `application_id` None searches the links of all applications. Raises ApiError NOT_FOUND."""
    statement = select(*_COLUMNS).join_from(links, messages, messages.c.id == links.c.message_id).where(links.c.code == code)
    if application_id is not None:
        statement = statement.where(links.c.application_id == application_id)
    row = connection.execute(statement).first()
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND, "There is no link with this code.")
    return row


def switch_link(connection: Connection, code: str, now: datetime, *, enabled: bool, application_id: int | None = None) -> AnyRow:
    """Enable or disable a link and return it. A link that is disabled twice keeps its first `disabled_at`.

    Raises ApiError NOT_FOUND, or CONFLICT for enabling a link whose message was erased."""
    row = find_link(connection, code, application_id)
    if enabled and not row.url:
        raise ApiError(ErrorCode.CONFLICT, "The link cannot be enabled, because its message was erased.")
    at = None if enabled else func.coalesce(links.c.disabled_at, literal(now, links.c.disabled_at.type))
    connection.execute(update(links).where(links.c.code == code).values(disabled_at=at))
    return find_link(connection, code, application_id)


def disabled_by(directory: Directory, link: AnyRow) -> DisabledBy | None:
    """Return what disables the link, None if it is enabled. An expired link is not disabled."""
    domain = directory.domain_by_id(link.domain_id)
    application = directory.application(link.application_id)
    if link.disabled_at is not None:
        return "link"
    if domain is not None and domain.disabled:
        return "domain"
    if application is not None and application.disabled:
        return "application"
    return "host" if directory.hit_policies.blocks(link.application_id, link.location or link.url) else None


def serialize_link(link: AnyRow, directory: Directory, base_url: Callable[[int], str], now: datetime) -> dict[str, Any]:
    """Return a link as the API and the command line show it. `base_url` returns the URL prefix of a domain's links."""
    off_by = disabled_by(directory, link)
    return {
        "code": link.code,
        "short_url": short_url(base_url(link.domain_id), link.path, link.code),
        "url": link.url,
        "label": link.label,
        "message_id": link.message_id,
        "state": "off" if off_by else "expired" if link.expires_at <= now else "live",
        "off_by": off_by,
        "enabled": link.disabled_at is None,
        "disabled_at": to_iso(link.disabled_at),
        "expires_at": to_iso(link.expires_at),
    }
