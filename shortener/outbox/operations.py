"""This module writes operations events. Such an event informs a customer that a tracker was disabled, that deliveries are dead,
or that a key will expire soon.

An event is appended only if a tracker of the application subscribes to `operations`. If the delivery of an operations event
becomes dead, no further event is created. If one transaction makes several deliveries of a tracker dead, there is one event for
all of them, with their `count`.
"""
# Tested by tests/delivery/test_attempt.py and tests/outbox/test_expiring_keys.py

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Integer, select

from shortener.ids import IdGenerator
from shortener.model import Topic
from shortener.outbox import events
from shortener.outbox.events import Event
from shortener.storage.schema import trackers
from shortener.storage.values_table import values_table

TRACKER_DISABLED, DELIVERY_DEAD, KEY_EXPIRING = "tracker_disabled", "delivery_dead", "key_expiring"
#: The names of operations events. The body of a delivery contains them.
NAMES = (TRACKER_DISABLED, DELIVERY_DEAD, KEY_EXPIRING)


def subscribers(connection: Connection, applications: Iterable[int]) -> set[int]:
    """Return those of the applications that have a tracker which subscribes to operations events."""
    chosen = values_table(connection, [(application,) for application in sorted(set(applications))], id=Integer)
    statement = select(trackers.c.application_id, trackers.c.topics).join_from(
        chosen, trackers, trackers.c.application_id == chosen.c.id
    )
    return {application for application, topics in connection.execute(statement) if topics & Topic.OPERATIONS}


def append(connection: Connection, ids: IdGenerator, at: datetime, found: Sequence[tuple[int, str, dict[str, Any]]]) -> int:
    """Append operations events. Each entry of `found` is a tuple of application id, name (one of NAMES) and fields. Return the
    number of appended events.

    Call this in the transaction of the change. Events of applications without subscribers are left out."""
    if not found:
        return 0
    wanted = subscribers(connection, (application for application, _, _ in found))
    new = [
        Event(ids(), application, Topic.OPERATIONS, at, data={"topic": name, **fields})
        for application, name, fields in found
        if application in wanted
    ]
    if new:
        events.append(connection, new)
    return len(new)
