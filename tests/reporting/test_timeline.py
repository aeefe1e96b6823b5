"""Tests of the timeline of a message. The command that prints a timeline is tested in tests/cli/test_stats.py."""

from __future__ import annotations

import httpx
from sqlalchemy import Connection

from shortener.container import Service
from shortener.reporting.status import find_status
from shortener.reporting.timeline import message_timeline
from tests.web.calls import PHONE, rewrite


async def test_hits_of_the_same_millisecond_are_in_the_order_in_which_they_were_received(
    service: Service, client: httpx.AsyncClient
) -> None:
    message = await rewrite(client, "m1")
    agents = ["curl/8", PHONE["User-Agent"], "curl/9"]
    for agent in agents:  # The clock of the test does not move, so all hits have the same time.
        await client.get("/" + message["links"][0]["code"], headers={"User-Agent": agent})
    await service.recorder.flush()

    def read(connection: Connection) -> list[str]:
        status = find_status(connection, 1, "m1")
        assert status is not None
        timeline = message_timeline(connection, 1, status, service.click_ids.encode)
        return [entry["user_agent"] for entry in timeline if entry["what"] == "hit"]

    assert await service.database.read(read) == agents
