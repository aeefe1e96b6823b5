"""This module contains the running service: its parts, and the order in which they start and stop.

The rewriter and the reader of message statuses are built when they are first used. Their modules contain the expressions that
find directives and URLs, and the tables of phone numbers. An import at the start would take a tenth of the start time. In a
server, only endpoints and pages use these two parts. A thread imports the modules of endpoints and pages, and thereby also the
modules of the two parts. When a part is built, its import therefore takes no time in the event loop, and clicks do not wait.
`tests/test_lean_imports.py` checks this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import structlog

from shortener.accounts.credentials import Credentials
from shortener.accounts.directory import base_url_of
from shortener.clicks.networks import open_networks
from shortener.container.parts import ClickParts, DeliveryParts, Foundation, GatewayParts, MessageParts
from shortener.jobs import Jobs
from shortener.metrics import Metrics
from shortener.tracing import Tracer

if TYPE_CHECKING:
    from shortener.messages.rewriter import Rewriter
    from shortener.reporting.status import MessageStatusReader

log = structlog.get_logger(__name__)

#: The time in seconds that is reserved for closing connections at the end of a stop.
CLOSE_SECONDS = 0.5


class Service:
    """All parts of the service. Its attributes are the parts that other modules use. `first_credentials` are the credentials that
    the first start of an installation has created; None at every later start."""

    def __init__(
        self,
        foundation: Foundation,
        clicks: ClickParts,
        messages: MessageParts,
        delivery: DeliveryParts,
        gateways: GatewayParts,
        jobs: Jobs,
        metrics: Metrics,
        first_credentials: Credentials | None,
    ) -> None:
        self.settings = foundation.settings
        self.clock = foundation.clock
        self.clock_guard = foundation.clock_guard
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
        self.requests = foundation.requests
        self.notify_sends = foundation.notify_sends
        self.networks = open_networks(foundation.settings.network_files)
        self.events_wake_up = foundation.events_wake_up
        self.recorder = clicks.recorder
        self.throttle = clicks.throttle
        self.devices = clicks.devices
        self.reclassifier = clicks.reclassifier
        self.link_updates = clicks.link_updates
        self.link_hosts = messages.link_hosts
        self.early_hits = clicks.early_hits
        self.codes = messages.codes
        self.cohorts = messages.cohorts
        self.rewrite_totals = messages.rewrite_totals
        self.delivery_reports = messages.delivery_reports
        self.conversions = messages.conversions
        self.refused_conversions = messages.refused_conversions
        self.trackers = delivery.trackers
        self.deliveries = delivery.deliveries
        self.replays = delivery.replays
        self.sender, self.callback_sender = delivery.senders
        self.test_slots = delivery.test_slots
        self.fanout = delivery.fanout
        self.dispatcher = delivery.dispatcher
        self.gateways = gateways.store
        self.gateway_connections = gateways.connections
        self.gateway_reports = gateways.reports
        self.replies = gateways.replies
        self.gateway_dispatcher = gateways.dispatcher
        self._gateway_senders = gateways.senders
        self.jobs = jobs
        self.metrics = metrics
        self.first_credentials = first_credentials
        self.largest_batch = self.settings.batch_limit  # the largest BATCH_LIMIT that the installation has had
        self.tracer: Tracer | None = None
        self._rewriter: Rewriter | None = None
        self.ready = False
        self._stop_deadline = 0.0  # The time of the event loop at which the stop must be complete.
        self._dispatcher_stop: asyncio.Future[Any] | None = None

    def use_tracer(self, tracer: Tracer | None) -> None:
        """Trace messages with `tracer`. If `tracer` is None, stop tracing."""
        self.tracer = self.conversions.tracer = tracer
        self.dispatcher.use_tracer(tracer)
        if self._rewriter is not None:
            self._rewriter.tracer = tracer

    @property
    def rewriter(self) -> Rewriter:
        """The part that rewrites messages. It is built when it is first used."""
        if self._rewriter is None:
            from shortener.messages.rewrite_item import RewriteLimits
            from shortener.messages.rewriter import Rewriter

            settings = self.settings
            self._rewriter = Rewriter(
                database=self.database,
                cache=self.cache,
                ids=self.ids,
                codes=self.codes,
                cohorts=self.cohorts,
                clock=self.clock,
                hosts=self.link_hosts,
                limits=RewriteLimits(
                    max_recipients=settings.batch_limit,
                    link_ttl=timedelta(days=settings.link_ttl_days),
                    code_length=self.codes.length,
                ),
                totals=self.rewrite_totals,
                tracer=self.tracer,
                on_sends=self.notify_sends,
            )
        return self._rewriter

    @cached_property
    def status_reader(self) -> MessageStatusReader:
        """The part that returns the status of messages. It is built when it is first used."""
        from shortener.reporting.status import MessageStatusReader

        return MessageStatusReader(base_url_of(self.settings, self.directory), self.click_ids.encode)

    def start(self, *, web: bool = True, deliver: bool = True) -> None:
        """Start the background jobs. The event loop must be running."""
        if web:
            self.recorder.start()
        self.jobs.start(without=() if deliver else ("fanout", "dispatcher", "gateways", "gateway_links"))
        if self.notifier is not None:
            self.notifier.start(self.supervisor)
        self.ready = True

    @property
    def is_stopping(self) -> bool:
        """Whether `begin_stop` was called."""
        return self._dispatcher_stop is not None

    def begin_stop(self, within: float) -> None:
        """Report "not ready" on /readyz and start no more deliveries. Until `close`, the service still responds to requests and
        clicks. Meanwhile, the deliveries in flight end, or their claims are given back.

        `close` must finish within `within` seconds from now. A second call has no effect."""
        if self._dispatcher_stop is None:
            self.ready = False
            loop = asyncio.get_running_loop()
            self._stop_deadline = loop.time() + within
            grace = max(within - CLOSE_SECONDS, 0.1)
            self._dispatcher_stop = asyncio.gather(self.dispatcher.stop(grace), self.gateway_dispatcher.stop(grace))

    async def close(self, grace: float = 8.0) -> None:
        """Write the waiting hits, stop the background work and close all connections.

        This takes at most `grace` seconds. If `begin_stop` was called before, its time limit applies."""
        self.begin_stop(grace)
        assert self._dispatcher_stop is not None
        remaining = self._stop_deadline - CLOSE_SECONDS - asyncio.get_running_loop().time()
        await asyncio.gather(self.recorder.stop(max(remaining, 0.1)), self._dispatcher_stop)
        await self._close_part("jobs", self.jobs.stop())
        if self.notifier is not None:
            await self._close_part("notifier", self.notifier.stop())
        if self.redis is not None:
            await self._close_part("redis", self.redis.close())
        await self._close_part("gateways", self.gateway_connections.close())
        for gateway_sender in self._gateway_senders:
            await self._close_part("gateway_sender", gateway_sender.close())
        await self._close_part("sender", self.sender.close())
        await self._close_part("callback_sender", self.callback_sender.close())
        await self._close_part("test_sender", self.test_slots.sender.close())
        if self.node_lease is not None:
            await self._close_part("node_lease", self.node_lease.release())
        if self.tracer is not None:
            await self._close_part("tracer", asyncio.to_thread(self.tracer.close))
        await self._close_part("database", self.database.close())

    async def _close_part(self, name: str, closing: Coroutine[Any, Any, object]) -> None:
        """Close one part within a time limit.

        If the part does not close in time, cancel the closing and do not wait for its end, because a server that does not respond
        must not delay the stop. No data is lost, because all data is already written."""
        remaining = self._stop_deadline - asyncio.get_running_loop().time()
        task = asyncio.ensure_future(closing)
        done, _ = await asyncio.wait((task,), timeout=max(remaining, CLOSE_SECONDS / 5))
        if not done:
            task.cancel()
            log.error("not_closed_in_time", part=name)
        elif not task.cancelled() and (error := task.exception()):
            log.error("not_closed", part=name, exc_info=error)
