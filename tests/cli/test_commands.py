"""Tests of `shortener` commands that run as processes, with and without a running server."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import pty
import pwd
import re
import sqlite3
import subprocess
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner
from sqlalchemy import Connection
from sqlalchemy.sql.elements import quoted_name

from shortener.accounts.version import read_version
from shortener.cli.common import print_json
from shortener.errors import CommitUncertain, StoreUnavailable
from shortener.storage import schema
from shortener.storage.sqlite import hold_ownership
from tests import fork_server
from tests.acceptance.process import Server
from tests.cli.shell import InProcessShell, Shell, create_installation
from tests.servers import PATIENCE

pytestmark = pytest.mark.acceptance

#: The actor of commands of this test, as the audit log names it.
ACTOR = f"command line ({pwd.getpwuid(os.getuid()).pw_name})"


@pytest.fixture
def empty(tmp_path: Path) -> Shell:
    """A shell in a folder without an installation."""
    return Shell(tmp_path / "data")


@pytest.fixture
def shell(empty: Shell, sqlite_template: Path) -> Shell:
    """A shell on an installation without applications."""
    create_installation(empty.folder, sqlite_template)
    return empty


def test_the_help_text_lists_every_command(shell: Shell) -> None:
    from shortener.cli import COMMANDS, cli

    listed = shell("--help").stdout
    assert all(name in listed for name in COMMANDS)
    for name in COMMANDS:
        # Print the help of each command in the test process. A new process for each command would take a second.
        shown = CliRunner().invoke(cli, [name, "--help"])
        assert shown.exit_code == 0
        assert "--json" in shown.stdout or "Commands:" in shown.stdout, name


def test_a_command_exits_with_2_for_wrong_usage_and_with_1_for_a_failure_and_prints_to_stderr(shell: Shell) -> None:
    assert "No such command 'nothing'.\n" in shell("nothing", code=2).stderr
    assert "No such command 'serv'. Did you mean 'serve'?" in shell("serv", code=2).stderr
    assert "No such option" in shell("--verbos", code=2).stderr
    assert "Missing argument" in shell("applications", "update", code=2).stderr
    assert "there is no application 7" in shell("applications", "show", "7", code=1).stderr
    assert shell("applications", "show", "7", code=1).stdout == ""
    wrong_setting = Shell(Path("/tmp"), SHORTENER_PORT="many")("purge", code=1).stderr
    assert "unusable settings" in wrong_setting
    # Two other cases are wrong usage: an option that does not fit the settings, and a command that needs PostgreSQL.
    assert "WORKERS above 1" in shell("serve", "--workers", "2", code=2).stderr
    assert "requires PostgreSQL" in shell("deliver", code=2).stderr
    for text in (wrong_setting, shell("keys", "revoke", "7", code=1).stderr, Shell(Path("/tmp/none"))("stats", code=1).stderr):
        assert text.rstrip().endswith("(docs/reference/errors.md)"), "each error names the page that says what to do"


def test_commands_create_list_change_and_show_applications(shell: Shell) -> None:
    created = shell.json("applications", "create", "Brand", "--domain", "https://go.brand.example", "--company-id", "92")
    assert set(created) == {"application_id", "api_key", "tracker_token", "callback_secret"}
    number = str(created["application_id"])
    assert "CONFLICT" in shell("applications", "create", "Brand", code=1).stderr
    shell("applications", "update", number, "--set", "click_events=every", "--add-domain", "https://two.brand.example")
    assert "INVALID_REQUEST" in shell("applications", "update", number, "--set", "click_events=never", code=2).stderr
    shown = shell.json("applications", "show", number)
    assert (shown["name"], shown["company_id"]) == ("Brand", 92)
    assert shown["domains"] == ["https://go.brand.example", "https://two.brand.example"]
    assert shown["settings"]["click_events"] == "every"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z", shown["created_at"])
    lines = [line.split() for line in shell("applications", "show", number).stdout.splitlines()]
    assert ["settings.click_events", "every"] in lines
    assert ["created_at", shown["created_at"]] in lines, "the text has the format of times of the API"
    assert ["settings.fallback_url", "-"] in lines
    assert [one["name"] for one in shell.json("applications", "list")] == ["Brand"]
    assert "api_key" not in str(shell.json("applications", "list"))


def test_commands_create_and_revoke_api_keys_and_rotate_tracker_tokens(shell: Shell) -> None:
    number = str(shell.json("applications", "create", "Brand")["application_id"])
    key = shell.json("keys", "create", number, "--permission", "sms.read", "--name", "reader")
    assert key["permissions"] == ["sms.read"]
    listed = shell.json("keys", "list", number)
    assert [one["name"] for one in listed] == ["default", "reader"]
    assert key["api_key"] not in str(listed)
    shell("keys", "revoke", str(listed[1]["id"]))
    assert "NOT_FOUND" in shell("keys", "revoke", str(listed[1]["id"]), code=1).stderr
    assert "bogus" in shell("keys", "create", number, "--permission", "bogus", code=2).stderr
    limited = shell.json("keys", "update", str(listed[0]["id"]), "--rate-limit", "600")
    assert limited == {"id": listed[0]["id"], "rate_limit": 600}
    assert shell.json("keys", "list", number)[0]["rate_limit"] == 600
    assert shell.json("keys", "create", number)["permissions"] == ["sms.read", "sms.send"]
    assert len(shell.json("keys", "create", number, "--permission", "all")["permissions"]) == 8
    assert "sms.everything" in shell("keys", "create", number, "--permission", "sms.everything", code=2).stderr
    rotated = shell.json("tokens", "rotate", number, "--overlap", "24h")
    assert set(rotated) == {"tracker_token", "previous_valid_until"}
    assert "not a duration" in shell("tokens", "rotate", number, "--overlap", "soon", code=2).stderr
    created = shell.json("postback-keys", "create", number, "--name", "network")
    shell("postback-keys", "revoke", str(created["id"]))
    with contextlib.closing(sqlite3.connect(shell.folder / "shortener.db")) as connection:
        rows = connection.execute("SELECT operator, action, object, application_id FROM audit_log ORDER BY id").fetchall()
    hints = [one["hint"] for one in shell.json("keys", "list", number)]
    assert {row[0] for row in rows} == {ACTOR}
    assert [row[1:] for row in rows] == [
        ("application_created", "Brand", int(number)),
        ("api_key_created", "reader", int(number)),
        ("api_key_revoked", "reader", int(number)),
        ("api_key_changed", "default", int(number)),
        *(("api_key_created", f"{hint}…", int(number)) for hint in hints[2:]),
        ("tracker_token_rotated", "", int(number)),
        ("postback_key_created", "network", int(number)),
        ("postback_key_revoked", "network", int(number)),
    ]


def test_the_migrate_command_creates_the_schema_and_the_doctor_command_reports_problems(empty: Shell) -> None:
    shell = empty
    assert shell.json("migrate")["from"] is None
    assert "nothing to do" in shell("migrate").stdout
    shell("applications", "create", "Brand")
    checks = {one["check"]: one["level"] for one in shell.json("doctor")}
    assert (checks["secret"], checks["schema"]) == ("ok", "ok")
    secret = shell.folder / "secret"
    secret.write_text("changeme")
    assert any(one["level"] == "error" for one in shell.json("doctor", code=1))


def test_an_erasure_that_matches_no_message_asks_nothing_and_says_so(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    in_process = InProcessShell(shell.folder)
    monkeypatch.setattr("shortener.cli.common.is_terminal", lambda: True)
    for options in ((), ("--yes",)):
        result = in_process("messages", "erase", "--phone", "+14085550100", *options)
        assert (result.stdout, result.stderr) == ("there is nothing to erase: no message matches\n", "")
    assert set(in_process.json("messages", "erase", "--phone", "+14085550100").values()) == {0}
    unknown = in_process("messages", "erase", "--message", "nosuch", code=1)
    assert "MESSAGE_NOT_FOUND" in unknown.stderr
    assert "Continue?" not in unknown.stderr
    assert "NOT_FOUND" in in_process("messages", "erase", "--application", "9", "--phone", "+14085550100", code=1).stderr


def test_commands_work_while_a_server_is_running(server: Server) -> None:
    shell = Shell(server.folder / "data")
    with server.api() as client:
        body = {"to": "+14085550100", "body": '#track("https://x.example/")', "campaign": "spring", "message_id": "m-1"}
        link = client.post("/api/v1/rewrite", json=body).json()["messages"][0]["links"][0]
    shown = shell.json("messages", "show", "m-1")
    assert (shown["state"], shown["links"][0]["code"]) == ("CREATED", link["code"])
    assert "there is no message" in shell("messages", "show", "m-2", code=1).stderr
    exported = shell("export", str(server.first["application_id"]))
    rows = list(csv.DictReader(io.StringIO(exported.stdout)))
    assert [row["message_id"] for row in rows] == ["m-1"]
    assert shell.json("verify")["drift"] == []
    assert set(shell.json("purge").values()) == {0}
    erased = shell.json("messages", "erase", "--phone", "+1 408-555-0100", "--yes")
    assert (erased["messages"], erased["links"]) == (1, 1)
    with contextlib.closing(sqlite3.connect(server.folder / "data" / "shortener.db")) as connection:
        audited = connection.execute("SELECT operator, object FROM audit_log WHERE action = 'data_erased'").fetchall()
    assert audited == [(ACTOR, "messages to a number")]
    with server.client() as client:
        assert client.get(f"/{link['code']}").status_code == 410
        number = str(server.first["application_id"])
        key = shell.json("keys", "create", number)
        shell("domains", "add", number, "http://go.brand.example")
        request = {"to": "+14085550100", "body": '#track("https://x.example/")', "domain": "go.brand.example"}
        headers = {"X-API-Key": key["api_key"]}
        assert client.post("/api/v1/rewrite", json=request, headers=headers).status_code == 200, (
            "the server uses the change at once"
        )
        shell("keys", "revoke", str(key["key_id"]))
        assert client.post("/api/v1/rewrite", json=request, headers=headers).status_code == 401, (
            "the server uses the change at once"
        )
    in_use = shell("serve", "--port", "0", code=1).stderr
    assert "another process serves" in in_use
    assert "Stop the other process first" in in_use
    assert "the database is unavailable" not in in_use


def test_the_demo_command_prints_every_step_from_the_rewrite_to_the_conversion_of_a_message(shell: Shell) -> None:
    lines = [orjson.loads(line) for line in shell("demo", "--json").stdout.splitlines()]
    titles = [line["title"] for line in lines if "title" in line]
    assert len(titles) == 9
    [clicks] = [
        orjson.loads(line["body"])["clicks"] for line in lines if line.get("step") == 4 and '"clicks"' in line.get("body", "")
    ]
    assert [hit["verdict"] for hit in clicks] == ["suspected"], "step 4 shows that the hit of the preview bot is stored"
    introduction = " ".join(line["text"] for line in lines if line.get("what") == "note")
    [folder] = re.findall(r"an installation of its own: a server at http://\S+ with its data in (\S+)\.", introduction)
    assert not Path(folder).exists(), "the demo deletes its folder at the end"
    assert "A tracker is an endpoint of the customer" in introduction
    for title in titles:
        assert not re.search("tracker (reports|repeats)", title), "a shop or a network reports conversions, not a tracker"
    received = [line for line in lines if line.get("what") == "received"]
    assert len(received) == 4
    assert all("signature: right" in line["text"] for line in received)
    assert orjson.loads(received[2]["body"])["event"]["fld-val-list"]["new_state"] == "CLICKTHRU"
    assert "/postback?phone=%2B14085550100&status=approved&cost=0.0095" in received[3]["text"]


def test_the_verify_command_reports_a_wrong_count_and_the_commands_verify_and_export_show_their_progress(server: Server) -> None:
    shell = Shell(server.folder / "data")
    with server.api() as client:
        client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": "plain"})
    server.stop()
    with contextlib.closing(sqlite3.connect(server.folder / "data" / "shortener.db")) as connection, connection:
        assert connection.execute("DELETE FROM tallies").rowcount + connection.execute("DELETE FROM counts").rowcount > 0
    drift = shell.json("verify", code=1)["drift"]
    assert {(one["metric"], one["kept"], one["counted"]) for one in drift} >= {("messages", "0", "1")}

    reader, terminal = pty.openpty()
    fork_server.run(["verify"], shell.environment, stdout=subprocess.DEVNULL, stderr=terminal, timeout=PATIENCE)
    assert b"Counting again ... 1 step\x1b" in os.read(reader, 100_000)
    words = ["export", str(server.first["application_id"]), "--output", os.devnull]
    fork_server.run(words, shell.environment, stderr=terminal, timeout=PATIENCE, check=True)
    os.close(terminal)
    assert b"1 message" in os.read(reader, 1000)
    os.close(reader)


def test_printed_tables_contain_complete_ids_in_a_pipe_and_on_a_narrow_terminal(shell: Shell) -> None:
    name = "A very long name of an application that is wider than any terminal " * 3
    shell("applications", "create", name.strip(), "--domain", "https://go.a-rather-long-host-name-of-a-brand.example")
    listed = shell("applications", "list").stdout
    line = listed.splitlines()[1]
    assert name.strip() in line
    assert "https://go.a-rather-long-host-name-of-a-brand.example" in line

    reader, terminal = pty.openpty()
    environment = shell.environment | {"COLUMNS": "60"}
    fork_server.run(["applications", "list"], environment, stdout=terminal, timeout=PATIENCE, check=True)
    os.close(terminal)
    printed = b""
    with contextlib.suppress(OSError):  # the error EIO means that the process has closed its end of the terminal
        while chunk := os.read(reader, 65536):
            printed += chunk
    os.close(reader)
    shown = re.sub(r"\x1b\[[0-9;]*m|\s", "", printed.decode())
    in_a_pipe = re.sub(r"\s", "", listed)
    assert Counter(shown) == Counter(in_a_pipe), "the lines are wrapped, and nothing is left out"


def test_the_export_command_with_the_option_json_writes_a_json_array(shell: Shell, server: Server) -> None:
    shell = Shell(server.folder / "data")
    number = str(server.first["application_id"])
    assert shell.json("export", number) == []
    with server.api() as client:
        for message_id in ("m-1", "m-2"):
            client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": "plain", "message_id": message_id})
    assert [message["message_id"] for message in shell.json("export", number)] == ["m-2", "m-1"]


def test_a_command_prints_a_new_key_and_says_that_a_change_is_stored_if_the_database_fails_after_the_commit(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process = InProcessShell(shell.folder)
    number = str(in_process.json("applications", "create", "Brand")["application_id"])
    versions: list[str] = []

    def fail_after_change(connection: Connection) -> str:
        versions.append(read_version(connection))
        if versions[-1] != versions[0]:
            raise StoreUnavailable("down")
        return versions[-1]

    with monkeypatch.context() as patched:
        for module in ("version", "directory"):
            patched.setattr(f"shortener.accounts.{module}.read_version", fail_after_change)
        assert in_process.json("keys", "create", number)["api_key"].startswith("sk_")
        versions.clear()
        failed = in_process("domains", "add", number, "https://go.brand.example", code=1)
    assert "the change is stored, but it cannot be shown: down" in failed.stderr
    assert [one["host"] for one in in_process.json("domains", "list", number)] == ["go.brand.example"]


def test_a_command_whose_commit_was_interrupted_says_that_its_change_may_be_stored(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*args: Any, **kwargs: Any) -> Any:
        raise CommitUncertain("cut at COMMIT")

    in_process = InProcessShell(shell.folder)
    number = str(in_process.json("applications", "create", "Brand")["application_id"])
    monkeypatch.setattr("shortener.accounts.audited_credentials.create_key", cut)
    assert "Check this before you repeat the command" in in_process("keys", "create", number, code=1).stderr


def test_a_copy_of_a_database_from_which_a_server_serves_leaves_the_target_empty(tmp_path: Path, sqlite_template: Path) -> None:
    create_installation(tmp_path / "data", sqlite_template)
    source, target = tmp_path / "data" / "shortener.db", tmp_path / "copy" / "shortener.db"
    with hold_ownership(source):
        refused = InProcessShell(tmp_path / "data")("copy", "--from", f"sqlite:///{source}", "--to", f"sqlite:///{target}", code=1)
    assert "another process serves from" in refused.stderr
    assert not target.exists(), "a server that starts on the target would create another installation in it"


def test_the_copy_command_does_not_create_the_database_that_it_should_copy(tmp_path: Path) -> None:
    missing = tmp_path / "missing.db"
    shell = InProcessShell(tmp_path / "data")
    refused = shell("copy", "--from", f"sqlite:///{missing}", "--to", f"sqlite:///{tmp_path / 'copy.db'}", code=1)
    assert f"there is no database {missing}" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_names_of_tables_can_be_keys_of_the_json_output_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({quoted_name("hits", quote=None): {schema.hits.c.id.name: 1}})
    assert orjson.loads(capsys.readouterr().out) == {"hits": {"id": 1}}


def test_the_copy_command_with_the_option_json_prints_the_number_of_copied_rows_of_each_table(shell: Shell, tmp_path: Path) -> None:
    in_process = InProcessShell(shell.folder)
    created = in_process.json("applications", "create", "Brand")
    urls = "--from", f"sqlite:///{shell.folder / 'shortener.db'}", "--to", f"sqlite:///{tmp_path / 'copy.db'}"
    copied = in_process.json("copy", *urls)
    assert (copied["applications"], copied["api_keys"], copied["tracker_tokens"]) == (1, 1, 1)
    (tmp_path / "copy").mkdir(mode=0o700)
    (tmp_path / "copy.db").rename(tmp_path / "copy" / "shortener.db")
    (shell.folder / "secret").rename(tmp_path / "copy" / "secret")
    (application,) = InProcessShell(tmp_path / "copy").json("applications", "list")
    assert application["application_id"] == created["application_id"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("keys", "revoke", "99999999999999999999"), 2),
        (("applications", "show", "-1"), 2),
        (("trackers", "show", "2147483648"), 2),
        (("keys", "revoke", "2147483647"), 1),
        (("links", "show", "\x01"), 1),
        (("messages", "show", "x" * 1000), 1),
        (("links", "update", "x", "--expires-at", "0001-01-01T00:00:00+12:00"), 2),
        (("verify", "--since", "yesterday"), 2),
        (("purge", "--nothing"), 2),
    ],
)
def test_no_failing_command_prints_a_traceback(shell: Shell, words: tuple[str, ...], code: int) -> None:
    assert shell(*words, code=code).stderr.splitlines()[-1].startswith(("Error: ", "Usage: "))


def test_a_secret_file_that_is_not_text_is_reported_in_one_line(shell: Shell) -> None:

    (shell.folder / "secret").write_bytes(b"\xff\xfe\x00" * 20)
    (shell.folder / "secret").chmod(0o600)
    for words in (("serve", "--port", "0"), ("doctor",), ("messages", "show", "m-1")):
        result = shell(*words, code=1)
        assert "secret" in result.stderr + result.stdout


@pytest.mark.parametrize(
    ("age", "options", "text"),
    [
        (timedelta(minutes=5), (), "The counts agree with the raw data."),
        (
            timedelta(days=800),
            (),
            r"The counts since [0-9: -]{16} UTC agree with the raw data. Raw data of earlier counts",
        ),
        (timedelta(minutes=5), ("--since", "2026-01-02"), "The counts since 2026-01-02 00:00 UTC agree with the raw data."),
    ],
    ids=["new", "old", "since"],
)
def test_the_verify_command_names_the_start_of_the_period_only_if_older_counts_exist(
    tmp_path: Path, sqlite_template: Path, age: timedelta, options: tuple[str, ...], text: str
) -> None:
    create_installation(tmp_path / "data", sqlite_template)
    shell = InProcessShell(tmp_path / "data")
    shell("applications", "create", "Brand")
    with contextlib.closing(sqlite3.connect(shell.folder / "shortener.db")) as connection, connection:
        connection.execute("UPDATE applications SET created_at = created_at - ?", (round(age.total_seconds() * 1000),))
    assert re.match(text, shell("verify", *options).stdout)
