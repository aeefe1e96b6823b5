"""Tests of options whose value is a secret. The secret comes from an argument, the standard input, a terminal or a file."""

from __future__ import annotations

from pathlib import Path

import click
import orjson
import pytest
from click.testing import CliRunner

from shortener.cli import cli, secret_input
from shortener.cli.secret_input import has_password, is_named_secret, named_value_options, secret_options
from tests.cli.shell import InProcessShell, create_installation, environment_of
from tests.one_test import in_one_test


@click.command()
@secret_options("secret", "secret", "The secret", multiple=True)
@secret_options("to", "target", "The database", is_secret=has_password)
def show(secret: tuple[str, ...], target: str | None) -> None:
    click.echo(f"{secret} {target}")


@click.command()
@named_value_options("variable", "variables", "The variables")
@named_value_options("header", "headers", "The headers", sign=":")
def show_named(variables: dict[str, str], headers: dict[str, str]) -> None:
    click.echo(f"{variables} {headers}")


def run(*words: str, stdin: str = "", code: int = 0, command: click.Command = show) -> tuple[str, str]:
    result = CliRunner().invoke(command, list(words), input=stdin)
    assert result.exit_code == code, result.output
    return result.stdout.strip(), result.stderr


def test_a_secret_is_read_from_the_standard_input_or_from_a_file_without_a_warning(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of a file\n")
    words = ("--secret", "-", "--secret-file", str(tmp_path / "secret"), "--secret-file", "-")
    assert run(*words, stdin="first line\nsecond line\n") == ("('first line', 'of a file', 'second line') None", "")


def test_a_secret_as_an_argument_still_works_and_causes_a_warning_that_does_not_contain_it() -> None:
    stdout, stderr = run("--secret", "hunter22")
    assert stdout == "('hunter22',) None"
    assert "Warning:" in stderr
    assert "--secret-file FILE" in stderr
    assert "hunter22" not in stderr


@pytest.mark.parametrize(("url", "warns"), [("postgresql://me:hunter22@db/x", True), ("postgresql://me@db/x", False)])
def test_only_a_url_with_a_password_causes_a_warning(url: str, warns: bool) -> None:
    stdout, stderr = run("--to", url)
    assert (stdout, "Warning:" in stderr) == (f"() {url}", warns)


def test_each_command_warns_of_a_url_argument_that_contains_a_secret(tmp_path: Path) -> None:
    shell = InProcessShell(tmp_path)
    shell("migrate")
    shell("applications", "create", "shop")

    def warnings_of(*words: str) -> str:
        return CliRunner().invoke(cli, words, input="\n", env=environment_of(tmp_path)).stderr

    for url, is_secret in (
        ("https://me:hunter22@t.example/", True),
        ("https://t.example/hook?token=hunter22", True),
        ("https://t.example/hook?token={message_id}&key={metadata.key}", False),
        ("https://t.example/hook?id=1", False),
        ("http://[", False),
        ("-", False),
    ):
        for words, remedy in (
            (("trackers", "add", "1", url, "--event", "click"), "Use `-` in place of URL."),
            (("trackers", "update", "99", "--url", url), "Use `--url -` or `--url-file FILE`."),
            (("gateways", "add", "gw", "--url", url), "Use `--url -` or `--url-file FILE`."),
            (("gateways", "add", "gw", "--set", f"url={url}"), "Use `--set url=-` or `--set-file url=FILE`."),
        ):
            shown = warnings_of(*words)
            assert (remedy in shown) is is_secret, (words, shown)
            assert "hunter22" not in shown
    (tmp_path / "url").write_text("https://t.example/hook?token=hunter22")
    assert "Warning" not in warnings_of("trackers", "update", "99", "--url-file", str(tmp_path / "url"))
    command = ("trackers", "add", "1", "-", "--event", "click", "--json")
    added = CliRunner().invoke(cli, command, input="https://8.8.8.8/?token=hunter22\n", env=environment_of(tmp_path))
    assert "Warning" not in added.stderr
    assert orjson.loads(added.stdout)["url"] == "https://8.8.8.8/?token=hunter22"


def test_a_terminal_is_asked_for_the_secret_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_input, "is_terminal", lambda: True)
    stdout, stderr = run("--secret", "-", stdin="hunter22\n")
    assert stdout == "('hunter22',) None"
    assert stderr.startswith("Secret: ")
    assert "hunter22" not in stderr


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--secret", "-"), "must not be empty"),
        (("--secret-file", "/none"), "No such file"),
        (("--to", "a", "--to-file", "-"), "only once"),
    ],
)
def test_a_missing_secret_is_wrong_usage(words: tuple[str, ...], error: str) -> None:
    assert error in run(*words, stdin="\n" if words[0] == "--secret" else "b\n", code=2)[1]


