"""Bells that ring in other processes: LISTEN and NOTIFY of PostgreSQL, over one connection of this process's own.

A bell only wakes somebody sooner: whoever waits for it polls as well. So nothing here fails: while there is no connection (the
database is away, or PgBouncer in transaction mode is in between, which cannot pass them on) a bell is not heard elsewhere, and a
new connection is tried every `RECONNECT` seconds. A NOTIFY is a transaction of its own, for many rings at once: within the
transactions that write events it would make their commits wait for each other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import asyncpg
import structlog

from shortener.storage.postgres import CONNECT_TIMEOUT

log = structlog.get_logger(__name__)

CHANNEL = "shortener"
RECONNECT = 1.0  # seconds
APART = 0.02  # seconds between two NOTIFYs of a process


class PostgresNotifier:
    """`dsn`: as asyncpg takes it."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._bells: dict[str, Callable[[], None]] = {}
        self._rung: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.connected = False

    def on(self, name: str, notify: Callable[[], None]) -> None:
        """What to do here when another process rings the bell of this name."""
        self._bells[name] = notify

    def notify(self, name: str) -> None:
        """Ring the bell of this name in every other process."""
        self._rung.add(name)
        self._wake.set()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._stay_connected())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _stay_connected(self) -> None:
        while True:
            try:
                connection = await asyncpg.connect(self._dsn, timeout=CONNECT_TIMEOUT, command_timeout=CONNECT_TIMEOUT)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                self._rung.clear()
            else:
                try:
                    await self._pass_on(connection)
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                    log.warning("bells_cut", error=f"{type(error).__name__}: {error}")
                finally:
                    self.connected = False
                    with contextlib.suppress(Exception):
                        connection.terminate()
            await asyncio.sleep(RECONNECT)  # the server is away, or cut us off

    async def _pass_on(self, connection: Any) -> None:
        # The server tells of a closed connection to whoever waits for it: without this, only the next NOTIFY would notice.
        connection.add_termination_listener(lambda _: self._wake.set())
        await connection.add_listener(CHANNEL, self._heard)
        self.connected = True
        while True:
            await self._wake.wait()
            self._wake.clear()
            rung, self._rung = self._rung, set()
            if connection.is_closed():
                raise asyncpg.InterfaceError("the server closed the connection")
            for name in rung:
                await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, name)
            await asyncio.sleep(APART)  # what is rung meanwhile shares the next NOTIFY

    def _heard(self, connection: Any, pid: int, channel: str, name: str) -> None:
        wake_up = self._bells.get(name)
        if wake_up is not None and pid != connection.get_server_pid():
            wake_up()
