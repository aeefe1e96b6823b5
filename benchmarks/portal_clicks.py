"""Benchmark of first clicks while an operator uses the portal:

    python -m benchmarks.portal_clicks [--seconds N] [--rounds N] [--pause N]

Starts `shortener serve` with SQLite and creates links. In each half of a round, CONNECTIONS connections open links that were not
opened before. In one of the two halves, an operator also opens pages, one after the other with a pause between them. The result
is the number of clicks in the halves with the operator, divided by the number in the halves without: 1 means that the operator
does not slow the clicks down. The order of the halves changes with each round, so that a change of the load of the machine
affects both.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import httpx

from tests.acceptance.portal.shots import start
from tests.acceptance.process import PHONE, Server

CONNECTIONS = 16
LINKS_PER_CALL = 100
PASSWORD = "seven quiet harbour lamps"
PAGES = ("/portal/1/", "/portal/1/messages", "/portal/1/clicks?metric=clicks", "/portal/1/campaigns", "/portal/1/conversions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="seconds of each half of a round")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two pages of the operator")
    parser.add_argument("--links", type=int, default=40_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder))
        try:
            asyncio.run(_measure(server, options))
        finally:
            server.kill()


async def _measure(server: Server, options: argparse.Namespace) -> None:
    codes = iter(list(_create_links(server, options.links)))
    operator = _sign_in(server)
    counted = {False: 0, True: 0}
    pages = 0
    async with aiohttp.ClientSession(
        server.base, connector=aiohttp.TCPConnector(limit=CONNECTIONS), headers={"User-Agent": PHONE}
    ) as clicks:
        for number in range(options.rounds):
            for with_operator in (False, True) if number % 2 else (True, False):
                ends = time.monotonic() + options.seconds
                work = [_open_links(clicks, codes, ends) for _ in range(CONNECTIONS)]
                beside = _use_portal(operator, ends, options.pause) if with_operator else asyncio.sleep(0, 0)
                *numbers, opened = await asyncio.gather(*work, beside)
                counted[with_operator] += sum(numbers)
                pages += opened
    await operator.aclose()
    print(
        f"{counted[False]:,} first clicks alone, {counted[True]:,} beside an operator who opened {pages} pages: "
        f"ratio {counted[True] / counted[False]:.3f}; load average {os.getloadavg()[0]:.1f}"
    )


def _create_links(server: Server, number: int) -> Iterator[str]:
    with server.api() as client:
        for first in range(0, number, LINKS_PER_CALL):
            to = [f"+1408{5550000 + one}" for one in range(first, first + LINKS_PER_CALL)]
            body = {"messages": [{"to": one, "body": 'Offer: #track("https://shop.example/")', "campaign": "offer"} for one in to]}
            response = client.post("/api/v1/rewrite", json=body, timeout=60)
            response.raise_for_status()
            for message in response.json()["messages"]:
                yield message["links"][0]["code"]


def _sign_in(server: Server) -> httpx.AsyncClient:
    """Return a client with the session of an admin."""
    url = server.command("operators", "invite", "Ada", "--role", "admin")["url"]
    form = {"token": url.partition("#")[2], "password": PASSWORD, "again": PASSWORD}
    headers = {"Sec-Fetch-Site": "same-origin"}
    answer = httpx.post(f"{server.base}/portal/welcome", data=form, headers=headers, trust_env=False)
    return httpx.AsyncClient(base_url=server.base, headers=headers, cookies=answer.cookies, trust_env=False, timeout=30)


async def _open_links(client: aiohttp.ClientSession, codes: Iterator[str], ends: float) -> int:
    number = 0
    while time.monotonic() < ends:
        code = next(codes, None)
        if code is None:
            raise SystemExit("all links are opened: use more --links")
        async with client.get(f"/{code}", allow_redirects=False) as response:
            assert response.status == 302
        number += 1
    return number


async def _use_portal(operator: httpx.AsyncClient, ends: float, pause: float) -> int:
    number = 0
    while time.monotonic() < ends:
        response = await operator.get(PAGES[number % len(PAGES)])
        assert response.status_code == 200
        number += 1
        await asyncio.sleep(pause)
    return number


if __name__ == "__main__":
    main()
