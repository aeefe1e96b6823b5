"""Changes to applications, domains and blocked hosts.

Each function is one transaction for `Database.write`; the caller refreshes the directory afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, delete, func, insert, select, update

from shortener.accounts.credentials import Credentials, create_key, new_token
from shortener.accounts.directory import ALL_APPLICATIONS, increment_version, require_application
from shortener.accounts.settings import PERMISSIONS, ApplicationSettings, checked_fallback
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.storage import schema
from shortener.storage.database import upsert
from shortener.urls import UrlError, host_of, parse_base_url, parse_host

MAX_BLOCKED_HOSTS = 10_000  # hosts that one application, or the installation, may block: every process holds all of them in memory


def create_application(
    connection: Connection, name: str, now: datetime, *, domain: str | None = None, company_id: int | None = None
) -> Credentials:
    """An application with one key that may do everything and one tracker token. Raises ApiError CONFLICT, INVALID_REQUEST."""
    if not name.strip() or len(name) > 200:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("name", "wants 1 to 200 characters")])
    table = schema.applications
    if connection.execute(select(table.c.id).where(table.c.name == name)).first():
        raise ApiError(ErrorCode.CONFLICT, f"There is an application named {name!r} already.")
    statement = insert(table).values(name=name, company_id=company_id, settings={}, created_at=now).returning(table.c.id)
    application_id: int = connection.execute(statement).scalar_one()
    if domain:
        add_domain(connection, application_id, domain, now)
    key = create_key(connection, application_id, "default", PERMISSIONS, now)
    token = new_token(connection, application_id, now)
    increment_version(connection)
    return Credentials(application_id, key, token)


def update_application(connection: Connection, application_id: int, changes: dict[str, Any], now: datetime) -> None:
    """Change `name`, `company_id`, `disabled` and any of ApplicationSettings.

    Raises ApiError INVALID_REQUEST, NOT_FOUND, CONFLICT."""
    table = schema.applications
    row = connection.execute(select(table).where(table.c.id == application_id)).first()
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND)
    values: dict[str, Any] = {}
    changes = dict(changes)
    if "name" in changes:
        values["name"] = changes.pop("name")
        if connection.execute(select(table.c.id).where(table.c.name == values["name"], table.c.id != application_id)).first():
            raise ApiError(ErrorCode.CONFLICT, f"There is an application named {values['name']!r} already.")
    if "company_id" in changes:
        values["company_id"] = changes.pop("company_id")
    if "disabled" in changes:
        values["disabled_at"] = now if changes.pop("disabled") else None
    try:
        merged = ApplicationSettings(**(row.settings | changes))
    except ValidationError as error:
        details = [Detail(".".join(str(part) for part in item["loc"]), item["msg"]) for item in error.errors()]
        raise ApiError(ErrorCode.INVALID_REQUEST, details=details) from None
    values["settings"] = merged.model_dump(exclude_defaults=True)
    connection.execute(update(table).where(table.c.id == application_id).values(values))
    increment_version(connection)


def add_domain(connection: Connection, application_id: int, base_url: str, now: datetime) -> int:
    """Give an application a domain of its own, such as https://go.brand.example. Raises ApiError INVALID_REQUEST, CONFLICT."""
    try:
        base_url = parse_base_url(base_url)
    except UrlError as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("domain", error.reason)]) from None
    host = host_of(base_url)
    table = schema.domains
    if connection.execute(select(table.c.id).where(table.c.host == host)).first():
        raise ApiError(ErrorCode.CONFLICT, f"The domain {host} is taken.")
    statement = insert(table).values(application_id=application_id, host=host, base_url=base_url, created_at=now)
    domain_id: int = connection.execute(statement.returning(table.c.id)).scalar_one()
    increment_version(connection)
    return domain_id


def update_domain(connection: Connection, host: str, changes: Mapping[str, Any], now: datetime) -> None:
    """Change `disabled` and `fallback_url` (None: none) of a domain. Raises ApiError NOT_FOUND, INVALID_REQUEST."""
    values: dict[str, Any] = {}
    if "disabled" in changes:
        values["disabled_at"] = now if changes["disabled"] else None
    if "fallback_url" in changes:
        try:
            values["fallback_url"] = checked_fallback(changes["fallback_url"]) if changes["fallback_url"] else None
        except ValueError as error:
            raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("fallback_url", str(error))]) from None
    table = schema.domains
    if not connection.execute(update(table).where(table.c.host == host).values(values)).rowcount:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no domain {host}.")
    increment_version(connection)


def block_host(connection: Connection, application_id: int, host: str, now: datetime) -> str:
    """No short link of the application (or of any: EVERYBODY) leads to this host any more; how the host is spelled here.

    `*.shop.example` blocks every host under shop.example, but not that one.
    Raises ApiError INVALID_REQUEST, NOT_FOUND, CONFLICT."""
    if application_id != ALL_APPLICATIONS:
        require_application(connection, application_id)
    spelled = _normalize_host(host)
    table = schema.blocked_hosts
    count = select(func.count()).where(table.c.application_id == application_id)
    if connection.execute(count).scalar_one() >= MAX_BLOCKED_HOSTS:
        raise ApiError(ErrorCode.CONFLICT, f"There are {MAX_BLOCKED_HOSTS} blocked hosts, the most that there can be.")
    values = {"application_id": application_id, "host": spelled, "created_at": now}
    connection.execute(upsert(connection, table).values(values).on_conflict_do_nothing())
    increment_version(connection)
    return spelled


def unblock_host(connection: Connection, application_id: int, host: str) -> str:
    """Raises ApiError NOT_FOUND, INVALID_REQUEST."""
    spelled = _normalize_host(host)
    table = schema.blocked_hosts
    done = connection.execute(delete(table).where(table.c.application_id == application_id, table.c.host == spelled))
    if not done.rowcount:
        raise ApiError(ErrorCode.NOT_FOUND, f"{spelled} is not blocked.")
    increment_version(connection)
    return spelled


def list_blocked_hosts(connection: Connection, application_id: int | None = None) -> list[dict[str, Any]]:
    """application_id (EVERYBODY for the installation's), host, created_at; of all when `application_id` is None."""
    table = schema.blocked_hosts
    statement = select(table).order_by(table.c.application_id, table.c.host)
    if application_id is not None:
        statement = statement.where(table.c.application_id == application_id)
    rows = connection.execute(statement)
    return [{"application_id": row.application_id, "host": row.host, "created_at": row.created_at} for row in rows]


def _normalize_host(host: str) -> str:
    """As `HitPolicies` looks it up. Raises ApiError INVALID_REQUEST."""
    wildcard = "*." if host.startswith("*.") else ""
    try:
        return wildcard + parse_host(host.removeprefix("*."))
    except UrlError as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("host", error.reason)]) from None


def ensure_default(connection: Connection, now: datetime) -> Credentials | None:
    """On the very first start, make the application `default`; None when there is any application already."""
    if connection.execute(select(schema.applications.c.id).limit(1)).first():
        return None
    return create_application(connection, "default", now)
