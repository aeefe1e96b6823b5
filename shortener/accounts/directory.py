"""The directory contains the applications, domains, API keys, tracker tokens and blocked hosts of the installation, in memory.
Therefore redirects and API calls do not read accounts from the database.

Every transaction that changes accounts also changes their version. Every process reads this version a few times per second, and
reads the accounts again if it has changed. Therefore a revoked key, a disabled application or domain and a blocked host take
effect in all processes within a second. They stay in effect while the database is down.

A process also reads the version before it rejects an unknown credential, so it accepts a new credential at once.
"""

# Tested by tests/accounts/test_directory.py and tests/accounts/test_administration.py

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, Row, select

from shortener.accounts.gateway_entries import GatewayEntry, read_gateways, read_removed_gateways, usable_gateways
from shortener.accounts.hit_policies import HitPolicies, read_hit_policies
from shortener.accounts.own_hosts import NO_HOSTS, OwnHosts, is_local, name_of
from shortener.accounts.settings import ApplicationSettings, from_stored
from shortener.accounts.version import read_version
from shortener.errors import ApiError, ErrorCode, StoreUnavailable
from shortener.model import mutable_record, record
from shortener.settings import Settings
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.installation import find_former_base_urls
from shortener.urls import canonical_host, host_of, matches_link_path

REFRESH_SECONDS = 0.25  # The pause between two reads of the version by the background job of each process.
#: The maximum time in seconds that a request with an unknown credential waits for the accounts to be read again.
MAX_CATCH_UP_SECONDS = 0.5


@record
class Domain:
    """A host that belongs to one application. `host` has the form of the Host header: lower case, without a default port.

    `base_url` is scheme, host and port. `path` precedes the code of each new link and may contain `{sender}`. Links with a path
    in `previous_paths` still work. A removed domain gets no new links, but its existing links still work."""

    id: int
    application_id: int
    host: str
    base_url: str
    fallback_url: str | None
    disabled: bool
    path: str = ""
    previous_paths: tuple[str, ...] = ()
    home_url: str | None = None
    assetlinks: str | None = None  # The content of assetlinks.json as JSON text.
    apple_app_site_association: str | None = None  # The content of apple-app-site-association as JSON text.
    is_default: bool = False
    removed: bool = False

    def accepts(self, prefix: str) -> bool:
        """Return whether links of this domain can have the path `prefix` before their codes. `prefix` is "" or a path such as
        "/ABCDEF"."""
        return any(matches_link_path(path, prefix) for path in (self.path, *self.previous_paths))


DEFAULT_NAME = "default"  # The name of the application that the first start of a server creates. Recipients do not see it.


@record
class Application:
    """An application (a tenant) with its settings and its domains. `domains` does not contain removed domains. `had_domains` is
    true if the application has or had a domain of its own. `gateway` is the gateway that sends its messages. `gateways` are all
    gateways that a request may select. If the gateway of the application was removed, `removed_gateway` is the name of that
    gateway. Otherwise `removed_gateway` is ""."""

    id: int
    name: str
    company_id: int | None
    settings: ApplicationSettings
    created_at: datetime
    disabled: bool
    domains: tuple[Domain, ...] = ()
    had_domains: bool = False
    gateway: GatewayEntry | None = None
    gateways: tuple[GatewayEntry, ...] = ()
    removed_gateway: str = ""

    @property
    def domain(self) -> Domain | None:
        """The domain of new links: the default domain if it is enabled, and otherwise the first enabled domain. It is None if no
        domain is enabled."""
        enabled = [domain for domain in self.domains if not domain.disabled]
        return next((domain for domain in enabled if domain.is_default), enabled[0] if enabled else None)

    @property
    def public_name(self) -> str:
        """The name that recipients read. It is "" while the application still has the name that the first start of a server gave
        it."""
        return "" if self.name == DEFAULT_NAME else self.name

    def find_gateway(self, name: str) -> GatewayEntry | None:
        """Return the gateway with this name, or the gateway of the application if `name` is "". Return None if there is no such
        gateway."""
        return next((one for one in self.gateways if one.name == name), None) if name else self.gateway

    @property
    def may_use_shared_host(self) -> bool:
        """Whether new links may begin with BASE_URL when no domain of the application is enabled."""
        return not self.had_domains or self.settings.allow_shared_host


@record
class Principal:
    """An authenticated caller: its application and the permissions of its key."""

    application: Application
    permissions: frozenset[str]
    key_id: int = 0
    rate_limit: int | None = None  # The maximum number of requests per minute with this API key; None: no limit.


