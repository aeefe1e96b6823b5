"""Tests of commands on a machine whose clock is wrong, compared with the clock of the database."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

import shortener.model
from shortener.container import Service
from shortener.messages.rewrite_item import RewriteItem
from shortener.portal.operators import INVITATION_LIFETIME
from shortener.storage import schema
from tests.cli.shell import InProcessShell
from tests.conftest import Clock
from tests.document_blocks import ROOT

BEHIND = timedelta(minutes=10)


@pytest.fixture
def shell(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcessShell:
    """A shell on a machine whose clock is behind the clock of the database. The difference is BEHIND."""
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


#: Commands that change something. In this order, all of them succeed. {key} is the id of the key that the first command creates.
CHANGES = [
    "keys create 1 --name extra",
    "keys update {key} --rate-limit 60",
    "keys revoke {key} --yes",
    "balance set 1 10 --currency EUR --yes",
    "prices set 49 0.05 --application 1",
    "prices remove 49 --application 1 --yes",
    "opt-outs add 1 +4915112345678",
    "opt-outs remove 1 +4915112345678",
    "domains add 1 https://go.brand.example",
    "domains update go.brand.example --disable",
    "domains remove go.brand.example --yes",
    "postback-keys create 1",
    "hosts block evil.example --yes",
    "operators invite anna --role admin",
    "operators reset anna --yes",
    "operators disable anna --yes",
    "applications create Shop",
]


async def test_a_command_on_a_machine_with_a_slow_clock_stores_the_time_of_the_database(
    service: Service, shell: InProcessShell, subtests: pytest.Subtests
) -> None:
    values: dict[str, str] = {}
    newest = select(schema.audit_log.c.at).order_by(schema.audit_log.c.id.desc()).limit(1)
    for command in CHANGES:
        with subtests.test(command):
            result = await asyncio.to_thread(shell.json, *command.format(**values).split())
            if command.startswith("keys create"):
                values["key"] = str(result["key_id"])
            at = await service.database.read(lambda connection: connection.execute(newest).scalar())
            assert at is not None
            assert datetime.now(UTC) - at < BEHIND / 2
            if "expires_at" in result:  # the time at which the invitation of an operator expires
                assert datetime.fromisoformat(result["expires_at"]) - datetime.now(UTC) > INVITATION_LIFETIME - BEHIND / 2


def test_commands_use_the_clock_of_the_database_that_they_have_opened() -> None:
    """Only some modules may use the clock of the machine: modules that open no database, and the checks of `doctor`."""
    allowed = {"command_clock", "receiver", "demo_traffic", "doctor", "doctor_store", "doctor_gateways"}
    files = (ROOT / "shortener" / "cli").glob("*.py")
    assert {file.stem for file in files if re.search(r"\butcnow\b|datetime\.now|time\.time\(", file.read_text())} <= allowed
