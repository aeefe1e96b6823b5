"""The table of all background jobs, with their intervals.

The interval of a job is the pause after a run that found nothing to do.
"""

# Tested by tests/container/test_service.py

from __future__ import annotations

from shortener.accounts.directory import REFRESH_SECONDS, Directory
from shortener.clicks.cache_repair import INTERVAL_SECONDS as CACHE_REPAIR_INTERVAL_SECONDS
from shortener.clicks.cache_repair import MIN_INTERVAL_SECONDS as CACHE_REPAIR_MIN_INTERVAL_SECONDS
from shortener.clicks.cache_repair import CacheRepair
from shortener.clicks.verdicts.reclassify import INTERVAL as RECLASSIFY_INTERVAL
from shortener.container import full_collections
from shortener.container.full_collections import FullCollections
from shortener.container.parts import ClickParts, DeliveryParts, Foundation, GatewayParts
from shortener.conversions.first_conversions import FirstConversions
from shortener.jobs import Job, Jobs
from shortener.outbox.expiring_keys import announce, has_expiring
from shortener.redis.link_cache import RedisLinkCache
from shortener.reporting import counts
from shortener.reporting.count_folder import CountFolder
from shortener.reporting.queues import INTERVAL_SECONDS as QUEUES_INTERVAL_SECONDS
from shortener.reporting.queues import QueueMonitor
from shortener.retention.erasure_repeats import ErasureRepeats
from shortener.retention.purge import Purge
from shortener.storage.clock import SharedClock
from shortener.storage.node_lease import RENEW_SECONDS

CLOCK_INTERVAL_SECONDS = 10.0  # Pause of the job that compares the clock of this machine with the clock of PostgreSQL.
DELIVERY_INTERVAL_SECONDS = 0.5  # Pause of the jobs that search for new events and due deliveries.
SPOOL_INTERVAL_SECONDS = 0.5  # Pause of the jobs that use Redis: spool, rate limits and link cache.
ROLLUPS_INTERVAL_SECONDS = 10.0  # Pause of the job that rolls up counts that an older release stored.
ROLLUPS_MIN_INTERVAL_SECONDS = 0.1  # The pause between two transactions of the roll-up job, so that clicks are not delayed.
COUNTS_INTERVAL_SECONDS = 1.0  # Pause of the job that adds count deltas to the counts.
LINK_UPDATES_INTERVAL_SECONDS = 2.0  # Pause of the job that continues the link updates of processes that have ended.
REPLAYS_INTERVAL_SECONDS = 0.5  # Pause of the job that replays dead deliveries.
REPLAYS_MIN_INTERVAL_SECONDS = 0.05  # The pause between two batches of replays, so that clicks are not delayed.
DEVICES_INTERVAL_SECONDS = 10.0  # Pause of the job that counts clicks by device and browser.
FIRST_CONVERSIONS_INTERVAL_SECONDS = 10.0  # Pause of the job that counts converted messages from before an upgrade.
# The pause between two transactions of the job for converted messages, so that clicks are not delayed.
FIRST_CONVERSIONS_MIN_INTERVAL_SECONDS = 0.1
EARLY_HITS_INTERVAL_SECONDS = 2.0  # Pause of the job that classifies early hits again.
ERASURE_REPEATS_INTERVAL_SECONDS = 2.0  # Pause of the job that erases personal data which was written while an erasure ran.
GATEWAY_LINKS_INTERVAL_SECONDS = 2.0  # Pause of the job that keeps the connections to SMPP gateways open.
EXPIRING_KEYS_INTERVAL_SECONDS = 10.0  # Pause of the job that creates events for keys and tokens which expire soon.

#: The minimum pause between two runs of the fan-out, so that under load one run processes the events of 20 ms. A single event does
#: not wait.
FANOUT_MIN_INTERVAL_SECONDS = 0.02


