"""One link by its code: what became of it, and switching it off and on.

A redirect reads the link's row each time, so a switch works at once on every node; only the link cache has to be told, which
answers while the database is away. A link whose message was erased leads nowhere and stays off.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, func, literal, select, update

from shortener.accounts.directory import Directory
from shortener.errors import ApiError, ErrorCode
from shortener.storage.schema import links, messages
from shortener.storage.types import to_iso

AnyRow = Row[*tuple[Any, ...]]
DisabledBy = Literal["link", "domain", "application", "host"]

_COLUMNS = (
    links.c.code,
    links.c.application_id,
    links.c.domain_id,
    links.c.url,
    links.c.location,
    links.c.label,
    links.c.expires_at,
    links.c.disabled_at,
    messages.c.message_id,
)


def find_link(connection: Connection, code: str, application_id: int | None = None) -> AnyRow:
    """`application_id` None: whosever it is. Raises ApiError NOT_FOUND."""
    statement = select(*_COLUMNS).join_from(links, messages, messages.c.id == links.c.message_id).where(links.c.code == code)
    if application_id is not None:
        statement = statement.where(links.c.application_id == application_id)
    row = connection.execute(statement).first()
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND, "There is no such link.")
    return row


def switch_link(connection: Connection, code: str, now: datetime, *, enabled: bool, application_id: int | None = None) -> AnyRow:
    """Switch a link off, which keeps the time when it first was, or on again. Raises ApiError NOT_FOUND, CONFLICT."""
    row = find_link(connection, code, application_id)
    if enabled and not row.url:
        raise ApiError(ErrorCode.CONFLICT, "The message of this link was erased, and its destination with it.")
    at = None if enabled else func.coalesce(links.c.disabled_at, literal(now, links.c.disabled_at.type))
    connection.execute(update(links).where(links.c.code == code).values(disabled_at=at))
    return find_link(connection, code, application_id)


def disabled_by(directory: Directory, link: AnyRow) -> DisabledBy | None:
    """What keeps the link from leading anywhere, besides its time."""
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
    """A link as the API and the command line tell it."""
    off = disabled_by(directory, link)
    return {
        "code": link.code,
        "short_url": f"{base_url(link.domain_id)}/{link.code}",
        "url": link.url,
        "label": link.label,
        "message_id": link.message_id,
        "state": "off" if off else "expired" if link.expires_at <= now else "live",
        "off_by": off,
        "enabled": link.disabled_at is None,
        "disabled_at": to_iso(link.disabled_at),
        "expires_at": to_iso(link.expires_at),
    }
