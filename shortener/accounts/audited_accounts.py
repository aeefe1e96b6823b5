"""Functions with which the portal, the API and the command line change applications, domains and blocked hosts. Each change adds
a row to the audit log, in the same transaction. A request that changes no value adds no row.

Each function has the same name as a function of `administration`, and its second parameter is the writer of audit rows. Code that
performs a change for a person must call the functions of this module. A test checks that (tests/test_audit_complete.py).
"""
# Tested by tests/test_audit_complete.py, tests/accounts/test_audited_accounts.py and tests/portal/test_domains.py

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select

from shortener.accounts import administration
from shortener.accounts.audit import AuditWriter
from shortener.accounts.credentials import Credentials
from shortener.accounts.directory import DEFAULT_NAME
from shortener.accounts.own_hosts import NO_HOSTS, OwnHosts
from shortener.accounts.settings import from_stored
from shortener.secret import Secret
from shortener.storage import schema


def create_application(
    connection: Connection,
    audit: AuditWriter,
    name: str,
    now: datetime,
    *,
    domain: str | None = None,
    company_id: int | None = None,
    secret: Secret | None = None,
    own_hosts: OwnHosts = NO_HOSTS,
) -> Credentials:
    """Create an application with `administration.create_application`, and add a row to the audit log. Return the credentials."""
    created = administration.create_application(
        connection, name, now, domain=domain, company_id=company_id, secret=secret, own_hosts=own_hosts
    )
    given = {"domain": domain, "company_id": company_id}
    after = {field: value for field, value in given.items() if value is not None}
    audit.add(connection, now, "application_created", name, application_id=created.application_id, after=after)
    return created


def ensure_default(
    connection: Connection,
    audit: AuditWriter,
    now: datetime,
    secret: Secret | None = None,
    *,
    api_key: str = "",
    tracker_token: str = "",
) -> Credentials | None:
    """Create the first application with `administration.ensure_default`, and add a row to the audit log. Return its credentials,
    or None if an application already exists."""
    created = administration.ensure_default(connection, now, secret, api_key=api_key, tracker_token=tracker_token)
    if created is not None:
        audit.add(connection, now, "application_created", DEFAULT_NAME, application_id=created.application_id)
    return created


def update_application(
    connection: Connection,
    audit: AuditWriter,
    application_id: int,
    changes: dict[str, Any],
    now: datetime,
    *,
    own_hosts: OwnHosts = NO_HOSTS,
) -> None:
    """Change an application with `administration.update_application`. A new name, a change of `disabled` and the changes of
    settings each add one row to the audit log."""
    old = administration.lock_application(connection, application_id)
    administration.update_application(connection, application_id, changes, now, own_hosts=own_hosts)
    new = administration.lock_application(connection, application_id)
    before, after = _settings_fields(old), _settings_fields(new)

    def add(action: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
        audit.add_differences(connection, now, action, old.name, one, other, application_id=application_id)

    add("application_renamed", {"name": old.name}, {"name": new.name})
    is_disabled = new.disabled_at is not None
    action = "application_disabled" if is_disabled else "application_enabled"
    add(action, {"disabled": old.disabled_at is not None}, {"disabled": is_disabled})
    add("settings_changed", before, after)


def _settings_fields(row: Row[Any]) -> dict[str, Any]:
    return {"company_id": row.company_id} | from_stored(row.settings).model_dump(mode="json")


def add_domain(
    connection: Connection,
    audit: AuditWriter,
    application_id: int,
    base_url: str,
    now: datetime,
    *,
    own_hosts: OwnHosts = NO_HOSTS,
) -> str:
    """Add a domain with `administration.add_domain`. Return its host as it is stored."""
    domain_id = administration.add_domain(connection, application_id, base_url, now, own_hosts=own_hosts)
    row = connection.execute(select(schema.domains).where(schema.domains.c.id == domain_id)).one()
    after = {"base_url": row.base_url + row.path}
    audit.add(connection, now, "domain_added", row.host, application_id=application_id, after=after)
    host: str = row.host
    return host


def update_domain(
    connection: Connection,
    audit: AuditWriter,
    host: str,
    changes: Mapping[str, Any],
    now: datetime,
    *,
    own_hosts: OwnHosts = NO_HOSTS,
    application_id: int | None = None,
) -> str:
    """Change a domain with `administration.update_domain`. Return its host as it is stored."""
    old = administration.lock_domain(connection, host, application_id)
    administration.update_domain(connection, host, changes, now, own_hosts=own_hosts, application_id=application_id)
    new = administration.find_domain(connection, host, application_id)
    before, after = _domain_fields(old), _domain_fields(new)
    action = _domain_action(before, after)
    audit.add_differences(connection, now, action, new.host, before, after, application_id=new.application_id)
    stored: str = new.host
    return stored


def _domain_fields(row: Row[Any]) -> dict[str, Any]:
    names = ("path", "fallback_url", "home_url", "assetlinks", "apple_app_site_association")
    fields = {name: getattr(row, name) for name in names}
    return fields | {"default": row.is_default, "disabled": row.disabled_at is not None}


def _domain_action(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return the name of the action for the audit log. If only one field has changed, the name depends on this field. Otherwise
    the name is `domain_changed`."""
    changed = {name: value for name, value in after.items() if before[name] != value}
    if changed.keys() == {"disabled"}:
        return "domain_disabled" if changed["disabled"] else "domain_enabled"
    return "domain_made_default" if changed == {"default": True} else "domain_changed"


def remove_domain(
    connection: Connection, audit: AuditWriter, host: str, now: datetime, *, application_id: int | None = None
) -> str:
    """Remove a domain with `administration.remove_domain`. Return its host as it is stored."""
    row = administration.find_domain(connection, host, application_id)
    administration.remove_domain(connection, host, now, application_id=application_id)
    audit.add(connection, now, "domain_removed", row.host, application_id=row.application_id)
    stored: str = row.host
    return stored


def block_host(connection: Connection, audit: AuditWriter, application_id: int, host: str, now: datetime) -> str:
    """Block a host with `administration.block_host`. Return the normalized host."""
    normalized, is_new = administration.block_host(connection, application_id, host, now)
    if is_new:
        audit.add(connection, now, "host_blocked", normalized, application_id=application_id)
    return normalized


def unblock_host(connection: Connection, audit: AuditWriter, application_id: int, host: str, now: datetime) -> str:
    """Unblock a host with `administration.unblock_host`. Return the normalized host."""
    normalized = administration.unblock_host(connection, application_id, host)
    audit.add(connection, now, "host_unblocked", normalized, application_id=application_id)
    return normalized
