"""The SQLAlchemy metadata that all tables belong to, and the column type of ids."""

# Tested by tests/storage/test_migrate.py

from __future__ import annotations

from sqlalchemy import BigInteger, Integer, MetaData

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_by_%(column_0_N_name)s",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "pk": "%(table_name)s_pkey",
    }
)

#: The type of an id from `ids.py`. On SQLite, only a column declared INTEGER is the rowid. A primary key of any other type has an
#: additional index that every insert and every look-up must use.
RowId = BigInteger().with_variant(Integer(), "sqlite")
