"""Tests of the batcher and of group commits, on both engines."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError, ProgrammingError

from shortener.errors import CommitUncertain, StoreUnavailable
from shortener.storage import schema
from shortener.storage.batcher import MAX_ROWS, Batcher
from shortener.storage.database import Database
from shortener.storage.group_commit import MAX_CLASHES, GroupCommit
from tests.servers import PATIENCE


class Names:
    """A transaction function for a group commit. It inserts each item as a name, and records the items of each batch."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, connection: Connection, items: Sequence[str]) -> tuple[list[str | Exception], list[str]]:
        self.batches.append(list(items))
        results: list[str | Exception] = []
        for item in items:
            if item == "refused":
                results.append(ValueError(item))
            elif item == "poison":
                raise RuntimeError(item)
            else:
                connection.execute(insert(schema.installation).values(name=item, value="x"))
                results.append(item.upper())
        return results, list(items)


class FlakyDatabase:
    """A real database in which selected writes fail.

    Each list contains one item for each of the next writes: the exception that the write raises, or None if it does not fail.
    `before`: raised before the transaction begins.
    `at_commit`: raised after the transaction function has run; nothing is committed.
    `after`: raised after the commit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.before: list[Exception | None] = []
        self.at_commit: list[Exception | None] = []
        self.after: list[Exception | None] = []

    async def write(self, transact: Callable[..., Any], *args: Any) -> Any:
        before = self.before.pop(0) if self.before else None
        at_commit = self.at_commit.pop(0) if self.at_commit else None
        after = self.after.pop(0) if self.after else None
        if before is not None:
            raise before

        def run(connection: Connection) -> Any:
            result = transact(connection, *args)
            if at_commit is not None:
                raise at_commit
            return result

        result = await self._database.write(run)
        if after is not None:
            raise after
        return result


def programming_error() -> ProgrammingError:
    """Return the exception that PostgreSQL raises for a new connection after REVOKE CONNECT ON DATABASE."""
    return ProgrammingError("", None, Exception("permission denied for database"))


async def stored(database: Database) -> set[str]:
    return set(await database.read(lambda connection: connection.execute(select(schema.installation.c.name)).scalars().all()))


async def in_time(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, PATIENCE)


async def test_requests_that_arrive_during_a_commit_share_the_next_transaction(database: Database) -> None:
    names = Names()
    commits: GroupCommit[str, str, list[str]] = GroupCommit(database, names)
    wanted = [f"n{number}" for number in range(50)]
    assert await asyncio.gather(*map(commits.submit, wanted)) == [name.upper() for name in wanted]
    assert await stored(database) == set(wanted)
    assert sum(map(len, names.batches)) == 50
    assert len(names.batches) < 10


async def test_on_sqlite_a_batch_takes_no_further_request_if_it_would_have_too_many_rows(database: Database) -> None:
    names = Names()
    rows = {"third": MAX_ROWS // 3, "large": MAX_ROWS * 2, "small": 1}
    commits: GroupCommit[str, str, list[str]] = GroupCommit(database, names, rows_of=lambda name: rows[name.partition("-")[0]])
    first = asyncio.create_task(commits.submit("small-0"))
    await asyncio.sleep(0)  # let the first batch begin
    wanted = ["third-1", "third-2", "third-3", "third-4", "large-1", "small-1", "small-2"]
    await asyncio.gather(first, *map(commits.submit, wanted))
    assert sorted(name for batch in names.batches for name in batch) == sorted(["small-0", *wanted])
    for batch in names.batches if database.dialect == "sqlite" else ():
        assert len(batch) == 1 or sum(rows[name.partition("-")[0]] for name in batch) <= MAX_ROWS
    assert max(map(len, names.batches)) > 1


async def test_if_one_result_of_a_group_commit_is_an_exception_only_the_request_of_this_result_fails(database: Database) -> None:
    commits: GroupCommit[str, str, list[str]] = GroupCommit(database, Names())
    results = await asyncio.gather(*map(commits.submit, ["a", "refused", "b"]), return_exceptions=True)
    assert results[0] == "A"
    assert isinstance(results[1], ValueError)
    assert results[2] == "B"
    assert await stored(database) == {"a", "b"}


async def test_only_the_request_whose_item_makes_the_batch_fail_raises_an_error(database: Database) -> None:
    commits: GroupCommit[str, str, list[str]] = GroupCommit(database, Names())
    results = await asyncio.gather(*map(commits.submit, ["a", "b", "poison", "c"]), return_exceptions=True)
    assert [result for result in results if isinstance(result, str)] == ["A", "B", "C"]
    assert isinstance(results[2], RuntimeError)
    assert await stored(database) == {"a", "b", "c"}


async def test_a_group_commit_batch_that_a_unique_index_rejects_runs_again(database: Database) -> None:
    tries: list[str] = []

    def mint(connection: Connection, items: Sequence[str]) -> tuple[list[str], None]:
        name = "taken" if len(tries) < 2 else "free"
        tries.append(name)
        connection.execute(insert(schema.installation).values(name=name, value="x"))
        return [name for _ in items], None

    await database.write(Names(), ["taken"])
    commits: GroupCommit[str, str, None] = GroupCommit(database, mint)
    assert await commits.submit("one") == "free"
    assert tries == ["taken", "taken", "free"]


async def test_a_request_raises_integrity_error_if_a_unique_index_rejects_every_attempt(database: Database) -> None:
    names = Names()
    await database.write(names, ["a"])
    names.batches.clear()
    commits: GroupCommit[str, str, list[str]] = GroupCommit(database, names)
    with pytest.raises(IntegrityError):
        await commits.submit("a")
    assert len(names.batches) == MAX_CLASHES


async def test_if_the_database_is_unavailable_the_request_fails_and_no_item_stays_in_the_queue(database: Database) -> None:
    def unavailable(connection: Connection, items: Sequence[str]) -> tuple[list[str], None]:
        raise StoreUnavailable("gone")

    commits: GroupCommit[str, str, None] = GroupCommit(database, unavailable)
    with pytest.raises(StoreUnavailable):
        await commits.submit("a")
    await in_time(commits.flush())


async def test_submitting_to_a_batcher_raises_store_unavailable_above_the_limit_of_waiting_requests(database: Database) -> None:
    commits: GroupCommit[str, str, list[str]] = GroupCommit(database, Names(), max_waiting=2)
    results = await asyncio.gather(*map(commits.submit, ["a", "b", "c"]), return_exceptions=True)
    assert isinstance(results[2], StoreUnavailable)
    assert await stored(database) == {"a", "b"}


async def test_the_number_of_items_in_a_group_commit_batch_is_limited(database: Database) -> None:
    names = Names()
    commits: GroupCommit[str, str, list[str]] = GroupCommit(database, names, max_items=4)
    await asyncio.gather(*(commits.submit(f"n{number}") for number in range(30)))
    assert max(map(len, names.batches)) == 4


async def test_each_callback_after_a_group_commit_receives_the_value_of_its_own_commit_even_if_commits_overlap(
    database: Database,
) -> None:
    names = Names()
    after: list[list[str]] = []
    commits: GroupCommit[str, str, list[str]] = GroupCommit(database, names, after=after.append)

    async def client(number: int) -> None:
        for turn in range(10):
            await commits.submit(f"{number}/{turn}")

    await asyncio.gather(*map(client, range(20)))
    assert sorted(name for batch in after for name in batch) == sorted(await stored(database))
    assert sorted(after) == sorted(names.batches)


async def test_the_callback_after_a_group_commit_is_not_called_for_a_batch_that_is_rolled_back(database: Database) -> None:
    """Both transaction functions run before one of the batches is committed. Then the second batch is rolled back."""
    both_ran = asyncio.Event()
    values: list[list[str]] = []
    order: list[list[str]] = []

    class Gate:
        async def write(self, transact: Callable[..., Any], *args: Any) -> Any:
            position = len(order)
            order.append([])

            def run(connection: Connection) -> Any:
                result = transact(connection, *args)
                if position == 1:
                    raise StoreUnavailable("cut at COMMIT")
                return result

            try:
                return await database.write(run)
            finally:
                if position == 1:
                    both_ran.set()
                else:
                    await both_ran.wait()

    commits: GroupCommit[str, str, list[str]] = GroupCommit(Gate(), Names(), max_items=1, after=values.append)  # type: ignore[arg-type]
    results = await asyncio.gather(*map(commits.submit, ["first", "second"]), return_exceptions=True)
    assert results[0] == "FIRST"
    assert isinstance(results[1], StoreUnavailable)
    assert values == [["first"]]
    assert await stored(database) == {"first"}


async def test_an_exception_in_the_callback_after_a_group_commit_fails_neither_its_requests_nor_the_next_batch(
    database: Database,
) -> None:
    def broken(value: list[str]) -> None:
        raise RuntimeError("after")

    commits: GroupCommit[str, str, list[str]] = GroupCommit(database, Names(), after=broken)
    assert await in_time(commits.submit("a")) == "A"
    assert await in_time(commits.submit("b")) == "B"


@pytest.mark.parametrize("error", [StoreUnavailable("down"), programming_error(), RuntimeError("odd")])
async def test_a_write_that_fails_before_its_transaction_begins_does_not_stop_the_batcher(
    database: Database, error: Exception
) -> None:
    flaky = FlakyDatabase(database)
    flaky.before = [error, error]
    commits: GroupCommit[str, str, list[str]] = GroupCommit(flaky, Names())  # type: ignore[arg-type]
    for name in ("one", "two"):
        with pytest.raises(StoreUnavailable):
            await in_time(commits.submit(name))
    assert await in_time(commits.submit("three")) == "THREE"
    await in_time(commits.flush())


async def test_if_one_of_two_commits_fails_only_the_requests_of_that_commit_fail(database: Database) -> None:
    flaky = FlakyDatabase(database)
    flaky.at_commit = [None, StoreUnavailable("cut")]
    values: list[list[str]] = []
    commits: GroupCommit[str, str, list[str]] = GroupCommit(flaky, Names(), after=values.append)  # type: ignore[arg-type]
    assert await commits.submit("a") == "A"
    with pytest.raises(StoreUnavailable):
        await commits.submit("b")
    assert await commits.submit("c") == "C"
    assert values == [["a"], ["c"]]
    assert await stored(database) == {"a", "c"}


def again(names: Names) -> Callable[[Connection, Sequence[str]], tuple[list[str | Exception], list[str]]]:
    """Return a function for `apply_again`. It does the same as `names`, but skips items that are already stored."""

    def apply(connection: Connection, items: Sequence[str]) -> tuple[list[str | Exception], list[str]]:
        found = set(connection.execute(select(schema.installation.c.name)).scalars())
        names(connection, [item for item in items if item not in found])
        return [item.upper() for item in items], list(items)

    return apply


@pytest.mark.parametrize("moment", ["at_commit", "after"])
async def test_a_batch_whose_commit_was_interrupted_is_stored_once_and_its_requests_get_their_results(
    database: Database, moment: str
) -> None:
    flaky, names, values = FlakyDatabase(database), Names(), list[list[str]]()
    setattr(flaky, moment, [CommitUncertain("cut")])
    flaky.before = [None, StoreUnavailable("down"), StoreUnavailable("down")]
    commits: GroupCommit[str, str, list[str]] = GroupCommit(
        flaky,  # type: ignore[arg-type]
        names,
        apply_again=again(names),
        after=values.append,
    )
    assert await in_time(commits.submit("a")) == "A"
    assert await stored(database) == {"a"}
    assert values == [["a"]]
    assert await in_time(commits.submit("b")) == "B"


async def test_a_batch_whose_commit_was_interrupted_raises_commit_uncertain_if_the_database_stays_unavailable(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortener.storage.group_commit.UNCERTAIN_SECONDS", 0.1)
    flaky, names = FlakyDatabase(database), Names()
    flaky.after = [CommitUncertain("cut")]
    flaky.before = [None, *[StoreUnavailable("down")] * 1000]
    commits: GroupCommit[str, str, list[str]] = GroupCommit(flaky, names, apply_again=again(names))  # type: ignore[arg-type]
    with pytest.raises(CommitUncertain):
        await in_time(commits.submit("a"))
    with pytest.raises(StoreUnavailable) as raised:
        await in_time(commits.submit("b"))
    assert not isinstance(raised.value, CommitUncertain), "nothing of the second batch is stored"


class SlowAfterCut:
    """A database whose first COMMIT is cut off. Later transactions wait until `may_begin` is set."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.dialect = database.dialect
        self.may_begin = asyncio.Event()
        self.is_cut = False

    async def write(self, transact: Callable[..., Any], *args: Any) -> Any:
        if self.is_cut:
            await self.may_begin.wait()
            return await self.database.write(transact, *args)
        await self.database.write(transact, *args)
        self.is_cut = True
        raise CommitUncertain("cut")


