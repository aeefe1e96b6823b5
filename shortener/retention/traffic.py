"""This module finds out whether clicks or messages arrive at present. While none arrive, commands that use it work without
pauses.

A command runs in its own process, so it can detect the traffic of the servers only in the database: by the times in the newest
row ids of hits and messages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Connection, func, select

from shortener.ids import ms_of
from shortener.model import utcnow
from shortener.storage.database import Database
from shortener.storage.schema import hits, messages
from shortener.storage.types import to_ms

CHECK_SECONDS = 0.5  # Seconds between two checks of the database.
QUIET_SECONDS = 10.0  # Traffic counts as ended when no hit and no message was stored for this number of seconds.


class Traffic:
    """A detector of traffic: it finds out whether clicks or messages arrive at present. The database is read at most once in
    CHECK_SECONDS."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = utcnow) -> None:
        self._database = database
        self._clock = clock
        self._checked_at = float("-inf")
        self._is_present = True

    async def is_present(self) -> bool:
        """Return whether a hit or a message was stored in the last QUIET_SECONDS. Raise StoreUnavailable if the database is
        unavailable."""
        now = time.monotonic()
        if now - self._checked_at >= CHECK_SECONDS:
            self._checked_at = now
            newest = await self._database.read(_newest_row_id)
            self._is_present = ms_of(newest) >= to_ms(self._clock()) - 1000 * QUIET_SECONDS
        return self._is_present


def _newest_row_id(connection: Connection) -> int:
    """Return the largest row id of hits and messages; 0 if there are none."""
    return max(connection.scalar(select(func.max(table.c.id))) or 0 for table in (hits, messages))
