"""This module reads and changes the version of the accounts: a random text in the table `installation`.

Every transaction that changes accounts also changes the version. A process therefore needs one small read to find out whether the
accounts that it has in memory are still current (directory.py).
"""

from __future__ import annotations

import secrets

from sqlalchemy import Connection, select

from shortener.storage import schema
from shortener.storage.database import upsert

_NAME = "directory"  # the name of the version in the table `installation`


def read_version(connection: Connection) -> str:
    """Return the version of the accounts, which is a different random text after each change of an account."""
    table = schema.installation
    version: str | None = connection.execute(select(table.c.value).where(table.c.name == _NAME)).scalar()
    return version or "0"


def mark_accounts_changed(connection: Connection) -> None:
    """Make every process read the accounts again after the commit. Call this in each transaction that changes accounts.

    The function stores a new random version. The row of the version stays locked until the transaction ends, so other
    transactions that call this function wait for it."""
    statement = upsert(connection, schema.installation).values(name=_NAME, value=secrets.token_hex(8))
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"value": statement.excluded.value}))
