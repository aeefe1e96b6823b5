"""README.md shows the same rewrite request in several programming languages. These tests run each block unchanged, except for the
port.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.process import Server
from tests.document_blocks import ROOT
from tests.servers import PATIENCE

#: For each language: the command that runs its block.
RUNNERS = {
    "sh": ["bash", "-euc"],
    "python": [sys.executable, "-c"],
    "js": ["node", "--input-type=module", "-e"],
    "php": ["php", "-r"],
}


def first_message(language: str) -> str:
    """Return the code block in one language from the section "The same message in your language" of README.md."""
    section = (ROOT / "README.md").read_text().partition("## The same message in your language")[2]
    block = re.search(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert block is not None, language
    return block[1].removeprefix("<?php\n")


@pytest.mark.parametrize("language", RUNNERS)
def test_the_readme_example_in_every_programming_language_returns_a_text_with_a_short_link(
    server: Server, tmp_path: Path, language: str
) -> None:
    command = RUNNERS[language]
    if shutil.which(command[0]) is None:
        pytest.skip(
            f"SKIPPED: {command[0]} is not installed (apt-get install nodejs php-cli), so this block of README.md did not run"
        )
    environment = {**os.environ, "KEY": server.first["api_key"], "PYTHONPATH": str(ROOT), "NO_PROXY": "*"}
    block = first_message(language).replace("http://127.0.0.1:8000", server.base)
    done = subprocess.run([*command, block], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"Hello Kola, see {re.escape(server.base)}/\w{{10}} for more", done.stdout), done.stdout
