"""Tests of `shortener stats`, `clicks list`, `messages list` and `messages show` on an installation with a few messages."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from shortener.container import open_service
from shortener.settings import Settings
from tests.cli.shell import InProcessShell
from tests.conftest import client_of
from tests.web.calls import PHONE, report, rewrite


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an installation with two messages of a campaign, a click by a person and a hit by a program."""

    folder = tmp_path_factory.mktemp("stats")

    async def fill() -> None:
        service = await open_service(Settings(data_dir=folder))
        credentials = service.first_credentials
        assert credentials is not None
        service.recorder.start()
        async with client_of(service, {"X-API-Key": credentials.api_key}) as client:
            first = await rewrite(client, "m0", campaign="spring")
            await rewrite(client, "m1", campaign="spring")
            await report(client, "m0", "DELIVERED")
            for headers in ({"User-Agent": "curl/8"}, PHONE):
                await client.get("/" + first["links"][0]["code"], headers=headers)
        await service.fanout.flush()
        await service.close()

    asyncio.run(fill())
    return folder


@pytest.fixture
def shell(tmp_path: Path, installation: Path) -> InProcessShell:
    """Return a shell on a copy of the installation."""
    shutil.copytree(installation, tmp_path / "data")
    return InProcessShell(tmp_path / "data")


def test_the_stats_command_prints_a_table_or_json(shell: InProcessShell) -> None:
    totals = shell.json("stats")
    assert (totals["messages"], totals["clicks"], totals["suspected_hits"], totals["click_rate"]) == (2, 1, 1, 0.5)
    assert "50.0 %" in shell("stats").stdout
    for by, name in (("campaign", "spring"), ("destination", "shop.example/a"), ("country", "US")):
        (group,) = shell.json("stats", "--by", by, "--basis", "sent")["groups"]
        assert (group[by], group["messages"], group["clicks"]) == (name, 2, 1)
        assert name in shell("stats", "--by", by).stdout
    assert sum(hour["clicks"] for hour in shell.json("stats", "--by", "hour", "--tz", "Asia/Kolkata")["groups"]) == 1
    assert shell.json("stats", "--by", "label")["groups"] == []
    assert shell.json("stats", "--by", "day")["groups"][-1]["messages"] == 2


def test_invalid_options_of_the_stats_command_are_rejected(shell: InProcessShell) -> None:
    assert "is not a time zone" in shell("stats", "--tz", "Mars", code=2).stderr
    assert "there is no application 9" in shell("stats", "--application", "9", code=1).stderr
    assert "--since must be before --until" in shell("stats", "--since", "2026-01-02", "--until", "2026-01-01", code=2).stderr


def test_the_command_clicks_list_shows_the_verdict_and_the_rule_of_each_hit(shell: InProcessShell) -> None:
    listed = shell.json("clicks", "list")
    assert [(hit["verdict"], hit["rule"]) for hit in listed] == [("human", "browser"), ("suspected", "crawler")]
    assert [hit["verdict"] for hit in shell.json("clicks", "list", "--verdict", "suspected", "--message", "m0")] == ["suspected"]
    assert shell.json("clicks", "list", "--message", "m1") == []
    assert "crawler" in shell("clicks", "list").stdout


def test_the_command_messages_list_masks_phone_numbers(shell: InProcessShell) -> None:
    assert [message["message_id"] for message in shell.json("messages", "list", "--campaign", "spring")] == ["m1", "m0"]
    (clicked,) = shell.json("messages", "list", "--state", "CLICKTHRU")
    assert clicked["to"] == "+14…00"


def test_the_command_messages_list_finds_a_phone_number_in_every_notation_that_a_rewrite_accepts(shell: InProcessShell) -> None:
    for to in ("+14085550100", "14085550100", "0014085550100", "+1 408 555 0100", "\u202a+1 (408) 555-0100\u202c"):
        assert len(shell.json("messages", "list", "--to", to)) == 2, to
    assert shell.json("messages", "list", "--to", "+14085550199") == []


def test_a_text_that_is_not_a_phone_number_is_rejected_as_an_option(shell: InProcessShell) -> None:
    for options in (("list", "--to", "+1 408 555 XXXX"), ("erase", "--yes", "--phone", "4085550100")):
        assert "is not an E.164 number" in shell("messages", *options, code=2).stderr


def test_the_command_messages_show_prints_a_timeline_of_the_message(shell: InProcessShell) -> None:
    timeline = shell.json("messages", "show", "m0")["timeline"]
    assert [entry["what"] for entry in timeline] == ["created", "delivered", "hit", "hit"]
    assert [(entry["verdict"], entry["rule"]) for entry in timeline[2:]] == [("suspected", "crawler"), ("human", "browser")]
    assert timeline[3]["first_of_message"] is True
    assert "verdict suspected, rule crawler" in shell("messages", "show", "m0").stdout
