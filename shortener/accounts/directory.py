"""The directory: applications, domains, API keys, tracker tokens and blocked hosts, held in memory.

A redirect or an API call needs no database read to find its caller. Every change increments a version in its own transaction, and
every process reads that version a few times a second. A revoked key, a disabled application or domain and a blocked host take
effect within a second everywhere, and stay known while the database is unavailable.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, select

from shortener.accounts.settings import ApplicationSettings, Privacy
from shortener.errors import ApiError, ErrorCode
from shortener.model import Topic
from shortener.storage import schema
from shortener.storage.database import Database, upsert

ALL_APPLICATIONS = 0  # in place of an application's number: what holds for all of them
_VERSION = "directory"


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
class HitPolicies:
    """What few applications ask of a hit, and those few that are switched off: empty in most installations, and then a hit costs
    nothing more. Numbers are those of applications, if they are not said to be others."""

    contextual_rules: Mapping[int, ApplicationSettings] = field(default_factory=dict)  # those that judge by them
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
        for owner in (ALL_APPLICATIONS, application_id):
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
    hit_policies: HitPolicies = field(default_factory=HitPolicies)


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
    def hit_policies(self) -> HitPolicies:
        return self._now.hit_policies

    def domain(self, host: str) -> Domain | None:
        """The domain of a Host header (lower case)."""
        return self._now.domains.get(host)

    def domain_by_id(self, domain_id: int) -> Domain | None:
        return self._now.domains_by_id.get(domain_id)

    def fallback_url(self, application_id: int, domain_id: int) -> str | None:
        """The destination of expired links without a fallback URL of their own: the domain's, or else the application's."""
        domain = self.domain_by_id(domain_id)
        application = self.application(application_id)
        of_domain = domain.fallback_url if domain else None
        return of_domain or (application.settings.fallback_url if application else None)

    def click_id_param(self, application_id: int) -> str | None:
        """The query parameter that carries click ids to the application's destinations; None if it has none."""
        application = self.application(application_id)
        return application.settings.click_id_param if application else None

    def find_by_api_key(self, key: str) -> Principal | None:
        found = self._now.keys.get(hash_credential(key))
        if found is None:
            return None
        key_id, application_id, permissions = found
        return self._principal(application_id, permissions, key_id)

    def find_by_tracker_token(self, token: str, now: datetime) -> Principal | None:
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
    fresh.hit_policies = HitPolicies(
        contextual_rules={number: chosen for number, chosen in settings.items() if chosen.uses_contextual_rules},
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


def increment_version(connection: Connection) -> None:
    """Tell every process that accounts changed; part of each transaction that changes them."""
    statement = upsert(connection, schema.installation).values(name=_VERSION, value=secrets.token_hex(8))
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"value": statement.excluded.value}))


def require_application(connection: Connection, application_id: int) -> None:
    table = schema.applications
    if connection.execute(select(table.c.id).where(table.c.id == application_id)).first() is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no application {application_id}.")
