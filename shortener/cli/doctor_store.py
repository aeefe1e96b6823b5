"""The checks of `shortener doctor` that read the database and Redis."""

# Tested by tests/cli/test_doctor.py

from __future__ import annotations

import fcntl
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func, or_, select, text

from shortener.cli.doctor_findings import Finding
from shortener.cli.doctor_gateways import check_gateway_queues
from shortener.plurals import counted
from shortener.storage import schema
from shortener.storage.delivery_conditions import IS_DEAD, IS_PENDING
from shortener.storage.secret_change import DISABLED_REASON as LOST_SECRET

if TYPE_CHECKING:
    from shortener.settings import Settings

MAX_CLOCK_SECONDS = 1.0
MAX_QUEUE_SECONDS = 300.0
MAX_PURGE_LAG = timedelta(days=2)
RECENT = timedelta(days=1)
MAX_COUNTED_DELIVERIES = 10_000
MAX_NAMED_TRACKERS = 5
MAX_DOMAINS = 20  # Only this number of domains is checked, because each DNS look-up can take seconds.
_UNNAMED = (
    'an application has the name "default", so recipients read "the sender" in place of a name; '
    "`shortener applications update APPLICATION --name NAME` gives it the name of your brand"
)
MIN_DAYS_OF_DATA = 1.0  # If the database is younger than this, the growth of the data is not estimated.


async def check_database(settings: Settings) -> list[Finding]:
    """Check the database: whether it exists and responds, its schema, its secret, damaged pages, its clock, its queues and its
    growth."""
    from shortener.errors import StoreUnavailable
    from shortener.storage.installation import NoInstallation, require_installation
    from shortener.storage.integrity import DatabaseLost, require_database
    from shortener.storage.migrate import SchemaMismatch
    from shortener.storage.migrations import HEAD
    from shortener.storage.open import open_database, sqlite_path

    try:
        require_database(sqlite_path(settings.store_url), settings.data_dir)
        await require_installation(settings)
    except StoreUnavailable as error:
        return [Finding("database", "error", f"unavailable: {error}", "start the database, and check DATABASE_URL")]
    except (DatabaseLost, NoInstallation) as error:
        return [Finding("database", "error", str(error), "restore a backup: `shortener restore FILE`")]
    except SchemaMismatch as error:
        return [Finding("schema", "error", str(error), "run `shortener migrate`, or install the newer version")]
    found = [Finding("schema", "ok", f"at {HEAD}")]
    database = await open_database(settings.store_url, owner=False)
    try:
        async for finding in _check_installation(database, settings):
            found.append(finding)  # keep the findings that were made before the failure
        found += await database.read(lambda c: [*_check_rows(c, settings)])
    except StoreUnavailable as error:
        found.append(Finding("database", "error", f"unavailable: {error}", "check the database and its log"))
    finally:
        await database.close()
    return found


async def _check_installation(database: Any, settings: Settings) -> AsyncIterator[Finding]:
    """Check the values that the database stores about its installation, and whether the pages of the database are damaged."""
    from shortener.accounts.directory import DEFAULT_NAME
    from shortener.storage.copy import is_unfinished
    from shortener.storage.installation import BASE_URL, FINGERPRINT, get, missing_base_url, place_of
    from shortener.storage.integrity import find_damage

    names = await database.read(lambda c: list(c.scalars(select(schema.applications.c.name).order_by(schema.applications.c.id))))
    yield Finding("installation", "ok", f"{counted(len(names), 'application')} in {place_of(settings)}")
    if DEFAULT_NAME in names:
        yield Finding("name", "ok", _UNNAMED)
    if await database.read(is_unfinished):
        yield Finding("copy", "error", "a copy into this database is incomplete", "run `shortener copy` again")
    base_url = await database.read(get, BASE_URL)
    if base_url is not None and settings.has_default_base_url:
        yield Finding("links", "error", missing_base_url(base_url, settings), f"set SHORTENER_BASE_URL={base_url}")
    yield _check_secret(await database.read(get, FINGERPRINT), settings)
    if damage := await database.read(partial(find_damage, thorough=False)):
        yield Finding("integrity", "error", f"the database is damaged: {'; '.join(damage)}", "restore a backup")
    else:
        good = "PostgreSQL checks its own files" if settings.is_postgresql else "no damaged page found"
        yield Finding("integrity", "ok", good)


