"""This module creates the tables of a new SQLite database from `migrations/sqlite.sql`, at the revision HEAD.

The file contains the statements that all migrations together produce, and a test compares both. With the file, the first start of
an installation runs no migrations and does not import alembic, which would need 10 MB and a sixth of the time. `make config`
generates the file after a new migration. PostgreSQL has no such file: its first start runs the migrations.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection

from shortener.storage.migrations import HEAD

SQLITE_FILE = Path(__file__).parent / "migrations" / "sqlite.sql"
#: The text between two statements of the file. A semicolon alone would not be enough, because a trigger contains semicolons. No
#: statement contains a semicolon before an empty line.
_SEPARATOR = ";\n\n"


def create(connection: Connection) -> None:
    """Create all tables, indexes and triggers in an empty SQLite database, in the current transaction."""
    for statement in SQLITE_FILE.read_text().split(_SEPARATOR):
        if statement:
            connection.exec_driver_sql(statement)
    connection.exec_driver_sql("INSERT INTO alembic_version (version_num) VALUES (?)", (HEAD,))


def dump(connection: Connection) -> str:
    """Return the statements that create the tables, indexes and triggers of a SQLite database, as in `SQLITE_FILE`."""
    # SQLite itself creates the objects named sqlite_*, so they are left out.
    rows = connection.exec_driver_sql(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite!_%' ESCAPE '!' "
        "ORDER BY type = 'trigger', type = 'index', rowid"
    )
    return "".join(f"{row.sql}{_SEPARATOR}" for row in rows)
