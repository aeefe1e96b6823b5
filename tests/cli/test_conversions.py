"""Tests of the commands `shortener conversions` and `shortener postback-keys`."""

from __future__ import annotations

import asyncio
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from shortener.accounts.credentials import rotate_token
from shortener.container import open_service
from shortener.model import utcnow
from shortener.settings import Settings
from tests.cli.shell import InProcessShell
from tests.conftest import client_of
from tests.factory import add_message


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an installation that has one conversion with two revisions, and one refused report."""

    folder = tmp_path_factory.mktemp("conversions")

    async def fill() -> None:
        service = await open_service(Settings(data_dir=folder))
        assert service.first_credentials is not None
        await service.database.write(add_message, service.ids, campaign="autumn")
        async with client_of(service, {"X-Api-Token": service.first_credentials.tracker_token}) as tracker:
            for parameters in (
                {"status": "lead", "note": "call +14085550100"},
                {"status": "paid", "value": "3", "currency": "EUR"},
                {"transaction_id": "{tid}", "phone": "14085550100"},
            ):
                await tracker.get("/api/v1/track", params={"message_id": "m-1", "action": "sale", **parameters})
        await service.close(grace=1)

    asyncio.run(fill())
    return folder


@pytest.fixture
def shell(tmp_path: Path, installation: Path) -> InProcessShell:
    """A shell on a copy of the installation."""
    shutil.copytree(installation, tmp_path / "data")
    return InProcessShell(tmp_path / "data")


def test_commands_list_conversions_and_refused_conversion_reports(shell: InProcessShell) -> None:
    (found,) = shell.json("conversions", "list", "--application", "1")["conversions"]
    assert (found["status"], found["value"], found["revision"], len(found["revisions"])) == ("paid", "3", 2, 2)
    assert found["conversion_id"] in shell("conversions", "list", "--application", "1").stdout
    assert shell.json("conversions", "list", "--application", "1", "--campaign", "spring")["conversions"] == []
    (refused,) = shell.json("conversions", "refused", "--application", "1")["refused"]
    assert (refused["reason"], refused["transaction_id"]) == ("UNEXPANDED_PLACEHOLDER", "{tid}")
    assert shell.json("conversions", "refused", "--application", "1", "--reason", "message_not_found")["refused"] == []
    for name in ("list", "refused"):
        assert "5550100" not in shell("conversions", name, "--json").stdout
        assert "14085550100" in shell("conversions", name, "--json", "--reveal").stdout
    assert "no application 9" in shell("conversions", "list", "--application", "9", code=1).stderr
    assert len(shell.json("conversions", "list")["conversions"]) == len(shell.json("conversions", "refused")["refused"]) == 1
    assert "--below" in shell("conversions", "refused", "--application", "1", "--below", "x!", code=2).stderr


def test_control_characters_in_reported_values_do_not_reach_the_terminal(shell: InProcessShell) -> None:
    async def report() -> None:
        service = await open_service(Settings(data_dir=shell.folder))
        token, _ = await service.database.write(rotate_token, 1, utcnow(), timedelta())
        async with client_of(service, {"X-Api-Token": token}) as tracker:
            parameters = {"message_id": "m-1", "action": "\x1b[2Jsale", "note": "a\nstate FAILED\x9b1m\u202e", "name": "Zoë\u200d"}
            assert (await tracker.get("/api/v1/track", params=parameters)).status_code == 200
        await service.close(grace=1)

    asyncio.run(report())
    for words in (("conversions", "list"), ("messages", "show", "m-1")):
        shown = shell(*words).stdout
        assert not {"\x1b", "\x9b", "\u202e"} & set(shown)
        assert r"\x1b[2Jsale" in shown
    assert "\nstate FAILED" not in shown
    assert shell.json("messages", "show", "m-1")["conversions"][-1]["action"] == "\x1b[2Jsale"


def test_commands_create_rotate_and_revoke_postback_keys(shell: InProcessShell) -> None:
    created: dict[str, Any] = shell.json("postback-keys", "create", "1", "--name", "Network")
    assert created["url"].endswith("/api/v1/postback/" + created["postback_key"])
    rotated = shell.json("postback-keys", "rotate", str(created["id"]), "--overlap", "2h")
    shell("postback-keys", "revoke", str(rotated["id"]))
    assert "NOT_FOUND" in shell("postback-keys", "revoke", str(rotated["id"]), code=1).stderr
    rows = shell.json("postback-keys", "list", "1")
    assert [(row["name"], row["valid_until"] is None, row["revoked_at"] is None) for row in rows] == [
        ("Network", False, True),
        ("Network", True, False),
    ]
    assert created["postback_key"] not in shell("postback-keys", "list").stdout
