"""This module builds the service: it creates the objects of the service (its parts) and passes them to each other. No other
module does this.

`open_service` opens the database and builds the parts in the order of their dependencies, one function per group. Each group
receives only the parts on which it depends. If a step fails, everything that was opened before is closed.
"""

from __future__ import annotations

import random
from contextlib import AsyncExitStack, suppress

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from shortener import __version__
from shortener.accounts.administration import has_application
from shortener.accounts.audit import SERVER_START, AuditWriter
from shortener.accounts.audited_accounts import ensure_default
from shortener.accounts.credentials import Credentials
from shortener.accounts.directory import Directory
from shortener.accounts.gateway_entries import SIMULATOR
from shortener.accounts.own_hosts import OwnHosts
from shortener.accounts.version import mark_accounts_changed
from shortener.clicks.device_counts import DeviceCounter
from shortener.clicks.hit_spool import HitSpool
from shortener.clicks.link_updates import LinkUpdates
from shortener.clicks.recorder import Recorder
from shortener.clicks.spool_drainer import SpoolDrainer
from shortener.clicks.throttle import Throttle
from shortener.clicks.verdicts.early_hits import EarlyHits
from shortener.clicks.verdicts.reclassify import Reclassifier
from shortener.container.connections import key_prefix, notify_everywhere, open_link_cache, open_notifier, open_sender
from shortener.container.full_collections import FullCollections
from shortener.container.job_table import build_jobs
from shortener.container.link_hosts import InstallationHosts
from shortener.container.parts import ClickParts, DeliveryParts, Foundation, GatewayParts, MessageParts
from shortener.container.service import Service
from shortener.conversions.refusals import RefusedConversions
from shortener.conversions.service import Conversions
from shortener.delivery.deliveries import Deliveries
from shortener.delivery.dispatcher import Dispatcher
from shortener.delivery.fanout import Fanout
from shortener.delivery.guard import Guard
from shortener.delivery.replays import Replays
from shortener.delivery.sample_delivery import MAX_TESTS, TestSlots
from shortener.delivery.trackers import Trackers
from shortener.errors import ApiError
from shortener.gateways.connection_keeper import ConnectionKeeper
from shortener.gateways.connections import Connections
from shortener.gateways.dispatcher import GatewayDispatcher
from shortener.gateways.kinds import KINDS
from shortener.gateways.replies import Replies
from shortener.gateways.reports import GatewayReports
from shortener.gateways.store import GatewayStore
from shortener.gateways.submission import GatewayContext
from shortener.ids import ClickIds, IdGenerator
from shortener.jobs import TaskSupervisor, WakeUp
from shortener.messages.codes import Codes
from shortener.messages.delivery_reports import DeliveryReports
from shortener.messages.rewrite_totals import RewriteTotals
from shortener.metrics import Metrics, RequestTotals
from shortener.model import Clock
from shortener.outbox.count_deltas import Cohorts
from shortener.redis.client import RedisServer
from shortener.redis.link_cache import RedisLinkCache
from shortener.redis.rate_limit import RateLimits
from shortener.reporting.queues import QueueMonitor
from shortener.retention.purge import Purge
from shortener.secret import Secret
from shortener.settings import Settings
from shortener.storage.clock import SharedClock, ms_clock, open_clock
from shortener.storage.clock_guard import PURGE_CLOCK, ClockGuard, read_uptime, unknown_uptime
from shortener.storage.copy import UNFINISHED_COPY
from shortener.storage.database import Database
from shortener.storage.installation import (
    BASE_URL,
    FINGERPRINT,
    LARGEST_BATCH,
    check_base_url,
    find_largest_batch,
    get_all,
    open_installation_secret,
    require_installation,
)
from shortener.storage.integrity import require_database
from shortener.storage.migrate import SchemaMismatch, prepare
from shortener.storage.migrations import HEAD
from shortener.storage.newest_id import continue_ids
from shortener.storage.node_lease import NodeLease
from shortener.storage.open import open_database, sqlite_path
from shortener.storage.sqlite import SqliteDatabase
from shortener.tracing import open_tracer


