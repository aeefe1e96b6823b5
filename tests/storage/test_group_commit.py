import asyncio
from collections.abc import Sequence

import pytest
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from shortener.errors import StoreUnavailable
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.group_commit import GroupCommit

batches: list[int] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    batches.clear()


def get_or_set(connection: Connection, items: Sequence[str]) -> list[str | Exception]:
    batches.append(len(items))
    results: list[str | Exception] = []
    for item in items:
        if item == "refused":
            results.append(ValueError(item))
        elif item == "poison":
            raise RuntimeError(item)
        else:
            connection.execute(insert(schema.installation).values(name=item, value="x"))
            results.append(item.upper())
    return results


async def stored(database: Database) -> set[str]:
    return set(await database.read(lambda connection: connection.execute(select(schema.installation.c.name)).scalars().all()))


async def test_what_arrives_during_a_commit_is_committed_together(database: Database) -> None:
    commits: GroupCommit[str, str] = GroupCommit(database, get_or_set)
    names = [f"n{number}" for number in range(50)]
    assert await asyncio.gather(*map(commits.submit, names)) == [name.upper() for name in names]
    assert await stored(database) == set(names)
    assert sum(batches) == 50
    assert len(batches) <= 3


async def test_one_refused_item_is_refused_alone(database: Database) -> None:
    commits: GroupCommit[str, str] = GroupCommit(database, get_or_set)
    results = await asyncio.gather(*map(commits.submit, ["a", "refused", "b"]), return_exceptions=True)
    assert results[0] == "A"
    assert isinstance(results[1], ValueError)
    assert results[2] == "B"
    assert await stored(database) == {"a", "b"}


async def test_one_poisonous_item_does_not_take_the_others_along(database: Database) -> None:
    commits: GroupCommit[str, str] = GroupCommit(database, get_or_set)
    results = await asyncio.gather(*map(commits.submit, ["a", "b", "poison", "c"]), return_exceptions=True)
    assert [result for result in results if isinstance(result, str)] == ["A", "B", "C"]
    assert isinstance(results[2], RuntimeError)
    assert await stored(database) == {"a", "b", "c"}


async def test_a_batch_that_a_unique_index_refuses_runs_again(database: Database) -> None:
    tries: list[str] = []

    def mint(connection: Connection, items: Sequence[str]) -> list[str]:
        name = "taken" if len(tries) < 2 else "free"
        tries.append(name)
        connection.execute(insert(schema.installation).values(name=name, value="x"))
        return [name for _ in items]

    await database.write(get_or_set, ["taken"])
    commits: GroupCommit[str, str] = GroupCommit(database, mint)
    assert await commits.submit("one") == "free"
    assert tries == ["taken", "taken", "free"]


async def test_a_clash_that_stays_is_told(database: Database) -> None:
    await database.write(get_or_set, ["a"])
    commits: GroupCommit[str, str] = GroupCommit(database, get_or_set)
    with pytest.raises(IntegrityError):
        await commits.submit("a")


async def test_a_closed_store_is_unavailable_and_nothing_waits(database: Database) -> None:
    def away(connection: Connection, items: Sequence[str]) -> list[str]:
        raise StoreUnavailable("gone")

    commits: GroupCommit[str, str] = GroupCommit(database, away)
    with pytest.raises(StoreUnavailable):
        await commits.submit("a")
    await commits.flush()


async def test_too_many_waiting_requests_are_turned_away(database: Database) -> None:
    commits: GroupCommit[str, str] = GroupCommit(database, get_or_set, waiting_limit=2)
    results = await asyncio.gather(*map(commits.submit, ["a", "b", "c"]), return_exceptions=True)
    assert isinstance(results[2], StoreUnavailable)
    assert await stored(database) == {"a", "b"}
