"""Helpers that run `shortener` commands, either inside the test process or as separate processes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import orjson
from click.testing import CliRunner, Result

from shortener.cli import cli
from tests import fork_server
from tests.servers import PATIENCE


def environment_of(folder: Path, **more: str) -> dict[str, str]:
    """Return the environment variables for a command on the installation in `folder`. Settings of the test run are left out."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHORTENER_")}
    return environment | {"SHORTENER_DATA_DIR": str(folder), "SHORTENER_ALLOW_PRIVATE_TARGETS": "true"} | more


def create_installation(folder: Path, sqlite_template: Path) -> None:
    """Create an installation without applications in `folder`. The database is a copy of the fixture `sqlite_template`."""
    folder.mkdir(mode=0o700, exist_ok=True)
    shutil.copyfile(sqlite_template, folder / "shortener.db")


class InProcessShell:
    """Runs commands on the installation in `folder` inside the test process. This is faster than a separate process."""

    def __init__(self, folder: Path, **more: str) -> None:
        self.folder = folder
        self._environment: dict[str, str | None] = {name: None for name in os.environ if name.startswith("SHORTENER_")}
        self._environment |= environment_of(folder, **more)

    def __call__(self, *words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, words, env=self._environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            # For CliRunner, an unexpected exception is an exit with code 1, like a failure with a reason. Raise it instead, so
            # that the test fails.
            raise result.exception
        assert result.exit_code == code, (result.stderr, result.stdout, result.exception)
        return result

    def json(self, *words: str, code: int = 0) -> Any:
        return orjson.loads(self(*words, "--json", code=code).stdout)


class Shell:
    """Runs commands on the installation in `folder` as separate processes, to test how they start, what they print and how they
    exit."""

    def __init__(self, folder: Path, **more: str) -> None:
        self.folder = folder
        self.environment = environment_of(folder, **more)

    def __call__(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = fork_server.run(words, self.environment, capture_output=True, text=True, timeout=3 * PATIENCE)
        assert done.returncode == code, done.stderr + done.stdout
        assert "Traceback" not in done.stderr
        return done

    def json(self, *words: str, code: int = 0) -> Any:
        return orjson.loads(self(*words, "--json", code=code).stdout)


def commands_of(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield each command that is not a group, with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands_of(command, (*path, name))
        elif command is not None and not command.hidden:
            yield (*path, name), command
