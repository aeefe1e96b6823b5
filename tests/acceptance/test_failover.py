"""Tests of a failover: two nodes use a PostgreSQL primary with a synchronous standby. The primary fails under load, and the
standby is promoted.

Clicks and rewrites continue all the time. Clients may see only the statuses 302 (or 200) and 503. Each acknowledged click and
link must be in the new primary. The first primary hangs, like a machine that has lost its network. The second primary is killed.

The environment variable PROVE_FAILOVERS is the number of failovers in a row. If it is above 2, the test runs four times: with and
without Redis, each with a promotion by hand and with a promotion by Patroni. Each run prints the pauses that
docs/guides/failover.md states.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.acceptance.nodes import Answers, Nodes, click_until, metric, wait_until
from tests.acceptance.process import Server
from tests.patroni import PatroniPair
from tests.patroni import is_installed as patroni_is_installed
from tests.postgresql_cluster import PROGRAMS, PrimaryAndStandby
from tests.servers import PATIENCE, RedisProcess

#: with these four faults, each of the two hosts of DATABASE_URL freezes once and is killed once
FAULTS = ("freeze", "kill", "kill", "freeze")
FAILOVERS = int(os.environ.get("PROVE_FAILOVERS", "2"))


@pytest.fixture(params=["promoted by hand", "Patroni"] if FAILOVERS > 2 else ["promoted by hand"])
def databases(request: pytest.FixtureRequest) -> Iterator[PrimaryAndStandby | PatroniPair]:
    if request.param == "Patroni" and not patroni_is_installed():
        pytest.skip("SKIPPED: Patroni is not installed (apt-get install patroni etcd-server python3-etcd)")
    # Patroni gets the oldest installed version of PostgreSQL, because Debian's Patroni does not support versions that are newer
    # than itself.
    pair = PatroniPair(PROGRAMS[min(PROGRAMS)]) if request.param == "Patroni" else PrimaryAndStandby(PROGRAMS[max(PROGRAMS)])
    yield pair
    pair.close()


@pytest.fixture
def nodes(databases: PrimaryAndStandby | PatroniPair, tmp_path: Path) -> Iterator[Nodes]:
    databases.primary.query("CREATE DATABASE shortener")
    nodes = Nodes(tmp_path, databases.url("shortener"), settings={"HIT_DEADLINE": "0.5", "DATABASE_TIMEOUT": "2"})
    yield nodes
    nodes.close()


@dataclass
class Pipeline:
    """A client that rewrites one message after the other on random nodes. `links` contains the code of each acknowledged link."""

    servers: list[Server]
    links: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    stored_at: list[float] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        done = False
        chance = random.Random(7)

        async def rewrite() -> None:
            headers = {"X-API-Key": self.servers[0].first["api_key"]}
            async with httpx.AsyncClient(headers=headers, timeout=PATIENCE, trust_env=False) as client:
                while not done:
                    url = f"{chance.choice(self.servers).base}/api/v1/rewrite"
                    answer = await client.post(url, json={"to": "+14085550199", "body": '#track("https://x.example/")'})
                    self.statuses[answer.status_code] += 1
                    if answer.status_code == 200:
                        self.links.append(answer.json()["messages"][0]["links"][0]["code"])
                        self.stored_at.append(time.monotonic())
                    await asyncio.sleep(0.02)  # this client pauses before its next call

        task = asyncio.create_task(rewrite())
        try:
            yield
        finally:
            done = True
            await task

    async def stored_after(self, moment: float) -> float:
        """Wait until the servers have acknowledged a link after the time `moment`. Return the time of this acknowledgement."""
        async with asyncio.timeout(PATIENCE):
            while not (later := [at for at in self.stored_at[-50:] if at > moment]):
                await asyncio.sleep(0.02)  # wait a moment, then check the condition again
        return later[0]


@pytest.mark.parametrize("with_redis", [True, False] if FAILOVERS > 2 else [True])
def test_no_acknowledged_click_or_link_is_lost_when_the_primary_fails_and_the_standby_is_promoted(
    with_redis: bool,
    databases: PrimaryAndStandby | PatroniPair,
    nodes: Nodes,
    redis_server: RedisProcess,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nodes.redis_url = redis_server.url if with_redis else ""
    one, two = nodes.serve(), nodes.serve()
    codes = [message["links"][0]["code"] for message in nodes.rewrite(100)]
    pipeline, answers = Pipeline([one, two]), Answers()
    promotions: list[float] = []
    pauses: dict[str, list[float]] = {"freeze": [], "kill": []}

    async def fail_over(fault: str) -> None:
        before = answers.statuses.total()
        await waiting(lambda: answers.statuses.total() > before + 200)
        await asyncio.to_thread(getattr(databases.primary, fault))
        failed = time.monotonic()
        await asyncio.to_thread(databases.fail_over)
        promoted = time.monotonic()
        stored = await pipeline.stored_after(promoted)
        promotions.append(promoted - failed)
        pauses[fault].append(stored - promoted)
        # Kill the old primary, as if an operator switched the machine off.
        await asyncio.to_thread(databases.standby.kill)
        before = answers.statuses.total()
        await waiting(lambda: answers.statuses.total() > before + 200)

    async def story() -> None:
        done = False
        clicks = click_until([one.base, two.base], codes, lambda: done, answers, people=8, pause=0.02)
        clicking = asyncio.create_task(clicks)
        try:
            async with pipeline.running():
                for number in range(FAILOVERS):
                    if number:
                        await asyncio.to_thread(databases.attach_standby)
                    await fail_over(FAULTS[number % len(FAULTS)])
        finally:
            done = True
            await clicking

    asyncio.run(story())
    if with_redis:
        with contextlib.closing(redis_server.client()) as client:
            streams = client.keys("sms:*:spool:hits")
            wait_until(lambda: all(client.xlen(stream) == 0 for stream in streams), "the spool is not drained")
    wait_until(lambda: metric(one, "shortener_hits_unrecorded") + metric(two, "shortener_hits_unrecorded") == 0, "hits wait")
    assert set(answers.statuses) <= {302, 503}
    assert set(pipeline.statuses) <= {200, 503}
    assert None not in answers.retry_after or set(answers.statuses) == {302}
    stored = databases.primary.query("SELECT code FROM links", database_url(databases)).split()
    assert set(pipeline.links) <= set(stored), "each acknowledged link is in the new primary"
    rows = databases.primary.query(
        "SELECT l.code, count(*) FROM hits h JOIN links l ON l.id = h.link_id GROUP BY l.code", database_url(databases)
    )
    hits = {code: int(count) for code, count in (row.split("|") for row in rows.splitlines())}
    assert hits == dict(answers.redirected), "each acknowledged click is recorded, and none twice"
    assert nodes.close() == [0, 0]
    if FAILOVERS > 2:
        with capsys.disabled():
            sys.stdout.write(
                f"\n{type(databases).__name__}, Redis: {with_redis}. Promotion: {seconds(promotions)}. "
                f"From the promotion to the next stored link: after a kill {seconds(pauses['kill'])}, "
                f"after a hang {seconds(pauses['freeze'])}. Slowest redirect: {max(answers.seconds):.1f} s. "
                f"Clicks: {dict(answers.statuses)}. Rewrites: {dict(pipeline.statuses)}.\n"
            )


async def waiting(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.02)  # wait a moment, then check the condition again


def database_url(databases: PrimaryAndStandby | PatroniPair) -> str:
    return f"postgresql://postgres@127.0.0.1:{databases.primary.port}/shortener"


def seconds(values: list[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f} s"
