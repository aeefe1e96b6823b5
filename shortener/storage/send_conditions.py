"""SQL conditions on the status of messages that are handed on to gateways (table `sends`).

The status is a literal in the SQL and not a parameter, so that the databases can use partial indexes.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, literal_column

from shortener.model import SendStatus
from shortener.storage.schema import sends

#: The statuses in which a message may still be handed on to its gateway.
UNFINISHED = (SendStatus.PENDING, SendStatus.HELD)


def _literal(status: SendStatus) -> ColumnElement[int]:
    return literal_column(str(status.value))


IS_PENDING = sends.c.status == _literal(SendStatus.PENDING)
IS_HELD = sends.c.status == _literal(SendStatus.HELD)
IS_UNFINISHED = sends.c.status.in_([_literal(status) for status in UNFINISHED])
