"""What the database remembers of the installation it belongs to."""

from __future__ import annotations

from sqlalchemy import Connection, select

from shortener.storage.database import upsert
from shortener.storage.schema import installation


def get_or_set(connection: Connection, name: str, value: str) -> str:
    """Keep `value` under `name` unless there is one already; returns the kept one."""
    connection.execute(upsert(connection, installation).values(name=name, value=value).on_conflict_do_nothing())
    kept: str = connection.execute(select(installation.c.value).where(installation.c.name == name)).scalar_one()
    return kept
