"""Tests of the settings that save processor time in test processes (tests/speed.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFTEST = """
import atexit
from tests.speed import end_without_cleaning_up, report_only_calls_and_failures

def pytest_configure(config):
    if hasattr(config, "workerinput"):
        atexit.register(lambda: open("cleaned_up", "w").close())  # would be called last
        end_without_cleaning_up()
        report_only_calls_and_failures(config)

def pytest_runtest_logreport(report):
    if hasattr(report, "worker_id"):  # the controller received the report
        with open("reports", "a") as file:
            print(report.nodeid.partition("::")[2], report.when, report.outcome, file=file)
"""
TESTS = """
import pytest

@pytest.fixture
def broken():
    raise ValueError

@pytest.fixture
def ends_broken():
    yield
    raise ValueError

def test_good(): pass
def test_bad(): raise ValueError
def test_setup(broken): pass
def test_teardown(ends_broken): pass
def test_skipped(): pytest.skip()
"""


@pytest.mark.acceptance
def test_a_test_process_sends_each_result_once_and_each_failure_of_a_fixture(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "1", "-q", "."]
    ended = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "1 failed, 2 passed, 1 skipped, 2 errors" in ended.stdout
    assert (tmp_path / "reports").read_text().splitlines() == [
        "test_good call passed",
        "test_bad call failed",
        "test_setup setup failed",
        "test_teardown call passed",
        "test_teardown teardown failed",
        "test_skipped call skipped",
    ]
    assert not (tmp_path / "cleaned_up").exists()
