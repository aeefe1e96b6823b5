"""Delays after failed sign-ins, in the database, so that all processes share them.

After FREE_FAILURES failures for a name, each further failure doubles the time until the next attempt, from 1 second to MAX_DELAY.
A network that fails NETWORK_FAILURES times within NETWORK_WINDOW must wait until the window has passed. Nothing is locked for
good: an attacker can delay the sign-in of an operator by at most a minute, and never ends a session. A correct password resets
the failures of the name. Names and networks are stored as keyed hashes, for known and unknown names alike.
"""
# Tested by tests/portal/test_signin.py

from __future__ import annotations

import hashlib
import hmac
import math
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, select, update

from shortener.reporting.queries import AnyRow
from shortener.storage.database import upsert
from shortener.storage.schema import sign_in_failures

FREE_FAILURES = 5
MAX_DELAY = timedelta(seconds=60)
NETWORK_FAILURES = 20
NETWORK_WINDOW = timedelta(minutes=10)
#: Failures of a name count until this time has passed without another failure.
NAME_WINDOW = timedelta(hours=24)

_t = sign_in_failures.c


class SignInDelays:
    """Counts failures and returns how long the next attempt must wait. `key` is a secret of the installation."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def begin_attempt(self, connection: Connection, name: str, network: str, now: datetime) -> int:
        """Return the seconds that an attempt must wait, or 0 if it may be checked now.

        An attempt that may be checked is counted as a failure first, so that attempts at the same time do not avoid the delays.
        `succeed` takes it back. Counts that no longer matter are deleted."""
        connection.execute(delete(sign_in_failures).where(_t.last_at < now - NAME_WINDOW))
        by_name = self._lock(connection, self._name_key(name), now)
        by_network = self._lock(connection, self._network_key(network), now)
        wait: float = (by_name.last_at + _name_delay(by_name.failures) - now).total_seconds()
        window_ends = by_network.first_at + NETWORK_WINDOW
        if by_network.failures >= NETWORK_FAILURES:
            wait = max(wait, (window_ends - now).total_seconds())
        if wait > 0:
            return math.ceil(wait)
        self._set(connection, by_name.key, by_name.failures + 1, by_name.first_at, now)
        if window_ends <= now:
            self._set(connection, by_network.key, 1, now, now)
        else:
            self._set(connection, by_network.key, by_network.failures + 1, by_network.first_at, now)
        return 0

    def succeed(self, connection: Connection, name: str, network: str) -> None:
        """Reset the failures of a name, and take back the failure of its network that `begin_attempt` counted."""
        connection.execute(delete(sign_in_failures).where(_t.key == self._name_key(name)))
        of_network = update(sign_in_failures).where(_t.key == self._network_key(network), _t.failures > 0)
        connection.execute(of_network.values(failures=_t.failures - 1))

    def _lock(self, connection: Connection, key: str, now: datetime) -> AnyRow:
        """Return the counts of a key. Other transactions wait for this one before they read them."""
        values = {"key": key, "failures": 0, "first_at": now, "last_at": now}
        connection.execute(upsert(connection, sign_in_failures).values(values).on_conflict_do_nothing())
        return connection.execute(select(sign_in_failures).where(_t.key == key).with_for_update()).one()

    def _set(self, connection: Connection, key: str, failures: int, first_at: datetime, now: datetime) -> None:
        values = {"failures": failures, "first_at": first_at, "last_at": now}
        connection.execute(update(sign_in_failures).where(_t.key == key).values(values))

    def _name_key(self, name: str) -> str:
        return "name:" + hmac.digest(self._key, name.strip().casefold().encode(), hashlib.sha256).hex()[:32]

    def _network_key(self, network: str) -> str:
        return "network:" + hmac.digest(self._key, network.encode(), hashlib.sha256).hex()[:32]


def _name_delay(failures: int) -> timedelta:
    if failures < FREE_FAILURES:
        return timedelta()
    return min(timedelta(seconds=2 ** min(failures - FREE_FAILURES, 10)), MAX_DELAY)
