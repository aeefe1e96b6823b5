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

from sqlalchemy import Connection, delete, select

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

    def seconds_to_wait(self, connection: Connection, name: str, network: str, now: datetime) -> int:
        """Return the seconds until an attempt for this name from this network is checked; 0: now."""
        wait = 0.0
        if (row := self._row(connection, self._name_key(name))) is not None and now - row.last_at < NAME_WINDOW:
            wait = (row.last_at + _name_delay(row.failures) - now).total_seconds()
        if (row := self._row(connection, self._network_key(network))) is not None and row.failures >= NETWORK_FAILURES:
            wait = max(wait, (row.first_at + NETWORK_WINDOW - now).total_seconds())
        return max(math.ceil(wait), 0)

    def count_failure(self, connection: Connection, name: str, network: str, now: datetime) -> None:
        """Count a failed attempt. Counts that no longer matter are deleted."""
        connection.execute(delete(sign_in_failures).where(_t.last_at < now - NAME_WINDOW))
        for key, window in ((self._name_key(name), None), (self._network_key(network), NETWORK_WINDOW)):
            row = self._row(connection, key)
            starts = row is None or (window is not None and row.first_at + window <= now)
            failures, first_at = (1, now) if row is None or starts else (row.failures + 1, row.first_at)
            values = {"failures": failures, "first_at": first_at, "last_at": now}
            statement = upsert(connection, sign_in_failures).values(key=key, **values)
            connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_=values))

    def forget_name(self, connection: Connection, name: str) -> None:
        """Reset the failures of a name after a successful sign-in."""
        connection.execute(delete(sign_in_failures).where(_t.key == self._name_key(name)))

    def _row(self, connection: Connection, key: str) -> AnyRow | None:
        return connection.execute(select(sign_in_failures).where(_t.key == key)).first()

    def _name_key(self, name: str) -> str:
        return "name:" + hmac.digest(self._key, name.strip().casefold().encode(), hashlib.sha256).hex()[:32]

    def _network_key(self, network: str) -> str:
        return "network:" + hmac.digest(self._key, network.encode(), hashlib.sha256).hex()[:32]


def _name_delay(failures: int) -> timedelta:
    if failures < FREE_FAILURES:
        return timedelta()
    return min(timedelta(seconds=2 ** min(failures - FREE_FAILURES, 10)), MAX_DELAY)
