"""Who may do what: applications, their domains, API keys and tracker tokens; and which destination hosts are blocked.

`Directory` holds all of them in memory, so that a redirect or an API call asks no database who is calling; every change bumps
a version in its own transaction, and every process looks at that version a few times a second, so a revoked key, a disabled
application or domain and a blocked host take effect within a second everywhere, and are still known while the database is away.

Keys and tokens are 32 random bytes; only their SHA-256 is stored, and looked up by it, so timing tells nothing.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from sqlalchemy import Connection, delete, func, insert, select, update

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.model import Topic
from shortener.store import schema
from shortener.store.database import Database, upsert

Permission = Literal["sms.send", "sms.read", "trackers.write"]
PERMISSIONS: tuple[Permission, ...] = ("sms.send", "sms.read", "trackers.write")
Privacy = Literal["full", "short", "none"]
EVERYBODY = 0  # in place of an application's number: what holds for all of them
MOST_BLOCKED = 10_000  # hosts that one application, or the installation, may block: every process holds all of them in memory
_VERSION = "directory"


class ApplicationSettings(BaseModel):
    """What an application may choose; stored only where it differs from the default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    click_events: Literal["first", "every"] = Field(
        "first", description="Raise a click event for each link's first click, or every."
    )
    click_id_param: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_.~-]{1,32}$", description="Query parameter that carries the click id to every destination."
    )
    fallback_url: str | None = Field(None, description="Where expired links lead to; without it a short page says so (410).")
    link_ttl_days: int | None = Field(None, ge=1, le=3650, description="Longest life of a link in days; caps expires_in.")
    ip_privacy: Privacy | None = Field(None, description="How much of handsets' addresses is kept, if less than IP_PRIVACY says.")

    # Who is no person by the circumstances of a hit (click/circumstance.py); docs/verdicts.md has the price of each.
    min_seconds_after_sent: float | None = Field(
        None, gt=0, le=3600, allow_inf_nan=False, description="Suspect hits sooner than that after SENT. Off: null."
    )
    min_seconds_after_delivered: float | None = Field(
        None, gt=0, le=3600, allow_inf_nan=False, description="Suspect hits within that of DELIVERED. Off: null."
    )
    max_recipients_per_address_minute: int | None = Field(
        None, ge=1, le=1_000_000, description="Suspect an address that opens more recipients' links in a minute. Off: null."
    )
    all_links_within_second: bool = Field(False, description="Suspect hits that open all links of a message within a second.")
    retract_clicks: bool = Field(
        False, description="Take back clicks that later evidence calls a machine's, and tell so with click_retracted."
    )

    @field_validator("fallback_url")
    @classmethod
    def _check_fallback(cls, value: str | None) -> str | None:
        return None if value is None else _checked_fallback(value)

    @property
    def judges_by_report(self) -> bool:
        """By when a message was sent or delivered."""
        return self.min_seconds_after_sent is not None or self.min_seconds_after_delivered is not None

    @property
    def judges_by_circumstance(self) -> bool:
        return self.judges_by_report or self.all_links_within_second or self.max_recipients_per_address_minute is not None


def _checked_fallback(url: str) -> str:
    """As a Location header spells it. Raises ValueError."""
    from shortener.rewrite.destinations import DestinationError, parse_destination

    try:
        return parse_destination(url).location.decode()
    except DestinationError as error:
        raise ValueError(error.reason) from None


@dataclass(frozen=True, slots=True)
class Domain:
    """A host whose codes belong to one application. `host` is as in the Host header, lower case, without a default port."""

    id: int
    application_id: int
    host: str
    base_url: str
    fallback_url: str | None
    disabled: bool


