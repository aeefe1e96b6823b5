"""Tests of the commands `gateways`, `applications update --gateway`, `send`, `balance`, `prices` and `opt-outs`."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from shortener.secret import open_secret
from tests.cli.shell import InProcessShell


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an installation with one application. Each test works on a copy of it."""
    shell = InProcessShell(tmp_path_factory.mktemp("gateways"))
    shell("migrate")
    shell("applications", "create", "shop")
    return shell.folder


@pytest.fixture
def shell(tmp_path: Path, installation: Path) -> InProcessShell:
    shutil.copytree(installation, tmp_path, dirs_exist_ok=True)
    return InProcessShell(tmp_path)


def selected(shell: InProcessShell) -> Any:
    return shell.json("applications", "show", "1")["gateway"]


def test_commands_add_select_change_and_remove_a_gateway(shell: InProcessShell) -> None:
    words = ("--preset", "kannel", "--option", "username=user", "--option", "password=S3CRET", "--allow-private")
    added = shell.json("gateways", "add", "kannel", *words, "--on-doubt", "hold")
    assert (added["name"], added["preset"], added["on_doubt"], added["application_id"]) == ("kannel", "kannel", "hold", None)
    for output in (shell("gateways", "list").stdout, shell("gateways", "show", str(added["gateway_id"])).stdout):
        assert "kannel" in output
        assert "S3CRET" not in output
    assert selected(shell) is None
    shell("applications", "update", "1", "--gateway", "kannel")
    assert selected(shell) == "kannel"
    changed = shell.json("gateways", "update", str(added["gateway_id"]), "--timeout", "3", "--disable", "--set", "method=POST")
    assert (changed["timeout"], changed["enabled"], changed["settings"]["method"]) == (3, False, "POST")
    limits = ("--max-attempts=3", "--timeout=1", "--concurrency=2", "--max-per-second=5", "--schedule=1,2")
    limited = shell.json("gateways", "update", str(added["gateway_id"]), *limits)
    names = [limit[2:].partition("=")[0] for limit in limits]
    fields = [name.replace("-", "_") for name in names]
    assert [limited[field] for field in fields] == [3, 1, 2, 5, [1, 2]]
    without = shell.json("gateways", "update", str(added["gateway_id"]), *(f"--remove={name}" for name in names))
    assert [without[field] for field in fields] == [added[field] for field in fields]
    refused = shell("gateways", "update", str(added["gateway_id"]), "--remove=timeout", "--timeout=2", code=2)
    assert "--remove timeout must not be combined" in refused.stderr
    shell("gateways", "remove", str(added["gateway_id"]))
    assert selected(shell) is None
    assert "kannel" not in shell("gateways", "list").stdout


def stored_variables(shell: InProcessShell, gateway: str) -> Any:
    """Return the variables of a gateway from the database, because no command shows them."""
    with contextlib.closing(sqlite3.connect(shell.folder / "shortener.db")) as database:
        [[settings]] = database.execute("SELECT settings FROM gateways WHERE id = ?", (gateway,))
    return orjson.loads(open_secret(SecretStr(""), shell.folder).decrypt(settings))["variables"]


def test_the_command_gateways_update_changes_one_variable_or_one_option_of_the_preset(shell: InProcessShell) -> None:
    words = ("--preset", "kannel", "--option", "username=user", "--option", "password=S3CRET", "--allow-private")
    number = str(shell.json("gateways", "add", "kannel", *words)["gateway_id"])
    before = shell.json("gateways", "show", number)["settings"]
    for option, value in (("--variable", "password="), ("--set", "variables.password={"), ("--option", "password=new")):
        assert shell.json("gateways", "update", number, option, f"{value}er")["settings"] == before
        assert stored_variables(shell, number) == {"username": "user", "password": f"{value.partition('=')[2]}er"}
    for option, name in (("--variable", "password"), ("--set", "variables.password"), ("--option", "password")):
        (shell.folder / "password").write_text(f"{option}\n")
        changed = shell("gateways", "update", number, f"{option}-file", f"{name}={shell.folder}/password")
        assert changed.stderr == ""
        assert stored_variables(shell, number)["password"] == option
    refused = shell("gateways", "update", number, "--set", "password=new", code=2)
    assert "--variable password=VALUE" in refused.stderr
    moved = shell.json("gateways", "update", number, "--option", "url=http://127.0.0.1:14000/sendsms")["settings"]
    assert moved["url"] == before["url"].replace("http://127.0.0.1:13013/cgi-bin/sendsms", "http://127.0.0.1:14000/sendsms")
    assert "***" not in moved["url"]
    refused = shell("gateways", "update", number, "--set", "url=http://127.0.0.1/?key=***", code=2)
    assert "settings.url: contains ***" in refused.stderr


