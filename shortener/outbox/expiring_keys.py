"""This module announces with an event `key_expiring` that a tracker token or a postback key will expire soon.

A key or token expires some time after a rotation has replaced it. Each expiry is announced once. The table `expiry_notices` has a
row for each announced expiry.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, exists, select

from shortener.ids import IdGenerator
from shortener.outbox import operations
from shortener.storage import schema
from shortener.storage.database import upsert
from shortener.storage.types import to_iso

#: An event announces an expiry this long in advance, or at once if less time is left.
NOTICE = timedelta(hours=24)
#: By kind of key, as the event names it: the table that contains the keys.
_TABLES = {"tracker_token": "tracker_tokens", "postback_key": "postback_keys"}


def has_expiring(connection: Connection, now: datetime) -> bool:
    """Return whether an expiry must be announced: a key expires within NOTICE and was not announced before."""
    for name in _TABLES.values():
        c, notices = schema.metadata.tables[name].c, schema.expiry_notices.c
        announced = exists().where(notices.kind == name, notices.key_id == c.id)
        if connection.execute(select(c.id).where(c.valid_until > now, c.valid_until <= now + NOTICE, ~announced).limit(1)).first():
            return True
    return False


def announce(connection: Connection, ids: IdGenerator, now: datetime) -> int:
    """Append an event for each key that expires within NOTICE and has not been announced. Return the number of events."""
    notices = schema.expiry_notices
    connection.execute(delete(notices).where(notices.c.expires_at < now - NOTICE))
    found = []
    for kind, name in _TABLES.items():
        c = schema.metadata.tables[name].c
        expiring = select(c.id, c.application_id, c.valid_until).where(c.valid_until > now, c.valid_until <= now + NOTICE)
        for key_id, application, expires_at in connection.execute(expiring.order_by(c.id)).all():
            notice = upsert(connection, notices).values(kind=name, key_id=key_id, expires_at=expires_at)
            if connection.execute(notice.on_conflict_do_nothing()).rowcount:
                fields = {"key_kind": kind, "key_id": key_id, "expires_at": to_iso(expires_at), "reason": "it was replaced"}
                found.append((application, operations.KEY_EXPIRING, fields))
    return operations.append(connection, ids, now, found)
