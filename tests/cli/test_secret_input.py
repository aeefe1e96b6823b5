"""Options whose value is a secret: as an argument, from the standard input, from a terminal and from a file."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from shortener.cli import cli, secret_input
from shortener.cli.secret_input import has_password, secret_options
from tests.cli.shell import InProcessShell, create_installation


@click.command()
@secret_options("secret", "secret", "The secret", multiple=True)
@secret_options("to", "target", "The database", is_secret=has_password)
def show(secret: tuple[str, ...], target: str | None) -> None:
    click.echo(f"{secret} {target}")


def run(*words: str, stdin: str = "", code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(show, list(words), input=stdin)
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


def test_a_tracker_and_a_copy_read_their_secrets_from_files(tmp_path: Path, sqlite_template: Path) -> None:
    create_installation(tmp_path / "data", sqlite_template)
    shell = InProcessShell(tmp_path / "data")
    shell("applications", "create", "Shop")
    (tmp_path / "secret").write_text("s" * 32 + "\n")
    words = ("trackers", "add", "1", "https://tracker.example/", "--event", "click", "--secret-file", str(tmp_path / "secret"))
    added = shell(*words, "--json")
    assert "Warning: other users" not in added.stderr
    assert shell.json("trackers", "update", "1", "--secret-file", str(tmp_path / "secret"), "--yes")["tracker_id"] == 1
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

    with_secret = [names for names in options(cli) if "--secret" in names]
    assert len(with_secret) == 3
    assert all("--secret-file" in names for names in with_secret)
