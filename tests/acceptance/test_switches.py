"""Tests of kill switches and of changes of sent links, on two real nodes that share PostgreSQL and Redis."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from tests.acceptance.nodes import Nodes, wait_until
from tests.acceptance.process import PHONE, Server
from tests.servers import PATIENCE, SOON_SECONDS, PostgresProcess, RedisProcess

Link = tuple[str, str]  # host and path


def status(server: Server, link: Link) -> int:
    host, path = link
    with server.client(**{"User-Agent": PHONE, "Host": host}) as client:
        return client.get(path).status_code


def becomes(expected: int, server: Server, link: Link, patience: float) -> None:
    began = time.monotonic()
    while (found := status(server, link)) != expected:
        assert time.monotonic() - began < patience, f"{link} still answers {found}"
        time.sleep(0.02)  # wait a moment, then check the condition again


def make_link(server: Server, key: str, url: str) -> Link:
    """Create a link. Repeat the request until the node knows the API key, which may be new."""
    deadline = time.monotonic() + PATIENCE
    with server.client(**{"X-API-Key": key}) as client:
        while True:
            answer = client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": f'#track("{url}")'})
            if answer.status_code == 200:
                host, _, path = answer.json()["messages"][0]["links"][0]["short_url"].removeprefix("http://").partition("/")
                return host, f"/{path}"
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.02)  # wait before the request is repeated


def test_each_kill_switch_takes_effect_on_every_node_within_a_second_and_during_an_outage_of_the_database(
    nodes: Nodes, postgres_server: PostgresProcess
) -> None:
    one, two = nodes.serve(), nodes.serve()
    brand = one.command("applications", "create", "Brand", "--domain", "http://go.brand.example")
    other = one.command("applications", "create", "Other")
    mine = one.first["api_key"]
    spared = make_link(one, mine, "https://x.example/")
    links = {
        "link": make_link(one, mine, "https://x.example/"),
        "host": make_link(one, mine, "https://www.evil.example/"),
        "domain": make_link(one, brand["api_key"], "https://x.example/"),
        "application": make_link(one, other["api_key"], "https://x.example/"),
    }
    assert links["domain"][0] == "go.brand.example"
    for link in (spared, *links.values()):
        becomes(302, one, link, SOON_SECONDS)
        becomes(302, two, link, SOON_SECONDS)

    def ask(method: str, path: str, body: dict[str, Any]) -> None:
        with one.api() as client:
            assert client.request(method, path, json=body).status_code < 300

    switches: dict[str, Callable[[], Any]] = {
        "link": lambda: ask("PATCH", f"/api/v1/links{links['link'][1]}", {"enabled": False}),
        "host": lambda: ask("POST", "/api/v1/blocked-hosts", {"host": "*.evil.example"}),
        "domain": lambda: one.command("domains", "disable", "go.brand.example"),
        "application": lambda: one.command("applications", "update", str(other["application_id"]), "--disable"),
    }
    for name, switch in switches.items():
        switch()
        for server in (two, one):
            becomes(410, server, links[name], SOON_SECONDS)
    assert [status(server, spared) for server in (one, two)] == [302, 302]

    postgres_server.stop()
    try:
        for server in (one, two):
            assert status(server, spared) == 302, "the redirect comes from the link cache"
            told = {name: status(server, link) for name, link in links.items()}
            # The database is down. The disabled link gets 503: only the database contains its state.
            assert told == {"link": 503, "host": 410, "domain": 410, "application": 410}
    finally:
        postgres_server.start()
    for server in (one, two):
        becomes(410, server, links["link"], PATIENCE)


def location(server: Server, link: Link) -> str:
    """Return the destination to which a link redirects. If the response is not a redirect, return its status."""
    host, path = link
    with server.client(**{"User-Agent": PHONE, "Host": host}) as client:
        response = client.get(path)
        return response.headers["location"] if response.status_code == 302 else str(response.status_code)


def click_until_cached(redis: Any, server: Server, link: Link, destination: str) -> None:
    """Click on a link until Redis contains the link with this destination."""

    def is_cached() -> bool:
        location(server, link)
        values = [redis.get(key) for key in redis.keys(f"sms:*{link[1].strip('/')}")]
        return any(value is not None and destination in value for value in values)

    wait_until(is_cached, f"{link} is not in the cache")


def leads(server: Server, link: Link, expected: str, patience: float) -> None:
    """Wait until a link redirects to the expected destination, or until its response has the expected status."""
    began = time.monotonic()
    while (found := location(server, link)) != expected:
        assert time.monotonic() - began < patience, f"{link} still leads to {found}, not to {expected}"
        time.sleep(0.02)  # wait a moment, then check the condition again


def test_each_change_of_a_sent_link_reaches_the_cache_and_every_node_within_a_second(
    nodes: Nodes, postgres_server: PostgresProcess, redis_server: RedisProcess
) -> None:
    one, two = nodes.serve(), nodes.serve()
    old, new, over = "https://x.example/old", "https://x.example/new", "https://x.example/over"
    key = one.first["api_key"]
    links = {name: make_link(one, key, old) for name in ("destination", "expiry", "expiry with fallback", "prolonged")}
    with one.api() as client:
        body = {"to": ["+14085550100", "+14085550101"], "body": f'#track("{old}")', "campaign": "spring"}
        sent = client.post("/api/v1/rewrite", json=body).json()["messages"]
        for number, message in enumerate(sent):
            host, _, path = message["links"][0]["short_url"].removeprefix("http://").partition("/")
            links[f"campaign {number}"] = host, f"/{path}"
        past, future = "2020-01-01T00:00:00Z", "2030-01-01T00:00:00Z"
        client.patch(f"/api/v1/links{links['prolonged'][1]}", json={"expires_at": past})
        for server in (two, one):
            for name, link in links.items():
                leads(server, link, "410" if name == "prolonged" else old, SOON_SECONDS)

        def change(name: str, **changes: Any) -> None:
            response = client.patch(f"/api/v1/links{links[name][1]}", json=changes)
            assert response.status_code == 200, response.text

        expected = {"destination": new, "expiry": "410", "expiry with fallback": over, "prolonged": old}
        change("destination", url=new)
        change("expiry", expires_at=past)
        change("expiry with fallback", expires_at=past, fallback_url=over)
        change("prolonged", expires_at=future)
        for name, response in expected.items():
            for server in (two, one):
                leads(server, links[name], response, SOON_SECONDS)
        job = client.post("/api/v1/links/update", json={"campaign": "spring", "url": new}).json()["update"]
        assert job["state"] in ("counting", "running", "done"), job
        for name in ("campaign 0", "campaign 1"):
            expected[name] = new
            for server in (two, one):
                # wait longer, because the job changes the links in batches in the background
                leads(server, links[name], new, PATIENCE)
    cached = ("destination", "prolonged", "campaign 0", "campaign 1")
    with contextlib.closing(redis_server.client()) as redis:
        for name in cached:
            # On a busy machine, Redis may not respond in time to the change of a link. The link is then removed from Redis later,
            # and the next click stores it there again.
            click_until_cached(redis, one, links[name], expected[name])
    postgres_server.stop()
    try:
        for server in (one, two):
            for name in cached:
                # the redirects come from the link cache, which contains the new values
                leads(server, links[name], expected[name], SOON_SECONDS)
            # The link cache contains no expired links. While the database is unavailable, the service does not know them.
            assert {location(server, links[name]) for name in ("expiry", "expiry with fallback")} == {"503"}
    finally:
        postgres_server.start()