def _check_secret(stored: str | None, settings: Settings) -> Finding:
    """Check that the configured secret belongs to this database. `stored` is the fingerprint of the secret that belongs to it."""
    from shortener.secret import SecretError, open_secret, secret_file

    try:
        if stored is None and not settings.secret.get_secret_value() and not secret_file(settings.data_dir).exists():
            return Finding("secret", "ok", "none yet; the first start creates it")
        if stored in (None, open_secret(settings.secret, settings.data_dir).fingerprint):
            return Finding("secret", "ok", "exists, and belongs to this database")
    except SecretError as error:
        return Finding("secret", "error", str(error), "restore the file, or run `shortener secret adopt`")
    return Finding(
        "secret",
        "error",
        "the secret is not the secret of this database",
        "set SHORTENER_SECRET to the secret of the database, or run `shortener secret adopt`",
    )


async def read_domains(settings: Settings) -> list[str]:
    """Return the scheme, the host and the port of each enabled own domain, for at most MAX_DOMAINS domains. Return [] if the
    database cannot be read."""
    from sqlalchemy.exc import SQLAlchemyError

    from shortener.errors import StoreUnavailable
    from shortener.storage.installation import NoInstallation, require_installation
    from shortener.storage.migrate import SchemaMismatch
    from shortener.storage.open import open_database

    table = schema.domains
    usable = (table.c.disabled_at.is_(None), table.c.removed_at.is_(None))
    try:
        await require_installation(settings)
        database = await open_database(settings.store_url, owner=False)
    except (StoreUnavailable, SchemaMismatch, NoInstallation):
        return []  # `check_database` reports the same error, so it is not reported here.
    try:
        return await database.read(
            lambda c: list(c.scalars(select(table.c.base_url).where(*usable).order_by(table.c.id).limit(MAX_DOMAINS)))
        )
    except (StoreUnavailable, SQLAlchemyError):
        return []
    finally:
        await database.close()


def _check_rows(connection: Connection, settings: Settings) -> Iterator[Finding]:
    """Check what the rows of the database show about the clock, the processes, the queues, the trackers, the gateways and the
    growth of the data."""
    from shortener.model import utcnow
    from shortener.reporting.queues import read_queue_state
    from shortener.storage.clock_guard import find_step, read_uptime

    now = utcnow()
    yield _check_clock(connection, now)
    processes = _count_processes(connection, settings, now)
    text = counted(processes, "process serves or delivers", "processes serve or deliver") if processes else "no process serves now"
    yield Finding("processes", "ok", text)
    if settings.is_postgresql:
        yield _check_connections(connection, settings, max(processes, 1))
    state = read_queue_state(connection, settings, now)
    oldest = max(state.oldest_event_seconds, state.oldest_due_seconds)
    text = f"{counted(state.events_pending, 'event')} and {counted(state.deliveries_due, 'delivery', 'deliveries')} wait"
    text += f", the oldest for {oldest:.0f} s"
    if oldest <= MAX_QUEUE_SECONDS:
        yield Finding("queues", "ok", text)
    elif not processes:
        yield Finding("queues", "warning", text, "start `shortener serve`: no process delivers")
    else:
        yield Finding("queues", "warning", text, "look for job_failed in the log, and start more `shortener deliver` processes")
    if state.hits_dead_letter:
        rejected = counted(state.hits_dead_letter, "hit, which is", "hits, which are")
        text = f"the database rejected {rejected} in the table hits_dead_letter"
        yield Finding("dead_letters", "warning", text, "look for hit_not_recordable in the log, and report it as a bug")
    if state.count_deltas_quarantined:
        text = f"{counted(state.count_deltas_quarantined, 'row')} of count deltas could not be added to the counts"
        remedy = "look for count_deltas_quarantined in the log. Correct the rows and restart the service, or delete them and run "
        yield Finding("counts", "warning", text, remedy + "`shortener verify --repair`")
    yield from _check_dead_deliveries(connection, now)
    yield from _check_failing_deliveries(connection)
    yield from check_gateway_queues(connection, now)
    for row in connection.execute(
        select(schema.trackers.c.id, schema.trackers.c.name, schema.trackers.c.disabled_reason).where(
            schema.trackers.c.enabled.is_(False), schema.trackers.c.disabled_reason.is_not(None)
        )
    ):
        text = f"tracker {row.id} ({row.name}) is disabled: {row.disabled_reason}"
        if row.disabled_reason == LOST_SECRET:
            remedy = f"`shortener trackers update {row.id} --header 'NAME: -' --secret - --enable`, with its earlier values"
        else:
            remedy = f"correct the receiver, then `shortener trackers update {row.id} --enable`"
        yield Finding("trackers", "warning", text, remedy)
    if (step := find_step(connection, now, read_uptime())) is not None:
        text = f"the clock moved ahead by {step.text}, so nothing expires and the purge waits until "
        text += f"{step.until:%Y-%m-%d %H:%M} UTC"
        yield Finding("purge", "warning", text, "set the clock, or run `shortener purge` if the clock is right")
    elif state.purge_lag_seconds > MAX_PURGE_LAG.total_seconds():
        text = f"the oldest row is stored {counted(round(state.purge_lag_seconds / 86400), 'day')} beyond its retention"
        yield Finding("purge", "warning", text, "run `shortener purge`, or raise PURGE_BATCH")
    yield from _check_growth(connection, settings, state.database_bytes, now)


