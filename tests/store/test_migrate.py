"""The schema in steps: an empty store is made ready, an old or newer one is refused, the steps arrive at schema.py."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from shortener.store.database import Database
from shortener.store.migrate import SchemaMismatch, current_version, migrate, prepare
from shortener.store.migrations import HEAD
from shortener.store.open import open_database
from shortener.store.schema import metadata


async def test_the_migrations_arrive_at_the_schema_that_the_code_knows(database: Database) -> None:
    def difference(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        return list(compare_metadata(context, metadata))

    assert await database.read(difference) == []


async def test_an_empty_store_is_made_ready_and_a_ready_one_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'shortener.db'}"
    assert await current_version(url) is None
    await prepare(url)
    assert await current_version(url) == HEAD
    await prepare(url)
    assert await migrate(url) == (HEAD, HEAD)


@pytest.mark.parametrize(("version", "says"), [("0000", "run `shortener migrate`"), ("9999", "upgrade the service")])
async def test_a_schema_that_the_code_does_not_know_is_refused(store_url: str, version: str, says: str) -> None:
    database = await open_database(store_url, owner=True)
    await database.write(lambda connection: connection.execute(text(f"UPDATE alembic_version SET version_num = '{version}'")))
    await database.close()
    with pytest.raises(SchemaMismatch, match=says):
        await prepare(store_url)