@dataclass(frozen=True, slots=True)
class Application:
    id: int
    name: str
    company_id: int | None
    settings: ApplicationSettings
    created_at: datetime
    disabled: bool
    domains: tuple[Domain, ...] = ()

    @property
    def domain(self) -> Domain | None:
        """The one that new links are made on: the first that is not disabled."""
        return next((domain for domain in self.domains if not domain.disabled), None)


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller that was recognised: which application, and what it may do."""

    application: Application
    permissions: frozenset[str]
    key_id: int = 0


@dataclass(frozen=True, slots=True)
class Special:
    """What few applications ask of a hit, and those few that are switched off: empty in most installations, and then a hit costs
    nothing more. Numbers are those of applications, if they are not said to be others."""

    circumstances: Mapping[int, ApplicationSettings] = field(default_factory=dict)  # those that judge by them
    with_suspected: frozenset[int] = frozenset()  # a tracker asks for suspected hits as click events
    ip_privacy: Mapping[int, Privacy] = field(default_factory=dict)
    blocked_hosts: Mapping[int, frozenset[str]] = field(default_factory=dict)  # EVERYBODY's among them
    disabled_applications: frozenset[int] = frozenset()
    disabled_domains: frozenset[int] = frozenset()

    def blocks(self, application_id: int, url: str) -> bool:
        """Whether an absolute http(s) URL, spelled as the Location header does, leads to a host that is blocked."""
        return bool(self.blocked_hosts) and self.blocks_host(application_id, _host_in(url))

    def blocks_host(self, application_id: int, host: str) -> bool:
        """`host`: lower case, punycode, without a port or brackets."""
        for owner in (EVERYBODY, application_id):
            hosts = self.blocked_hosts.get(owner)
            if hosts and (host in hosts or any(f"*.{parent}" in hosts for parent in _parents(host))):
                return True
        return False


def _host_in(url: str) -> str:
    authority = url.split("/", 3)[2].partition("?")[0].partition("#")[0]
    return authority[1:].partition("]")[0] if authority.startswith("[") else authority.partition(":")[0]


def _parents(host: str) -> list[str]:
    labels = host.split(".")
    return [".".join(labels[index:]) for index in range(1, len(labels))]


def hash_credential(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(slots=True)
class _Snapshot:
    version: str = ""
    applications: dict[int, Application] = field(default_factory=dict)
    domains: dict[str, Domain] = field(default_factory=dict)
    domains_by_id: dict[int, Domain] = field(default_factory=dict)
    keys: dict[str, tuple[int, int, frozenset[str]]] = field(default_factory=dict)  # hash -> key, application, permissions
    tokens: dict[str, tuple[int, datetime | None]] = field(default_factory=dict)  # hash -> application, valid until
    special: Special = field(default_factory=Special)


class Directory:
    """All accounts in memory, as of the last `refresh`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._now = _Snapshot()

    async def refresh(self) -> bool:
        """Read again if anything changed; True when it did. Raises StoreUnavailable, keeping what is known."""
        fresh = await self._database.read(_load_if_changed, self._now.version)
        if fresh is not None:
            self._now = fresh
        return fresh is not None

    def application(self, application_id: int) -> Application | None:
        return self._now.applications.get(application_id)

    def applications(self) -> list[Application]:
        return list(self._now.applications.values())

    @property
    def special(self) -> Special:
        return self._now.special

    def domain(self, host: str) -> Domain | None:
        """The domain of a Host header (lower case)."""
        return self._now.domains.get(host)

    def domain_by_id(self, domain_id: int) -> Domain | None:
        return self._now.domains_by_id.get(domain_id)

    def by_api_key(self, key: str) -> Principal | None:
        found = self._now.keys.get(hash_credential(key))
        if found is None:
            return None
        key_id, application_id, permissions = found
        return self._principal(application_id, permissions, key_id)

    def by_tracker_token(self, token: str, now: datetime) -> Principal | None:
        found = self._now.tokens.get(hash_credential(token))
        if found is None or (found[1] is not None and found[1] <= now):
            return None
        return self._principal(found[0], frozenset(), 0)

    def _principal(self, application_id: int, permissions: frozenset[str], key_id: int) -> Principal | None:
        application = self._now.applications.get(application_id)
        if application is None or application.disabled:
            return None
        return Principal(application, permissions, key_id)


def _load_if_changed(connection: Connection, version: str) -> _Snapshot | None:
    table = schema.installation
    current: str = connection.execute(select(table.c.value).where(table.c.name == _VERSION)).scalar() or "0"
    if current == version:
        return None
    fresh = _Snapshot(version=current)
    domains: dict[int, list[Domain]] = {}
    for row in connection.execute(select(schema.domains).order_by(schema.domains.c.id)):
        domain = Domain(row.id, row.application_id, row.host, row.base_url, row.fallback_url, row.disabled_at is not None)
        domains.setdefault(row.application_id, []).append(domain)
        fresh.domains[domain.host] = domain
        fresh.domains_by_id[domain.id] = domain
    for row in connection.execute(select(schema.applications).order_by(schema.applications.c.id)):
        fresh.applications[row.id] = Application(
            id=row.id,
            name=row.name,
            company_id=row.company_id,
            settings=ApplicationSettings(**row.settings),
            created_at=row.created_at,
            disabled=row.disabled_at is not None,
            domains=tuple(domains.get(row.id, ())),
        )
    t = schema.trackers.c
    asking = connection.execute(select(t.application_id, t.topics).where(t.with_suspected.is_(True)))
    blocked: dict[int, set[str]] = {}
    for row in connection.execute(select(schema.blocked_hosts)):
        blocked.setdefault(row.application_id, set()).add(row.host)
    settings = {application.id: application.settings for application in fresh.applications.values()}
    fresh.special = Special(
        circumstances={number: chosen for number, chosen in settings.items() if chosen.judges_by_circumstance},
        with_suspected=frozenset(row.application_id for row in asking if row.topics & Topic.CLICK),
        ip_privacy={number: chosen.ip_privacy for number, chosen in settings.items() if chosen.ip_privacy is not None},
        blocked_hosts={number: frozenset(hosts) for number, hosts in blocked.items()},
        disabled_applications=frozenset(one.id for one in fresh.applications.values() if one.disabled),
        disabled_domains=frozenset(one.id for one in fresh.domains_by_id.values() if one.disabled),
    )
    keys = schema.api_keys
    for row in connection.execute(select(keys).where(keys.c.revoked_at.is_(None))):
        fresh.keys[row.hash] = (row.id, row.application_id, frozenset(row.permissions))
    for row in connection.execute(select(schema.tracker_tokens)):
        fresh.tokens[row.hash] = (row.application_id, row.valid_until)
    return fresh


