"""Construction of the whole service: the one place that builds the parts and passes them to each other.

`open_service` opens the database and builds the parts in the order of their dependencies, one function per group:
`Foundation`, then `ClickParts`, `MessageParts` and `DeliveryParts`. Each group receives only what it depends on. The web layer
and the command line use a `Service`; no other module builds parts for them.

If a step fails, everything that was opened before it is closed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta

import structlog
from sqlalchemy.exc import IntegrityError

from shortener import __version__
from shortener.accounts.administration import ensure_default
from shortener.accounts.credentials import Credentials
from shortener.accounts.directory import Directory, base_url_of
from shortener.clicks.device_counts import DeviceCounter
from shortener.clicks.hit_spool import HitSpool
from shortener.clicks.link_updates import LinkUpdates
from shortener.clicks.networks import open_networks
from shortener.clicks.recorder import Recorder
from shortener.clicks.spool_drainer import SpoolDrainer
from shortener.clicks.verdicts.early_hits import EarlyHits
from shortener.clicks.verdicts.reclassify import INTERVAL as RECLASSIFY_INTERVAL
from shortener.clicks.verdicts.reclassify import Reclassifier
from shortener.conversions.refusals import RefusedConversions
from shortener.conversions.service import Conversions
from shortener.delivery.deliveries import Deliveries
from shortener.delivery.dispatcher import Dispatcher
from shortener.delivery.fanout import Fanout
from shortener.delivery.guard import ForbiddenTarget, Guard
from shortener.delivery.sample_delivery import MAX_TESTS, TestSlots
from shortener.delivery.sender import Sender
from shortener.delivery.throttle import Throttle
from shortener.delivery.trackers import Trackers
from shortener.errors import ApiError
from shortener.ids import ClickIds, IdGenerator
from shortener.jobs import Job, Jobs, TaskSupervisor, WakeUp
from shortener.messages.codes import Codes
from shortener.messages.delivery_reports import DeliveryReports
from shortener.messages.plan import RewriteLimits
from shortener.messages.rewriter import Rewriter
from shortener.metrics import Metrics
from shortener.model import Clock, utcnow
from shortener.outbox.count_deltas import Cohorts
from shortener.outbox.expiring_keys import announce, has_expiring
from shortener.redis.client import RedisServer, open_redis
from shortener.redis.link_cache import LinkCache, NoLinkCache, RedisLinkCache
from shortener.redis.rate_limit import RateLimits
from shortener.reporting import counts
from shortener.reporting.status import MessageStatusReader
from shortener.retention.purge import Purge
from shortener.secret import Secret, SecretError, open_secret
from shortener.settings import Settings
from shortener.storage.clock import SharedClock
from shortener.storage.copy import is_unfinished
from shortener.storage.database import Database
from shortener.storage.installation import get_or_set
from shortener.storage.integrity import require_database
from shortener.storage.migrate import SchemaMismatch, prepare
from shortener.storage.node_lease import RENEW_SECONDS, NodeLease
from shortener.storage.notifier import PostgresNotifier
from shortener.storage.open import open_database, sqlite_path
from shortener.storage.postgres import split_url
from shortener.storage.sqlite import SqliteDatabase
from shortener.storage.types import to_ms
from shortener.urls import host_of

log = structlog.get_logger(__name__)

# The intervals below are pauses of background jobs. A job waits this long after a run that found nothing to do.
DIRECTORY_INTERVAL_SECONDS = 0.5  # Pause of the job that reloads applications, keys and domains if their version changed.
CLOCK_INTERVAL_SECONDS = 10.0  # Pause of the job that compares the clock of this machine with the clock of PostgreSQL.
DELIVERY_INTERVAL_SECONDS = 0.5  # Pause of the jobs that search for new events and due deliveries.
SPOOL_INTERVAL_SECONDS = 0.5  # Pause of the job that writes hits from Redis to the database when it is available again.
ROLLUPS_INTERVAL_SECONDS = 10.0  # Pause of the job that rolls up counts that an older version wrote.
ROLLUPS_MIN_INTERVAL_SECONDS = 0.1  # The pause between two transactions of the roll-up job, so that clicks are not delayed.
COUNTS_INTERVAL_SECONDS = 1.0  # Pause of the job that adds count deltas to the counts.
LINK_UPDATES_INTERVAL_SECONDS = 2.0  # Pause of the job that continues updates of many links whose process ended.
DEVICES_INTERVAL_SECONDS = 10.0  # Pause of the job that counts clicks by device and browser.
EARLY_HITS_INTERVAL_SECONDS = 2.0
EXPIRING_KEYS_INTERVAL_SECONDS = 10.0

#: Minimum pause between two runs of the fan-out. It sends a single event at once; under load, one run handles 20 ms of events.
FANOUT_MIN_INTERVAL_SECONDS = 0.02
#: The last seconds of a stop, which are reserved for closing connections.
CLOSE_SECONDS = 0.5


@dataclass(frozen=True)
class Foundation:
    """What every other part depends on: settings, clock, secret, database, Redis, accounts and ids."""

    settings: Settings
    clock: Clock
    secret: Secret
    database: Database
    redis: RedisServer | None
    cache: LinkCache
    notifier: PostgresNotifier | None
    directory: Directory
    ids: IdGenerator
    node_lease: NodeLease | None  # The lease of this process's node number; None with SQLite.
    click_ids: ClickIds
    supervisor: TaskSupervisor  # Supervises the tasks that run as long as the process.
    rate_limits: RateLimits
    client_key: bytes  # The key that `client_address.hash_client` uses.
    events_wake_up: WakeUp  # The fan-out job waits for this event. It is set after each transaction that wrote events.
    notify_events: Callable[[], None]  # Sets `events_wake_up` in every process of the installation.

    def now_ms(self) -> int:
        """Return the current time in milliseconds since 1970, UTC."""
        return to_ms(self.clock())


@dataclass(frozen=True)
class ClickParts:
    """The parts that record and classify hits."""

    recorder: Recorder
    spool: HitSpool | None
    spool_drainer: SpoolDrainer | None
    devices: DeviceCounter
    reclassifier: Reclassifier
    link_updates: LinkUpdates
    early_hits: EarlyHits


@dataclass(frozen=True)
class MessageParts:
    """The parts that rewrite messages, accept reports about them and return their status."""

    codes: Codes
    cohorts: Cohorts
    link_hosts: InstallationHosts
    rewriter: Rewriter
    delivery_reports: DeliveryReports
    conversions: Conversions
    refused_conversions: RefusedConversions
    status_reader: MessageStatusReader


@dataclass(frozen=True)
class DeliveryParts:
    """The parts that deliver events to trackers."""

    trackers: Trackers
    deliveries: Deliveries
    sender: Sender
    test_slots: TestSlots
    fanout: Fanout
    dispatcher: Dispatcher


class Service:
    """All parts of the service, grouped by dependency. The parts that other modules use also have short names here.

    Only the very first start of an installation sets `first_credentials`.
    """

    def __init__(
        self,
        foundation: Foundation,
        clicks: ClickParts,
        messages: MessageParts,
        delivery: DeliveryParts,
        jobs: Jobs,
        metrics: Metrics,
        first_credentials: Credentials | None,
    ) -> None:
        self.settings = foundation.settings
        self.clock = foundation.clock
        self.now_ms = foundation.now_ms
        self.secret = foundation.secret
        self.database = foundation.database
        self.redis = foundation.redis
        self.notifier = foundation.notifier
        self.cache = foundation.cache
        self.directory = foundation.directory
        self.ids = foundation.ids
        self.node_lease = foundation.node_lease
        self.click_ids = foundation.click_ids
        self.supervisor = foundation.supervisor
        self.rate_limits = foundation.rate_limits
        self.client_key = foundation.client_key
        self.networks = open_networks(foundation.settings.network_files)
        self.events_wake_up = foundation.events_wake_up
        self.recorder = clicks.recorder
        self.devices = clicks.devices
        self.reclassifier = clicks.reclassifier
        self.link_updates = clicks.link_updates
        self.link_hosts = messages.link_hosts
        self.early_hits = clicks.early_hits
        self.codes = messages.codes
        self.cohorts = messages.cohorts
        self.rewriter = messages.rewriter
        self.delivery_reports = messages.delivery_reports
        self.conversions = messages.conversions
        self.refused_conversions = messages.refused_conversions
        self.status_reader = messages.status_reader
        self.trackers = delivery.trackers
        self.deliveries = delivery.deliveries
        self.sender = delivery.sender
        self.test_slots = delivery.test_slots
        self.fanout = delivery.fanout
        self.dispatcher = delivery.dispatcher
        self.jobs = jobs
        self.metrics = metrics
        self.first_credentials = first_credentials
        self.ready = False
        self._stop_deadline = 0.0  # The time at which the stop must be complete, on the clock of the event loop.
        self._dispatcher_stop: asyncio.Task[None] | None = None

    def start(self, *, web: bool = True, deliver: bool = True) -> None:
        """Start the background work. Requires a running event loop."""
        if web:
            self.recorder.start()
        self.jobs.start(without=() if deliver else ("fanout", "dispatcher"))
        if self.notifier is not None:
            self.notifier.start(self.supervisor)
        self.ready = True

    @property
    def is_stopping(self) -> bool:
        """Whether `begin_stop` was called."""
        return self._dispatcher_stop is not None

    def begin_stop(self, within: float) -> None:
        """Report "not ready" on /readyz and start no more deliveries. Requests and clicks still get responses.

        `close` must finish within `within` seconds from now. Deliveries in flight finish, or are handed back, while requests are
        still being answered. A second call has no effect.
        """
        if self._dispatcher_stop is None:
            self.ready = False
            loop = asyncio.get_running_loop()
            self._stop_deadline = loop.time() + within
            self._dispatcher_stop = loop.create_task(self.dispatcher.stop(max(within - CLOSE_SECONDS, 0.1)))

    async def close(self, grace: float = 8.0) -> None:
        """Write the waiting hits, stop the background work and close all connections.

        This takes at most `grace` seconds, or the time that an earlier `begin_stop` allowed.
        """
        self.begin_stop(grace)
        assert self._dispatcher_stop is not None
        remaining = self._stop_deadline - CLOSE_SECONDS - asyncio.get_running_loop().time()
        await asyncio.gather(self.recorder.stop(max(remaining, 0.1)), self._dispatcher_stop)
        await self._close_part("jobs", self.jobs.stop())
        if self.notifier is not None:
            await self._close_part("notifier", self.notifier.stop())
        if self.redis is not None:
            await self._close_part("redis", self.redis.close())
        await self._close_part("sender", self.sender.close())
        await self._close_part("test_sender", self.test_slots.sender.close())
        if self.node_lease is not None:
            await self._close_part("node_lease", self.node_lease.release())
        await self._close_part("database", self.database.close())

    async def _close_part(self, name: str, closing: Awaitable[None]) -> None:
        """Close one part within a time limit.

        A server that does not respond must not delay the stop. All data is already written."""
        remaining = self._stop_deadline - asyncio.get_running_loop().time()
        try:
            await asyncio.wait_for(closing, max(remaining, CLOSE_SECONDS / 5))
        except TimeoutError:
            log.error("not_closed_in_time", part=name)


async def open_service(settings: Settings, *, clock: Clock | None = None, owner: bool = True) -> Service:
    """Open the database and build every part. The very first start also creates the database and the default application.

    `clock` replaces the clock in tests; by default all processes of an installation share one. `owner`: this process is the one
    that may write to an SQLite database.

    Raises StoreUnavailable, SchemaMismatch, SecretError, DatabaseLost.
    """
    require_database(sqlite_path(settings.store_url), settings.data_dir)
    # Open the database first: if a first start is killed at this point, it leaves no secret without a database.
    await prepare(settings.store_url)
    secret = open_secret(settings.secret, settings.data_dir)
    database = await open_database(
        settings.store_url, owner=owner, pool_size=settings.database_pool, timeout=settings.database_timeout
    )
    async with AsyncExitStack() as opened:
        opened.push_async_callback(database.close)
        if await database.read(is_unfinished):
            raise SchemaMismatch("the copy into this database is incomplete: run `shortener copy` again")
        stored_fingerprint = await database.write(get_or_set, "secret", secret.fingerprint)
        if stored_fingerprint != secret.fingerprint:
            raise SecretError(
                "this database belongs to an installation with another SECRET: its links and encrypted secrets would not work"
            )
        if clock is None:
            clock = await _open_clock(database)
        first_credentials = await _ensure_default_application(database, clock, secret)
        service = await _build_service(settings, clock, secret, database, first_credentials, opened, owner=owner)
        opened.pop_all()  # From this point on, `Service.close` closes everything that was opened.
        return service


async def _open_clock(database: Database) -> Clock:
    if database.dialect == "sqlite":
        return utcnow  # With SQLite, one process serves, so its own clock is sufficient.
    clock = SharedClock(database)
    await clock.step()
    return clock


async def _ensure_default_application(database: Database, clock: Clock, secret: Secret) -> Credentials | None:
    try:
        return await database.write(ensure_default, clock(), secret)
    except (IntegrityError, ApiError):  # Another node has created the default application at the same time.
        return await database.write(ensure_default, clock(), secret)


async def _build_service(
    settings: Settings,
    clock: Clock,
    secret: Secret,
    database: Database,
    first_credentials: Credentials | None,
    opened: AsyncExitStack,
    *,
    owner: bool,
) -> Service:
    """Build all groups. `opened` closes what was opened if a later step fails."""
    foundation = await _build_foundation(settings, clock, secret, database, opened, owner=owner)
    clicks = _build_clicks(foundation)
    messages = _build_messages(foundation)
    delivery = _build_delivery(foundation, clicks.recorder, opened)
    purge = Purge(database, settings)
    jobs = _build_jobs(foundation, clicks, delivery, purge)
    metrics = Metrics()
    for part in (
        foundation.supervisor,
        foundation.rate_limits,
        clicks.recorder,
        clicks.reclassifier,
        jobs,
        purge,
        delivery.fanout,
        delivery.dispatcher,
        messages.conversions,
        messages.refused_conversions,
    ):
        part.register_metrics(metrics)
    for optional in (foundation.redis, foundation.cache, clicks.spool, clock, database):
        if isinstance(optional, RedisServer | RedisLinkCache | HitSpool | SharedClock | SqliteDatabase):
            optional.register_metrics(metrics)
    return Service(foundation, clicks, messages, delivery, jobs, metrics, first_credentials)


async def _build_foundation(
    settings: Settings, clock: Clock, secret: Secret, database: Database, opened: AsyncExitStack, *, owner: bool
) -> Foundation:
    directory = Directory(database)
    await directory.refresh()

    def now_ms() -> int:
        return to_ms(clock())

    redis, cache = open_link_cache(settings, secret, now_ms)
    if redis is not None:
        opened.push_async_callback(redis.close)
    ids = IdGenerator(database.node, now_ms)
    node_lease = None
    if owner and database.dialect == "postgresql":
        node_lease = NodeLease(database, ids.use_node)
        await node_lease.step()
        opened.push_async_callback(node_lease.release)
    notifier = open_notifier(settings)
    events_wake_up = WakeUp()
    return Foundation(
        settings=settings,
        clock=clock,
        secret=secret,
        database=database,
        redis=redis,
        cache=cache,
        notifier=notifier,
        directory=directory,
        ids=ids,
        node_lease=node_lease,
        click_ids=ClickIds(secret.key("click ids")),
        supervisor=TaskSupervisor(),
        rate_limits=RateLimits(
            unknown_codes=settings.unknown_code_limit,
            rejected_credentials=settings.rejected_credential_limit,
            postbacks=settings.postback_limit,
            now_ms=now_ms,
            redis=redis,
            prefix=key_prefix(secret),
        ),
        client_key=secret.key("client addresses"),
        events_wake_up=events_wake_up,
        notify_events=notify_everywhere(notifier, "events", events_wake_up),
    )


def _build_clicks(foundation: Foundation) -> ClickParts:
    settings, database, ids = foundation.settings, foundation.database, foundation.ids
    spool = None
    if foundation.redis is not None:
        prefix = key_prefix(foundation.secret)
        spool = HitSpool(foundation.redis, prefix, limit=settings.spool_limit, now_ms=foundation.now_ms)
    recorder = Recorder(
        database,
        ids,
        foundation.click_ids,
        foundation.directory,
        deadline=settings.hit_deadline,
        waiting_limit=settings.hits_waiting,
        ignored_limit=settings.ignored_hits_limit,
        on_events=foundation.notify_events,
        cache=foundation.cache,
        spool=spool,
        supervisor=foundation.supervisor,
        clock=foundation.clock,
    )
    devices = DeviceCounter(database, ids)
    return ClickParts(
        recorder=recorder,
        spool=spool,
        spool_drainer=SpoolDrainer(spool, recorder, database) if spool is not None else None,
        devices=devices,
        reclassifier=Reclassifier(database, foundation.directory, ids, devices, on_events=foundation.notify_events),
        link_updates=LinkUpdates(database, foundation.cache, ids, foundation.clock),
        early_hits=EarlyHits(database, foundation.directory, ids, on_events=foundation.notify_events),
    )


def _build_messages(foundation: Foundation) -> MessageParts:
    settings, database, ids, clock = foundation.settings, foundation.database, foundation.ids, foundation.clock
    directory = foundation.directory
    codes = Codes(foundation.secret.code_salt, settings.code_bits)
    cohorts = Cohorts()
    hosts = InstallationHosts(settings, directory)
    rewriter = Rewriter(
        database,
        ids,
        codes,
        cohorts,
        clock,
        hosts,
        RewriteLimits(max_recipients=settings.batch_limit, link_ttl=timedelta(days=settings.link_ttl_days)),
        foundation.cache,
    )
    return MessageParts(
        codes=codes,
        cohorts=cohorts,
        link_hosts=hosts,
        rewriter=rewriter,
        delivery_reports=DeliveryReports(database, ids, on_events=foundation.notify_events, wait=settings.report_wait),
        conversions=Conversions(database, ids, foundation.click_ids, clock, on_events=foundation.notify_events),
        refused_conversions=RefusedConversions(database, ids, clock),
        status_reader=MessageStatusReader(base_url_of(settings, directory), foundation.click_ids.encode),
    )


def _build_delivery(foundation: Foundation, recorder: Recorder, opened: AsyncExitStack) -> DeliveryParts:
    settings, database, ids, clock = foundation.settings, foundation.database, foundation.ids, foundation.clock
    guard = Guard(settings.allow_private_targets)
    trackers = Trackers(database, foundation.secret, guard, settings, clock)
    sender = open_sender(guard, settings, clock)
    opened.push_async_callback(sender.close)
    test_sender = open_sender(guard, settings, clock, MAX_TESTS)
    opened.push_async_callback(test_sender.close)
    throttle = Throttle(lambda: recorder.totals.recorded + recorder.totals.unknown)
    rng = random.Random()  # noqa: S311 - jitter of retries, not a secret
    dispatcher = Dispatcher(database, trackers, sender, ids, clock, settings, rng, throttle)
    fanout = Fanout(
        database,
        ids,
        foundation.click_ids,
        clock,
        base_url=settings.base_origin,
        throttle=throttle,
        on_deliveries=notify_everywhere(foundation.notifier, "deliveries", dispatcher.wake_up),
    )
    return DeliveryParts(trackers, Deliveries(database), sender, TestSlots(test_sender), fanout, dispatcher)


def _build_jobs(foundation: Foundation, clicks: ClickParts, delivery: DeliveryParts, purge: Purge) -> Jobs:
    """Return the table of all background jobs."""
    database, clock, settings = foundation.database, foundation.clock, foundation.settings
    jobs = Jobs(foundation.supervisor)
    jobs.add(Job("directory", DIRECTORY_INTERVAL_SECONDS, lambda: _refresh(foundation.directory)))
    jobs.add(Job("counts", COUNTS_INTERVAL_SECONDS, lambda: _fold_counts(database)))
    jobs.add(
        Job(
            "rollups",
            ROLLUPS_INTERVAL_SECONDS,
            lambda: database.write(counts.heal),
            min_interval=ROLLUPS_MIN_INTERVAL_SECONDS,
        )
    )
    if isinstance(clock, SharedClock):
        jobs.add(Job("clock", CLOCK_INTERVAL_SECONDS, clock.step))
    if foundation.node_lease is not None:
        jobs.add(Job("node", RENEW_SECONDS, foundation.node_lease.step))
    jobs.add(Job("purge", settings.purge_interval, lambda: purge.step(clock())))
    if foundation.redis is not None:
        jobs.add(Job("rate_limits", SPOOL_INTERVAL_SECONDS, foundation.rate_limits.share))
    if isinstance(foundation.cache, RedisLinkCache):
        jobs.add(Job("cache", SPOOL_INTERVAL_SECONDS, foundation.cache.retry_invalidations))
    if clicks.spool_drainer is not None:
        jobs.add(Job("spool", SPOOL_INTERVAL_SECONDS, clicks.spool_drainer.step))
    link_updates = clicks.link_updates
    jobs.add(Job("link_updates", LINK_UPDATES_INTERVAL_SECONDS, link_updates.step, link_updates.wake_up))
    jobs.add(Job("devices", DEVICES_INTERVAL_SECONDS, lambda: clicks.devices.step(foundation.now_ms())))
    jobs.add(Job("expiring_keys", EXPIRING_KEYS_INTERVAL_SECONDS, lambda: _announce_expiring_keys(foundation)))
    jobs.add(Job("early_hits", EARLY_HITS_INTERVAL_SECONDS, lambda: clicks.early_hits.step(clock())))
    jobs.add(Job("reclassify", RECLASSIFY_INTERVAL.total_seconds(), lambda: clicks.reclassifier.step(clock())))
    jobs.add(
        Job(
            "fanout",
            DELIVERY_INTERVAL_SECONDS,
            delivery.fanout.step,
            foundation.events_wake_up,
            min_interval=FANOUT_MIN_INTERVAL_SECONDS,
        )
    )
    jobs.add(Job("dispatcher", DELIVERY_INTERVAL_SECONDS, delivery.dispatcher.step, delivery.dispatcher.wake_up))
    return jobs


def open_sender(guard: Guard, settings: Settings, clock: Clock, limit: int | None = None) -> Sender:
    """Return a sender of `limit` HTTP requests at a time to trackers (default: DELIVERY_SLOTS).

    Requires a running event loop. The caller must close the sender."""
    return Sender(
        guard,
        user_agent=f"sms-shortener/{__version__}",
        limit=limit or settings.delivery_slots,
        clock=clock,
        proxy=settings.delivery_proxy,
    )


def open_link_cache(settings: Settings, secret: Secret, now_ms: Callable[[], int]) -> tuple[RedisServer | None, LinkCache]:
    """Return the Redis client, or None without REDIS_URL, and the link cache on it. The caller must close the client."""
    if not settings.redis_url:
        return None, NoLinkCache()
    redis = open_redis(settings.redis_url, timeout=settings.redis_timeout, connections=settings.redis_connections)
    return redis, RedisLinkCache(redis, key_prefix(secret), now_ms)


def key_prefix(secret: Secret) -> str:
    """Return the prefix of all Redis keys of this installation, so that several installations can share one Redis."""
    return f"sms:{secret.fingerprint[:8]}:"


def open_notifier(settings: Settings) -> PostgresNotifier | None:
    """Return a notifier for wake-up events in other processes.

    Return None with SQLite, and behind a connection pooler that does not keep a session on one server connection.
    """
    if not settings.is_postgresql:
        return None
    dsn, has_session = split_url(settings.database_url)
    return PostgresNotifier(dsn) if has_session else None


def notify_everywhere(notifier: PostgresNotifier | None, name: str, wake_up: WakeUp) -> Callable[[], None]:
    """Return a function that sets `wake_up` in this process and the wake-up event called `name` in all other processes."""
    if notifier is None:
        return wake_up.notify
    notifier.on(name, wake_up.notify)

    def notify() -> None:
        wake_up.notify()
        notifier.notify(name)

    return notify


class InstallationHosts:
    """The hosts of the installation and the blocked hosts, for the rewriter (`messages.plan.LinkHosts`)."""

    def __init__(self, settings: Settings, directory: Directory) -> None:
        self._own_host = host_of(settings.base_url)
        self._directory = directory
        self._guard = Guard(settings.allow_private_targets)
        self._allow_http = settings.allow_http_targets
        self.base_url = base_url_of(settings, directory)
        self.shared_host, self.shared_path = self._own_host, settings.base_path

    def is_own(self, url: str) -> bool:
        host = host_of(url)
        return host == self._own_host or self._directory.domain(host) is not None

    def callback_rejection(self, scheme: str, host: str) -> str | None:
        if scheme != "https" and not self._allow_http:
            return "must begin with https://; http:// is disabled (ALLOW_HTTP_TARGETS)"
        try:
            self._guard.check_literal(host)
        except ForbiddenTarget as error:
            return str(error)
        return None

    def is_blocked(self, application_id: int, host: str) -> bool:
        return self._directory.hit_policies.blocks_host(application_id, host)


async def _refresh(directory: Directory) -> int:
    await directory.refresh()
    return 0


async def _announce_expiring_keys(foundation: Foundation) -> int:
    """Announce keys that expire soon. Without such keys, nothing is written."""
    now = foundation.clock()
    if not await foundation.database.read(has_expiring, now):
        return 0
    await foundation.database.write(announce, foundation.ids, now)
    return 0


async def _fold_counts(database: Database) -> int:
    """Fold count deltas into the counts. Return 0 after a partial batch, so that each commit folds the deltas of a second."""
    folded = await database.write(counts.fold)
    return folded if folded >= counts.MAX_FOLD_ROWS else 0
