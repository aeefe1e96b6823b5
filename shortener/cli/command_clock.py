"""The clock of a command: the clock of the database that the command has opened. The processes of the service use the same clock.

The machine on which an operator runs a command may have a wrong clock. A command uses the clock of this machine only until it
opens a database.
"""
# Tested by tests/cli/test_command_clock.py

from __future__ import annotations

from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shortener.model import Clock
    from shortener.storage.database import Database

_clock: ContextVar[Clock | None] = ContextVar("clock of the command", default=None)


async def use_clock_of(database: Database) -> None:
    """Let `current_time` return the time of the database. Raise StoreUnavailable if the database is unavailable."""
    from shortener.storage.clock import open_clock

    _clock.set(await open_clock(database))


def current_time() -> datetime:
    """Return the current time in UTC."""
    from shortener.model import utcnow

    return (_clock.get() or utcnow)()
