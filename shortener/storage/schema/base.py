"""The SQLAlchemy metadata of all tables, the column type of ids, and a function for partial indexes."""

# Tested by tests/storage/test_migrate.py

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Connection, Index, Integer, MetaData, event, text

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_by_%(column_0_N_name)s",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "pk": "%(table_name)s_pkey",
    }
)

#: The type of an id from `ids.py`. On SQLite, a primary key must be declared INTEGER to be the rowid of the table. With any other
#: type, it has an additional index, which every insert and every look-up must use.
RowId = BigInteger().with_variant(Integer(), "sqlite")

_POSTGRESQL_WHERE = "postgresql_where"  # The `info` dict of a partial index contains its SQL condition under this key.


def partial_index(name: str, *columns: str, where: str, postgresql_where: str | None = None, unique: bool = False) -> Index:
    """Return a partial index: an index of the rows for which the SQL condition `where` is true. `postgresql_where`, if it is not
    None, replaces the condition on PostgreSQL.

    SQLAlchemy's `Index` has an argument for the condition, but would import the dialect of PostgreSQL also in processes with
    SQLite."""
    return Index(name, *columns, unique=unique, sqlite_where=text(where), info={_POSTGRESQL_WHERE: postgresql_where or where})


@event.listens_for(metadata, "before_create")
def _set_postgresql_conditions(target: MetaData, connection: Connection, **options: Any) -> None:
    if connection.dialect.name == "postgresql":
        for index in (index for table in target.tables.values() for index in table.indexes):
            index.dialect_options["postgresql"]["where"] = text(index.info[_POSTGRESQL_WHERE]) if index.info else None