def _check_dead_deliveries(connection: Connection, now: datetime) -> Iterator[Finding]:
    """Report the number of deliveries that became dead recently, for each tracker. Skip deleted trackers, because their
    deliveries cannot be replayed."""
    deliveries, trackers = schema.deliveries.c, schema.trackers.c
    by_tracker = (
        select(deliveries.tracker_id, trackers.name, func.count().label("dead"))
        .join_from(schema.deliveries, schema.trackers, trackers.id == deliveries.tracker_id, isouter=True)
        .where(IS_DEAD, deliveries.finished_at > now - RECENT, or_(deliveries.tracker_id.is_(None), trackers.id.is_not(None)))
        .group_by(deliveries.tracker_id, trackers.name)
        .order_by(func.count().desc(), deliveries.tracker_id)
    )
    rows = connection.execute(by_tracker).all()
    if rows:
        places = [
            f"{row.dead:,} to {'callback URLs' if row.tracker_id is None else f'tracker {row.tracker_id} ({row.name})'}"
            for row in rows[:MAX_NAMED_TRACKERS]
        ]
        if len(rows) > MAX_NAMED_TRACKERS:
            places.append(counted(len(rows) - MAX_NAMED_TRACKERS, "further tracker"))
        total = counted(sum(row.dead for row in rows), "delivery", "deliveries")
        text = f"{total} became dead in the last 24 hours: {', '.join(places)}"
        yield Finding("dead_deliveries", "warning", text, "correct the receiver, then `shortener deliveries replay --tracker ID`")


def _check_failing_deliveries(connection: Connection) -> Iterator[Finding]:
    """Report each tracker that has deliveries which failed at least once and will be attempted again."""
    deliveries, trackers = schema.deliveries.c, schema.trackers.c
    failing = (
        select(deliveries.tracker_id, deliveries.last_error, deliveries.last_status)
        .where(IS_PENDING, or_(deliveries.last_error.is_not(None), deliveries.last_status.is_not(None)))
        .limit(MAX_COUNTED_DELIVERIES)
        .subquery()
    )
    by_tracker = (
        select(trackers.id, trackers.name, func.count(), func.max(failing.c.last_error), func.max(failing.c.last_status))
        .join_from(failing, schema.trackers, trackers.id == failing.c.tracker_id)
        .where(trackers.enabled)
        .group_by(trackers.id, trackers.name)
        .order_by(trackers.id)
    )
    for tracker, name, count, error, status in connection.execute(by_tracker):
        reason = error or f"HTTP {status}"
        failing_count = counted(count, "delivery", "deliveries")
        verb = "is" if count == 1 else "are"
        text = f"{failing_count} to tracker {tracker} ({name}) failed at least once and {verb} repeated, for example with {reason}"
        yield Finding("failing_deliveries", "warning", text, f"check the receiver: `shortener trackers test {tracker}`")


