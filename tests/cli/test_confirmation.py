"""Tests of commands that remove, disable or replace objects. They print the names of the objects, and require a confirmation only
at a terminal.
"""

# This file tests several modules of shortener/cli.

from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import click
import pytest
from sqlalchemy import create_engine

from shortener.cli import cli, common
from shortener.model import DeliveryStatus, utcnow
from tests.cli.shell import InProcessShell, create_installation
from tests.rows import Rows


@dataclass
class Installation:
    """The folder of an installation, and the ids of some of its objects. Commands in the tests contain the keys of `ids` in
    place of the ids."""

    folder: Path
    ids: dict[str, str]

    def copy_to(self, folder: Path) -> InProcessShell:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return InProcessShell(folder)

    def words(self, words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self.ids.get(word, word) for word in words)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Installation:
    """An installation with objects of many kinds. Each test works on a copy of it."""
    folder = tmp_path_factory.mktemp("confirmation")
    create_installation(folder, sqlite_template)
    shell = InProcessShell(folder)
    shell("applications", "create", "Brand", "--domain", "https://go.brand.example")
    shell("trackers", "add", "1", "http://127.0.0.1:9/", "--name", "billing", "--event", "state", "--header", "X-Key: secret")
    shell("gateways", "add", "carrier", "--kind", "simulator", "--application", "1")
    shell("operators", "invite", "Kola")
    shell("postback-keys", "create", "1", "--name", "network")
    shell("opt-outs", "add", "1", "+14085550100")
    sent = shell.json("send", "1", "+14085550101", 'Look #track("https://shop.example/")', code=1)  # no gateway is selected
    shell("balance", "set", "1", "10.50", "--currency", "EUR")
    shell("prices", "set", "49", "0.07", "--application", "1")
    engine = create_engine(f"sqlite:///{folder / 'shortener.db'}")
    with engine.begin() as connection:
        row = Rows(connection, utcnow())
        row.delivery(row.event(None), status=DeliveryStatus.DEAD.value)
    engine.dispose()
    gateway = next(str(one["gateway_id"]) for one in shell.json("gateways", "list") if one["name"] == "carrier")
    delivery = shell.json("deliveries", "list", "1")["deliveries"][0]["delivery_id"]
    return Installation(folder, {"CODE": sent["links"][0]["code"], "GATEWAY": gateway, "DELIVERY": delivery})


@pytest.fixture(scope="module")
def two_applications(tmp_path_factory: pytest.TempPathFactory, installation: Installation) -> Installation:
    """A copy of the installation, with one more application."""
    folder = tmp_path_factory.mktemp("two_applications")
    installation.copy_to(folder)("applications", "create", "Other")
    return Installation(folder, installation.ids)


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory, installation: Installation) -> Installation:
    """A copy of the installation in which some commands fail: it has a sent message, an erased message, one admin and no postback
    key."""
    folder = tmp_path_factory.mktemp("refusing")
    shell = installation.copy_to(folder)
    shell("applications", "update", "1", "--gateway", "simulator")
    sent = shell.json("send", "1", "+4915112345678", "hello")["message_id"]
    shell("operators", "invite", "Ada", "--role", "admin")
    shell("postback-keys", "revoke", "1")
    shell("messages", "erase", "--phone", "+14085550101", "--yes")
    with contextlib.closing(sqlite3.connect(folder / "shortener.db")) as database, database:
        database.execute("UPDATE sends SET status = 1")
        database.execute("UPDATE operators SET password_hash = 'x' WHERE name = 'Ada'")
    return Installation(folder, installation.ids | {"MESSAGE": sent})


@pytest.fixture
def shell(tmp_path: Path, installation: Installation) -> InProcessShell:
    return installation.copy_to(tmp_path / "data")


