"""Conditions on the status of messages that are handed on to gateways (table `sends`).

The status is a literal in the SQL, because a database cannot use a partial index if the status is a parameter.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, literal_column

from shortener.model import SendStatus
from shortener.storage.schema import sends

#: The status of the messages that a gateway may still get.
UNFINISHED = (SendStatus.PENDING, SendStatus.HELD)


def _literal(status: SendStatus) -> ColumnElement[int]:
    return literal_column(str(status.value))


IS_PENDING = sends.c.status == _literal(SendStatus.PENDING)
IS_HELD = sends.c.status == _literal(SendStatus.HELD)
IS_UNFINISHED = sends.c.status.in_([_literal(status) for status in UNFINISHED])
