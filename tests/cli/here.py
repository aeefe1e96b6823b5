"""The command line in this process: for tests of what commands do, not of how a process starts and ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson
from click.testing import CliRunner, Result

from shortener.cli import cli


class Here:
    """Runs commands on the store in `folder`."""

    def __init__(self, folder: Path, **more: str) -> None:
        self.folder = folder
        self._environment: dict[str, str | None] = {name: None for name in os.environ if name.startswith("SHORTENER_")}
        self._environment |= {"SHORTENER_DATA_DIR": str(folder), **more}

    def __call__(self, *words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, words, env=self._environment)
        assert result.exit_code == code, (result.stderr, result.stdout, result.exception)
        return result

    def json(self, *words: str, code: int = 0) -> Any:
        return orjson.loads(self(*words, "--json", code=code).stdout)