def build_jobs(
    foundation: Foundation,
    clicks: ClickParts,
    delivery: DeliveryParts,
    gateways: GatewayParts,
    purge: Purge,
    queues: QueueMonitor,
    collections: FullCollections,
) -> Jobs:
    """Return the table of all background jobs."""
    database, clock, settings = foundation.database, foundation.clock, foundation.settings
    jobs = Jobs(foundation.supervisor)
    jobs.add(Job("directory", REFRESH_SECONDS, lambda: _refresh(foundation.directory)))
    jobs.add(Job("counts", COUNTS_INTERVAL_SECONDS, CountFolder(database, clock).step))
    jobs.add(
        Job(
            "rollups",
            ROLLUPS_INTERVAL_SECONDS,
            lambda: database.write(counts.heal),
            min_interval=ROLLUPS_MIN_INTERVAL_SECONDS,
        )
    )
    if isinstance(clock, SharedClock):
        jobs.add(Job("clock", CLOCK_INTERVAL_SECONDS, lambda: _measure_clock(foundation, clock)))
    if foundation.node_lease is not None:
        jobs.add(Job("node", RENEW_SECONDS, foundation.node_lease.step))
    repeats = ErasureRepeats(database, foundation.cache)
    jobs.add(Job("erasure_repeats", ERASURE_REPEATS_INTERVAL_SECONDS, lambda: repeats.step(clock())))
    jobs.add(Job("queues", QUEUES_INTERVAL_SECONDS, queues.step))
    jobs.add(Job("purge", settings.purge_interval, lambda: purge.step(clock())))
    if foundation.redis is not None:
        jobs.add(Job("rate_limits", SPOOL_INTERVAL_SECONDS, foundation.rate_limits.share))
    if isinstance(foundation.cache, RedisLinkCache):
        jobs.add(Job("cache", SPOOL_INTERVAL_SECONDS, foundation.cache.retry_invalidations))
        repair = CacheRepair(database, foundation.cache, foundation.now_ms)
        jobs.add(Job("cache_repair", CACHE_REPAIR_INTERVAL_SECONDS, repair.step, min_interval=CACHE_REPAIR_MIN_INTERVAL_SECONDS))
    if clicks.spool_drainer is not None:
        jobs.add(Job("spool", SPOOL_INTERVAL_SECONDS, clicks.spool_drainer.step))
    link_updates = clicks.link_updates
    jobs.add(Job("link_updates", LINK_UPDATES_INTERVAL_SECONDS, link_updates.step, link_updates.wake_up))
    jobs.add(Job("devices", DEVICES_INTERVAL_SECONDS, clicks.devices.step))
    jobs.add(
        Job(
            "first_conversions",
            FIRST_CONVERSIONS_INTERVAL_SECONDS,
            FirstConversions(database, foundation.ids, clock).step,
            min_interval=FIRST_CONVERSIONS_MIN_INTERVAL_SECONDS,
        )
    )
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
    jobs.add(
        Job(
            "replays",
            REPLAYS_INTERVAL_SECONDS,
            delivery.replays.step,
            delivery.replays.wake_up,
            min_interval=REPLAYS_MIN_INTERVAL_SECONDS,
        )
    )
    jobs.add(Job("gateways", DELIVERY_INTERVAL_SECONDS, gateways.dispatcher.step, gateways.dispatcher.wake_up))
    jobs.add(Job("garbage", full_collections.INTERVAL_SECONDS, collections.step))
    jobs.add(Job("gateway_links", GATEWAY_LINKS_INTERVAL_SECONDS, gateways.connection_keeper.step))
    return jobs


async def _refresh(directory: Directory) -> int:
    await directory.refresh()
    return 0


async def _measure_clock(foundation: Foundation, clock: SharedClock) -> int:
    await clock.step()
    await foundation.clock_guard.store_new_step(foundation.database)
    return 0


async def _announce_expiring_keys(foundation: Foundation) -> int:
    """Create an event for each postback key and tracker token that expires soon. If there is none, begin no writing
    transaction."""
    now = foundation.clock()
    if not await foundation.database.read(has_expiring, now):
        return 0
    await foundation.database.write(announce, foundation.ids, now)
    return 0
