"""This background job keeps open the network connections on which gateways send reports and replies.

Without this job, a process would connect only when it has a message to send. After a restart, it would miss the delivery
reports of earlier messages. The connections of removed and disabled gateways are closed.
"""

from __future__ import annotations

import structlog

from shortener.accounts.directory import Directory
from shortener.errors import ApiError, StoreUnavailable
from shortener.gateways.connections import Connections
from shortener.gateways.gateway import LostSettings
from shortener.gateways.kinds import LISTENING
from shortener.gateways.store import GatewayStore
from shortener.gateways.submission import ListeningConnection
from shortener.metrics import Metrics

log = structlog.get_logger(__name__)


class ConnectionKeeper:
    """The background job that keeps gateway connections open. It runs in every process that hands messages on."""

    def __init__(self, store: GatewayStore, directory: Directory, connections: Connections) -> None:
        self._store = store
        self._directory = directory
        self._connections = connections
        # The name and the connection of each gateway whose connection this job keeps open, by gateway id.
        self._listening: dict[int, tuple[str, ListeningConnection]] = {}

    def register_metrics(self, metrics: Metrics) -> None:
        """Register the metric of the connections. A process that does not run this job has no such metric."""
        metrics.gauge(
            "shortener_gateway_link_up",
            "1 if this process has an open session with the SMPP gateway; 0 if the gateway refuses it or does not respond.",
            lambda: {(str(gateway_id), name): float(one.is_up) for gateway_id, (name, one) in self._listening.items()},
            "gateway",
            "name",
        )

    async def step(self) -> int:
        """Open missing gateway connections. Close the connections of removed or disabled gateways. Return 0, because no more work
        is left. Raise StoreUnavailable if the database is unavailable."""
        listening = [one.id for one in self._directory.gateways.values() if one.kind in LISTENING and one.enabled]
        for gateway_id in listening:
            try:
                await self._keep_open(gateway_id)
            except StoreUnavailable:
                raise
            except ApiError:  # the gateway was removed in the meantime
                continue
            except Exception:
                log.exception("gateway_not_usable", gateway=gateway_id)
        self._listening = {gateway_id: one for gateway_id, one in self._listening.items() if gateway_id in listening}
        await self._connections.close_others(listening)
        return 0

    async def _keep_open(self, gateway_id: int) -> None:
        config = (await self._store.get(gateway_id)).config
        if isinstance(config.settings, LostSettings):
            return
        async with self._connections.use(config) as connection:
            if isinstance(connection, ListeningConnection):
                connection.keep_open()
                self._listening[gateway_id] = config.name, connection
