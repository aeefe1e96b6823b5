"""After failed attempts to sign in, this module delays further attempts. No account is locked permanently. The counts of failures
are in the database, so that all processes share them. There are three counts, and each can cause a delay:

- Failures for one name from one network (/24 or /48). After FREE_FAILURES, each further failure doubles the time until the next
  attempt, from 1 second to MAX_DELAY. The failures of a stranger in another network do not delay the operator.
- Failures from one network, for all names together. After NETWORK_FAILURES within NETWORK_WINDOW, the network must wait until the
  window has passed.
- Failures for one name from all networks together, because an attacker can use many networks. After NAME_FAILURES, each further
  failure doubles the time until the next attempt, too. This delay does not apply to a network from which the operator of this
  name signed in within the last KNOWN_DAYS.

If the clock was set back, the stored time of a failure can be in the future. The next attempt is then not delayed, and its own
time replaces the stored time. Without this rule, the delay would last until the clock reaches the stored time.

A sign-in with the correct password resets the counts of the name. The table contains only keyed hashes of names and networks.
Failures are counted for names of operators and for all other names in the same way.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from datetime import datetime, timedelta

from sqlalchemy import Connection, and_, delete, or_, select, update

from shortener.plurals import counted
from shortener.storage.database import upsert
from shortener.storage.schema import sign_in_failures
from shortener.storage.types import AnyRow

FREE_FAILURES = 5
MAX_DELAY = timedelta(seconds=60)
NETWORK_FAILURES = 20
NETWORK_WINDOW = timedelta(minutes=10)
NAME_FAILURES = 100
#: The failures of a name are deleted if this time passes without another failure.
NAME_WINDOW = timedelta(hours=24)
KNOWN_DAYS = 30

_t = sign_in_failures.c


class SignInDelays:
    """A counter of failed sign-ins that computes how long the next attempt must wait. `key` is a secret of the installation."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def begin_attempt(self, connection: Connection, name: str, network: str, now: datetime) -> int:
        """Return the seconds that an attempt must wait, or 0 if it may be checked now.

        An attempt that may be checked is counted as a failure before the check. Otherwise an attacker could avoid the delays with
        many attempts at the same time. `succeed` and `accept_password` subtract this failure. Also delete counts that are too old
        to cause a delay."""
        self._forget_old(connection, now)
        network_row = self._lock(connection, self._key_of("network", network), now)
        window_ends = network_row.first_at + NETWORK_WINDOW if network_row.first_at <= now else now
        if network_row.failures >= NETWORK_FAILURES and window_ends > now:
            return math.ceil((window_ends - now).total_seconds())
        pair_row = self._lock(connection, self._key_of("pair", name, network), now)
        name_row = self._lock(connection, self._key_of("name", name), now)
        wait = _wait_of(pair_row, FREE_FAILURES, now)
        if not self._is_known(connection, name, network):
            wait = max(wait, _wait_of(name_row, NAME_FAILURES, now))
        if wait > 0:
            return math.ceil(wait)
        for row in (pair_row, name_row):
            self._set(connection, row.key, row.failures + 1, row.first_at, now)
        if window_ends <= now:
            self._set(connection, network_row.key, 1, now, now)
        else:
            self._set(connection, network_row.key, network_row.failures + 1, network_row.first_at, now)
        return 0

    def succeed(self, connection: Connection, name: str, network: str, now: datetime) -> None:
        """After a complete sign-in, reset the failures of the name, subtract the failure that `begin_attempt` counted for the
        network, and store that this name has signed in from this network."""
        self.accept_password(connection, network)
        for key in (self._key_of("pair", name, network), self._key_of("name", name)):
            connection.execute(delete(sign_in_failures).where(_t.key == key))
        known = self._lock(connection, self._key_of("known", name, network), now)
        self._set(connection, known.key, 0, known.first_at, now)

    def accept_password(self, connection: Connection, network: str) -> None:
        """Call this if the password was correct and the sign-in still needs a code. Subtract the failure that `begin_attempt`
        counted for the network. The failures of the name stay, so that attempts to guess the code are delayed."""
        of_network = update(sign_in_failures).where(_t.key == self._key_of("network", network), _t.failures > 0)
        connection.execute(of_network.values(failures=_t.failures - 1))

    def _forget_old(self, connection: Connection, now: datetime) -> None:
        """Delete counts that are too old to cause a delay. A row without failures only stores that a name has signed in from a
        network; delete such a row after KNOWN_DAYS."""
        is_old_failure = and_(_t.failures > 0, _t.last_at < now - NAME_WINDOW)
        is_old = or_(is_old_failure, _t.last_at < now - timedelta(days=KNOWN_DAYS))
        connection.execute(delete(sign_in_failures).where(_t.last_at < now - NAME_WINDOW, is_old))

    def _is_known(self, connection: Connection, name: str, network: str) -> bool:
        found = select(_t.key).where(_t.key == self._key_of("known", name, network))
        return connection.scalar(found) is not None

    def _lock(self, connection: Connection, key: str, now: datetime) -> AnyRow:
        """Lock and return the row that counts the failures of a key. Other transactions that lock this row wait until this
        transaction ends."""
        values = {"key": key, "failures": 0, "first_at": now, "last_at": now}
        connection.execute(upsert(connection, sign_in_failures).values(values).on_conflict_do_nothing())
        return connection.execute(select(sign_in_failures).where(_t.key == key).with_for_update()).one()

    def _set(self, connection: Connection, key: str, failures: int, first_at: datetime, now: datetime) -> None:
        values = {"failures": failures, "first_at": first_at, "last_at": now}
        connection.execute(update(sign_in_failures).where(_t.key == key).values(values))

    def _key_of(self, kind: str, *parts: str) -> str:
        content = "\0".join(part.strip().casefold() for part in parts)
        return f"{kind}:" + hmac.digest(self._key, content.encode(), hashlib.sha256).hex()[:32]


def delay_text(wait: int) -> str:
    """Return the error text for an attempt that was rejected because the next attempt is allowed only after `wait` seconds."""
    return f"There were too many failed attempts. Try again in {counted(wait, 'second')}."


def _wait_of(row: AnyRow, free: int, now: datetime) -> float:
    """Return how many seconds the next attempt must wait because of the failures that `row` counts. `free` is the number of
    failures from which on there is a delay."""
    if row.failures < free or row.last_at > now:
        return 0
    delay = min(timedelta(seconds=2 ** min(row.failures - free, 10)), MAX_DELAY)
    wait: float = (row.last_at + delay - now).total_seconds()
    return wait