async def open_service(settings: Settings, *, clock: Clock | None = None, owner: bool = True, may_create: bool = True) -> Service:
    """Open the database and build every part. The first start of an installation also creates the database and the default
    application. If `may_create` is false, such a start creates nothing and raises NoInstallation.

    `clock` replaces the clock in tests; by default all processes of an installation share one clock. `owner` is true if this
    process serves from the database; only one process at a time may be the owner of an SQLite database. Raise StoreUnavailable,
    SchemaMismatch, SecretError, DatabaseLost or BaseUrlMissing."""

    async def check_schema(database: Database | None = None) -> None:
        await (prepare(settings.store_url, database) if may_create else require_installation(settings, database))

    file = sqlite_path(settings.store_url)
    require_database(file, settings.data_dir)
    if file is not None:
        await check_schema()  # this creates a missing file before `open_database` opens it
    database = await open_database(
        settings.store_url, owner=owner, pool_size=settings.database_pool, timeout=settings.database_timeout
    )
    async with AsyncExitStack() as opened:
        opened.push_async_callback(database.close)
        if file is None:
            await check_schema(database)
        stored, has_applications = await database.read(_read_installation)
        if UNFINISHED_COPY in stored:
            raise SchemaMismatch("the copy into this database is incomplete: run `shortener copy` again")
        await check_base_url(database, settings, stored.get(BASE_URL), mark_accounts_changed)
        largest_batch = await find_largest_batch(database, settings, stored.get(LARGEST_BATCH))
        # The secret is created after the database. If the first start is killed between these two steps, it leaves a database
        # without a secret, and not a secret without a database.
        secret = await open_installation_secret(database, settings, stored.get(FINGERPRINT))
        # A test moves its clock without waiting, so its clock and the uptime of the machine disagree.
        uptime = unknown_uptime if clock else read_uptime
        if clock is None:
            clock = await open_clock(database)
        is_shared = isinstance(clock, SharedClock)
        guard = ClockGuard(ms_clock(clock), uptime, stored.get(PURGE_CLOCK), follows_database=is_shared, is_command=not owner)
        first_credentials = None
        if may_create and not has_applications:
            first_credentials = await _ensure_default_application(database, clock, secret, settings)
        service = await _build_service(settings, clock, guard, secret, database, first_credentials, opened, owner=owner)
        service.largest_batch = largest_batch
        opened.pop_all()  # From this point on, `Service.close` closes everything that was opened.
        return service


def _read_installation(connection: Connection) -> tuple[dict[str, str], bool]:
    """Return the stored values of the installation, and whether it has an application."""
    return get_all(connection), has_application(connection)


async def _ensure_default_application(database: Database, clock: Clock, secret: Secret, settings: Settings) -> Credentials | None:
    initial = {
        "api_key": settings.initial_api_key.get_secret_value(),
        "tracker_token": settings.initial_tracker_token.get_secret_value(),
    }
    audit = AuditWriter(SERVER_START, IdGenerator(database.node, ms_clock(clock)))
    try:
        return await database.write(ensure_default, audit, clock(), secret, **initial)
    except (IntegrityError, ApiError):  # Another node has just created the application, so the second call finds it.
        return await database.write(ensure_default, audit, clock(), secret, **initial)


