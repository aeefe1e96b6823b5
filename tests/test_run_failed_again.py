"""Tests of the program that runs failed tests again (`.ci/run`), with a small test suite whose first run failed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SUITE = """
import pathlib, pytest

def test_that_fails_once():
    pass

def test_that_always_fails():
    assert False

def test_that_is_skipped_now():
    pytest.skip()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failed", "status", "code"),
    [
        (["test_that_fails_once"], 1, 0),
        (["test_that_fails_once", "test_that_always_fails"], 1, 1),
        (["test_that_is_skipped_now"], 1, 1),
        (["test_that_was_deleted"], 1, 1),
        ([f"test_{number}" for number in range(6)], 1, 1),
        (["test_that_fails_once"], 3, 1),
        ([], 1, 1),
    ],
    ids=["passes", "one fails again", "is skipped", "does not exist", "more than five", "incomplete run", "no failed test"],
)
def test_ci_passes_only_if_every_failed_test_of_a_complete_run_passes_alone(
    tmp_path: Path, failed: list[str], status: int, code: int
) -> None:
    (tmp_path / "test_small.py").write_text(SUITE)
    cache = tmp_path / ".pytest_cache/v"
    for name, value in {"cache/lastfailed": {f"test_small.py::{one}": True for one in failed}, "suite/exit_status": status}.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text(json.dumps(value))
    command = [sys.executable, str(ROOT / "tests/run_failed_again.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("passed alone" in done.stdout) is (code == 0)