async def test_the_caller_of_a_batch_whose_commit_was_interrupted_does_not_wait_for_a_slow_repetition(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortener.storage.group_commit.UNCERTAIN_SECONDS", 0.1)
    slow: Any = SlowAfterCut(database)
    names = Names()
    commits: GroupCommit[str, str, list[str]] = GroupCommit(slow, names, apply_again=again(names))
    with pytest.raises(CommitUncertain):
        await in_time(commits.submit("a"))
    slow.may_begin.set()
    await in_time(commits.flush())
    assert await stored(database) == {"a"}


async def test_a_request_that_may_be_stored_and_whose_repetition_fails_raises_commit_uncertain(database: Database) -> None:
    flaky, names = FlakyDatabase(database), Names()
    flaky.after = [CommitUncertain("cut")]

    def fail(connection: Connection, items: Sequence[str]) -> tuple[list[str | Exception], list[str]]:
        raise ValueError("a fault")

    commits: GroupCommit[str, str, list[str]] = GroupCommit(flaky, names, apply_again=fail)  # type: ignore[arg-type]
    with pytest.raises(CommitUncertain):
        await in_time(commits.submit("a"))


async def test_a_batch_whose_commit_was_interrupted_is_not_repeated_without_a_function_that_recognises_stored_items(
    database: Database,
) -> None:
    flaky, names = FlakyDatabase(database), Names()
    flaky.after = [CommitUncertain("cut")]
    commits: GroupCommit[str, str, list[str]] = GroupCommit(flaky, names)  # type: ignore[arg-type]
    with pytest.raises(CommitUncertain):
        await in_time(commits.submit("a"))
    assert names.batches == [["a"]]


class Recording:
    """A batch handler that tries everything again that was not written while the database was unavailable."""

    def __init__(self) -> None:
        self.stored: list[str] = []
        self.uncertain: list[bool] = []
        self.failures: list[tuple[str, int]] = []
        self.threads: set[int] = set()

    def apply(self, connection: Connection, items: Sequence[str], is_uncertain: bool) -> str:
        self.uncertain.append(is_uncertain)
        self.threads.add(threading.get_ident())
        for item in items:
            if item == "poison":
                raise RuntimeError(item)
            connection.execute(insert(schema.installation).values(name=item, value="x"))
        return ",".join(items)

    def committed(self, items: Sequence[str], result: str) -> None:
        assert result == ",".join(items)
        self.stored += items

    async def unavailable(self, items: Sequence[str], error: StoreUnavailable) -> Sequence[str]:
        return items

    async def rejected(self, failures: Sequence[tuple[str, Exception]], stored: int) -> Sequence[str]:
        self.failures += [(item, stored) for item, _ in failures]
        return []


def recording_batcher(database: Any, handler: Recording) -> Batcher[str, str]:
    return Batcher(database, handler, min_items=2, max_items=8)


async def test_a_batch_is_retried_until_the_database_commits_it(database: Database) -> None:
    flaky = FlakyDatabase(database)
    flaky.before = [programming_error(), StoreUnavailable("down")]
    handler = Recording()
    batcher = recording_batcher(flaky, handler)
    batcher.put("a")
    await in_time(batcher.flush())
    assert handler.stored == ["a"]
    assert handler.uncertain == [True]
    assert len(batcher) == 0


async def test_only_the_item_that_the_database_rejects_fails_and_the_other_items_of_its_batch_are_stored(
    database: Database,
) -> None:
    handler = Recording()
    batcher = recording_batcher(database, handler)
    batcher.put_all(["a", "poison", "b", "c"])
    await in_time(batcher.flush())
    assert sorted(handler.stored) == ["a", "b", "c"]
    assert [item for item, _ in handler.failures] == ["poison"]


async def test_items_are_retried_if_the_database_becomes_unavailable_while_they_are_written_one_by_one(database: Database) -> None:
    flaky = FlakyDatabase(database)
    # These are the results of three writes: the whole batch, then its first item alone, then its second item alone.
    flaky.before = [None, None, StoreUnavailable("down")]
    handler = Recording()
    batcher = recording_batcher(flaky, handler)
    batcher.pause()
    batcher.put_all(["a", "b", "poison"])
    batcher.resume()
    await in_time(batcher.flush())
    assert sorted(handler.stored) == ["a", "b"]
    assert [item for item, _ in handler.failures] == ["poison"]


async def test_a_batch_handler_that_raises_an_exception_loses_its_batch_and_still_gets_the_next_batch(database: Database) -> None:
    class Broken(Recording):
        def committed(self, items: Sequence[str], result: str) -> None:
            super().committed(items, result)
            if "a" in items:
                raise RuntimeError("handler")

    handler = Broken()
    batcher = recording_batcher(database, handler)
    batcher.put("a")
    await in_time(batcher.flush())
    batcher.put("b")
    await in_time(batcher.flush())
    assert handler.stored == ["a", "b"]


async def test_a_paused_batcher_queues_items_until_it_resumes(database: Database) -> None:
    handler = Recording()
    batcher = recording_batcher(database, handler)
    batcher.pause()
    batcher.put_all(["a", "b", "c"])
    assert (batcher.waiting, batcher.in_flight) == (3, 0)
    assert batcher.withdraw(lambda item: item == "b") == ["b"]
    batcher.resume()
    await in_time(batcher.flush())
    assert handler.stored == ["a", "c"]


async def test_stopping_the_batcher_cancels_a_batch_that_waits_for_a_retry_and_keeps_its_items(database: Database) -> None:
    flaky = FlakyDatabase(database)
    flaky.before = [StoreUnavailable("down")] * 1000
    handler = Recording()
    batcher = recording_batcher(flaky, handler)
    batcher.put("a")
    while not batcher.taken_items():
        await asyncio.sleep(0)  # wait a moment, then check the condition again
    await in_time(batcher.stop())
    assert handler.stored == []
    assert batcher.in_flight == 0