def hash_credential(text: str) -> str:
    """Return the SHA-256 of a credential, in hexadecimal. The database stores only this value."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


@mutable_record
class _Snapshot:
    """All data of the directory, at one version of the accounts."""

    version: str = ""
    applications: dict[int, Application] = field(default_factory=dict)
    domains: dict[str, Domain] = field(default_factory=dict)
    domains_by_id: dict[int, Domain] = field(default_factory=dict)
    link_paths: frozenset[str] = frozenset()
    #: The paths of former BASE_URLs, by the name of their host.
    former_base_paths: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: By hash of the API key: key id, application id, permissions and rate limit.
    keys: dict[str, tuple[int, int, frozenset[str], int | None]] = field(default_factory=dict)
    # By hash of the tracker token: application id, and the time at which the token expires.
    tokens: dict[str, tuple[int, datetime | None]] = field(default_factory=dict)
    #: By hash of the postback key: key id, application id, and the time at which the key expires.
    postback_keys: dict[str, tuple[int, int, datetime | None]] = field(default_factory=dict)
    hit_policies: HitPolicies = field(default_factory=HitPolicies)
    gateways: dict[int, GatewayEntry] = field(default_factory=dict)
    report_keys: dict[str, int] = field(default_factory=dict)  # By hash of the report key: the id of the gateway.


class Directory:
    """All accounts in memory, as they were at the last `refresh`.

    `own_hosts` are the hosts of the service itself, from the settings."""

    def __init__(self, database: Database, own_hosts: OwnHosts = NO_HOSTS) -> None:
        self._database = database
        self._own_hosts = own_hosts
        self._snapshot = _Snapshot()
        self._refreshes = 0  # The number of refreshes that have begun.
        self._applied = 0  # The number of the refresh from which `_snapshot` comes.
        self._reading: asyncio.Task[bool] | None = None  # The latest refresh that `catch_up` has begun.
        self._waiting: asyncio.Task[bool] | None = None  # The refresh that begins when `_reading` has ended.

    async def refresh(self) -> bool:
        """Read all accounts if an account has changed. Return whether one has changed.

        Raise StoreUnavailable if the database is unavailable. The old accounts then stay in use."""
        self._refreshes += 1
        number = self._refreshes
        fresh = await self._database.read(_load_if_changed, self._snapshot.version)
        # A refresh that began earlier may end later. Its accounts are older, so they are dropped.
        if fresh is not None and number > self._applied:
            self._snapshot, self._applied = fresh, number
        return fresh is not None

    async def catch_up(self) -> bool:
        """If an account has changed, read all accounts as they are now. Return False if this failed.

        Concurrent callers share one read, so many unknown credentials do not load the database. If the database is unavailable,
        or does not respond within MAX_CATCH_UP_SECONDS, the old accounts stay in use and the result is False."""
        if self._reading is None or self._reading.done():
            self._reading = read = asyncio.ensure_future(self.refresh_if_available())
        elif self._waiting is None or self._waiting.done():
            # A refresh is already running. It may have begun before the account was created, so another one must follow.
            self._waiting = read = asyncio.ensure_future(self._refresh_after(self._reading))
        else:
            read = self._waiting
        done, _ = await asyncio.wait((read,), timeout=MAX_CATCH_UP_SECONDS)
        return bool(done) and read.result()

    async def _refresh_after(self, earlier: asyncio.Task[bool]) -> bool:
        await asyncio.wait((earlier,))
        self._reading, self._waiting = self._waiting, None
        return await self.refresh_if_available()

    async def refresh_if_available(self) -> bool:
        """Call `refresh` and return True. If the database is unavailable, return False. The old accounts then stay in use until
        the background job refreshes them.

        Use this function after a committed change: the change is stored, so the client must not get an error if only the refresh
        fails."""
        try:
            await self.refresh()
        except StoreUnavailable:
            return False
        return True

    @property
    def version(self) -> str:
        """The version of the accounts in memory. It is a random text that changes with each change of an account."""
        return self._snapshot.version

    def application(self, application_id: int) -> Application | None:
        """Return the application with this id."""
        return self._snapshot.applications.get(application_id)

    def applications(self) -> list[Application]:
        """Return all applications of the installation."""
        return list(self._snapshot.applications.values())

    @property
    def hit_policies(self) -> HitPolicies:
        """The settings, trackers, blocked hosts and domains that affect hits."""
        return self._snapshot.hit_policies

    def domain(self, host: str) -> Domain | None:
        """Return the domain with this host, or None. `host` must be written as it is stored or in canonical form."""
        return self._snapshot.domains.get(host)

    def accepts_path(self, prefix: str) -> bool:
        """Return whether at least one domain can have links with the path `prefix` before their codes."""
        return any(matches_link_path(path, prefix) for path in self._snapshot.link_paths)

    def is_former_base(self, name: str) -> bool:
        """Return whether a name was formerly the host of BASE_URL. Links that were sent with this BASE_URL still work. Something
        else may run on the host now, such as a shop. Therefore this name alone does not make a host an own host (`is_own`), and new
        links may lead to it."""
        return name in self._snapshot.former_base_paths

    def accepts_former_path(self, name: str, prefix: str) -> bool:
        """Return whether links that were sent with a former BASE_URL on the host `name` can have the path `prefix` before their
        codes."""
        return any(matches_link_path(path, prefix) for path in self._snapshot.former_base_paths.get(name, ()))

    def domain_by_id(self, domain_id: int) -> Domain | None:
        """Return the domain with this id."""
        return self._snapshot.domains_by_id.get(domain_id)

    def fallback_url(self, application_id: int, domain_id: int) -> str | None:
        """Return the fallback URL for expired links that have no fallback URL of their own. It is the fallback URL of the domain
        or, if the domain has none, the fallback URL of the application."""
        domain = self.domain_by_id(domain_id)
        application = self.application(application_id)
        of_domain = domain.fallback_url if domain else None
        return of_domain or (application.settings.fallback_url if application else None)

    def unknown_code_url(self, domain_id: int) -> str | None:
        """Return the destination for an unknown code, which is the fallback URL of the domain.

        Return None if the domain is unknown, disabled or has no fallback URL. Also return None if the host of the fallback URL is
        blocked for the application of the domain, or belongs to the installation."""
        domain = self.domain_by_id(domain_id)
        if domain is None or domain.disabled or domain.fallback_url is None:
            return None
        url = domain.fallback_url
        return None if self.hit_policies.blocks(domain.application_id, url) or self.is_own(url) else url

    def is_own(self, url: str) -> bool:
        """Return whether the host of a URL belongs to the installation: the settings contain the host, or it is a domain of any
        application. For a domain that is a name, the port of the URL does not matter, because the service responds to the name on
        every port. For a domain that is an IP address, the URL must have the port of the domain."""
        host = host_of(url)
        if not host:
            return False
        name = name_of(host)
        is_domain = self.domain(host) is not None or (name != host and not is_local(name) and self.domain(name) is not None)
        return is_domain or self._own_hosts.contains(url)

    def find_by_api_key(self, key: str) -> Principal | None:
        """Return the caller with this API key. Return None if the key is unknown or revoked, or if its application is
        disabled."""
        found = self._snapshot.keys.get(hash_credential(key))
        if found is None:
            return None
        key_id, application_id, permissions, rate_limit = found
        return self._principal(application_id, permissions, key_id, rate_limit)

    def find_by_tracker_token(self, token: str, now: datetime) -> Principal | None:
        """Return the caller with this tracker token. Return None if the token is unknown or expired, or if its application is
        disabled."""
        found = self._snapshot.tokens.get(hash_credential(token))
        if found is None or (found[1] is not None and found[1] <= now):
            return None
        return self._principal(found[0], frozenset(), 0)

    def find_by_postback_key(self, key: str, now: datetime) -> Principal | None:
        """Return the caller with this postback key in its URL. Return None if the key is unknown, revoked or expired, or if its
        application is disabled."""
        found = self._snapshot.postback_keys.get(hash_credential(key))
        if found is None or (found[2] is not None and found[2] <= now):
            return None
        return self._principal(found[1], frozenset(), found[0])

    @property
    def gateways(self) -> Mapping[int, GatewayEntry]:
        """All gateways that are not removed, by id."""
        return self._snapshot.gateways

    def find_by_report_key(self, key: str) -> GatewayEntry | None:
        """Return the gateway with this key in the path of its reports; None for an unknown key."""
        gateway_id = self._snapshot.report_keys.get(hash_credential(key))
        return None if gateway_id is None else self._snapshot.gateways.get(gateway_id)

    def _principal(
        self, application_id: int, permissions: frozenset[str], key_id: int, rate_limit: int | None = None
    ) -> Principal | None:
        application = self._snapshot.applications.get(application_id)
        if application is None or application.disabled:
            return None
        return Principal(application, permissions, key_id, rate_limit)


def base_url_of(settings: Settings, directory: Directory) -> Callable[[int], str]:
    """Return a function of a domain id. The function returns the scheme, host and port of the short links on this domain. The id
    0 means BASE_URL.

    The path before the code is not included: it is stored with each link (see `short_url`)."""
    shared = settings.base_origin

    def base_url(domain_id: int) -> str:
        domain = directory.domain_by_id(domain_id)
        return domain.base_url if domain else shared

    return base_url


def short_url(base_url: str, path: str | None, code: str) -> str:
    """Return the URL of a short link. `path` is the stored path before the code; None means no path."""
    return f"{base_url}{path or ''}/{code}"


def _load_if_changed(connection: Connection, version: str) -> _Snapshot | None:
    current = read_version(connection)
    if current == version:
        return None
    fresh = _Snapshot(version=current)
    domains: dict[int, list[Domain]] = {}
    for row in connection.execute(select(schema.domains).order_by(schema.domains.c.id)):
        domain = _domain_of(row)
        domains.setdefault(row.application_id, []).append(domain)
        fresh.domains[domain.host] = domain
        fresh.domains_by_id[domain.id] = domain
    # Earlier versions stored an IPv6 host as it was entered. The canonical form of such a host is also a key, so that both forms
    # find the domain.
    for host in list(fresh.domains):
        fresh.domains.setdefault(canonical_host(host), fresh.domains[host])
    former_paths: dict[str, list[str]] = {}
    for url in find_former_base_urls(connection):
        parts = urlsplit(url)
        former_paths.setdefault(parts.hostname or "", []).append(parts.path.rstrip("/"))
    fresh.former_base_paths = {name: tuple(paths) for name, paths in former_paths.items()}
    of_domains = (path for one in fresh.domains.values() for path in (one.path, *one.previous_paths))
    fresh.link_paths = frozenset(path for path in (*of_domains, *chain(*former_paths.values())) if path)
    fresh.gateways, fresh.report_keys = read_gateways(connection)
    removed = read_removed_gateways(connection)
    for row in connection.execute(select(schema.applications).order_by(schema.applications.c.id)):
        fresh.applications[row.id] = _application_of(row, domains.get(row.id, ()), fresh.gateways, removed)
    fresh.hit_policies = read_hit_policies(
        connection,
        {one.id: one.settings for one in fresh.applications.values()},
        frozenset(one.id for one in fresh.applications.values() if one.disabled),
        frozenset(one.id for one in fresh.domains_by_id.values() if one.disabled),
        frozenset(one.id for one in fresh.domains_by_id.values() if name_of(one.host) in former_paths),
    )
    keys = schema.api_keys
    for row in connection.execute(select(keys).where(keys.c.revoked_at.is_(None))):
        fresh.keys[row.hash] = (row.id, row.application_id, frozenset(row.permissions), row.rate_limit)
    for row in connection.execute(select(schema.tracker_tokens)):
        fresh.tokens[row.hash] = (row.application_id, row.valid_until)
    postbacks = schema.postback_keys
    for row in connection.execute(select(postbacks).where(postbacks.c.revoked_at.is_(None))):
        fresh.postback_keys[row.hash] = (row.id, row.application_id, row.valid_until)
    return fresh


def read_application(connection: Connection, application_id: int) -> Application:
    """Return the current state of an application, including changes that the same transaction has made. Raise ApiError
    NOT_FOUND."""
    a, d = schema.applications, schema.domains
    row = connection.execute(select(a).where(a.c.id == application_id)).first()
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no application {application_id}.")
    domains = connection.execute(select(d).where(d.c.application_id == application_id).order_by(d.c.id))
    gateways, _ = read_gateways(connection)
    return _application_of(row, [_domain_of(domain) for domain in domains], gateways, read_removed_gateways(connection))


def _domain_of(row: Row[Any]) -> Domain:
    return Domain(
        id=row.id,
        application_id=row.application_id,
        host=row.host,
        base_url=row.base_url,
        fallback_url=row.fallback_url,
        disabled=row.disabled_at is not None,
        path=row.path,
        previous_paths=tuple(row.previous_paths or ()),
        home_url=row.home_url,
        assetlinks=row.assetlinks,
        apple_app_site_association=row.apple_app_site_association,
        is_default=row.is_default,
        removed=row.removed_at is not None,
    )


def _application_of(
    row: Row[Any], domains: Sequence[Domain], gateways: Mapping[int, GatewayEntry], removed: Mapping[int, str]
) -> Application:
    """Return the `Application` for a row of the table `applications`. `domains` are all domains of the application. `gateways`
    are all gateways by id. `removed` are the names of removed gateways by id."""
    gateway = gateways.get(row.gateway_id) if row.gateway_id is not None else None
    return Application(
        id=row.id,
        name=row.name,
        company_id=row.company_id,
        settings=from_stored(row.settings),
        created_at=row.created_at,
        disabled=row.disabled_at is not None,
        domains=tuple(domain for domain in domains if not domain.removed),
        had_domains=bool(domains),
        gateway=gateway,
        gateways=usable_gateways(row.id, gateway, gateways.values()),
        removed_gateway=removed.get(row.gateway_id, ""),
    )


def require_application(connection: Connection, application_id: int) -> None:
    """Raise ApiError NOT_FOUND if the application does not exist."""
    table = schema.applications
    if connection.execute(select(table.c.id).where(table.c.id == application_id)).first() is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no application {application_id}.")
