"""This module keeps the open connections of this process to gateways. Several attempts can use the same connection."""
# Tested by tests/gateways/test_connections.py

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

from shortener.gateways.submission import GatewayConfig, GatewayConnection, GatewayContext, GatewayKind, ListeningConnection
from shortener.model import mutable_record


@mutable_record
class _OpenConnection:
    """An open connection, the revision of its gateway, and the number of attempts that use it."""

    connection: GatewayConnection
    revision: int
    users: int = 0
    is_retired: bool = False


class Connections:
    """The open connections of this process to gateways. The first message for a gateway opens its connection. If the settings of
    the gateway change, the next message opens a new connection. The old connection is closed when its last attempt has ended."""

    def __init__(self, context: GatewayContext, kinds: Mapping[str, GatewayKind]) -> None:
        self.context = context
        self.kinds = kinds
        self._open: dict[int, _OpenConnection] = {}

    @asynccontextmanager
    async def use(self, config: GatewayConfig) -> AsyncIterator[GatewayConnection]:
        """Yield the connection to a gateway, and open it if necessary."""
        current = previous = self._open.get(config.id)
        if current is None or current.revision != config.revision:
            current = self._open[config.id] = _OpenConnection(self.kinds[config.kind].open(config, self.context), config.revision)
        current.users += 1
        try:
            if previous is not None and previous is not current:
                previous.is_retired = True
                await self._close_unused(previous)
            yield current.connection
        finally:
            current.users -= 1
            await self._close_unused(current)

    def is_open(self, gateway_id: int) -> bool | None:
        """Return whether the connection of this process to a gateway is open. Return None if this process has no connection to the
        gateway, or if connections of this kind are opened only when a message is handed on."""
        one = self._open.get(gateway_id)
        return one.connection.is_up if one is not None and isinstance(one.connection, ListeningConnection) else None

    async def _close_unused(self, one: _OpenConnection) -> None:
        if one.is_retired and not one.users:
            await one.connection.close()

    async def close_others(self, kept: Collection[int]) -> None:
        """Close each ListeningConnection whose gateway is not in `kept`, when its last attempt has ended."""
        for gateway_id, one in list(self._open.items()):
            if gateway_id not in kept and isinstance(one.connection, ListeningConnection):
                del self._open[gateway_id]
                one.is_retired = True
                await self._close_unused(one)

    async def close(self) -> None:
        """Close all connections."""
        opened, self._open = self._open, {}
        for one in opened.values():
            await one.connection.close()
