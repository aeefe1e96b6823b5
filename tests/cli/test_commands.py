"""The command line, as a process of its own, beside no server and beside a running one."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import pty
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from tests.acceptance.process import Server

pytestmark = pytest.mark.acceptance


class Shell:
    def __init__(self, folder: Path, **more: str) -> None:
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SHORTENER_")}
        self.environment |= {"SHORTENER_DATA_DIR": str(folder), "SHORTENER_ALLOW_PRIVATE_TARGETS": "true", **more}

    def __call__(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "shortener", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done

    def json(self, *words: str, code: int = 0) -> Any:
        return orjson.loads(self(*words, "--json", code=code).stdout)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "data")


def test_help_names_every_command(shell: Shell) -> None:
    from shortener.cli import COMMANDS, cli

    listed = shell("--help").stdout
    assert all(name in listed for name in COMMANDS)
    for name in COMMANDS:
        # In this process: a process for each command would take a second each.
        shown = CliRunner().invoke(cli, [name, "--help"])
        assert shown.exit_code == 0
        assert "--json" in shown.stdout or "Commands:" in shown.stdout, name


def test_bad_usage_is_2_and_a_failure_1_both_on_stderr(shell: Shell) -> None:
    assert "No such command" in shell("nothing", code=2).stderr
    assert "Missing argument" in shell("applications", "show", code=2).stderr
    assert "there is no application 7" in shell("applications", "show", "7", code=1).stderr
    assert shell("applications", "show", "7", code=1).stdout == ""
    assert "unusable settings" in Shell(Path("/tmp"), SHORTENER_PORT="many")("purge", code=1).stderr


def test_applications_are_made_listed_changed_and_shown(shell: Shell) -> None:
    made = shell.json("applications", "create", "Brand", "--domain", "https://go.brand.example", "--company-id", "92")
    assert set(made) == {"application_id", "api_key", "tracker_token"}
    number = str(made["application_id"])
    assert "CONFLICT" in shell("applications", "create", "Brand", code=1).stderr
    shell("applications", "update", number, "--set", "click_events=every", "--add-domain", "https://two.brand.example")
    assert "INVALID_REQUEST" in shell("applications", "update", number, "--set", "click_events=never", code=1).stderr
    told = shell.json("applications", "show", number)
    assert (told["name"], told["company_id"]) == ("Brand", 92)
    assert told["domains"] == ["https://go.brand.example", "https://two.brand.example"]
    assert told["settings"]["click_events"] == "every"
    assert [one["name"] for one in shell.json("applications", "list")] == ["Brand"]
    assert "api_key" not in str(shell.json("applications", "list"))


def test_keys_and_tokens_are_made_and_taken_back(shell: Shell) -> None:
    number = str(shell.json("applications", "create", "Brand")["application_id"])
    key = shell.json("keys", "create", number, "--permission", "sms.read", "--name", "reader")
    assert key["permissions"] == ["sms.read"]
    listed = shell.json("keys", "list", number)
    assert [one["name"] for one in listed] == ["default", "reader"]
    assert key["api_key"] not in str(listed)
    shell("keys", "revoke", str(listed[1]["id"]))
    assert "NOT_FOUND" in shell("keys", "revoke", str(listed[1]["id"]), code=1).stderr
    assert "INVALID_REQUEST" in shell("keys", "create", number, "--permission", "all", code=1).stderr
    rotated = shell.json("tokens", "rotate", number, "--overlap", "24h")
    assert set(rotated) == {"tracker_token", "previous_valid_until"}
    assert "not a duration" in shell("tokens", "rotate", number, "--overlap", "soon", code=2).stderr


def test_migrate_makes_a_store_ready_and_doctor_looks_at_it(shell: Shell) -> None:
    assert shell.json("migrate")["from"] is None
    assert "nothing to do" in shell("migrate").stdout
    checks = {one["check"]: one["level"] for one in shell.json("doctor")}
    assert (checks["secret"], checks["schema"]) == ("ok", "ok")
    place = Path(shell.environment["SHORTENER_DATA_DIR"]) / "secret"
    place.write_text("changeme")
    assert any(one["level"] == "error" for one in shell.json("doctor", code=1))


def test_commands_work_beside_a_running_server(server: Server) -> None:
    shell = Shell(server.folder / "data")
    with server.api() as client:
        body = {"to": "+14085550100", "body": '#track("https://x.example/")', "campaign": "spring", "message_id": "m-1"}
        link = client.post("/api/v1/rewrite", json=body).json()["messages"][0]["links"][0]
    told = shell.json("messages", "show", "m-1")
    assert (told["state"], told["links"][0]["code"]) == ("CREATED", link["code"])
    assert "there is no message" in shell("messages", "show", "m-2", code=1).stderr
    exported = shell("export", str(server.first["application_id"]))
    rows = list(csv.DictReader(io.StringIO(exported.stdout)))
    assert [row["message_id"] for row in rows] == ["m-1"]
    assert shell.json("verify")["drift"] == []
    assert set(shell.json("purge").values()) == {0}
    erased = shell.json("messages", "erase", "--phone", "+14085550100", "--yes")
    assert (erased["messages"], erased["links"]) == (1, 1)
    with server.client() as client:
        assert client.get(f"/{link['code']}").status_code == 410
    assert "another process serves" in shell("serve", "--port", "0", code=1).stderr


def test_the_demo_tells_the_whole_story(shell: Shell) -> None:
    lines = [orjson.loads(line) for line in shell("demo", "--json").stdout.splitlines()]
    titles = [line["title"] for line in lines if "title" in line]
    assert len(titles) == 9
    received = [line for line in lines if line.get("what") == "received"]
    assert len(received) == 4
    assert all("signature: right" in line["text"] for line in received)
    assert orjson.loads(received[2]["body"])["event"]["fld-val-list"]["new_state"] == "CLICKTHRU"
    assert "/postback?phone=%2B14085550100&status=approved&cost=0.0095" in received[3]["text"]


def test_verify_tells_a_count_that_is_wrong_and_export_shows_how_far_it_is(server: Server) -> None:
    shell = Shell(server.folder / "data")
    with server.api() as client:
        client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": "plain"})
    server.stop()
    with contextlib.closing(sqlite3.connect(server.folder / "data" / "shortener.db")) as connection, connection:
        assert connection.execute("DELETE FROM tallies").rowcount + connection.execute("DELETE FROM counts").rowcount > 0
    drift = shell.json("verify", code=1)["drift"]
    assert {(one["metric"], one["kept"], one["counted"]) for one in drift} >= {("messages", "0", "1")}

    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "shortener", "export", str(server.first["application_id"]), "--output", os.devnull]
    subprocess.run(words, env=shell.environment, stderr=theirs, timeout=60, check=True)
    os.close(theirs)
    assert b"1 messages" in os.read(ours, 1000)
    os.close(ours)
