"""A simulated machine for tests of steps of the clock."""

from __future__ import annotations

from datetime import timedelta

from shortener.storage.clock_guard import ClockGuard, Uptime
from shortener.storage.types import to_ms
from tests.conftest import Clock


class Machine:
    """A machine whose clock and uptime a test controls. `boots` is the number of times that the machine was started."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.boots = 1
        self.passed = timedelta(hours=100)

    def uptime(self) -> Uptime:
        return Uptime(f"boot-{self.boots}", self.passed // timedelta(milliseconds=1))

    def guard(self, stored: str | None = None) -> ClockGuard:
        """Return the clock guard of a process that starts now. `stored` is the clock reading that its installation contains."""
        return ClockGuard(lambda: to_ms(self.clock()), self.uptime, stored)

    def run(self, time: timedelta) -> None:
        """Let time pass: the uptime and the clock move forward."""
        self.passed += time
        self.clock.now += time

    def reboot(self) -> None:
        self.boots += 1
        self.passed = timedelta(seconds=30)