async def _build_service(
    settings: Settings,
    clock: Clock,
    clock_guard: ClockGuard,
    secret: Secret,
    database: Database,
    first_credentials: Credentials | None,
    opened: AsyncExitStack,
    *,
    owner: bool,
) -> Service:
    """Build all groups of parts. Each thing that is opened is added to `opened`, which closes everything if a step fails."""
    foundation = await _build_foundation(settings, clock, clock_guard, secret, database, opened, owner=owner)
    clicks = _build_clicks(foundation)
    messages = _build_messages(foundation)
    delivery = _build_delivery(foundation, clicks.throttle, opened)
    gateways = _build_gateways(foundation, messages, clicks.throttle, opened)
    purge = Purge(database, settings, clock_guard=foundation.clock_guard)
    queues = QueueMonitor(database, settings, clock)
    collections = FullCollections(lambda: messages.rewrite_totals.large_requests > 0, lambda: clicks.throttle.is_busy)
    jobs = build_jobs(foundation, clicks, delivery, gateways, purge, queues, collections)
    metrics = Metrics()
    info: dict[tuple[str, ...], float] = {(__version__, HEAD): 1}
    info_text = "The value is always 1. The labels contain the version of the service and of its database schema."
    metrics.gauge("shortener_info", info_text, lambda: info, "version", "schema")
    for part in (
        foundation.supervisor,
        foundation.requests,
        messages.rewrite_totals,
        queues,
        foundation.rate_limits,
        clicks.recorder,
        clicks.reclassifier,
        jobs,
        purge,
        delivery.fanout,
        delivery.dispatcher,
        gateways.dispatcher,
        gateways.connection_keeper,
        gateways.reports,
        gateways.replies,
        messages.conversions,
        messages.refused_conversions,
    ):
        part.register_metrics(metrics)
    for optional in (foundation.redis, foundation.cache, clicks.spool, clock, database):
        if isinstance(optional, RedisServer | RedisLinkCache | HitSpool | SharedClock | SqliteDatabase):
            optional.register_metrics(metrics)
    await _ensure_simulator(foundation, gateways.store)
    service = Service(foundation, clicks, messages, delivery, gateways, jobs, metrics, first_credentials)
    service.use_tracer(open_tracer(settings))
    return service


async def _ensure_simulator(foundation: Foundation, store: GatewayStore) -> None:
    """Create the gateway `simulator` of the installation. Do nothing if the gateway exists."""
    if any(one.kind == SIMULATOR and not one.application_id for one in foundation.directory.gateways.values()):
        return
    with suppress(IntegrityError):  # Another node has just created the simulator.
        await foundation.database.write(store.ensure_simulator)
    await foundation.directory.refresh()


async def _build_foundation(
    settings: Settings,
    clock: Clock,
    clock_guard: ClockGuard,
    secret: Secret,
    database: Database,
    opened: AsyncExitStack,
    *,
    owner: bool,
) -> Foundation:
    directory = Directory(database, OwnHosts.of(settings))
    await directory.refresh()

    now_ms = ms_clock(clock)
    redis, cache = open_link_cache(settings, secret, now_ms)
    if redis is not None:
        opened.push_async_callback(redis.close)
    ids = IdGenerator(database.node, now_ms)
    node_lease = None
    if owner and database.dialect == "postgresql":
        node_lease = NodeLease(database, ids.use_node)
        await node_lease.step()
        opened.push_async_callback(node_lease.release)
    await continue_ids(database, ids, now_ms())
    notifier = open_notifier(settings)
    events_wake_up, sends_wake_up = WakeUp(), WakeUp()
    return Foundation(
        settings=settings,
        clock=clock,
        now_ms=now_ms,
        clock_guard=clock_guard,
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
            reported_deliveries=settings.report_delivery_limit,
            now_ms=now_ms,
            redis=redis,
            prefix=key_prefix(secret),
        ),
        client_key=secret.key("client addresses"),
        requests=RequestTotals(),
        sends_wake_up=sends_wake_up,
        notify_sends=notify_everywhere(notifier, "sends", sends_wake_up),
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
        suspected_limit=settings.suspected_hits_limit,
        on_events=foundation.notify_events,
        cache=foundation.cache,
        spool=spool,
        supervisor=foundation.supervisor,
        clock=foundation.clock,
        trusted_ms=foundation.clock_guard.trusted_ms,
    )
    devices = DeviceCounter(database, ids, foundation.clock)
    return ClickParts(
        recorder=recorder,
        throttle=Throttle(
            lambda: recorder.totals.recorded + recorder.totals.unknown,
            lambda: recorder.totals.seconds.sum,
        ),
        spool=spool,
        spool_drainer=SpoolDrainer(spool, recorder, database) if spool is not None else None,
        devices=devices,
        reclassifier=Reclassifier(
            database, foundation.directory, ids, devices, foundation.notify_events, settings.event_retention_days
        ),
        link_updates=LinkUpdates(database, foundation.cache, ids, foundation.clock),
        early_hits=EarlyHits(database, foundation.directory, ids, on_events=foundation.notify_events),
    )


