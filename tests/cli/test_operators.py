"""Tests of `shortener operators`, called as a user calls it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from tests.cli.shell import InProcessShell, create_installation


@pytest.fixture
def shell(tmp_path: Path, sqlite_template: Path) -> InProcessShell:
    create_installation(tmp_path / "data", sqlite_template)
    return InProcessShell(tmp_path / "data", SHORTENER_PORTAL_URL="https://portal.example")


def test_the_command_operators_invite_prints_the_invitation_link(shell: InProcessShell) -> None:
    printed = shell.json("operators", "invite", "Ada", "--role", "admin")
    assert set(printed) == {"operator", "role", "url", "expires_at"}
    assert (printed["operator"], printed["role"]) == ("Ada", "admin")
    assert printed["url"].startswith("https://portal.example/portal/welcome#")
    listed = shell.json("operators", "list")
    assert [(row["operator"], row["state"], row["roles"]) for row in listed] == [
        ("Ada", "invited", [{"application_id": 0, "role": "admin"}])
    ]


def test_the_operators_commands_print_why_a_role_a_name_or_an_application_is_rejected(shell: InProcessShell) -> None:
    for words, code, reason in (
        (("invite", "Ada", "--role", "admin", "--application", "1"), 2, "role: must not be admin together with an application"),
        (("invite", "Ada", "--role", "owner"), 2, "'owner' is not one of 'viewer', 'support', 'manager', 'admin'"),
        (("invite", " "), 2, "name: must have 1 to "),
        (("invite", "Ada", "--application", "7"), 1, "There is no application 7."),
        (("reset", "Nobody"), 1, "There is no operator 'Nobody'."),
        (("disable", "Nobody"), 1, "There is no operator 'Nobody'."),
    ):
        assert reason in shell("operators", *words, code=code).stderr
    assert shell.json("operators", "list") == []


def test_the_commands_operators_grant_reset_and_disable_change_an_operator(shell: InProcessShell) -> None:
    shell("operators", "invite", "Ada")
    shell("operators", "grant", "Ada", "--role", "manager")
    shell.json("operators", "reset", "Ada")
    shell("operators", "disable", "Ada")
    (row,) = shell.json("operators", "list")
    assert (row["state"], row["roles"]) == ("disabled", [{"application_id": 0, "role": "manager"}])


def test_the_command_operators_reset_names_the_only_admin_and_does_not_enable_a_disabled_operator(shell: InProcessShell) -> None:
    for words in (["invite", "Ada", "--role", "admin"], ["invite", "Vera"], ["disable", "Vera"]):
        shell("operators", *words)
    with contextlib.closing(sqlite3.connect(shell.folder / "shortener.db")) as database, database:
        database.execute("UPDATE operators SET password_hash = 'hash'")
    assert "is disabled. Enable the operator" in shell("operators", "reset", "Vera", code=1).stderr
    assert "only admin" in shell("operators", "grant", "Ada", "--role", "viewer", code=1).stderr
    # This command works also for the only admin, because it is the only way back for an admin who has lost the password.
    assert "This is the only admin" in shell("operators", "reset", "Ada", "--json").stderr
    assert "only admin" not in shell("operators", "reset", "Ada").stderr
