"""Tests of the version of the accounts, from which processes learn that an account has changed."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import Connection

from shortener.accounts.version import mark_accounts_changed, read_version
from shortener.storage.database import Database
from shortener.storage.installation import get, set_value


async def test_each_change_of_accounts_gives_them_another_version(database: Database) -> None:
    versions = [await database.read(read_version)]
    assert versions == ["0"], "the accounts of a new database have not changed"
    for _ in range(3):
        await database.write(mark_accounts_changed)
        versions.append(await database.read(read_version))
    assert len(set(versions)) == 4
    assert await database.read(read_version) == versions[-1]


async def test_a_change_of_accounts_that_is_rolled_back_does_not_change_their_version(database: Database) -> None:
    def fail(connection: Connection) -> None:
        mark_accounts_changed(connection)
        assert read_version(connection) != before
        raise LookupError

    await database.write(mark_accounts_changed)
    before = await database.read(read_version)
    with pytest.raises(LookupError):
        await database.write(fail)
    assert await database.read(read_version) == before


async def test_changes_of_accounts_at_the_same_time_run_one_after_the_other(database: Database) -> None:
    def increase(connection: Connection) -> None:
        mark_accounts_changed(connection)
        set_value(connection, "number", str(int(get(connection, "number") or 0) + 1))

    await asyncio.gather(*(database.write(increase) for _ in range(20)))
    assert await database.read(get, "number") == "20"