def bump(connection: Connection) -> None:
    """Tell every process that accounts changed; part of each transaction that changes them."""
    statement = upsert(connection, schema.installation).values(name=_VERSION, value=secrets.token_hex(8))
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"value": statement.excluded.value}))


# Changes. Each is one transaction for `Database.write`; the caller refreshes the directory afterwards.


@dataclass(frozen=True, slots=True)
class Credentials:
    """What is shown once, when it is made."""

    application_id: int
    api_key: str
    tracker_token: str


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
    token = _new_token(connection, application_id, now)
    bump(connection)
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
    bump(connection)


def add_domain(connection: Connection, application_id: int, base_url: str, now: datetime) -> int:
    """Give an application a domain of its own, such as https://go.brand.example. Raises ApiError INVALID_REQUEST, CONFLICT."""
    host = check_base_url(base_url)
    table = schema.domains
    if connection.execute(select(table.c.id).where(table.c.host == host)).first():
        raise ApiError(ErrorCode.CONFLICT, f"The domain {host} is taken.")
    statement = insert(table).values(application_id=application_id, host=host, base_url=base_url.rstrip("/"), created_at=now)
    domain_id: int = connection.execute(statement.returning(table.c.id)).scalar_one()
    bump(connection)
    return domain_id


def update_domain(connection: Connection, host: str, changes: Mapping[str, Any], now: datetime) -> None:
    """Change `disabled` and `fallback_url` (None: none) of a domain. Raises ApiError NOT_FOUND, INVALID_REQUEST."""
    values: dict[str, Any] = {}
    if "disabled" in changes:
        values["disabled_at"] = now if changes["disabled"] else None
    if "fallback_url" in changes:
        try:
            values["fallback_url"] = _checked_fallback(changes["fallback_url"]) if changes["fallback_url"] else None
        except ValueError as error:
            raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("fallback_url", str(error))]) from None
    table = schema.domains
    if not connection.execute(update(table).where(table.c.host == host).values(values)).rowcount:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no domain {host}.")
    bump(connection)


def block_host(connection: Connection, application_id: int, host: str, now: datetime) -> str:
    """No short link of the application (or of any: EVERYBODY) leads to this host any more; how the host is spelled here.

    `*.shop.example` blocks every host under shop.example, but not that one.
    Raises ApiError INVALID_REQUEST, NOT_FOUND, CONFLICT."""
    if application_id != EVERYBODY:
        _require_application(connection, application_id)
    spelled = _spelled_host(host)
    table = schema.blocked_hosts
    count = select(func.count()).where(table.c.application_id == application_id)
    if connection.execute(count).scalar_one() >= MOST_BLOCKED:
        raise ApiError(ErrorCode.CONFLICT, f"There are {MOST_BLOCKED} blocked hosts, the most that there can be.")
    values = {"application_id": application_id, "host": spelled, "created_at": now}
    connection.execute(upsert(connection, table).values(values).on_conflict_do_nothing())
    bump(connection)
    return spelled


def unblock_host(connection: Connection, application_id: int, host: str) -> str:
    """Raises ApiError NOT_FOUND, INVALID_REQUEST."""
    spelled = _spelled_host(host)
    table = schema.blocked_hosts
    done = connection.execute(delete(table).where(table.c.application_id == application_id, table.c.host == spelled))
    if not done.rowcount:
        raise ApiError(ErrorCode.NOT_FOUND, f"{spelled} is not blocked.")
    bump(connection)
    return spelled


def list_blocked_hosts(connection: Connection, application_id: int | None = None) -> list[dict[str, Any]]:
    """application_id (EVERYBODY for the installation's), host, created_at; of all when `application_id` is None."""
    table = schema.blocked_hosts
    statement = select(table).order_by(table.c.application_id, table.c.host)
    if application_id is not None:
        statement = statement.where(table.c.application_id == application_id)
    rows = connection.execute(statement)
    return [{"application_id": row.application_id, "host": row.host, "created_at": row.created_at} for row in rows]