BRAND = "application 1 (Brand)"
#: Each command, and the words about the affected objects that it must print.
COMMANDS = [
    (("keys", "revoke", "1"), ("Key 1", BRAND)),
    (("tokens", "rotate", "1", "--overlap", "0s"), (BRAND, "stops working at once")),
    (("applications", "rotate-callback-secret", "1", "--overlap", "0s"), (f"callback secret of {BRAND} stops working at once",)),
    (("postback-keys", "rotate", "1", "--overlap", "0s"), (f"Postback key 1 (network) of {BRAND} stops working at once",)),
    (("postback-keys", "revoke", "1"), (f"Postback key 1 (network) of {BRAND} stops working at once",)),
    (("trackers", "remove", "1"), ("Tracker 1 (billing)", BRAND, "0 pending deliveries")),
    (("trackers", "update", "1", "--disable"), (f"tracker 1 (billing) of {BRAND} wait until it is enabled",)),
    (
        ("trackers", "update", "1", "--rotate-secret", "--overlap", "0s"),
        (f"secret of tracker 1 (billing) of {BRAND} stops working",),
    ),
    (("trackers", "update", "1", "--url", "http://127.0.0.2:9/"), (f"The headers of tracker 1 (billing) of {BRAND} are removed",)),
    (("deliveries", "replay", "--tracker", "1"), ("tracker 1 (billing)", BRAND)),
    (("gateways", "remove", "GATEWAY"), ("carrier", BRAND, "0 waiting messages")),
    (("gateways", "update", "GATEWAY", "--disable"), ("carrier", BRAND, "0 waiting messages wait")),
    (("gateways", "update", "GATEWAY", "--rotate-report-key"), ("carrier", BRAND, "another report URL")),
    (("domains", "disable", "go.brand.example"), ("go.brand.example", BRAND, "410")),
    (("domains", "update", "go.brand.example", "--disable"), ("go.brand.example", BRAND, "410")),
    (("domains", "remove", "go.brand.example"), ("go.brand.example", BRAND)),
    (("links", "disable", "CODE"), (f"of {BRAND} responds with 410",)),
    (("links", "update", "CODE", "--disable"), (f"of {BRAND} responds with 410",)),
    (("hosts", "block", "bad.example"), ("bad.example of ALL applications (Brand)", "410")),
    (("hosts", "block", "bad.example", "--application", "1"), (f"bad.example of {BRAND}", "410")),
    (("balance", "remove", "1"), (f"balance of {BRAND}, 10.5", "EUR")),
    (("prices", "remove", "49", "--application", "1"), (f"price for 49 of {BRAND}",)),
    (("opt-outs", "remove", "1", "+14085550100"), ("+14…00", BRAND, "send messages to this number again")),
    (("applications", "update", "1", "--disable"), ("Application 1 (Brand)", "410")),
    (("operators", "grant", "Kola", "--remove"), ("Kola", "all applications")),
    (("operators", "disable", "Kola"), ("Kola", "all applications")),
    (("operators", "reset", "Kola"), ("Kola", "second factor")),
]


def contents(folder: Path) -> list[str]:
    """Return the content of the database of an installation as SQL statements."""
    with contextlib.closing(sqlite3.connect(folder / "shortener.db")) as database:
        return list(database.iterdump())


