"""An installation with the first schema and with rows in every table. Also a function that compares a schema with the schema of
the code.
"""

from __future__ import annotations

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from shortener.storage.migrate import upgrade
from shortener.storage.schema import metadata

# The secret and the credentials of the installation in schema_0001.sql.
OLD_ROWS = Path(__file__).with_name("schema_0001.sql")
OLD_SECRET = "the secret of the installation that this was written by 0123456789"
OLD_KEY = "sk_yJ04W2tLNw7XXwI2oOsVWMPwr7cSL8tmEqI_gKTCT5g"
OLD_TOKEN = "tt_n_0mk1bxJz8tImJIRVUnuCTYnqY2KMYty2aI5m3VfGM"


def fill_old(connection: Connection, revision: str = "0001") -> None:
    """Create the first schema with the rows of schema_0001.sql. Then migrate it to a revision."""
    upgrade(connection, "0001")
    for statement in OLD_ROWS.read_text().splitlines():
        if not statement.startswith("--"):
            connection.exec_driver_sql(statement)
    if connection.dialect.name == "postgresql":
        for table in ("applications", "cohorts", "trackers", "domains"):
            connection.exec_driver_sql(f"SELECT setval('{table}_id_seq', 1000)")
    if revision != "0001":
        upgrade(connection, revision)


def difference(connection: Connection) -> list[object]:
    """Return the differences between the schema of the database and the schema of the code. Foreign keys are not compared."""
    context = MigrationContext.configure(connection, opts={"compare_type": False})
    return [found for found in compare_metadata(context, metadata) if found[0] != "remove_fk"]
