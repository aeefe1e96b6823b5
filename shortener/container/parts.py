"""The groups of objects (parts) from which the service is built.

Each group depends only on the groups before it. The order is `Foundation`, `ClickParts`, `MessageParts`, `DeliveryParts` and
`GatewayParts`.
"""

# Tested by tests/container/test_service.py

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shortener.accounts.directory import Directory
from shortener.clicks.device_counts import DeviceCounter
from shortener.clicks.hit_spool import HitSpool
from shortener.clicks.link_updates import LinkUpdates
from shortener.clicks.recorder import Recorder
from shortener.clicks.spool_drainer import SpoolDrainer
from shortener.clicks.throttle import Throttle
from shortener.clicks.verdicts.early_hits import EarlyHits
from shortener.clicks.verdicts.reclassify import Reclassifier
from shortener.container.link_hosts import InstallationHosts
from shortener.conversions.refusals import RefusedConversions
from shortener.conversions.service import Conversions
from shortener.delivery.deliveries import Deliveries
from shortener.delivery.dispatcher import Dispatcher
from shortener.delivery.fanout import Fanout
from shortener.delivery.replays import Replays
from shortener.delivery.sample_delivery import TestSlots
from shortener.delivery.sender import Sender
from shortener.delivery.trackers import Trackers
from shortener.gateways.connection_keeper import ConnectionKeeper
from shortener.gateways.connections import Connections
from shortener.gateways.dispatcher import GatewayDispatcher
from shortener.gateways.replies import Replies
from shortener.gateways.reports import GatewayReports
from shortener.gateways.store import GatewayStore
from shortener.ids import ClickIds, IdGenerator
from shortener.jobs import TaskSupervisor, WakeUp
from shortener.messages.codes import Codes
from shortener.messages.delivery_reports import DeliveryReports
from shortener.messages.rewrite_totals import RewriteTotals
from shortener.metrics import RequestTotals
from shortener.model import Clock, record
from shortener.outbox.count_deltas import Cohorts
from shortener.redis.client import RedisServer
from shortener.redis.link_cache import LinkCache
from shortener.redis.rate_limit import RateLimits
from shortener.secret import Secret
from shortener.settings import Settings
from shortener.storage.clock_guard import ClockGuard
from shortener.storage.database import Database
from shortener.storage.node_lease import NodeLease

if TYPE_CHECKING:
    from shortener.storage.notifier import PostgresNotifier


@record
class Foundation:
    """The parts on which all other parts depend: settings, clock, secret, database, Redis, accounts and ids."""

    settings: Settings
    clock: Clock
    now_ms: Callable[[], int]  # A function that returns the time of `clock` in milliseconds since 1970.
    clock_guard: ClockGuard  # The guard against clock steps: nothing must expire only because the clock was moved.
    secret: Secret
    database: Database
    redis: RedisServer | None
    cache: LinkCache
    notifier: PostgresNotifier | None
    directory: Directory
    ids: IdGenerator
    node_lease: NodeLease | None  # The lease of this process's node number; None with SQLite.
    click_ids: ClickIds
    supervisor: TaskSupervisor  # The supervisor of the tasks that run until the process ends.
    rate_limits: RateLimits
    client_key: bytes  # The key with which `client_address.hash_client` hashes IP addresses.
    requests: RequestTotals  # The counts of API requests, for the metrics.
    sends_wake_up: WakeUp  # The gateways' dispatcher waits for it. It is set when messages were queued for a gateway.
    notify_sends: Callable[[], None]  # The function that sets `sends_wake_up` in every process of the installation.
    events_wake_up: WakeUp  # The fan-out job waits for it. It is set after each transaction that wrote events.
    notify_events: Callable[[], None]  # The function that sets `events_wake_up` in every process of the installation.


@record
class ClickParts:
    """The parts that record and classify hits."""

    recorder: Recorder
    throttle: Throttle
    spool: HitSpool | None
    spool_drainer: SpoolDrainer | None
    devices: DeviceCounter
    reclassifier: Reclassifier
    link_updates: LinkUpdates
    early_hits: EarlyHits


@record
class MessageParts:
    """The parts that accept delivery reports and conversions, and the parts that `Service.rewriter` needs."""

    codes: Codes
    cohorts: Cohorts
    link_hosts: InstallationHosts
    rewrite_totals: RewriteTotals
    delivery_reports: DeliveryReports
    conversions: Conversions
    refused_conversions: RefusedConversions


@record
class DeliveryParts:
    """The parts that deliver events to trackers. `senders` are the HTTP clients for requests to trackers and for callbacks."""

    trackers: Trackers
    deliveries: Deliveries
    replays: Replays
    senders: tuple[Sender, Sender]
    test_slots: TestSlots
    fanout: Fanout
    dispatcher: Dispatcher


@record
class GatewayParts:
    """The parts that hand messages on to gateways. `senders` are the HTTP clients that the gateways use."""

    store: GatewayStore
    connections: Connections
    reports: GatewayReports
    replies: Replies
    dispatcher: GatewayDispatcher
    connection_keeper: ConnectionKeeper
    senders: tuple[Sender, Sender]
