"""Values that the database stores about its installation, such as the fingerprint of the secret."""

# Tested by tests/container/test_build.py

from __future__ import annotations

from sqlalchemy import Connection, select

from shortener.storage.database import upsert
from shortener.storage.schema import installation


def get_or_set(connection: Connection, name: str, value: str) -> str:
    """Store a value of the installation under `name` if none is stored yet. Return the stored value."""
    connection.execute(upsert(connection, installation).values(name=name, value=value).on_conflict_do_nothing())
    stored: str = connection.execute(select(installation.c.value).where(installation.c.name == name)).scalar_one()
    return stored


def set_value(connection: Connection, name: str, value: str) -> None:
    """Store a value of the installation under `name`. It replaces an earlier value."""
    row = upsert(connection, installation).values(name=name, value=value)
    connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={"value": row.excluded.value}))
