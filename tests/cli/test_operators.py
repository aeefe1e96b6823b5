"""Tests of `shortener operators` as a user runs it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from shortener.cli import cli


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sqlite_template: Path) -> CliRunner:
    (tmp_path / "shortener.db").write_bytes(sqlite_template.read_bytes())
    monkeypatch.setenv("SHORTENER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SHORTENER_PORTAL_URL", "https://portal.example")
    return CliRunner()


def test_the_command_operators_invite_prints_the_invitation_link(run: CliRunner) -> None:
    done = run.invoke(cli, ["operators", "invite", "Ada", "--role", "admin", "--json"])
    assert done.exit_code == 0, done.output
    printed = orjson.loads(done.stdout)
    assert set(printed) == {"operator", "role", "url", "expires_at"}
    assert (printed["operator"], printed["role"]) == ("Ada", "admin")
    assert printed["url"].startswith("https://portal.example/portal/welcome#")
    listed = orjson.loads(run.invoke(cli, ["operators", "list", "--json"]).stdout)
    assert [(row["operator"], row["state"], row["roles"]) for row in listed] == [
        ("Ada", "invited", [{"application_id": 0, "role": "admin"}])
    ]


def test_the_operators_commands_print_why_a_role_a_name_or_an_application_is_rejected(run: CliRunner) -> None:
    for arguments, code in (
        (["invite", "Ada", "--role", "admin", "--application", "1"], 2),
        (["invite", "Ada", "--role", "owner"], 2),
        (["invite", " "], 2),
        (["invite", "Ada", "--application", "7"], 1),
        (["reset", "Nobody"], 1),
        (["disable", "Nobody"], 1),
    ):
        done = run.invoke(cli, ["operators", *arguments], standalone_mode=True)
        assert done.exit_code == code, (arguments, done.output)
    assert orjson.loads(run.invoke(cli, ["operators", "list", "--json"]).stdout) == []


def test_the_commands_operators_grant_reset_and_disable_change_an_operator(run: CliRunner) -> None:
    run.invoke(cli, ["operators", "invite", "Ada"])
    assert run.invoke(cli, ["operators", "grant", "Ada", "--role", "manager"]).exit_code == 0
    assert run.invoke(cli, ["operators", "reset", "Ada", "--json"]).exit_code == 0
    assert run.invoke(cli, ["operators", "disable", "Ada"]).exit_code == 0
    row = orjson.loads(run.invoke(cli, ["operators", "list", "--json"]).stdout)[0]
    assert (row["state"], row["roles"]) == ("disabled", [{"application_id": 0, "role": "manager"}])


def test_the_command_operators_reset_names_the_only_admin_and_does_not_enable_a_disabled_operator(
    run: CliRunner, tmp_path: Path
) -> None:
    for words in (["invite", "Ada", "--role", "admin"], ["invite", "Vera"], ["disable", "Vera"]):
        assert run.invoke(cli, ["operators", *words]).exit_code == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "shortener.db")) as database, database:
        database.execute("UPDATE operators SET password_hash = 'hash'")
    refused = run.invoke(cli, ["operators", "reset", "Vera"])
    assert refused.exit_code == 1
    assert "is disabled. Enable the operator" in refused.stderr
    demoted = run.invoke(cli, ["operators", "grant", "Ada", "--role", "viewer"])
    assert demoted.exit_code == 1
    assert "only admin" in demoted.stderr
    done = run.invoke(cli, ["operators", "reset", "Ada", "--json"])
    assert done.exit_code == 0, "it is the way back for an admin who lost the password"
    assert "This is the only admin" in done.stderr
    assert "only admin" not in run.invoke(cli, ["operators", "reset", "Ada"]).stderr
