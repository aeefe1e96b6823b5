"""Tests that kill the server with SIGKILL while clicks arrive. Every click that got a response must be stored, and no click may
be counted twice.
"""

import asyncio
import contextlib
import sqlite3
import time
from pathlib import Path

import httpx

from tests.acceptance.endpoint import Endpoint
from tests.acceptance.process import PHONE, Server
from tests.servers import PATIENCE


def database(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{folder / 'data' / 'shortener.db'}?mode=ro", uri=True)


async def click_until_killed(server: Server, codes: list[str], after: int) -> list[str]:
    """Click on all codes repeatedly, and kill the server after `after` responses. Return the codes of the clicks that were
    redirected (302)."""
    answered: list[str] = []
    killed = asyncio.Event()

    async def person(number: int, client: httpx.AsyncClient) -> None:
        for code in codes[number::16] * 3:
            if killed.is_set():
                return
            try:
                answer = await client.get(f"/{code}")
            except httpx.TransportError:
                return
            assert answer.status_code == 302
            answered.append(code)
            if len(answered) == after:
                assert server.process is not None
                server.process.kill()
                killed.set()

    async with httpx.AsyncClient(base_url=server.base, headers={"User-Agent": PHONE}, trust_env=False, timeout=PATIENCE) as client:
        await asyncio.gather(*(person(number, client) for number in range(16)))
    assert killed.is_set()
    return answered


def test_every_click_that_got_a_302_is_stored_after_kill_9_with_one_clickthru_event_per_message(server: Server) -> None:
    batch = {"to": [f"+1408555{number:04}" for number in range(500)], "body": 'see #track("https://x.example/")'}
    answered: list[str] = []
    for round_number in range(3):
        with server.api() as client:
            messages = client.post("/api/v1/rewrite", json=batch).json()["messages"]
        codes = [message["links"][0]["code"] for message in messages]
        answered += asyncio.run(click_until_killed(server, codes, after=150 + 100 * round_number))
        server.kill()
        server.start()
    with contextlib.closing(database(server.folder)) as connection:
        kept: dict[str, int] = dict(
            connection.execute("SELECT l.code, count(*) FROM hits h JOIN links l ON l.id = h.link_id GROUP BY l.code").fetchall()
        )
        for code in set(answered):
            assert kept.get(code, 0) >= answered.count(code), "an answered click is lost"
        per_message = connection.execute(
            "SELECT message_id, count(*) FROM events WHERE topics & 1 GROUP BY message_id HAVING count(*) <> 1"
        ).fetchall()
        assert per_message == [], "a message has more than one CLICKTHRU event"
        clicked, events = connection.execute(
            "SELECT (SELECT count(*) FROM first_clicks WHERE at IS NOT NULL), (SELECT count(*) FROM events WHERE topics & 1)"
        ).fetchone()
        assert clicked == events == len(kept)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_delivery_attempt_that_kill_9_interrupted_is_repeated_after_its_lease_expires(server: Server, endpoint: Endpoint) -> None:
    endpoint.slow = {"/": 60.0}
    with server.api() as client:
        given = {"url": endpoint.url + "/", "events": ["click"], "format": "scg", "timeout": 30}
        assert client.post("/api/v1/trackers", json=given).status_code == 201
        (message,) = client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": '#track("https://x.example/")'}).json()[
            "messages"
        ]
    with server.client(**{"User-Agent": PHONE}) as client:
        assert client.get("/" + message["links"][0]["code"]).status_code == 302
    endpoint.wait(1)
    server.kill()
    ends = round((time.time() + 2) * 1000)
    with contextlib.closing(sqlite3.connect(server.folder / "data" / "shortener.db")) as connection:
        (attempt, lease) = connection.execute("SELECT attempt, lease_until FROM deliveries").fetchone()
        assert attempt == 1
        assert lease > ends + 30_000, "the lease ends after the time limit of the attempt"
        with connection:  # make the lease shorter, so that the test does not wait until it ends
            connection.execute("UPDATE deliveries SET lease_until = ?, next_at = ?", (ends, ends))
    endpoint.slow = {}
    server.start()
    first, second = endpoint.wait(2)
    assert time.time() * 1000 >= ends, "the attempt is not repeated before the lease has ended"
    assert [request.json["attempt"] for request in (first, second)] == [1, 2], "the interrupted attempt counts"
    assert first.json["event_id"] == second.json["event_id"] == second.headers["webhook-id"]
    assert server.stop() == 0
    assert len(endpoint.arrived) == 2


def test_links_of_a_completed_rewrite_redirect_after_kill_9(server: Server) -> None:
    with server.api() as client:
        message = client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": '#track("https://x.example/")'}).json()[
            "messages"
        ][0]
    server.kill()
    server.start()
    with server.client(**{"User-Agent": PHONE}) as client:
        assert client.get("/" + message["links"][0]["code"]).headers["location"] == "https://x.example/"


def test_a_second_start_of_the_server_creates_no_new_credentials(server: Server) -> None:
    assert server.first["api_key"] in server.printed
    assert server.stop() == 0
    server.start()
    assert '"first_start":null' in server.printed
    with server.api() as client:
        assert client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": "x"}).status_code == 200