def test_a_named_value_is_read_from_the_standard_input_or_from_a_file_without_a_warning(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("of a file\n")
    words = ("--variable", "user=me", "--variable", "password=-", "--header", "Authorization: -")
    files = ("--variable-file", f"api_key={tmp_path}/key", "--header-file", f"X-Api-Key: {tmp_path}/key")
    stdout, stderr = run(*words, *files, stdin="first\nsecond\n", command=show_named)
    # Options are evaluated in the order of the decorators of their command. Each of them reads one line.
    assert stdout == (
        "{'user': 'me', 'password': 'first', 'api_key': 'of a file'} {'Authorization': 'second', 'X-Api-Key': 'of a file'}"
    )
    assert stderr == ""


def test_a_named_secret_as_an_argument_causes_a_warning_with_its_name_and_without_its_value() -> None:
    stdout, stderr = run("--header", "X-Team: sms", "--header", "X-Api-Key: hunter22", command=show_named)
    assert stdout == "{} {'X-Team': 'sms', 'X-Api-Key': 'hunter22'}"
    assert "`--header 'X-Api-Key: -'` or `--header-file 'X-Api-Key: FILE'`" in stderr
    assert "hunter22" not in stderr
    assert run("--header", "X-Team: sms", "--variable", "user=me", command=show_named)[1] == ""


@in_one_test
@pytest.mark.parametrize(
    ("name", "text", "is_secret"),
    [
        ("password", "hunter22", True),
        ("auth_token", "x", True),
        ("variables.api_key", "x", True),
        ("variables", '{"key": "hunter22"}', True),
        ("Authorization", "Bearer hunter22", True),
        ("Cookie", "a=b", True),
        ("headers.Authorization", "App {api_key}", False),
        ("basic_auth", "true", False),
        ("password", "", False),
        ("username", "me", False),
        ("success_statuses", "200", False),
        ("id_path", "$.id", False),
        ("url", "https://me:hunter22@gw.example/send", True),
        ("url", "https://gw.example/send?user=me&api_key=hunter22", True),
        ("url", "https://gw.example/send?api_key={api_key}&m={metadata.order}", False),
        ("url", "https://gw.example/send", False),
    ],
)
def test_the_name_of_a_value_or_its_url_says_whether_it_is_a_secret(name: str, text: str, is_secret: bool) -> None:
    assert is_named_secret(name, text) is is_secret


def test_a_terminal_is_asked_for_a_named_value_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_input, "is_terminal", lambda: True)
    stdout, stderr = run("--variable", "password=-", stdin="hunter22\n", command=show_named)
    assert stdout == "{'password': 'hunter22'} {}"
    assert stderr.startswith("password: ")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--variable", "hunter22"), "Invalid value for --variable: must be NAME=VALUE"),
        (("--header-file", "hunter22"), "Invalid value for --header-file: must be 'NAME: FILE'"),
        (("--variable", "key=a", "--variable-file", "key=-"), "key: use only one of --variable and --variable-file"),
        (("--variable-file", "key=/none"), "No such file"),
        (("--header-file", "X-Key: hunter22"), "the file cannot be read: No such file"),
        (("--variable", "key=-"), "must not be empty"),
    ],
)
def test_a_named_value_without_a_value_is_wrong_usage(words: tuple[str, ...], error: str) -> None:
    stderr = run(*words, stdin="\n", code=2, command=show_named)[1]
    assert error in stderr
    assert "hunter22" not in stderr


def test_a_tracker_and_a_copy_read_their_secrets_from_files(tmp_path: Path, sqlite_template: Path) -> None:
    create_installation(tmp_path / "data", sqlite_template)
    shell = InProcessShell(tmp_path / "data")
    shell("applications", "create", "Shop")
    (tmp_path / "secret").write_text("s" * 32 + "\n")
    words = ("trackers", "add", "1", "https://tracker.example/", "--event", "click", "--secret-file", str(tmp_path / "secret"))
    added = shell(*words, "--json")
    assert "Warning: other users" not in added.stderr
    header = ("--header-file", f"Authorization: {tmp_path}/secret")
    updated = shell.json("trackers", "update", "1", "--secret-file", str(tmp_path / "secret"), *header, "--yes")
    assert updated["headers_set"] is True
    (tmp_path / "url").write_text(f"sqlite:///{tmp_path}/copy.db\n")
    shell("copy", "--from", f"sqlite:///{tmp_path}/data/shortener.db", "--to-file", str(tmp_path / "url"))
    assert (tmp_path / "copy.db").exists()
    assert "Missing option '--to'" in shell("copy", "--from", "sqlite:///x.db", code=2).stderr


def test_every_option_for_a_secret_has_a_form_that_reads_a_file() -> None:
    def options(group: click.Command) -> list[set[str]]:
        if isinstance(group, click.Group):
            context = click.Context(group)
            commands = [group.get_command(context, name) for name in group.list_commands(context)]
            return [found for command in commands if command is not None for found in options(command)]
        return [{name for parameter in group.params for name in parameter.opts}]

    for option, commands in (("--secret", 3), ("--header", 2), ("--variable", 2), ("--option", 2)):
        with_secret = [names for names in options(cli) if option in names]
        assert len(with_secret) == commands
        assert all(f"{option}-file" in names for names in with_secret)