def _check_clock(connection: Connection, now: datetime) -> Finding:
    """Compare the clock of this machine with the clock of PostgreSQL. With SQLite, compare it with the time of the newest
    message."""
    from shortener.storage.types import to_ms

    if connection.dialect.name == "postgresql":
        theirs = connection.execute(text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")).scalar_one()
        seconds = abs(int(theirs) - to_ms(now)) / 1000
        if seconds > MAX_CLOCK_SECONDS:
            said = f"the clocks of this machine and of the database differ by {seconds:.1f} s"
            return Finding("clock", "warning", said, "start a time service (chrony or systemd-timesyncd) on both machines")
        return Finding("clock", "ok", "agrees with the clock of the database")
    newest = connection.execute(select(schema.messages.c.created_at).order_by(schema.messages.c.id.desc()).limit(1)).scalar()
    if newest is not None and (newest - now).total_seconds() > MAX_CLOCK_SECONDS:
        said = f"the newest message was created at {newest:%Y-%m-%d %H:%M}, which is in the future"
        return Finding("clock", "warning", said, "set the clock of this machine, and start a time service that keeps it correct")
    return Finding("clock", "ok", f"{now:%Y-%m-%d %H:%M:%S} UTC")


def _count_processes(connection: Connection, settings: Settings, now: datetime) -> int:
    """Return the number of processes that serve or deliver: with PostgreSQL, the processes that have a lease; with SQLite, 0 or
    1."""
    from shortener.storage.open import sqlite_path
    from shortener.storage.types import to_ms

    file = sqlite_path(settings.store_url)
    if file is None:
        leases = schema.node_leases.c
        counted: int = connection.execute(select(func.count()).where(leases.until_ms > to_ms(now))).scalar_one()
        return counted
    lock = file.with_name(file.name + ".lock")
    if not lock.exists():
        return 0
    with lock.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return 1
    return 0


def _check_connections(connection: Connection, settings: Settings, processes: int) -> Finding:
    allowed = int(connection.execute(text("SHOW max_connections")).scalar_one())
    needed = processes * (2 * settings.database_pool + 1)
    said = f"{counted(processes, 'process', 'processes')} may open {counted(needed, 'connection')}"
    said += f", and the database allows {allowed}"
    if needed > allowed:
        return Finding("connections", "warning", said, "raise max_connections, lower DATABASE_POOL, or use PgBouncer")
    return Finding("connections", "ok", said)


def _check_growth(connection: Connection, settings: Settings, size: int, now: datetime) -> Iterator[Finding]:
    """Estimate the size of the SQLite database after MESSAGE_RETENTION_DAYS, and compare it with the free disk space."""
    import shutil

    from shortener.storage.open import sqlite_path

    file = sqlite_path(settings.store_url)
    oldest = connection.execute(select(schema.messages.c.created_at).order_by(schema.messages.c.id).limit(1)).scalar()
    if file is None or oldest is None:
        return
    days = (now - oldest).total_seconds() / 86400
    if days < MIN_DAYS_OF_DATA or days >= settings.message_retention_days:
        return
    expected = size / days * settings.message_retention_days
    free = shutil.disk_usage(file.parent).free
    retention = counted(settings.message_retention_days, "day")
    said = f"{size / days / 1e6:.1f} MB a day; {expected / 1e9:.1f} GB after {retention} of retention"
    if expected - size > free:
        yield Finding(
            "growth", "warning", said + f", but {free / 1e9:.1f} GB are free", "add disk, or lower MESSAGE_RETENTION_DAYS"
        )
    else:
        yield Finding("growth", "ok", said)


async def check_redis(settings: Settings) -> list[Finding]:
    """Check that Redis responds, writes hits to disk, and does not evict hits when its memory is full. If REDIS_URL is not set,
    return no finding."""
    if not settings.redis_url:
        return []
    from shortener.redis.client import RedisUnavailable, open_redis

    server = open_redis(settings.redis_url, timeout=max(settings.redis_timeout, 1.0), connections=2)
    facts: dict[str, Any] = {}

    async def read(client: Any) -> None:
        facts.update(await client.info("persistence"))
        facts.update(await client.info("memory"))

    try:
        await server.run(read, force=True)
    except RedisUnavailable as error:
        remedy = "start Redis, and check REDIS_URL; without Redis, redirects depend on the database alone"
        return [Finding("redis", "warning", f"does not respond: {error}", remedy)]
    finally:
        await server.close()
    found = []
    if not facts.get("aof_enabled"):
        remedy = "set appendonly yes, as in config/redis.conf"
        found.append(
            Finding("redis", "warning", "has no append-only file, so a restart of Redis loses the hits of an outage", remedy)
        )
    policy = str(facts.get("maxmemory_policy", ""))
    if policy.startswith("allkeys"):
        remedy = "set maxmemory-policy volatile-ttl, as in config/redis.conf"
        found.append(Finding("redis", "warning", f"evicts hits when its memory is full ({policy})", remedy))
    return found or [Finding("redis", "ok", "responds, and keeps hits on disk")]
