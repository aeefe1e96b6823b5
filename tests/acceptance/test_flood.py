"""Test of a flood of hits while neither the database nor Redis responds. Each hit must get its response in time, and the process
must not use too much memory.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest

from shortener.container import Service, open_service
from shortener.errors import StoreUnavailable
from shortener.settings import Settings
from shortener.storage import schema
from tests.clicks.helpers import create_codes, fetch_rows, make_hit
from tests.conftest import new_postgresql_database
from tests.servers import PATIENCE, PostgresProcess, RedisProcess

RATE = int(os.environ.get("PROVE_HITS_PER_SECOND", "400"))  # the number of hits per second; `make prove` sets 2,000
SECONDS = float(os.environ.get("PROVE_FLOOD_SECONDS", "3"))  # the duration of the flood in seconds; `make prove` sets 15
HIT_DEADLINE = 1.0
MARGIN_SECONDS = 2.0  # the additional time in seconds that is permitted, because the machine may be busy
STEP_SECONDS = 0.05


class Flood:
    """Hits that are sent at a constant rate, whether responses arrive or not. The object records the responses and the longest
    wait."""

    def __init__(self, service: Service, codes: list[str]) -> None:
        self._service = service
        self._codes = codes
        self.responses = Counter[str]()
        self.redirected: list[int] = []  # ids of the hits that were redirected
        self.refused: set[int] = set()
        self.longest = 0.0
        self.most_waiting = 0

    async def run(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        began, sent = loop.time(), 0
        tasks: list[asyncio.Task[None]] = []
        while loop.time() - began < seconds:
            due = int((loop.time() - began) * RATE)
            tasks += [asyncio.create_task(self._hit(number)) for number in range(sent, due)]
            sent = due
            self.most_waiting = max(self.most_waiting, self._service.recorder.unrecorded)
            await asyncio.sleep(STEP_SECONDS)  # the interval between two groups of hits
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*tasks)

    async def _hit(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        hit = make_hit(self._service, self._codes[number % len(self._codes)])
        began = loop.time()
        try:
            resolution = await self._service.recorder.record(hit)
        except StoreUnavailable:
            self.responses["503"] += 1
            self.refused.add(hit.id)
        else:
            assert resolution.location is not None
            self.responses["302"] += 1
            self.redirected.append(hit.id)
        self.longest = max(self.longest, loop.time() - began)


@pytest.mark.parametrize("database_fault", ["frozen", "stopped"])
async def test_many_hits_without_database_and_redis_get_responses_in_time_and_use_bounded_memory(
    postgres_server: PostgresProcess, redis_server: RedisProcess, tmp_path: Path, database_fault: str
) -> None:
    url = await new_postgresql_database(postgres_server.url, None)
    settings = Settings(
        data_dir=tmp_path,
        database_url=url,
        redis_url=redis_server.url,
        hit_deadline=HIT_DEADLINE,
        hits_waiting=RATE // 2,
        database_timeout=2.0,
    )
    service = await open_service(settings)
    service.start(deliver=False)
    codes = [code for _ in range(20) for code in await create_codes(service)]
    flood = Flood(service, codes)
    await flood.run(0.5)
    assert set(flood.responses) == {"302"}, "both servers respond"
    usual = flood.longest
    stop, start = (
        (postgres_server.freeze, postgres_server.thaw)
        if database_fault == "frozen"
        else (postgres_server.stop, postgres_server.start)
    )
    try:
        redis_server.freeze()
        await asyncio.to_thread(stop)
        await flood.run(SECONDS)
        assert flood.longest < HIT_DEADLINE + 0.5 + MARGIN_SECONDS + 2 * usual
        assert flood.most_waiting <= settings.hits_waiting
        assert flood.responses["503"] > RATE * SECONDS / 2
    finally:
        redis_server.thaw()
        await asyncio.to_thread(start)
    async with asyncio.timeout(PATIENCE):
        while service.recorder.outage or service.recorder.unrecorded:
            await asyncio.sleep(STEP_SECONDS)
    await flood.run(0.2)
    async with asyncio.timeout(PATIENCE):
        while service.recorder.outage or service.recorder.unrecorded:
            await asyncio.sleep(STEP_SECONDS)
        while missing := set(flood.redirected) - {row.id for row in await fetch_rows(service, schema.hits)}:
            dropped = service.recorder.totals.dropped
            if len(missing) <= dropped:
                break
            await asyncio.sleep(STEP_SECONDS)
    stored = {row.id for row in await fetch_rows(service, schema.hits)}
    assert not stored & flood.refused, "a hit that got 503 is not a click"
    assert len(set(flood.redirected) - stored) <= service.recorder.totals.dropped, "only counted hits are lost"
    await service.close(grace=2)