def test_the_command_gateways_remove_names_the_applications_that_use_the_gateway(shell: InProcessShell) -> None:
    number = str(shell.json("gateways", "add", "sim", "--kind", "simulator")["gateway_id"])
    shell("applications", "update", "1", "--gateway", "sim")
    assert selected(shell) == "sim"
    removed = shell("gateways", "remove", number)
    for text in ("1 (shop)", "NOT_SENT"):
        assert text in removed.stderr
    [warning] = shell.json("send", "1", "+14085550100", "hello", code=1)["warnings"]
    assert warning.startswith("NOT_SENT: the gateway 'sim' of the application was removed")
    unused = str(shell.json("gateways", "add", "unused", "--kind", "simulator")["gateway_id"])
    shell("gateways", "remove", unused)


def test_the_gateway_commands_print_one_setting_per_line_and_a_short_list(shell: InProcessShell) -> None:
    words = ("--preset", "kannel", "--option", "username=user", "--option", "password=S3CRET", "--allow-private")
    number = str(shell.json("gateways", "add", "kannel", *words)["gateway_id"])
    lines = dict(line.split(maxsplit=1) for line in shell("gateways", "show", number).stdout.splitlines())
    assert lines["settings.method"] == "GET"
    assert lines["settings.report_states.1"] == "DELIVERED"
    assert lines["settings.variables"] == "password, username"
    assert lines["settings.headers"] == "-"
    assert lines["health.breaker"] == "closed"
    assert "{" not in lines["settings.encodings.GSM-7"]
    listed = shell("gateways", "list").stdout
    assert "127.0.0.1:13013" in listed
    assert max(map(len, listed.splitlines())) <= 120


@pytest.mark.parametrize("words", [("send", "1", "+14085550100", "hi"), ("sends", "discard", "m-1", "--yes")])
def test_a_command_that_sends_creates_no_installation(tmp_path: Path, words: tuple[str, ...]) -> None:
    result = InProcessShell(tmp_path / "data")(*words, code=1)
    assert f"there is no installation in {tmp_path / 'data'}" in result.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "command",
    [
        "keys list",
        "trackers list",
        "domains list",
        "postback-keys list",
        "sends list",
        "balance show",
        "prices list",
        "opt-outs list",
    ],
)
def test_a_list_of_an_unknown_application_is_a_failure(shell: InProcessShell, command: str) -> None:
    result = shell(*command.split(), "999", "--json", code=1)
    assert "here is no application 999" in result.stderr
    assert not result.stdout


def test_the_built_in_simulator_cannot_be_removed_and_the_command_does_not_announce_it(shell: InProcessShell) -> None:
    shell("applications", "update", "1", "--gateway", "simulator")
    (simulator,) = shell.json("gateways", "list")
    refused = shell("gateways", "remove", str(simulator["gateway_id"]), code=1).stderr
    assert "The built-in simulator cannot be removed" in refused
    assert "is removed" not in refused


def test_the_built_in_simulator_can_be_selected_as_gateway_in_a_new_installation(shell: InProcessShell) -> None:
    shell("applications", "update", "1", "--gateway", "simulator")
    assert selected(shell) == "simulator"
    shell("applications", "update", "1", "--gateway", "none")
    assert selected(shell) is None


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("applications", "update", "1", "--gateway", "nope"), 2, "simulator"),
        (("gateways", "add", "x"), 2, "url"),
        (("gateways", "add", "x", "--preset", "twilio"), 2, "account_sid"),
        (("gateways", "add", "x", "--kind", "simulator", "--set", "fail=7"), 2, "fail"),
        (("gateways", "add", "x", "--option", "nope"), 2, "NAME=VALUE"),
        (("gateways", "show", "99"), 1, "no gateway"),
        (("balance", "set", "1", "many"), 2, "decimal"),
        (("balance", "set", "1", "0e999999"), 2, "at most 12 digits"),
        (("balance", "set", "99", "1"), 1, "no application"),
        (("prices", "set", "x", "1"), 2, "prefix"),
        (("opt-outs", "add", "1", "12"), 2, "E.164"),
        (("send", "99", "+14085550100", "x"), 1, "no application"),
    ],
)
def test_the_gateway_commands_print_the_reason_why_a_value_is_rejected(
    shell: InProcessShell, words: tuple[str, ...], code: int, text: str
) -> None:
    assert text in shell(*words, code=code).stderr


