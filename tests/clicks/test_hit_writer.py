"""Tests of hits that the database does not store: refused hits, rejected hits, and commits whose result was lost."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError
from structlog.testing import capture_logs

from shortener.clicks import user_agents
from shortener.clicks.batch import BatchResult, HitBatchWriter
from shortener.clicks.hit_writer import HitWriter
from shortener.clicks.recorder import RESPONSE_GRACE_SECONDS, Recorder
from shortener.clicks.recorder_totals import RecorderTotals
from shortener.clicks.resolver import Hit, LinkResolver, Resolution
from shortener.clicks.waiting_hit import WaitingHit
from shortener.container import Service
from shortener.errors import StoreUnavailable
from shortener.storage import schema
from shortener.storage.batcher import RetryTransaction
from tests.clicks.helpers import (
    UnreliableDatabase,
    count_state_events,
    create_codes,
    fetch_rows,
    forget_expressions,
    hits_table_away,
    make_hit,
    unreliable_recorder,
)
from tests.servers import PATIENCE

LOCATION = b"https://x.example/a"


def programming_error() -> ProgrammingError:
    """Return the error that PostgreSQL raises for a new connection after REVOKE CONNECT ON DATABASE."""
    return ProgrammingError("", None, Exception("permission denied for database"))


class BrokenDatabase(UnreliableDatabase):
    """The database of the service, except that each write and each read raises an error before its transaction begins."""

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.write_error: Exception | None = None
        self.read_error: Exception | None = None

    async def write(self, transact: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.write_error is not None:
            raise self.write_error
        return await super().write(transact, *args, **kwargs)

    async def read(self, query: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.read_error is not None:
            raise self.read_error
        return await super().read(query, *args, **kwargs)


@asynccontextmanager
async def broken_recorder(service: Service, **more: Any) -> AsyncIterator[tuple[BrokenDatabase, Recorder]]:
    database = BrokenDatabase(service)
    values: dict[str, Any] = {"deadline": 0.1, "waiting_limit": 10_000, "on_events": lambda: None} | more
    recorder = Recorder(database, service.ids, service.click_ids, service.directory, **values)
    recorder.start()
    yield database, recorder
    await recorder.stop(1)


async def test_no_hit_that_got_a_503_response_is_stored_even_if_thousands_of_hits_wait(service: Service) -> None:
    (code,) = await create_codes(service)
    async with broken_recorder(service) as (database, recorder):
        database.refuse_writes = database.refuse_reads = True
        hits = [recorder.record(make_hit(service, code)) for _ in range(3000)]
        results = await asyncio.gather(*hits, return_exceptions=True)
        assert {type(result) for result in results} == {StoreUnavailable}
        database.refuse_writes = database.refuse_reads = False
        await recorder.flush()
        assert (await recorder.record(make_hit(service, code))).location == LOCATION
        await recorder.flush()
        assert len(await fetch_rows(service, schema.hits)) == 1
        assert recorder.totals.recorded == 1


async def test_a_hit_that_gets_503_during_the_transaction_of_its_batch_is_not_stored(service: Service) -> None:
    (code,) = await create_codes(service)
    totals = RecorderTotals()
    refused_during: list[WaitingHit] = []

    class Transaction(HitBatchWriter):
        def write(self, connection: Any, hits: Sequence[Hit], is_uncertain: bool = False) -> BatchResult:
            result = super().write(connection, hits, is_uncertain)
            while refused_during:
                refused_during.pop().refuse(RuntimeError("the read failed"))
            return result

    transaction = Transaction(service.ids, LinkResolver(service.directory, service.click_ids), service.directory)

    async def no_dead_letters(hits: Sequence[tuple[WaitingHit, Exception]]) -> None:
        raise AssertionError(hits)

    writer = HitWriter(
        service.database,
        transaction,
        totals,
        service.ids,
        deadline=2.0,
        on_stored=lambda: None,
        on_unavailable=lambda hits: None,
        on_rejected=no_dead_letters,
        on_events=lambda: None,
    )

    def waiting() -> WaitingHit:
        return WaitingHit(make_hit(service, code), asyncio.get_running_loop().create_future(), 0.0)

    class Response:
        """A response that the thread of the transaction can set. A real future can only be set in the thread of the event
        loop."""

        def __init__(self) -> None:
            self.is_done = False

        def done(self) -> bool:
            return self.is_done

        def set_result(self, resolution: Resolution) -> None:
            self.is_done = True

        def set_exception(self, error: Exception) -> None:
            self.is_done = True

    kept = waiting()
    refused = WaitingHit(make_hit(service, code), Response(), 0.0)
    refused_during.append(refused)
    writer.batcher.put_all([kept, refused])
    await writer.batcher.flush()
    assert [row.id for row in await fetch_rows(service, schema.hits)] == [kept.hit.id]
    assert kept.response.done()
    refused_during.append(alone := WaitingHit(make_hit(service, code), Response(), 0.0))
    with pytest.raises(RetryTransaction):
        await service.database.write(writer.apply, [alone], False)


async def test_the_recorder_continues_after_writes_that_fail_before_their_transaction(service: Service) -> None:
    (code,) = await create_codes(service)

    async def record(error: Exception) -> None:
        async with broken_recorder(service, deadline=1.0) as (database, recorder):
            database.write_error = error
            resolutions = await asyncio.gather(*(recorder.record(make_hit(service, code)) for _ in range(5)))
            assert {resolution.location for resolution in resolutions} == {LOCATION}
            assert recorder.unrecorded == 5
            database.write_error = None
            await asyncio.wait_for(recorder.flush(), PATIENCE)
            assert recorder.totals.recorded == 5
            assert recorder.totals.dropped == 0

    # The three recorders run at the same time, because each of them waits for its deadline.
    await asyncio.gather(*(record(error) for error in (programming_error(), RuntimeError("odd"), StoreUnavailable("down"))))
    assert len(await fetch_rows(service, schema.hits)) == 15


@pytest.mark.parametrize("error", [programming_error(), RuntimeError("odd")])
async def test_a_hit_gets_503_if_reading_its_link_raises_any_exception(service: Service, error: Exception) -> None:
    (code,) = await create_codes(service)
    async with broken_recorder(service) as (database, recorder):
        database.write_error = database.read_error = error
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(recorder.record(make_hit(service, code)), PATIENCE)
        database.write_error = database.read_error = None
        assert (await asyncio.wait_for(recorder.record(make_hit(service, code)), PATIENCE)).location == LOCATION
        await recorder.flush()
        assert len(await fetch_rows(service, schema.hits)) == 1


async def test_a_hit_gets_503_soon_after_the_deadline_if_reading_its_link_hangs(service: Service) -> None:
    (code,) = await create_codes(service)
    async with broken_recorder(service) as (database, recorder):
        never = asyncio.Event()

        async def hang(*_: Any, **__: Any) -> Any:
            await never.wait()

        database.write = database.read = hang  # type: ignore[method-assign]
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await recorder.record(make_hit(service, code))
        # an additional half second, because the machine may be busy
        assert time.monotonic() - began < 0.1 + RESPONSE_GRACE_SECONDS + 0.5


async def test_hits_of_a_commit_whose_result_was_lost_count_as_recorded_and_wake_the_fan_out(service: Service) -> None:
    (code,) = await create_codes(service)
    notified: list[int] = []
    database, recorder = await unreliable_recorder(service, on_events=lambda: notified.append(1))
    database.lose_results = 1
    await recorder.record(make_hit(service, code))
    await recorder.flush()
    totals = recorder.totals
    assert (totals.recorded, totals.first_clicks, totals.unknown) == (1, 1, 0)
    assert notified == [1]
    assert list((await count_state_events(service)).values()) == [1]
    await recorder.stop(1)


async def test_an_outage_loads_the_expressions_for_user_agents_because_hits_may_be_stored_late(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_expressions(monkeypatch)
    (code,) = await create_codes(service)
    database, recorder = await unreliable_recorder(service)
    database.refuse_writes = True
    await recorder.record(make_hit(service, code))
    while not user_agents.has_expressions():
        await asyncio.sleep(0)
    database.refuse_writes = False
    await recorder.stop(1)


@pytest.mark.parametrize("clicks", [1, 3, 30])
async def test_hits_wait_in_memory_while_the_database_rejects_every_hit(service: Service, clicks: int) -> None:
    (code,) = await create_codes(service)
    async with broken_recorder(service) as (_, recorder):
        async with hits_table_away(service):
            resolutions = await asyncio.gather(*(recorder.record(make_hit(service, code)) for _ in range(clicks)))
            assert {resolution.location for resolution in resolutions} == {LOCATION}
            assert recorder.unrecorded == clicks
        await asyncio.wait_for(recorder.flush(), PATIENCE)
        assert len(await fetch_rows(service, schema.hits)) == clicks
        totals = recorder.totals
        assert (totals.dropped, totals.dead_letters, totals.first_clicks) == (0, 0, 1)


async def test_a_hit_that_the_database_rejects_becomes_a_dead_letter_and_is_redirected(service: Service) -> None:
    (code,) = await create_codes(service)
    async with broken_recorder(service) as (_, recorder):
        broken = make_hit(service, code, rule=None)
        with capture_logs() as logs:
            assert (await recorder.record(broken)).location == LOCATION
            await recorder.flush()
        assert "hit_not_recordable" in [entry["event"] for entry in logs]
        assert (recorder.totals.dead_letters, recorder.totals.dropped) == (1, 0)
        (letter,) = await fetch_rows(service, schema.hits_dead_letter)
        assert (letter.code, json.loads(letter.hit)["id"]) == (code, broken.id)
        assert "rule" in letter.reason
        assert (await recorder.record(make_hit(service, code))).location == LOCATION
        await recorder.flush()
        assert len(await fetch_rows(service, schema.hits)) == 1


async def test_checking_whether_the_database_accepts_hits_stores_no_row(service: Service) -> None:
    (code,) = await create_codes(service)
    before = await fetch_rows(service, schema.count_deltas)
    async with broken_recorder(service) as (_, recorder):
        await recorder.record(make_hit(service, code, rule=None))
    for table in (schema.hits, schema.events, schema.first_clicks):
        assert await fetch_rows(service, table) == []
    assert await fetch_rows(service, schema.count_deltas) == before


async def test_a_hit_gets_a_new_id_if_another_process_has_used_its_id(service: Service) -> None:
    """Two processes with the same node number may generate the same id in the same millisecond."""
    codes = [(await create_codes(service))[0] for _ in range(3)]
    async with broken_recorder(service) as (_, recorder):
        first = make_hit(service, codes[0])
        await recorder.record(first)
        clashing = [make_hit(service, code, id=first.id, at=first.at + 1) for code in codes[1:]]
        others = [make_hit(service, codes[0]) for _ in range(20)]
        resolutions = await asyncio.gather(*(recorder.record(one) for one in (*others, *clashing)))
        assert {resolution.location for resolution in resolutions} == {LOCATION}
        await recorder.flush()
        assert len(await fetch_rows(service, schema.hits)) == 23
        assert recorder.totals.id_clashes >= 2
        assert (recorder.totals.dropped, recorder.totals.dead_letters) == (0, 0)
        assert sorted((await count_state_events(service)).values()) == [1, 1, 1]
        await recorder.write_spooled([clashing[0], make_hit(service, codes[2], id=first.id, at=first.at + 2)])
        assert len(await fetch_rows(service, schema.hits)) == 24, (
            "the first hit is stored already and is skipped, and the second one gets a new id"
        )


async def test_a_hit_gets_a_new_id_if_another_process_has_used_the_id_of_its_event(service: Service) -> None:
    (code,) = await create_codes(service)
    async with broken_recorder(service) as (_, recorder):
        clashing = make_hit(service, code)
        await service.database.write(
            lambda c: c.execute(
                schema.events.insert().values(id=clashing.id, application_id=1, topics=1, at=service.clock(), fanned_out=True)
            )
        )
        assert (await recorder.record(clashing)).location == LOCATION
        await recorder.flush()
        assert len(await fetch_rows(service, schema.hits)) == 1
        assert len(await fetch_rows(service, schema.events)) == 2


async def test_a_hit_whose_commit_takes_longer_than_the_deadline_is_redirected(service: Service) -> None:
    (code,) = await create_codes(service)
    slow_seconds = RESPONSE_GRACE_SECONDS + 1.0

    class SlowCommit(BrokenDatabase):
        async def write(self, transact: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            def transact_slowly(connection: Connection, *args: Any, **kwargs: Any) -> Any:
                result = transact(connection, *args, **kwargs)
                if connection.dialect.name == "sqlite":
                    time.sleep(slow_seconds)  # this blocks the thread that writes to the database
                else:
                    connection.execute(text(f"SELECT pg_sleep({slow_seconds})"))
                return result

            return await super().write(transact_slowly, *args, **kwargs)

    database = SlowCommit(service)
    database.refuse_reads = True
    recorder = Recorder(
        database, service.ids, service.click_ids, service.directory, deadline=0.1, waiting_limit=100, on_events=lambda: None
    )
    recorder.start()
    assert (await recorder.record(make_hit(service, code))).location == LOCATION
    await recorder.flush()
    assert len(await fetch_rows(service, schema.hits)) == 1
    await recorder.stop(1)
