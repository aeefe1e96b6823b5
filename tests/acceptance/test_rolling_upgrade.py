"""Test of a rolling upgrade: nodes of the previous release continue to work after the database is migrated to the new schema.

Migrations only expand the schema. The next release may remove old columns, because at that time no node of the previous release
runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from tests.acceptance.nodes import Answers, Nodes, click_until, metric, wait_until
from tests.acceptance.process import Server
from tests.servers import PATIENCE, RedisProcess

ROOT = Path(__file__).parents[2]
#: The last commit of the previous release, 0.2.0, that has its schema (0004): the later ones contain empty migrations. After each
#: release, replace it by the last commit of that release.
PREVIOUS_RELEASE = "94bf003a"


@pytest.fixture
def previous_release(tmp_path: Path) -> Path:
    """Return a folder with the code of the previous release of this service, from the history of the repository."""
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


def test_nodes_of_the_previous_release_store_every_click_in_the_migrated_database(
    nodes: Nodes, redis_server: RedisProcess, previous_release: Path
) -> None:
    old, other_old = start_previous(nodes, previous_release), start_previous(nodes, previous_release)
    codes = [message["links"][0]["code"] for message in nodes.rewrite(60)]
    answers = Answers()

    async def story() -> None:
        bases = [old.base, other_old.base]  # `click_until` chooses one of these nodes for each click
        is_done = False
        clicking = asyncio.create_task(click_until(bases, codes, lambda: is_done, answers, people=6, pause=0.01))
        try:
            await answered(answers, 200)
            environment = nodes.environment("node0")
            await asyncio.to_thread(
                subprocess.run, [sys.executable, "-m", "shortener", "migrate"], env=environment, check=True, capture_output=True
            )
            await answered(answers, 300)  # at this time, only nodes of the previous release run on the new schema
            new = await asyncio.to_thread(nodes.serve)
            bases.append(new.base)
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
    assert {row["code"]: row["hits"] for row in rows} == answers.redirected, "none lost, none twice"


async def answered(answers: Answers, more: int) -> None:
    """Wait until `more` further clicks have a response."""
    enough = answers.statuses.total() + more
    async with asyncio.timeout(PATIENCE):
        while answers.statuses.total() < enough:
            await asyncio.sleep(0.02)  # the pause between two checks