def test_the_command_gateways_test_prints_the_outcome_of_a_test_message(shell: InProcessShell) -> None:
    added = shell.json("gateways", "add", "sim", "--kind", "simulator", "--set", "reject_numbers=99")
    assert shell.json("gateways", "test", str(added["gateway_id"]), "+14085550100")["outcome"] == "accepted"
    assert shell.json("gateways", "test", str(added["gateway_id"]), "+14085550199", code=1)["outcome"] == "rejected"


@pytest.mark.parametrize("owner", ["1", None])
def test_the_command_gateways_test_sends_no_message_to_a_number_on_the_opt_out_list(
    shell: InProcessShell, owner: str | None
) -> None:
    shell("applications", "create", "other")
    number = str(
        shell.json("gateways", "add", "sim", "--kind", "simulator", *(("--application", owner) if owner else ()))["gateway_id"]
    )
    shell("opt-outs", "add", "2", "+14085550100")
    if owner:
        assert shell.json("gateways", "test", number, "+14085550100")["outcome"] == "accepted"
        shell("opt-outs", "add", owner, "+14085550100")
    refused = shell("gateways", "test", number, "+1 (408) 555-0100", code=1)
    assert "refused further messages" in refused.stderr
    assert "4085550100" not in refused.stderr
    assert shell.json("gateways", "test", number, "+14085550101")["outcome"] == "accepted"


def test_the_send_command_sends_a_message_if_the_application_has_a_gateway(shell: InProcessShell) -> None:
    unsent = shell.json("send", "1", "+14085550100", "hello", code=1)
    assert unsent["sent"] is False
    shell("applications", "update", "1", "--gateway", "simulator")
    assert shell.json("send", "1", "+14085550100", "hello", "--from", "18775550100")["sent"] is True


def test_the_send_command_prints_the_state_of_the_message_in_the_queue_and_not_that_it_was_sent(shell: InProcessShell) -> None:
    def printed(code: int = 0) -> str:
        output = shell("send", "1", "+14085550100", "hello", code=code).stdout
        lines = {name: value for name, *value in (line.split() for line in output.splitlines())}
        assert "sent" not in lines, "the message is only queued"
        [status] = lines["send_status"]
        return status

    assert printed(code=1) == "-"
    shell("applications", "update", "1", "--gateway", "simulator")
    assert printed() == "pending"
    queued = shell.json("send", "1", "+14085550100", "hello")
    assert (queued["sent"], queued["send_status"]) == (True, "pending"), "`sent` is the field of the API"
    assert shell.json("sends", "show", queued["message_id"])["send_status"] == "pending"


def test_commands_list_show_resend_and_discard_held_messages(shell: InProcessShell) -> None:
    shell("applications", "update", "1", "--gateway", "simulator")
    first, second = (shell.json("send", "1", "+14085550100", "hello")["message_id"] for _ in range(2))
    with sqlite3.connect(shell.folder / "shortener.db") as database:
        database.execute("UPDATE sends SET status = 3, attempt = 1, doubtful = 1, last_error = 'timeout'")
    held = shell.json("sends", "list", "--status", "held")
    assert [(one["message_id"], one["gateway"], one["doubtful"]) for one in held] == [
        (second, "simulator", True),
        (first, "simulator", True),
    ]
    assert first in shell("sends", "list").stdout
    assert "timeout" in shell("sends", "show", first).stdout
    shell("sends", "resend", first, "--application", "1")
    assert shell.json("sends", "show", first)["send_status"] == "pending"
    shell("sends", "discard", second, "--yes")
    assert shell.json("messages", "show", second)["state"] == "FAILED"
    assert shell.json("messages", "show", second)["send"]["send_status"] == "failed"
    assert shell.json("sends", "list", "--status", "held") == []
    assert "already failed" in shell("sends", "resend", second, code=1).stderr
    for command in ("show", "resend", "discard"):
        assert "no gateway sends a message" in shell("sends", command, "unknown", code=1).stderr.lower()


