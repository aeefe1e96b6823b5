"""Tests of commands on a machine whose clock differs from the clock of the database."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import shortener.model
from shortener.container import Service
from shortener.messages.rewrite_item import RewriteItem
from tests.cli.shell import InProcessShell
from tests.conftest import Clock

BEHIND = timedelta(minutes=10)


@pytest.fixture
def shell(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcessShell:
    """Run commands on a machine whose clock is behind the clock of the database by BEHIND."""
    if service.database.dialect == "sqlite":
        pytest.skip("one machine uses a SQLite database, so there is one clock")
    system = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: system() - BEHIND // timedelta(microseconds=1) * 1000)
    monkeypatch.setattr(shortener.model, "utcnow", lambda: datetime.now(UTC) - BEHIND)
    return InProcessShell(tmp_path, SHORTENER_DATABASE_URL=service.settings.database_url)


async def test_a_command_on_a_machine_with_a_slow_clock_updates_the_links_of_messages_that_were_just_sent(
    service: Service, clock: Clock, shell: InProcessShell
) -> None:
    clock.now = datetime.now(UTC)
    application = service.directory.application(1)
    assert application is not None
    await service.rewriter.rewrite(application, [RewriteItem(("+14085550100",), '#track("https://x.example/")', campaign="spring")])
    words = ("links", "update", "--application", "1", "--campaign", "spring", "--url", "https://new.example/")
    done = await asyncio.to_thread(shell.json, *words)
    assert (done["state"], done["total"], done["changed"]) == ("done", 1, 1)


async def test_the_previous_tracker_token_stays_valid_for_the_whole_overlap_if_the_clock_of_the_machine_is_slow(
    shell: InProcessShell,
) -> None:
    rotated = await asyncio.to_thread(shell.json, "tokens", "rotate", "1", "--overlap", "1h", "--yes")
    left = datetime.fromisoformat(rotated["previous_valid_until"]) - datetime.now(UTC)
    assert timedelta(minutes=55) < left <= timedelta(hours=1, seconds=1)
