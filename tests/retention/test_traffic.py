"""Tests of the check whether hits or messages arrived in the last seconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection

from shortener.retention import traffic
from shortener.retention.traffic import QUIET_SECONDS, Traffic
from shortener.storage.database import Database
from tests.rows import Rows

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


async def test_the_traffic_check_finds_no_traffic_in_an_empty_database(database: Database) -> None:
    assert not await Traffic(database, lambda: NOON).is_present()


@pytest.mark.parametrize("has_hit", [False, True])
async def test_the_traffic_check_finds_traffic_for_some_seconds_after_a_message_or_a_hit(
    database: Database, monkeypatch: pytest.MonkeyPatch, has_hit: bool
) -> None:
    def fill(connection: Connection) -> None:
        rows = Rows(connection)
        message = rows.message(NOON - timedelta(days=9) if has_hit else NOON)
        if has_hit:
            rows.hit(rows.link(message), NOON)

    await database.write(fill)
    monkeypatch.setattr(traffic, "CHECK_SECONDS", 0.0)
    now = [NOON]
    observed = Traffic(database, lambda: now[0])
    assert await observed.is_present()
    now[0] += timedelta(seconds=QUIET_SECONDS + 1)
    assert not await observed.is_present()