@pytest.mark.parametrize(("words", "named"), COMMANDS, ids=lambda value: " ".join(value[:2]))
def test_a_command_that_removes_or_disables_objects_prints_their_names_and_requires_a_confirmation_at_a_terminal(
    words: tuple[str, ...],
    named: tuple[str, ...],
    shell: InProcessShell,
    installation: Installation,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    words = installation.words(words)
    in_a_script = shell(*words)
    assert all(name in in_a_script.stderr for name in named), in_a_script.stderr
    assert "Continue?" not in in_a_script.stderr

    at_a_terminal = installation.copy_to(tmp_path / "copy")
    before = contents(at_a_terminal.folder)
    monkeypatch.setattr(common, "is_terminal", lambda: True)
    declined = at_a_terminal(*words, code=1)  # the standard input is empty, so the question gets no answer
    assert "Continue? [y/N]" in declined.stderr
    assert "Aborted" in declined.stderr
    assert contents(at_a_terminal.folder) == before
    assert "Continue?" not in at_a_terminal(*words, "--yes").stderr
    assert contents(at_a_terminal.folder) != before


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("sends", "discard", "MESSAGE"), "The message is already sent."),
        (("prices", "remove", "48"), "NOT_FOUND"),
        (("balance", "set", "1", "5", "--currency", "EURO"), "INVALID_REQUEST"),
        (("hosts", "block", "not a host"), "INVALID_REQUEST"),
        (("operators", "disable", "Nobody"), "NOT_FOUND"),
        (("operators", "disable", "Ada"), "'Ada' is the only admin"),
        (("operators", "grant", "Ada", "--remove"), "'Ada' is the only admin"),
        (("links", "disable", "CODE"), "its message was erased"),
        (("domains", "remove", "unknown.example"), "NOT_FOUND"),
        (("postback-keys", "revoke", "1"), "NOT_FOUND"),
        (("keys", "revoke", "9"), "NOT_FOUND"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, tuple) else "",
)
def test_a_command_whose_change_is_refused_fails_before_it_asks(
    words: tuple[str, ...], error: str, refusing: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell, words = refusing.copy_to(tmp_path / "data"), refusing.words(words)
    before = contents(shell.folder)
    monkeypatch.setattr(common, "is_terminal", lambda: True)
    for more in ((), ("--yes",)):
        refused = shell(*words, *more, code=2 if error == "INVALID_REQUEST" else 1)
        assert error in refused.stderr
        assert "Continue?" not in refused.stderr
        assert len(refused.stderr.splitlines()) <= 2, "the output does not describe a change, because none happens"
    assert contents(shell.folder) == before


def test_a_purge_that_is_declined_because_of_the_clock_deletes_nothing_and_leaves_no_row_in_the_audit_log(
    shell: InProcessShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(sqlite3.connect(shell.folder / "shortener.db")) as database, database:
        long_ago = int((utcnow() - timedelta(days=2000)).timestamp() * 1000)
        database.execute("DELETE FROM installation WHERE name = 'purge_clock'")
        database.execute(f"INSERT INTO installation (name, value) VALUES ('purge_clock', '{long_ago} 0 0')")
    before = contents(shell.folder)
    monkeypatch.setattr(common, "is_terminal", lambda: True)
    declined = shell("purge", code=1)
    assert "The clock moved ahead by 2,000 days" in declined.stderr
    assert "Aborted" in declined.stderr
    assert contents(shell.folder) == before
    shell("purge", "--trust-clock")
    assert "'purge_started'" in "".join(contents(shell.folder))


def test_the_command_opt_outs_remove_asks_nothing_if_the_number_is_not_on_the_list(
    shell: InProcessShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "is_terminal", lambda: True)
    assert shell.json("opt-outs", "remove", "1", "+14085550199")["removed"] is False


@pytest.mark.parametrize(
    "words",
    [
        ("keys", "update", "1", "--rate-limit", "10"),
        ("keys", "revoke", "1"),
        ("postback-keys", "rotate", "1"),
        ("postback-keys", "revoke", "1"),
        ("trackers", "show", "1"),
        ("trackers", "test", "1"),
        ("trackers", "update", "1", "--disable"),
        ("trackers", "remove", "1"),
        ("deliveries", "show", "DELIVERY"),
        ("deliveries", "replay", "DELIVERY"),
        ("deliveries", "replay", "--tracker", "1"),
        ("gateways", "show", "GATEWAY"),
        ("gateways", "test", "GATEWAY", "+14085550109"),
        ("gateways", "update", "GATEWAY", "--disable"),
        ("gateways", "remove", "GATEWAY"),
        ("domains", "update", "go.brand.example", "--disable"),
        ("domains", "disable", "go.brand.example"),
        ("domains", "enable", "go.brand.example"),
        ("domains", "remove", "go.brand.example"),
        ("links", "show", "CODE"),
        ("links", "update", "CODE", "--disable"),
        ("links", "disable", "CODE"),
        ("links", "enable", "CODE"),
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_a_command_on_one_object_changes_nothing_if_the_object_belongs_to_another_application(
    words: tuple[str, ...], two_applications: Installation, tmp_path: Path
) -> None:
    shell, words = two_applications.copy_to(tmp_path / "data"), two_applications.words(words)
    before = contents(shell.folder)
    assert "NOT_FOUND" in shell(*words, "--application", "2", code=1).stderr
    assert contents(shell.folder) == before
    # no server listens at the URL of the tracker
    shell(*words, "--application", "1", code=1 if words[:2] == ("trackers", "test") else 0)


def test_a_command_on_one_object_says_how_to_name_the_application(shell: InProcessShell) -> None:
    error = shell("trackers", "test", "1", "3", code=2).stderr
    assert "unexpected extra argument" in error
    assert "use the option --application" in error


def test_the_update_of_many_links_and_the_list_of_blocked_hosts_accept_the_application_as_argument_and_as_option(
    shell: InProcessShell, installation: Installation
) -> None:
    shell("applications", "create", "Other")
    for options in (("1",), ("--application", "1")):
        changed = shell.json("links", "update", *options, "--destination", "https://shop.example/", "--disable")
        assert changed["total"] == 1
    assert shell.json("links", "update", "2", "--destination", "https://shop.example/", "--disable")["total"] == 0
    shell("hosts", "block", "all.example")
    for application in ("1", "2"):
        shell("hosts", "block", f"of-{application}.example", "--application", application)
    expected = {"all.example", "of-2.example"}
    for options in (("2",), ("--application", "2")):
        assert {row["host"] for row in shell.json("hosts", "list", *options)} == expected
    assert len(shell.json("hosts", "list")) == 3


def test_ctrl_c_at_the_question_ends_the_command_at_once(shell: InProcessShell, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> bool:
        signal.raise_signal(signal.SIGINT)
        return True

    before = contents(shell.folder)
    monkeypatch.setattr(common, "is_terminal", lambda: True)
    monkeypatch.setattr(click, "confirm", interrupt)
    assert "Aborted" in shell("keys", "revoke", "1", code=1).stderr
    assert contents(shell.folder) == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("tokens", "rotate", "1"), "The present tracker token of application 1 (Brand) works until"),
        (("applications", "rotate-callback-secret", "1"), "The present callback secret of application 1 (Brand) works until"),
        (("trackers", "update", "1", "--rotate-secret"), "The present signing secret of tracker 1 (billing) of application 1"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_a_replacement_asks_if_the_key_or_secret_before_the_present_one_is_still_in_its_overlap(
    words: tuple[str, ...], named: str, shell: InProcessShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "is_terminal", lambda: True)
    first = shell(*words)
    assert "Continue?" not in first.stderr, "with the overlap, nothing stops working at once"
    before = contents(shell.folder)
    second = shell(*words, code=1)
    assert named in second.stderr
    assert "The previous one, which would be valid until" in second.stderr
    assert "Continue? [y/N]" in second.stderr
    assert contents(shell.folder) == before
    shell(*words, "--yes")


#: A command removes, disables or replaces something if its last word is one of these words, or if it has one of these options.
ENDING_WORDS = {"adopt", "block", "disable", "discard", "erase", "remove", "reset", "restore", "revoke", "rotate"}
ENDING_OPTIONS = {"--disable", "--overlap", "--remove", "--replace", "--rotate-report-key", "--rotate-secret"}


def leaf_commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Yield the name and the click object of each command that is not a group."""
    if not isinstance(command, click.Group):
        yield " ".join(path), command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from leaf_commands(found, (*path, name))


def test_each_command_that_removes_disables_or_replaces_something_has_the_option_yes() -> None:
    missing, found = [], 0
    for name, command in leaf_commands(cli):
        options = {one for parameter in command.params for one in (*parameter.opts, *parameter.secondary_opts)}
        if name.split()[-1] in ENDING_WORDS or options & ENDING_OPTIONS:
            found += 1
            missing += [] if "--yes" in options else [name]
    assert missing == []
    assert found > 20
