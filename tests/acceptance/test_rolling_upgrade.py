"""Test of a rolling upgrade: nodes of the previous release continue to work after the database is migrated to the new schema.

This is possible because migrations only expand the schema: the previous release still finds all columns that it uses. A column
that a release no longer uses can be removed by the release after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tarfile
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from shortener.conversions.first_conversions import FirstConversions
from shortener.ids import IdGenerator
from shortener.model import utcnow
from shortener.storage.open import open_database
from tests.acceptance.nodes import Answers, Nodes, click_until, metric, wait_until
from tests.acceptance.process import Server
from tests.servers import PATIENCE, RedisProcess

ROOT = Path(__file__).parents[2]
#: The commit whose code the test runs as the previous release, 0.2.0. It is the last commit with the schema of that release
#: (0004). The commits after it already contain later migrations. After each release, replace it by the last commit of that release.
PREVIOUS_RELEASE = "94bf003a"


@pytest.fixture
def previous_release(tmp_path: Path) -> Path:
    """Return a folder with the code of the previous release. The code comes from the git history of this repository."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", PREVIOUS_RELEASE, "shortener"], capture_output=True)
    if archive.returncode:
        pytest.skip(f"ROLLING UPGRADE NOT TESTED: the history has no commit {PREVIOUS_RELEASE}, as in a shallow clone")
    folder = tmp_path / "previous"
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def start_previous(nodes: Nodes, code: Path) -> Server:
    server = nodes.prepare()
    server.environment["PYTHONPATH"] = str(code)
    server.start()
    server.first = server.first or nodes.servers[0].first
    return server


async def convert(server: Server, message: dict[str, Any], transaction: str) -> None:
    """Report a conversion of a message to a node."""

    def report() -> None:
        with server.tracker() as client:
            parameters = {"message_id": message["message_id"], "transaction_id": transaction}
            response = client.get("/api/v1/track", params=parameters)
        assert response.status_code == 200, response.text

    await asyncio.to_thread(report)


async def count_conversions_of_the_previous_release(nodes: Nodes) -> None:
    """Run the job that counts converted messages. Its clock is three minutes ahead, because the job reads only conversions that
    are at least two minutes old."""
    database = await open_database(nodes.database_url, owner=False)
    try:
        later = FirstConversions(database, IdGenerator(database.node), lambda: utcnow() + timedelta(minutes=3))
        await later.count_all()
    finally:
        await database.close()


def test_nodes_of_the_previous_release_store_every_click_and_conversion_in_the_migrated_database(
    nodes: Nodes, redis_server: RedisProcess, previous_release: Path
) -> None:
    old, other_old = start_previous(nodes, previous_release), start_previous(nodes, previous_release)
    messages = nodes.rewrite(60)
    codes = [message["links"][0]["code"] for message in messages]
    answers = Answers()

    async def story() -> None:
        bases = [old.base, other_old.base]  # `click_until` chooses one of these nodes for each click
        is_done = False
        clicking = asyncio.create_task(click_until(bases, codes, lambda: is_done, answers, people=6, pause=0.01))
        try:
            await answered(answers, 200)
            for message in messages[:2]:
                await convert(old, message, "before the migration")
            environment = nodes.environment("node0")
            await asyncio.to_thread(
                subprocess.run, [sys.executable, "-m", "shortener", "migrate"], env=environment, check=True, capture_output=True
            )
            await answered(answers, 300)  # now only nodes of the previous release run, and the schema is already new
            for message in messages[1:4]:
                await convert(old, message, "in the migrated database")
            new = await asyncio.to_thread(nodes.serve)
            bases.append(new.base)
            for message in messages[3:6]:
                await asyncio.gather(*(convert(node, message, node.base) for node in (new, old, other_old)))
            await answered(answers, 300)
            with old.api() as client:
                response = await asyncio.to_thread(
                    client.post, "/api/v1/rewrite", json={"to": "+14085550777", "body": 'see #track("https://x.example/")'}
                )
            assert response.status_code == 200, response.text
            codes.append(response.json()["messages"][0]["links"][0]["code"])
            await answered(answers, 300)
            bases.remove(old.base)
            await answered(answers, 100)
            assert await asyncio.to_thread(old.stop) == 0
            await answered(answers, 100)
        finally:
            is_done = True
            await clicking

    asyncio.run(story())
    with contextlib.closing(redis_server.client()) as client:
        for stream in client.keys("sms:*:spool:hits"):
            wait_until(lambda stream=stream: client.xlen(stream) == 0, "the spool is not drained")  # type: ignore[misc]
    running = nodes.servers[1:]
    wait_until(lambda: sum(metric(one, "shortener_hits_unrecorded") for one in running) == 0, "hits wait")
    assert sum(metric(one, "shortener_hits_dropped_total") for one in running) == 0
    assert set(answers.statuses) == {302}
    rows = asyncio.run(nodes.query("SELECT l.code, count(*) AS hits FROM hits h JOIN links l ON l.id = h.link_id GROUP BY l.code"))
    assert {row["code"]: row["hits"] for row in rows} == answers.redirected, "each click is stored once"
    asyncio.run(count_conversions_of_the_previous_release(nodes))
    with nodes.servers[-1].api() as client:
        stats = client.get("/api/v1/sms/stats").json()
    assert (stats["complete"], stats["conversions"], stats["converted_messages"]) == (True, 14, 6)
    assert asyncio.run(nodes.query("SELECT count(*) AS messages FROM first_conversions"))[0]["messages"] == 6


async def answered(answers: Answers, more: int) -> None:
    """Wait until `more` more clicks have got a response."""
    enough = answers.statuses.total() + more
    async with asyncio.timeout(PATIENCE):
        while answers.statuses.total() < enough:
            await asyncio.sleep(0.02)  # wait a moment, then check the condition again
