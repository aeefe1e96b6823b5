"""Commands that remove, disable or replace objects print their names, and require a confirmation only at a terminal."""

# This file tests several modules of shortener/cli.

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shortener.cli import common
from tests.cli.shell import InProcessShell, create_installation


@pytest.fixture
def shell(tmp_path: Path, sqlite_template: Path) -> InProcessShell:
    create_installation(tmp_path / "data", sqlite_template)
    shell = InProcessShell(tmp_path / "data")
    shell("applications", "create", "Brand", "--domain", "https://go.brand.example")
    shell("trackers", "add", "1", "http://127.0.0.1:9/", "--name", "billing", "--event", "state")
    shell("gateways", "add", "carrier", "--kind", "simulator", "--application", "1")
    shell("operators", "invite", "Kola")
    return shell


#: The commands, and the words about the affected objects that each command must print.
COMMANDS = [
    (("keys", "revoke", "1"), ("Key 1", "application 1 (Brand)")),
    (("tokens", "rotate", "1", "--overlap", "0s"), ("application 1 (Brand)", "stops working at once")),
    (("trackers", "remove", "1"), ("Tracker 1 (billing)", "application 1 (Brand)", "0 pending deliveries")),
    (("deliveries", "replay", "--tracker", "1"), ("tracker 1 (billing)", "application 1 (Brand)")),
    (("gateways", "remove", "GATEWAY"), ("carrier", "0 waiting messages")),
    (("domains", "disable", "go.brand.example"), ("go.brand.example", "application 1 (Brand)", "410")),
    (("domains", "remove", "go.brand.example"), ("go.brand.example", "application 1 (Brand)")),
    (("applications", "update", "1", "--disable"), ("Application 1 (Brand)", "410")),
    (("operators", "disable", "Kola"), ("Kola", "all applications")),
    (("operators", "reset", "Kola"), ("Kola", "second factor")),
]


@pytest.mark.parametrize(("words", "named"), COMMANDS, ids=lambda value: " ".join(value[:2]))
def test_a_command_that_removes_or_disables_objects_prints_their_names_and_requires_a_confirmation_at_a_terminal(
    words: tuple[str, ...], named: tuple[str, ...], shell: InProcessShell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gateways = shell.json("gateways", "list")
    gateway = next(str(one["gateway_id"]) for one in gateways if one["name"] == "carrier")
    words = tuple(gateway if word == "GATEWAY" else word for word in words)
    shutil.copytree(shell.folder, tmp_path / "copy")
    in_a_script = shell(*words)
    assert all(name in in_a_script.stderr for name in named), in_a_script.stderr
    assert "Continue?" not in in_a_script.stderr

    at_a_terminal = InProcessShell(tmp_path / "copy")
    monkeypatch.setattr(common, "is_terminal", lambda: True)
    declined = at_a_terminal(*words, code=1)  # the input is empty, so the question has no answer
    assert "Continue? [y/N]" in declined.stderr
    assert "Aborted" in declined.stderr
    assert "Continue?" not in at_a_terminal(*words, "--yes").stderr
