"""This module checks whether the file of the database is lost or damaged, and whether the database accepts a write."""

# Tested by tests/storage/test_integrity.py

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.exc import DatabaseError

from shortener.secret import secret_file
from shortener.storage.installation import set_value

MAX_FINDINGS = 20


class DatabaseLost(Exception):
    """Raised if a secret exists but no database: the secret shows that there was an installation. The text of the error says what
    to do."""


def require_database(database_file: Path | None, data_dir: Path) -> None:
    """Raise DatabaseLost if `data_dir` contains a secret but the SQLite file of the installation does not exist.

    With PostgreSQL, `database_file` is None, and nothing is checked."""
    secret = secret_file(data_dir)
    if database_file is not None and not database_file.exists() and secret.exists():
        raise DatabaseLost(
            f"{secret} exists, but there is no database {database_file}. It was moved or deleted, or DATABASE_URL names another "
            "file. Restore it. To start a new installation instead, move the secret away: existing short links will not work"
        )


def find_damage(connection: Connection, *, thorough: bool) -> list[str]:
    """Return what SQLite reports about damaged pages and indexes: at most MAX_FINDINGS lines. On PostgreSQL, return no lines.

    If `thorough` is true, SQLite also compares each index with its table. For this, it reads the whole file."""
    if connection.dialect.name != "sqlite":
        return []
    check = "integrity_check" if thorough else "quick_check"
    try:
        found = [str(row[0]) for row in connection.execute(text(f"PRAGMA {check}({MAX_FINDINGS})"))]
    except DatabaseError as error:  # The database is so damaged that SQLite cannot check it.
        return [str(error.orig)]
    return [] if found == ["ok"] else found


def try_write(connection: Connection, now_ms: int) -> None:
    """Write one row, to find out whether the database accepts writes."""
    set_value(connection, "write_check", str(now_ms))