_NO_HOST = frozenset("/?#@")


def _spelled_host(host: str) -> str:
    """As `Special` looks it up. Raises ApiError INVALID_REQUEST."""
    from shortener.rewrite.destinations import DestinationError, parse_destination

    wildcard = "*." if host.startswith("*.") else ""
    name = host.removeprefix("*.").removeprefix("[").removesuffix("]")
    try:
        if name.count(":") == 1 or not _NO_HOST.isdisjoint(name):
            raise DestinationError("is more than a host: without scheme, port and path, please")
        return wildcard + parse_destination(f"http://{f'[{name}]' if ':' in name else name}/").host
    except DestinationError as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("host", error.reason)]) from None


def check_base_url(base_url: str) -> str:
    """The host, as a Host header spells it, of a prefix of short links. Raises ApiError INVALID_REQUEST."""
    problem = None
    try:
        parts = urlsplit(base_url)
        _ = parts.port  # raises ValueError
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
            problem = "wants https://HOST"
        elif parts.path not in ("", "/"):
            problem = "cannot have a path: codes live at the root of a domain"
        elif not parts.hostname.isascii():
            problem = "wants the punycode form of the host"
    except ValueError:
        problem = "is not a URL"
    if problem:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("domain", problem)])
    return host_of(base_url)


def host_of(url: str) -> str:
    """The host of an absolute URL as a Host header spells it: lower case, with the port unless it is the scheme's own."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return host if parts.port in (None, {"http": 80, "https": 443}.get(parts.scheme)) else f"{host}:{parts.port}"


def create_key(connection: Connection, application_id: int, name: str, permissions: Sequence[str], now: datetime) -> str:
    """A new API key, returned once. Raises ApiError INVALID_REQUEST, NOT_FOUND."""
    unknown = sorted(set(permissions) - set(PERMISSIONS))
    if unknown or not permissions:
        reason = f"unknown: {', '.join(unknown)}; there are {', '.join(PERMISSIONS)}"
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("permissions", reason)])
    _require_application(connection, application_id)
    key = "sk_" + secrets.token_urlsafe(32)
    connection.execute(
        insert(schema.api_keys).values(
            application_id=application_id,
            name=name,
            hash=hash_credential(key),
            hint=key[:8],
            permissions=sorted(set(permissions)),
            created_at=now,
        )
    )
    bump(connection)
    return key


def revoke_key(connection: Connection, key_id: int, now: datetime) -> None:
    """Raises ApiError NOT_FOUND."""
    table = schema.api_keys
    done = connection.execute(update(table).where(table.c.id == key_id, table.c.revoked_at.is_(None)).values(revoked_at=now))
    if not done.rowcount:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no live key {key_id}.")
    bump(connection)


def list_keys(connection: Connection, application_id: int | None = None) -> list[dict[str, Any]]:
    """Keys without their secrets: id, application_id, name, hint, permissions, created_at, revoked_at."""
    table = schema.api_keys
    statement = select(table).order_by(table.c.id)
    if application_id is not None:
        statement = statement.where(table.c.application_id == application_id)
    return [{str(name): value for name, value in row._mapping.items() if name != "hash"} for row in connection.execute(statement)]


def rotate_token(connection: Connection, application_id: int, now: datetime, overlap: timedelta) -> tuple[str, datetime]:
    """A new tracker token, and until when the previous one stays valid (23 Telecom). Older ones end now."""
    _require_application(connection, application_id)
    table = schema.tracker_tokens
    until = now + overlap
    mine = table.c.application_id == application_id
    connection.execute(update(table).where(mine, table.c.valid_until > now).values(valid_until=now))
    connection.execute(update(table).where(mine, table.c.valid_until.is_(None)).values(valid_until=until))
    token = _new_token(connection, application_id, now)
    bump(connection)
    return token, until


def _new_token(connection: Connection, application_id: int, now: datetime) -> str:
    token = "tt_" + secrets.token_urlsafe(32)
    connection.execute(
        insert(schema.tracker_tokens).values(application_id=application_id, hash=hash_credential(token), created_at=now)
    )
    return token


def _require_application(connection: Connection, application_id: int) -> None:
    table = schema.applications
    if connection.execute(select(table.c.id).where(table.c.id == application_id)).first() is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no application {application_id}.")


def ensure_default(connection: Connection, now: datetime) -> Credentials | None:
    """On the very first start, make the application `default`; None when there is any application already."""
    if connection.execute(select(schema.applications.c.id).limit(1)).first():
        return None
    return create_application(connection, "default", now)