@pytest.mark.parametrize("option", ["--phone", "--message"])
def test_the_command_messages_erase_refunds_the_cost_of_an_unsent_message(shell: InProcessShell, option: str) -> None:
    shell("applications", "update", "1", "--gateway", "simulator")
    shell("balance", "set", "1", "10")
    shell("prices", "set", "default", "0.25")
    message = shell.json("send", "1", "+14085550100", "hello")["message_id"]
    assert shell.json("balance", "show", "1")["balance"] == "9.75"
    shell("messages", "erase", option, "+14085550100" if option == "--phone" else message, "--yes")
    assert shell.json("balance", "show", "1")["balance"] == "10.00"
    shown = shell.json("messages", "show", message)
    assert (shown["state"], shown["send"]["send_status"], shown["send"]["last_error"]) == ("FAILED", "failed", "erased")


def test_commands_set_and_show_balances_and_prices(shell: InProcessShell) -> None:
    assert shell.json("balance", "show", "1") == {"application_id": 1, "prepaid": False, "balance": None, "currency": None}
    shell("balance", "set", "1", "10.50", "--currency", "EUR")
    assert shell.json("balance", "add", "1", "0.25")["balance"] == "10.75"
    shell("prices", "set", "49", "0.07")
    added = shell.json("prices", "set", "default", "0.1", "--application", "1")
    assert added == {"application_id": 1, "prefix": "default", "price": "0.1", "currency": "EUR"}
    assert shell.json("prices", "list", "1") == [
        {"application_id": None, "prefix": "49", "price": "0.07", "currency": "EUR"},
        {"application_id": 1, "prefix": "default", "price": "0.1", "currency": "EUR"},
    ]
    assert [row["currency"] for row in shell.json("prices", "list")] == [None, "EUR"]
    shell("prices", "remove", "49")
    assert len(shell.json("prices", "list")) == 1
    assert shell.json("balance", "remove", "1")["removed"] is True


def test_the_command_balance_set_changes_the_currency_only_with_the_option_yes(shell: InProcessShell) -> None:
    shell("balance", "set", "1", "100")
    refused = shell("balance", "set", "1", "100", "--currency", "EUR", code=1)
    assert "The balance of application 1 (shop) changes from 100 USD to 100 EUR" in refused.stderr
    assert "--yes" in refused.stderr
    assert shell.json("balance", "show", "1")["currency"] == "USD"
    shell("balance", "set", "1", "50", "--currency", "usd")
    assert shell.json("stats")["cost_currency"] == "USD"
    assert re.search(r"^cost +0 USD$", shell("stats").stdout, re.MULTILINE)
    assert shell.json("balance", "set", "1", "100", "--currency", "EUR", "--yes")["currency"] == "EUR"


def test_the_help_of_prices_set_says_that_the_first_argument_is_no_application(shell: InProcessShell) -> None:
    assert "not the id of an application" in " ".join(shell("prices", "set", "--help").stdout.split())


def test_commands_add_list_and_remove_numbers_of_the_opt_out_list(shell: InProcessShell) -> None:
    shell("opt-outs", "add", "1", "+1 408 555-0100")
    assert [row["phone"] for row in shell.json("opt-outs", "list", "1", "--reveal")] == ["+14085550100"]
    assert shell.json("opt-outs", "remove", "1", "+14085550100")["removed"] is True
    assert shell.json("opt-outs", "list", "1") == []


@pytest.mark.slow
def test_no_command_prints_the_complete_phone_number_of_a_recipient_without_the_option_reveal(shell: InProcessShell) -> None:
    shell("applications", "update", "1", "--gateway", "simulator")
    to, text = "1 408 555-0100", 'See #track("https://x.example/")'
    sent = shell.json("send", "1", to, text)
    assert sent["to"] == "+14…00"
    assert "has no +" in sent["warnings"][0]
    message, code = sent["message_id"], sent["links"][0]["code"]
    commands = [
        ("send", "1", to, text),
        ("opt-outs", "add", "1", to),
        ("opt-outs", "list", "1"),
        ("opt-outs", "remove", "1", to),
        ("messages", "list"),
        ("messages", "show", message),
        ("sends", "list"),
        ("sends", "show", message),
        ("links", "list", "1"),
        ("links", "show", code),
        ("clicks", "list"),
        ("conversions", "list"),
        ("conversions", "refused"),
        ("deliveries", "list"),
        ("export", "1"),
    ]
    for words in commands:
        for output in (shell(*words), shell(*words, "--json")):
            assert "5550100" not in re.sub("[ -]", "", output.stdout + output.stderr), words
    assert shell.json("send", "1", to, text, "--reveal")["to"] == "+14085550100"
    for command in ("add", "list", "remove"):
        words = ("opt-outs", command, "1") + ((to,) if command != "list" else ())
        assert "+14085550100" in shell(*words, "--reveal").stdout
