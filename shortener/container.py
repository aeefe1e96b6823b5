"""The one place that wires the parts together. The web, the portal and the command line hold a `Service` and nothing else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta

import structlog
from sqlalchemy.exc import IntegrityError

from shortener import __version__
from shortener.accounts.administration import ensure_default, host_of
from shortener.accounts.credentials import Credentials
from shortener.accounts.directory import Directory
from shortener.clicks.device_counts import DeviceCounter
from shortener.clicks.hit_spool import HitSpool
from shortener.clicks.recorder import Recorder
from shortener.clicks.spool_drainer import SpoolDrainer
from shortener.clicks.verdicts.reclassify import EVERY as REJUDGE_EVERY
from shortener.clicks.verdicts.reclassify import Reclassifier
from shortener.conversions.service import Conversions
from shortener.delivery.deliveries import Deliveries
from shortener.delivery.dispatcher import Dispatcher
from shortener.delivery.fanout import Fanout
from shortener.delivery.guard import Guard
from shortener.delivery.sender import Sender
from shortener.delivery.throttle import Throttle
from shortener.delivery.trackers import Trackers
from shortener.errors import ApiError
from shortener.ids import ClickIds, IdGenerator
from shortener.jobs import Job, Jobs, WakeUp
from shortener.messages.codes import Codes
from shortener.messages.delivery_reports import DeliveryReports
from shortener.messages.rewriter import Rewriter
from shortener.metrics import Metrics
from shortener.model import Clock, utcnow
from shortener.outbox.count_deltas import Cohorts
from shortener.redis.client import RedisServer, open_redis
from shortener.redis.link_cache import LinkCache, NoLinkCache, RedisLinkCache
from shortener.reporting import counts
from shortener.reporting.status import MessageStatusReader
from shortener.retention.purge import Purge
from shortener.secret import Secret, SecretError, open_secret
from shortener.settings import Settings
from shortener.storage.clock import SharedClock
from shortener.storage.copy import is_unfinished
from shortener.storage.database import Database
from shortener.storage.installation import get_or_set
from shortener.storage.migrate import SchemaMismatch, prepare
from shortener.storage.notifier import PostgresNotifier
from shortener.storage.open import open_database
from shortener.storage.postgres import split_url
from shortener.storage.types import to_ms

log = structlog.get_logger(__name__)

FANOUT_REST = 0.02  # seconds; a lone event goes out at once, under load a round takes what 20 ms brought
DIRECTORY_EVERY = 0.5  # seconds between two looks at the version of the accounts
CLOCK_EVERY = 10.0  # seconds between two looks at the database's clock
DELIVERY_EVERY = 0.5  # seconds between two looks for events and due deliveries, when no bell rings
TEST_SLOTS = 16  # test sends under way at once, beside the dispatcher's slots
SPOOL_EVERY = 0.5  # seconds between two looks for spooled hits, and whether the database is back
COUNTS_EVERY = 1.0  # seconds after which what happened is folded into the counts
LETTING_GO = 0.5  # seconds of a stop that are kept for letting go of connections
DEVICES_EVERY = 10.0  # seconds between two looks for clicks that are old enough to be counted by device


@dataclass(slots=True)
class Service:
    """All parts, ready. `first_credentials` is set only by the very first start."""

    settings: Settings
    clock: Clock
    secret: Secret
    database: Database
    cache: LinkCache  # tell it of links that change
    directory: Directory
    ids: IdGenerator
    click_ids: ClickIds
    codes: Codes
    cohorts: Cohorts
    rewriter: Rewriter
    recorder: Recorder
    devices: DeviceCounter
    reclassifier: Reclassifier
    status_reader: MessageStatusReader
    conversions: Conversions
    delivery_reports: DeliveryReports
    trackers: Trackers
    deliveries: Deliveries
    sender: Sender
    fanout: Fanout
    dispatcher: Dispatcher
    events_wake_up: WakeUp  # rung when a transaction wrote events
    jobs: Jobs
    metrics: Metrics
    redis: RedisServer | None = None
    notifier: PostgresNotifier | None = None
    first_credentials: Credentials | None = None
    ready: bool = field(default=False)
    _stop_by: float = field(default=0.0, init=False)  # loop time
    _delivering_ends: asyncio.Task[None] | None = field(default=None, init=False)

    def now_ms(self) -> int:
        return to_ms(self.clock())

    def start(self, *, web: bool = True, deliver: bool = True) -> None:
        """Begin the background work; needs a running loop."""
        if web:
            self.recorder.start()
        self.jobs.start(without=() if deliver else ("fanout", "dispatcher"))
        if self.notifier is not None:
            self.notifier.start()
        self.ready = True

    @property
    def is_stopping(self) -> bool:
        return self._delivering_ends is not None

    def begin_stop(self, within: float) -> None:
        """Be ready no more, begin no delivery; requests and clicks are still answered. `close` is to be done in `within` seconds.

        Deliveries under way end, or are handed back, beside the requests, not after them. A second call changes nothing."""
        if self._delivering_ends is None:
            self.ready = False
            loop = asyncio.get_running_loop()
            self._stop_by = loop.time() + within
            self._delivering_ends = loop.create_task(self.dispatcher.stop(max(within - LETTING_GO, 0.1)))

    async def close(self, grace: float = 8.0) -> None:
        """Write what waits, stop the background work, let go of the store: in `grace` seconds, or as `begin_stop` said."""
        self.begin_stop(grace)
        assert self._delivering_ends is not None
        left = self._stop_by - LETTING_GO - asyncio.get_running_loop().time()
        await asyncio.gather(self.recorder.stop(max(left, 0.1)), self._delivering_ends)
        await self._let_go("jobs", self.jobs.stop())
        if self.notifier is not None:
            await self._let_go("bells", self.notifier.stop())
        if self.redis is not None:
            await self._let_go("redis", self.redis.close())
        await self._let_go("sender", self.sender.close())
        await self._let_go("store", self.database.close())

    async def _let_go(self, name: str, closing: Awaitable[None]) -> None:
        """A server that does not answer holds up no stop: what it was to be told last is safe already."""
        left = self._stop_by - asyncio.get_running_loop().time()
        try:
            await asyncio.wait_for(closing, max(left, LETTING_GO / 5))
        except TimeoutError:
            log.error("not_closed_in_time", part=name)


async def open_service(settings: Settings, *, clock: Clock | None = None, owner: bool = True) -> Service:
    """Open the store (made ready on the very first start) and build every part. `clock`: of tests; without one it is the one that
    all processes of the installation share.

    Raises StoreUnavailable, SchemaMismatch, SecretError."""
    secret = open_secret(settings.secret, settings.data_dir)
    await prepare(settings.store_url)
    database = await open_database(
        settings.store_url, owner=owner, pool_size=settings.database_pool, timeout=settings.database_timeout
    )
    async with AsyncExitStack() as opened:
        opened.push_async_callback(database.close)
        if await database.read(is_unfinished):
            raise SchemaMismatch("a copy into this database did not come to its end: run `shortener copy` again")
        kept = await database.write(get_or_set, "secret", secret.fingerprint)
        if kept != secret.fingerprint:
            raise SecretError("this database belongs to an installation with another SECRET: codes and secrets would not fit")
        if clock is None:
            clock = await _shared_clock(database)
        first = await _ensure_default(database, clock)
        service = await _build(settings, clock, secret, database, first, opened)
        opened.pop_all()  # from here on `Service.close` does it
        return service


async def _shared_clock(database: Database) -> Clock:
    if database.dialect == "sqlite":
        return utcnow  # belongs to one process
    clock = SharedClock(database)
    await clock.step()
    return clock


async def _ensure_default(database: Database, clock: Clock) -> Credentials | None:
    try:
        return await database.write(ensure_default, clock())
    except (IntegrityError, ApiError):  # another node of a first start was faster
        return await database.write(ensure_default, clock())


async def _build(
    settings: Settings, clock: Clock, secret: Secret, database: Database, first: Credentials | None, opened: AsyncExitStack
) -> Service:
    """`opened` closes what was opened, if the rest cannot be built."""
    directory = Directory(database)
    await directory.refresh()

    def now_ms() -> int:
        return to_ms(clock())

    ids = IdGenerator(database.node, now_ms)
    click_ids = ClickIds(secret.key("click ids"))
    events_wake_up = WakeUp()
    notifier = open_notifier(settings)
    notify_events = notify_everywhere(notifier, "events", events_wake_up)
    redis, cache = open_link_cache(settings, secret, now_ms)
    if redis is not None:
        opened.push_async_callback(redis.close)
    spool = HitSpool(redis, key_prefix(secret), limit=settings.spool_limit, now_ms=now_ms) if redis else None
    cohorts = Cohorts()
    codes = Codes(secret.code_salt, settings.code_bits)
    jobs = Jobs()
    jobs.add(Job("directory", DIRECTORY_EVERY, lambda: _refresh(directory)))
    jobs.add(Job("counts", COUNTS_EVERY, lambda: _fold(database)))
    if isinstance(clock, SharedClock):
        jobs.add(Job("clock", CLOCK_EVERY, clock.step))
    purge = Purge(database, settings)
    jobs.add(Job("purge", settings.purge_interval, lambda: purge.step(clock())))
    recorder = Recorder(
        database,
        ids,
        click_ids,
        directory,
        deadline=settings.hit_deadline,
        waiting_limit=settings.hits_waiting,
        on_events=notify_events,
        cache=cache,
        spool=spool,
    )
    if isinstance(cache, RedisLinkCache):
        jobs.add(Job("cache", SPOOL_EVERY, cache.retry_invalidations))
    if spool is not None:
        jobs.add(Job("spool", SPOOL_EVERY, SpoolDrainer(spool, recorder, database).step))
    devices = DeviceCounter(database, ids)
    jobs.add(Job("devices", DEVICES_EVERY, lambda: devices.step(now_ms())))
    reclassifier = Reclassifier(database, directory, ids, devices, on_events=notify_events)
    jobs.add(Job("rejudge", REJUDGE_EVERY.total_seconds(), lambda: reclassifier.step(clock())))
    rewriter = Rewriter(
        database,
        ids,
        codes,
        cohorts,
        clock,
        base_url=settings.base_url,
        is_ours=is_ours_of(settings, directory),
        is_blocked=lambda application_id, host: directory.hit_policies.blocks_host(application_id, host),
        link_ttl=timedelta(days=settings.link_ttl_days),
        batch_limit=settings.batch_limit,
        cache=cache,
    )
    guard = Guard(settings.allow_private_targets)
    trackers = Trackers(database, secret, guard, settings, clock)
    sender = open_sender(guard, settings, clock)
    opened.push_async_callback(sender.close)
    rng = random.Random()  # noqa: S311 - jitter keeps retries apart; nobody gains by guessing it
    courtesy = Throttle(lambda: recorder.totals.recorded + recorder.totals.unknown)
    dispatcher = Dispatcher(database, trackers, sender, ids, clock, settings, rng, courtesy)
    notify_deliveries = notify_everywhere(notifier, "deliveries", dispatcher.wake_up)
    fanout = Fanout(database, ids, click_ids, clock, base_url=settings.base_url, courtesy=courtesy, on_deliveries=notify_deliveries)
    jobs.add(Job("fanout", DELIVERY_EVERY, fanout.step, events_wake_up, min_interval=FANOUT_REST))
    jobs.add(Job("dispatcher", DELIVERY_EVERY, dispatcher.step, dispatcher.wake_up))
    metrics = Metrics()
    for part in (recorder, reclassifier, jobs, purge, fanout, dispatcher):
        part.register_metrics(metrics)
    for optional in (redis, cache, spool, clock):
        if isinstance(optional, RedisServer | RedisLinkCache | HitSpool | SharedClock):
            optional.register_metrics(metrics)
    return Service(
        settings=settings,
        clock=clock,
        secret=secret,
        database=database,
        cache=cache,
        directory=directory,
        ids=ids,
        click_ids=click_ids,
        codes=codes,
        cohorts=cohorts,
        rewriter=rewriter,
        recorder=recorder,
        devices=devices,
        reclassifier=reclassifier,
        status_reader=MessageStatusReader(base_url_of(settings, directory), click_ids.encode),
        conversions=Conversions(database, ids, click_ids, clock, on_events=notify_events),
        delivery_reports=DeliveryReports(database, ids, on_events=notify_events),
        trackers=trackers,
        deliveries=Deliveries(database),
        sender=sender,
        fanout=fanout,
        dispatcher=dispatcher,
        events_wake_up=events_wake_up,
        jobs=jobs,
        metrics=metrics,
        redis=redis,
        notifier=notifier,
        first_credentials=first,
    )


def open_sender(guard: Guard, settings: Settings, clock: Clock) -> Sender:
    """Needs a running loop; close it."""
    return Sender(guard, user_agent=f"sms-shortener/{__version__}", limit=settings.delivery_slots + TEST_SLOTS, clock=clock)


def open_link_cache(settings: Settings, secret: Secret, now_ms: Callable[[], int]) -> tuple[RedisServer | None, LinkCache]:
    """Redis, if there is one, and what keeps links in it. Close the first."""
    if not settings.redis_url:
        return None, NoLinkCache()
    redis = open_redis(settings.redis_url, timeout=settings.redis_timeout, connections=settings.redis_connections)
    return redis, RedisLinkCache(redis, key_prefix(secret), now_ms)


def key_prefix(secret: Secret) -> str:
    """What the keys of an installation begin with: several may share a Redis."""
    return f"sms:{secret.fingerprint[:8]}:"


def open_notifier(settings: Settings) -> PostgresNotifier | None:
    """Bells that ring in other processes; None where there are none, or where no connection stays with one server."""
    if not settings.is_postgresql:
        return None
    dsn, stays = split_url(settings.database_url)
    return PostgresNotifier(dsn) if stays else None


def notify_everywhere(notifier: PostgresNotifier | None, name: str, wake_up: WakeUp) -> Callable[[], None]:
    """What rings `wake_up` here, and the one of this name elsewhere."""
    if notifier is None:
        return wake_up.notify
    notifier.on(name, wake_up.notify)

    def notify() -> None:
        wake_up.notify()
        notifier.notify(name)

    return notify


def base_url_of(settings: Settings, directory: Directory) -> Callable[[int], str]:
    """The prefix of the short links of a domain, by its number; 0 is BASE_URL."""

    def base_url(domain_id: int) -> str:
        domain = directory.domain_by_id(domain_id)
        return domain.base_url if domain else settings.base_url

    return base_url


def is_ours_of(settings: Settings, directory: Directory) -> Callable[[str], bool]:
    base = host_of(settings.base_url)

    def is_ours(url: str) -> bool:
        host = host_of(url)
        return host == base or directory.domain(host) is not None

    return is_ours


async def _refresh(directory: Directory) -> int:
    await directory.refresh()
    return 0


async def _fold(database: Database) -> int:
    """Goes on at once only after a full batch: under load one commit a second folds what many transactions left."""
    folded = await database.write(counts.fold)
    return folded if folded >= counts.FOLD_LIMIT else 0
