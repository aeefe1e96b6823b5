"""This program runs the failed tests of the last complete test run again, one after the other in one process. `.ci/run` starts it
after `make test`.

The exit code is 0 if at most MAX_FAILED tests had failed and all of them pass now. If a test passes now, the load of
the machine has made it fail. A test or service that fails under load has a fault, so the names of these tests are printed at the
end. In every other case, the exit code is 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

MAX_FAILED = 5
CACHE = Path(".pytest_cache/v")
#: tests/conftest.py stores the exit status of a test run in pytest's cache under this key.
EXIT_STATUS = "suite/exit_status"


class PassedTests:
    """A plugin of pytest that collects the names of the tests that pass."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.names.add(report.nodeid)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run the failed tests again. Return the exit code of the program."""
    try:
        status = json.loads((CACHE / EXIT_STATUS).read_text())
        failed = set(json.loads((CACHE / "cache/lastfailed").read_text()))
    except FileNotFoundError:
        return 1  # The last run ended before its first test.
    if status != pytest.ExitCode.TESTS_FAILED:
        return 1  # The last run was interrupted, so some tests have no result.
    if not 0 < len(failed) <= MAX_FAILED:
        say(f"{len(failed)} tests failed. Only up to {MAX_FAILED} failed tests are run again.")
        return 1
    say(f"\n{len(failed)} tests failed. They run again, alone.\n")
    passed = PassedTests()
    if pytest.main(["--last-failed"], plugins=[passed]) != pytest.ExitCode.OK or passed.names != failed:
        return 1
    lines = ["These tests failed beside others and passed alone. Each of them has a fault to mend:", *sorted(failed)]
    line = "=" * 100
    say("\n".join(["", line, *lines, line]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
