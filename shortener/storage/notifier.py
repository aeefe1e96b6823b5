"""This module sends wake-up events between processes, with LISTEN and NOTIFY of PostgreSQL on a separate connection.

A wake-up event only makes a job run earlier. Nothing depends on it, because every job also polls. Therefore nothing here raises
an error. While there is no connection, wake-up events are lost, and the notifier tries to connect again every RECONNECT_SECONDS.
There is no connection if the database is down, or if the process connects through PgBouncer in transaction mode, which does not
support LISTEN.

Each NOTIFY runs in a transaction of its own, because commits with a NOTIFY wait for each other, and the transactions that write
rows to the event log must not wait. One NOTIFY is enough for many calls of `notify`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import asyncpg
import structlog

from shortener.jobs import TaskSupervisor
from shortener.storage.postgres import CONNECT_TIMEOUT_SECONDS
from shortener.storage.postgres_hosts import connect

log = structlog.get_logger(__name__)

CHANNEL = "shortener"
RECONNECT_SECONDS = 1.0
MIN_INTERVAL_SECONDS = 0.02  # The minimum pause between two NOTIFY transactions of a process.


class PostgresNotifier:
    """Sends and receives named wake-up events. `dsn` is the URL of the database in the form that asyncpg accepts."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._callbacks: dict[str, Callable[[], None]] = {}
        self._pending: set[str] = set()
        self._wake_up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.connected = False

    def on(self, name: str, callback: Callable[[], None]) -> None:
        """Call `callback` when another process sends the wake-up event with this name."""
        self._callbacks[name] = callback

    def notify(self, name: str) -> None:
        """Send the wake-up event with this name to every other process."""
        self._pending.add(name)
        self._wake_up.set()

    def start(self, supervisor: TaskSupervisor | None = None) -> None:
        """Connect to PostgreSQL in the background."""
        self._task = (supervisor or TaskSupervisor()).start("notifier", self._stay_connected)

    async def stop(self) -> None:
        """Disconnect from PostgreSQL. Wake-up events that were not sent are lost."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _stay_connected(self) -> None:
        while True:
            try:
                connection = await connect(self._dsn, timeout=CONNECT_TIMEOUT_SECONDS, command_timeout=CONNECT_TIMEOUT_SECONDS)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                self._pending.clear()
            else:
                try:
                    await self._listen_and_send(connection)
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                    log.warning("notifier_disconnected", error=f"{type(error).__name__}: {error}")
                finally:
                    self.connected = False
                    with contextlib.suppress(Exception):
                        connection.terminate()
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen_and_send(self, connection: Any) -> None:
        # This listener notices at once that the connection was closed. Otherwise the notifier would notice it only at the next
        # NOTIFY.
        connection.add_termination_listener(lambda _: self._wake_up.set())
        await connection.add_listener(CHANNEL, self._receive)
        self.connected = True
        while True:
            await self._wake_up.wait()
            self._wake_up.clear()
            names, self._pending = self._pending, set()
            if connection.is_closed():
                raise asyncpg.InterfaceError("the server closed the connection")
            for name in names:
                await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, name)
            await asyncio.sleep(MIN_INTERVAL_SECONDS)  # Calls of `notify` during this pause share the next NOTIFY transaction.

    def _receive(self, connection: Any, pid: int, channel: str, name: str) -> None:
        callback = self._callbacks.get(name)
        if callback is not None and pid != connection.get_server_pid():
            callback()