def _build_messages(foundation: Foundation) -> MessageParts:
    settings, database, ids, clock = foundation.settings, foundation.database, foundation.ids, foundation.clock
    directory = foundation.directory
    codes = Codes(foundation.secret.code_salt, settings.code_bits)
    cohorts = Cohorts()
    hosts = InstallationHosts(settings, directory)
    return MessageParts(
        codes=codes,
        cohorts=cohorts,
        link_hosts=hosts,
        rewrite_totals=RewriteTotals(),
        delivery_reports=DeliveryReports(database, ids, on_events=foundation.notify_events, wait=settings.report_wait),
        conversions=Conversions(database, ids, foundation.click_ids, clock, on_events=foundation.notify_events),
        refused_conversions=RefusedConversions(database, ids, clock, foundation.rate_limits.refused),
    )


def _build_delivery(foundation: Foundation, throttle: Throttle, opened: AsyncExitStack) -> DeliveryParts:
    settings, database, ids, clock = foundation.settings, foundation.database, foundation.ids, foundation.clock
    guard = Guard(settings.allow_private_targets)
    trackers = Trackers(database, foundation.secret, guard, settings, clock)
    sender = open_sender(guard, settings, clock)
    opened.push_async_callback(sender.close)
    callback_sender = open_sender(guard, settings, clock)
    opened.push_async_callback(callback_sender.close)
    test_sender = open_sender(guard, settings, clock, MAX_TESTS)
    opened.push_async_callback(test_sender.close)
    rng = random.Random()  # noqa: S311 - jitter of retries, not a secret
    dispatcher = Dispatcher(
        database,
        trackers,
        sender,
        callback_sender,
        ids,
        clock,
        settings,
        rng,
        throttle,
        clock_ahead=foundation.clock_guard.ahead,
        leases_wait=foundation.clock_guard.leases_wait,
    )
    notify_deliveries = notify_everywhere(foundation.notifier, "deliveries", dispatcher.wake_up)
    fanout = Fanout(
        database,
        ids,
        foundation.click_ids,
        clock,
        base_url=settings.base_origin,
        throttle=throttle,
        on_deliveries=notify_deliveries,
    )
    replays = Replays(database, ids, clock, notify_deliveries)
    senders = sender, callback_sender
    return DeliveryParts(trackers, Deliveries(database), replays, senders, TestSlots(test_sender), fanout, dispatcher)


def _build_gateways(foundation: Foundation, messages: MessageParts, throttle: Throttle, opened: AsyncExitStack) -> GatewayParts:
    settings, database, ids, clock = foundation.settings, foundation.database, foundation.ids, foundation.clock
    store = GatewayStore(database, foundation.secret, foundation.directory, settings, clock)
    reports = GatewayReports(
        database, messages.delivery_reports, clock, timeout=settings.gateway_timeout, wait=settings.report_wait
    )
    replies = Replies(database, messages.conversions, clock)

    async def record_reply(gateway_id: int, phone: str, text: str) -> None:
        await replies.receive(foundation.directory.gateways, gateway_id, phone, text)

    guard = Guard(settings.allow_private_targets)
    # Test messages have additional slots, so that they do not delay other messages.
    slots = settings.gateway_slots + MAX_TESTS
    public = open_sender(guard, settings, clock, slots)
    opened.push_async_callback(public.close)
    # DELIVERY_PROXY is for requests to the internet, so requests to gateways on a private network do not use it.
    private = open_sender(Guard(allow_private=True), settings, clock, slots, uses_proxy=False)
    opened.push_async_callback(private.close)
    context = GatewayContext(
        public,
        private,
        reports.receive,
        clock,
        reply=record_reply,
        public_guard=guard,
        count_unreadable=reports.count_unreadable,
    )
    connections = Connections(context, KINDS)
    dispatcher = GatewayDispatcher(
        database,
        store,
        connections,
        messages.delivery_reports,
        ids,
        clock,
        settings,
        random.Random(),  # noqa: S311 - jitter of retries, not a secret
        throttle,
        wake_up=foundation.sends_wake_up,
        clock_ahead=foundation.clock_guard.ahead,
        leases_wait=foundation.clock_guard.leases_wait,
    )
    keeper = ConnectionKeeper(store, foundation.directory, connections)
    return GatewayParts(store, connections, reports, replies, dispatcher, keeper, (public, private))
