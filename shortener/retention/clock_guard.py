"""The guard of the purge against a clock that is far ahead, for example after a machine started with a wrong date. Without it, such
a clock would make all stored data look older than its retention, and the purge would delete everything.

Each run of the purge stores its time. A run that begins more than MAX_STEP after the latest run has found a step. There are two
possible causes: the clock moved ahead, or no process ran for this time. The purge cannot distinguish the two causes, so it waits
for WAIT_AFTER_STEP. Within this time, an administrator can correct the clock. When the clock is set back to the time before the
step, the purge continues at once. If an installation did not run for years, the purge begins one day later. The first run of an
installation trusts its clock. Only the background job waits. `shortener purge` does not wait, because a person has decided to run
it; at a terminal, the command asks for confirmation.

The processes of an installation share the stored value. Their clocks differ a little, and the times of runs may be stored in
another order than the runs began. Therefore a run whose time is only a little before the time at which the step was found does not
end the wait.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection

from shortener.model import record
from shortener.storage import installation
from shortener.storage.types import from_ms, to_ms

#: The name of the stored value: the time of the latest run, the time at which a run found a step, and the size of the step, in ms.
NAME = "purge_clock"
#: A wrong clock is usually wrong by many years, such as the 1,024 weeks of GPS. It is very rare that an installation does not run
#: for so long.
MAX_STEP = timedelta(days=730)
WAIT_AFTER_STEP = timedelta(hours=24)
_MAX_STEP_MS, _WAIT_MS = MAX_STEP // timedelta(milliseconds=1), WAIT_AFTER_STEP // timedelta(milliseconds=1)


@record
class ClockStep:
    """A step of the clock after which the purge waits. `size` is the time between the last run before the step and the run that
    found the step. The purge waits until `until`."""

    size: timedelta
    until: datetime

    @property
    def days(self) -> int:
        return self.size.days


def note_run(connection: Connection, now: datetime, *, trusted: bool = False) -> ClockStep | None:
    """Store the time of a run of the purge. Return the step after which the purge must wait, or None if it may delete.

    `trusted` is true if a person has checked the clock. The purge then never waits."""
    at = to_ms(now)
    found_at, size = (0, 0) if trusted else _find(_read(connection), at)
    installation.set_value(connection, NAME, f"{at} {found_at} {size}")
    return _step(found_at, size)


def find_step(connection: Connection, now: datetime) -> ClockStep | None:
    """Return the step after which the purge waits at present, or None."""
    return _step(*_find(_read(connection), to_ms(now)))


def _find(stored: tuple[int, int, int] | None, at: int) -> tuple[int, int]:
    """Return (time at which the step was found, size of the step) if a run at the time `at` must wait, otherwise (0, 0). All times
    are in ms."""
    if stored is None:
        return 0, 0
    latest, found_at, size = stored
    trusted_at = found_at - size if found_at else latest  # The time of the latest run before the step.
    if at - trusted_at <= _MAX_STEP_MS:  # The difference is negative if the clock was set back.
        return 0, 0
    if not found_at or at < found_at or at - latest > _MAX_STEP_MS:
        return at, at - trusted_at
    return (found_at, size) if at - found_at < _WAIT_MS else (0, 0)


def _read(connection: Connection) -> tuple[int, int, int] | None:
    stored = installation.get(connection, NAME)
    if stored is None:
        return None
    latest, found_at, size = map(int, stored.split())
    return latest, found_at, size


def _step(found_at: int, size: int) -> ClockStep | None:
    return ClockStep(timedelta(milliseconds=size), from_ms(found_at) + WAIT_AFTER_STEP) if found_at else None
