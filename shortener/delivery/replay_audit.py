"""The rows about replays of deliveries in the audit log. `replays.py` adds the rows about background replays."""
# Tested by tests/delivery/test_deliveries.py and tests/test_audit_complete.py

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection

from shortener.accounts.audit import AuditWriter
from shortener.delivery.tracker_queries import require_tracker
from shortener.ids import DELIVERY_IDS
from shortener.plurals import counted
from shortener.storage.types import to_iso


def add_replay(connection: Connection, audit: AuditWriter, now: datetime, delivery_id: int, application_id: int) -> None:
    """Add a row about the replay of one delivery."""
    audit.add(connection, now, "delivery_replayed", DELIVERY_IDS.encode(delivery_id), application_id=application_id)


def add_replay_of_list(connection: Connection, audit: AuditWriter, now: datetime, ids: Sequence[int], application_id: int) -> None:
    """Add a row about the replay of deliveries that a caller selected by their ids. If `ids` is empty, add no row."""
    if ids:
        after = {"deliveries": ", ".join(map(DELIVERY_IDS.encode, ids))}
        what = counted(len(ids), "delivery", "deliveries")
        audit.add(connection, now, "deliveries_replayed", what, application_id=application_id, after=after)


def add_replay_of_dead(
    connection: Connection,
    audit: AuditWriter,
    now: datetime,
    tracker_id: int,
    total: int,
    since: datetime | None,
    until: datetime | None,
) -> None:
    """Add a row about the replay of the `total` dead deliveries of a tracker that were created in a period."""
    owner = require_tracker(connection, tracker_id, None).application_id
    limits = {"since": to_iso(since), "until": to_iso(until)}
    after = {"total": total} | {name: at for name, at in limits.items() if at is not None}
    audit.add(connection, now, "deliveries_replayed", f"tracker {tracker_id}", application_id=owner, after=after)
