"""This module changes applications, domains and blocked hosts. Each function runs inside one transaction of `Database.write`.
After the transaction, the caller refreshes the `Directory`, which is the copy of the accounts in memory. The functions here add
no row to the audit log; the functions of the same names in `audited_accounts` do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from shortener.accounts.credentials import Credentials, create_key, new_token
from shortener.accounts.directory import DEFAULT_NAME, Application, Domain, require_application
from shortener.accounts.own_hosts import NO_HOSTS, OwnHosts, is_local, name_of, unreachable_host_warnings
from shortener.accounts.settings import (
    PERMISSIONS,
    ApplicationSettings,
    fallback_problems,
    fallback_warnings,
    from_stored,
    merge_stored,
    parse_fallback_url,
)
from shortener.accounts.version import mark_accounts_changed
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.macros import entity_problems
from shortener.model import ALL_APPLICATIONS
from shortener.secret import Secret, new_signing_secret
from shortener.storage import schema
from shortener.storage.database import upsert
from shortener.urls import (
    UrlError,
    canonical_host,
    canonical_name,
    host_of,
    parse_base_url,
    parse_host,
    parse_link_path,
    parse_own_domain,
)
from shortener.validation_texts import UNKNOWN_FIELD, named_reasons, unknown_field

# The maximum number of blocked hosts of one application, and of the installation. There is a limit, because every process has all
# blocked hosts in memory.
MAX_BLOCKED_HOSTS = 10_000
MAX_NAME_CHARACTERS = 200
MAX_PREVIOUS_PATHS = 20
MAX_ASSOCIATION_BYTES = 64 * 1024  # The maximum length in bytes of a JSON file that associates apps with a domain.


def create_application(
    connection: Connection,
    name: str,
    now: datetime,
    *,
    domain: str | None = None,
    company_id: int | None = None,
    secret: Secret | None = None,
    api_key: str = "",
    tracker_token: str = "",
    own_hosts: OwnHosts = NO_HOSTS,
) -> Credentials:
    """Create an application with a tracker token and with an API key that has all permissions. Return these credentials.

    `domain` is the base URL of its own domain. If the caller passes the `secret` of the installation, the application also gets a
    callback secret, which is stored encrypted. If `api_key` or `tracker_token` is empty, a random one is created. Raise ApiError
    CONFLICT or INVALID_REQUEST."""
    table = schema.applications
    # From here on, other changes of accounts wait, so that two applications cannot get the same name at the same time.
    mark_accounts_changed(connection)
    _check_name(connection, name)
    callback_secret = new_signing_secret() if secret else None
    values: dict[str, Any] = {"name": name, "company_id": company_id, "settings": {}, "created_at": now}
    if secret and callback_secret:
        values["callback_secret"] = secret.encrypt(callback_secret)
    application_id: int = connection.execute(insert(table).values(values).returning(table.c.id)).scalar_one()
    if domain:
        add_domain(connection, application_id, domain, now, own_hosts=own_hosts)
    key = create_key(connection, application_id, "default", PERMISSIONS, now, key=api_key)
    token = new_token(connection, application_id, now, token=tracker_token)
    return Credentials(application_id, key, token, callback_secret)


def update_application(
    connection: Connection, application_id: int, changes: dict[str, Any], now: datetime, *, own_hosts: OwnHosts = NO_HOSTS
) -> None:
    """Change `name`, `company_id`, `disabled` and settings of an application. Fields that `changes` does not contain stay the same.

    The host of a `fallback_url` must be neither in `own_hosts` nor a domain of an application. Raise ApiError INVALID_REQUEST,
    NOT_FOUND or CONFLICT."""
    table = schema.applications
    row = lock_application(connection, application_id)
    mark_accounts_changed(connection)  # see create_application
    values: dict[str, Any] = {}
    changes = dict(changes)
    if "name" in changes:
        values["name"] = changes.pop("name")
        _check_name(connection, values["name"], application_id)
    if "company_id" in changes:
        values["company_id"] = changes.pop("company_id")
    if "disabled" in changes:
        values["disabled_at"] = now if changes.pop("disabled") else None
    try:
        values["settings"] = merge_stored(row.settings, changes)
    except ValidationError as error:
        known = ApplicationSettings.model_fields
        details = [
            Detail(name, unknown_field(name, known) if reason == UNKNOWN_FIELD else reason)
            for name, reason in named_reasons(error.errors())
        ]
        raise ApiError(ErrorCode.INVALID_REQUEST, details=details) from None
    merged = from_stored(values["settings"])
    if changes.keys() & {"fallback_url", "extra_schemes", "strict_destinations"} and merged.fallback_url is not None:
        _parse_own_target(connection, "fallback_url", merged.fallback_url, own_hosts, merged)
    connection.execute(update(table).where(table.c.id == application_id).values(values))


def lock_application(connection: Connection, application_id: int) -> Row[Any]:
    """Lock the row of an application until the end of the transaction, so that concurrent changes cannot overwrite each other.
    Return the row. Raise ApiError NOT_FOUND."""
    table = schema.applications
    row = connection.execute(select(table).where(table.c.id == application_id).with_for_update()).first()
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no application {application_id}.")
    return row


def add_domain(connection: Connection, application_id: int, base_url: str, now: datetime, *, own_hosts: OwnHosts = NO_HOSTS) -> int:
    """Add a domain to an application, such as https://go.brand.example or https://go.brand.example/ABCDEF. Return its id.

    If the same application had this domain before and removed it, the domain gets its old id again, so that its links still
    belong to it.

    The service responds on a host in `own_hosts` as on BASE_URL. Such a host is accepted only if the domain has a path before its
    codes. Without this path, the service could not distinguish links of the domain from links of applications without a domain.
    `localhost` and IP addresses are accepted with a warning. Raise ApiError with the code NOT_FOUND, INVALID_REQUEST or
    CONFLICT."""
    lock_application(connection, application_id)
    # From here on, other changes of accounts wait, so that two applications cannot add the same host at the same time.
    mark_accounts_changed(connection)
    table = schema.domains
    try:
        parsed = parse_base_url(base_url)
        host = host_of(parsed.origin)
        if name_of(host) in own_hosts.names and not parsed.path:
            raise UrlError(
                f"has the host {name_of(host)}, on which the service itself responds (BASE_URL or PORTAL_URL): choose another "
                "host, or add a path before the code (an application without a domain uses BASE_URL)"
            )
        existing = _find_host(connection, host)
        # A removed domain that is added again is not checked, because earlier versions accepted hosts that are rejected now.
        if existing is None:
            parse_own_domain(base_url)
    except UrlError as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("domain", error.reason)]) from None
    values = {"base_url": parsed.origin, "path": parsed.path}
    if existing is None:
        new = {"application_id": application_id, "host": host, "created_at": now}
        domain_id: int = connection.execute(insert(table).values(new | values).returning(table.c.id)).scalar_one()
    elif existing.removed_at is None:
        reason = f"The domain {host} already exists."
        if existing.application_id == application_id and existing.path != parsed.path:
            # Only the owner of a domain gets this hint, because an application may see only its own domains.
            path = parsed.path or "''"
            reason += (
                f" To change the path of new links, use `shortener domains update {host} --path {path}`, or PATCH "
                f'/api/v1/domains/{host} with {{"path": "{parsed.path}"}}.'
            )
        raise ApiError(ErrorCode.CONFLICT, reason)
    elif existing.application_id != application_id:
        reason = f"The domain {host} was removed from another application, whose links still use it."
        raise ApiError(ErrorCode.CONFLICT, reason)
    else:
        domain_id = existing.id
        paths = _previous_paths(existing, parsed.path)
        back = {"removed_at": None, "disabled_at": None, "previous_paths": paths}
        connection.execute(update(table).where(table.c.id == domain_id).values(back | values))
    return domain_id


def update_domain(
    connection: Connection,
    host: str,
    changes: Mapping[str, Any],
    now: datetime,
    *,
    own_hosts: OwnHosts = NO_HOSTS,
    application_id: int | None = None,
) -> None:
    """Change fields of a domain: `disabled`, `default`, `path`, `fallback_url`, `home_url`, `assetlinks` (JSON text) and
    `apple_app_site_association` (JSON text). The value None removes the stored value.

    The host of a `fallback_url` or `home_url` must be neither in `own_hosts` nor a domain of an application. If `application_id` is
    not None, the domain must belong to this application. Raise ApiError with the code NOT_FOUND or INVALID_REQUEST."""
    domain = lock_domain(connection, host, application_id)
    host = domain.host
    values: dict[str, Any] = {}
    if "disabled" in changes:
        values["disabled_at"] = now if changes["disabled"] else None
    for name in ("fallback_url", "home_url"):
        if name in changes:
            values[name] = _parse_own_target(connection, name, changes[name], own_hosts, _settings_of(connection, host))
    for name in ("assetlinks", "apple_app_site_association"):
        if name in changes:
            values[name] = _parse_association(name, changes[name])
    if "path" in changes:
        try:
            values["path"] = parse_link_path(changes["path"] or "")
        except UrlError as error:
            raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("path", error.reason)]) from None
        values["previous_paths"] = _previous_paths(domain, values["path"])
    table = schema.domains
    if "default" in changes:
        values["is_default"] = bool(changes["default"])
        # An application has at most one default domain, so the previous default domain is not the default any more.
        if changes["default"]:
            connection.execute(update(table).where(table.c.application_id == domain.application_id).values(is_default=False))
    if values:
        connection.execute(update(table).where(table.c.id == domain.id).values(values))
        mark_accounts_changed(connection)


def remove_domain(connection: Connection, host: str, now: datetime, *, application_id: int | None = None) -> None:
    """Remove a domain. New links do not use it, and lists do not contain it. Its existing links work until they expire.

    Raise ApiError NOT_FOUND."""
    domain = find_domain(connection, host, application_id)
    table = schema.domains
    connection.execute(update(table).where(table.c.id == domain.id).values(removed_at=now, is_default=False))
    mark_accounts_changed(connection)


def _settings_of(connection: Connection, host: str) -> ApplicationSettings:
    """Return the settings of the application that a domain belongs to."""
    applications, domains = schema.applications.c, schema.domains.c
    statement = select(applications.settings).where(domains.host == host, domains.application_id == applications.id)
    settings = connection.execute(statement).scalar()
    return from_stored(settings or {})


def find_domain(connection: Connection, host: str, application_id: int | None = None) -> Row[Any]:
    """Return the row of a domain that is not removed. `host` may contain capitals, and an IPv6 address may be written in another
    notation than the stored one. If `application_id` is None, the domain may belong to any application. Raise ApiError
    NOT_FOUND."""
    row = _find_host(connection, host)
    if row is None or row.removed_at is not None or application_id not in (None, row.application_id):
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no domain {host}.")
    return row


def lock_domain(connection: Connection, host: str, application_id: int | None = None) -> Row[Any]:
    """Lock the application of the domain until the end of the transaction, so that concurrent changes cannot overwrite each other.
    Then return the same row as `find_domain`. Raise ApiError NOT_FOUND."""
    lock_application(connection, find_domain(connection, host, application_id).application_id)
    return find_domain(connection, host, application_id)


def _find_host(connection: Connection, host: str) -> Row[Any] | None:
    """Return the row of the domain with this host, even if the domain is removed. IPv6 addresses are compared in canonical form,
    because earlier versions stored them as they were entered."""
    column, canonical = schema.domains.c.host, canonical_host(host)
    statement = select(schema.domains)
    for exact in dict.fromkeys((host.lower(), canonical)):
        if (row := connection.execute(statement.where(column == exact)).first()) is not None:
            return row
    if not canonical.startswith("["):
        return None
    others = connection.execute(statement.where(column.startswith("[")).order_by(schema.domains.c.id))
    return next((row for row in others if canonical_host(row.host) == canonical), None)


def serialize_domain(domain: Domain, application: Application | None) -> dict[str, Any]:
    """Return a domain as the API and the command line show it. `new_links` is true if new links have this domain by default, that
    is if a request names no domain."""
    return {
        "host": domain.host,
        "application_id": domain.application_id,
        "base_url": domain.base_url + domain.path,
        "path": domain.path,
        "fallback_url": domain.fallback_url,
        "home_url": domain.home_url,
        "assetlinks": None if domain.assetlinks is None else json.loads(domain.assetlinks),
        "apple_app_site_association": (
            None if domain.apple_app_site_association is None else json.loads(domain.apple_app_site_association)
        ),
        "enabled": not domain.disabled,
        "default": domain.is_default,
        "new_links": application is not None and application.domain == domain,
        "warnings": [
            *unreachable_host_warnings(domain.host),
            *(f"fallback_url {problem}" for problem in fallback_warnings(domain.fallback_url)),
            *(f"home_url {problem}" for problem in entity_problems(domain.home_url or "")),
        ],
    }


def _previous_paths(domain: Row[Any], path: str) -> list[str] | None:
    """Return the new value of `previous_paths` when the path of a domain becomes `path`: the earlier paths, which existing links
    contain. At most the latest 20 are returned, and never `path` itself."""
    paths = [*(domain.previous_paths or ()), domain.path]
    return [one for one in dict.fromkeys(paths) if one != path][-MAX_PREVIOUS_PATHS:] or None


def _parse_own_target(
    connection: Connection, name: str, url: str | None, own_hosts: OwnHosts, settings: ApplicationSettings
) -> str | None:
    """Return the fallback URL or home URL of a domain in the form of a Location header. Return None if `url` is empty or None.
    `name` is the name of the field, for errors.

    Raise ApiError INVALID_REQUEST if the URL is invalid or its host belongs to the installation. Also raise it if the application
    has `strict_destinations` and a fallback URL contains a macro that the service does not replace."""
    if not url:
        return None
    try:
        is_fallback = name == "fallback_url"
        parsed = parse_fallback_url(url, settings.extra_schemes if is_fallback else ())
        if is_fallback and settings.strict_destinations and (problems := fallback_problems(url)):
            raise ValueError(problems[0])
    except ValueError as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(name, str(error))]) from None
    _reject_own_host(connection, parsed, own_hosts, name)
    return parsed


def _parse_association(name: str, text: str | None) -> str | None:
    """Return the content of a file that associates apps with a domain, as compact JSON. Return None if `text` is empty or None.

    Raise ApiError INVALID_REQUEST if the text is not JSON, is too long, or is not a list (assetlinks) or an object
    (apple_app_site_association)."""
    if not text:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(name, "must be JSON")]) from None
    kind, wanted = (list, "a list") if name == "assetlinks" else (dict, "an object")
    stored = json.dumps(value, separators=(",", ":"))
    if not isinstance(value, kind) or len(stored) > MAX_ASSOCIATION_BYTES:
        reason = f"must be {wanted} of at most {MAX_ASSOCIATION_BYTES} bytes"
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(name, reason)])
    return stored


def _reject_own_host(connection: Connection, url: str, own_hosts: OwnHosts, name: str = "fallback_url") -> None:
    """Raise ApiError INVALID_REQUEST if the host of a URL belongs to the installation. A redirect to such a URL could loop."""
    host = host_of(url)
    hosts = [host] if is_local(name_of(host)) else [host, name_of(host)]
    is_domain = bool(host) and any(_find_host(connection, one) is not None for one in hosts)
    if is_domain or own_hosts.contains(url):
        reason = "leads to a host of this service, so the redirect would loop"
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(name, reason)])


def block_host(connection: Connection, application_id: int, host: str, now: datetime) -> tuple[str, bool]:
    """Block a host: short links of one application, or of all applications (ALL_APPLICATIONS), must not lead to it. Return the
    normalized host, and True if the host was not blocked before.

    `*.shop.example` blocks every subdomain of shop.example, but not shop.example. Raise ApiError with the code INVALID_REQUEST,
    NOT_FOUND or CONFLICT."""
    if application_id != ALL_APPLICATIONS:
        require_application(connection, application_id)
    normalized = _normalize_host(host)
    table = schema.blocked_hosts
    count = select(func.count()).where(table.c.application_id == application_id)
    if connection.execute(count).scalar_one() >= MAX_BLOCKED_HOSTS:
        raise ApiError(ErrorCode.CONFLICT, f"There are already {MAX_BLOCKED_HOSTS} blocked hosts, which is the maximum.")
    values = {"application_id": application_id, "host": normalized, "created_at": now}
    is_new = connection.execute(upsert(connection, table).values(values).on_conflict_do_nothing()).rowcount > 0
    mark_accounts_changed(connection)
    return normalized, is_new


def unblock_host(connection: Connection, application_id: int, host: str) -> str:
    """Unblock a host. Return the normalized host. Raise ApiError with the code NOT_FOUND or INVALID_REQUEST."""
    normalized = _normalize_host(host)
    table = schema.blocked_hosts
    stored = {normalized}
    if ":" in normalized:  # Earlier versions stored IPv6 addresses as they were entered, so one address can have several rows.
        addresses = select(table.c.host).where(table.c.application_id == application_id, table.c.host.contains(":"))
        stored |= {one for one in connection.execute(addresses).scalars() if canonical_name(one) == normalized}
    done = connection.execute(delete(table).where(table.c.application_id == application_id, table.c.host.in_(stored)))
    if not done.rowcount:
        raise ApiError(ErrorCode.NOT_FOUND, f"{normalized} is not blocked.")
    mark_accounts_changed(connection)
    return normalized


def list_blocked_hosts(connection: Connection, application_id: int | None = None) -> list[dict[str, Any]]:
    """Return application_id, host and created_at of each blocked host of an application. If `application_id` is None, return the
    blocked hosts of all applications."""
    table = schema.blocked_hosts
    statement = select(table).order_by(table.c.application_id, table.c.host)
    if application_id is not None:
        statement = statement.where(table.c.application_id == application_id)
    rows = connection.execute(statement)
    return [{"application_id": row.application_id, "host": row.host, "created_at": row.created_at} for row in rows]


def _normalize_host(host: str) -> str:
    """Return a host or a wildcard (*.shop.example) in the form that `HitPolicies` compares. Raise ApiError INVALID_REQUEST."""
    wildcard = "*." if host.startswith("*.") else ""
    try:
        return wildcard + parse_host(host.removeprefix("*."))
    except UrlError as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("host", error.reason)]) from None


def _check_name(connection: Connection, name: str, application_id: int | None = None) -> None:
    """Raise ApiError if the name is invalid, or if another application than `application_id` has this name."""
    if not name.strip() or len(name) > MAX_NAME_CHARACTERS or "\x00" in name:
        reason = f"must have 1 to {MAX_NAME_CHARACTERS} characters, not only spaces"
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("name", reason)])
    table = schema.applications
    other = connection.execute(select(table.c.id).where(table.c.name == name)).scalar()
    if other not in (None, application_id):
        raise ApiError(ErrorCode.CONFLICT, f"An application with the name {name!r} already exists.")


def has_application(connection: Connection) -> bool:
    """Return whether the installation has at least one application, enabled or disabled."""
    return connection.execute(select(schema.applications.c.id).limit(1)).first() is not None


def ensure_default(
    connection: Connection, now: datetime, secret: Secret | None = None, *, api_key: str = "", tracker_token: str = ""
) -> Credentials | None:
    """Create the application DEFAULT_NAME if there is no application yet, and return its credentials. Otherwise return None.

    `api_key` and `tracker_token` are passed to `create_application`."""
    if has_application(connection):
        return None
    return create_application(connection, DEFAULT_NAME, now, secret=secret, api_key=api_key, tracker_token=tracker_token)
