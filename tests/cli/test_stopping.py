"""Tests of the signals that stop a process, and of the time limits of a stop."""
# tests/acceptance/test_stop.py stops real processes.

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from shortener.cli.stopping import parent_stop_seconds, stop_signals
from shortener.cli.workers import STEP_SECONDS
from tests.servers import PATIENCE

#: After SIGTERM, Docker waits for this time and then kills the process.
DOCKER_STOP_SECONDS = 10.0


@pytest.fixture
def handle_sighup() -> Iterator[Callable[[signal.Handlers], object]]:
    """Return a function that sets the handler of SIGHUP. At the end of the test, the earlier handler is set again."""
    previous = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, previous)


def test_sighup_stops_a_process_unless_nohup_started_it(handle_sighup: Callable[[signal.Handlers], object]) -> None:
    handle_sighup(signal.SIG_DFL)
    assert set(stop_signals()) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    handle_sighup(signal.SIG_IGN)
    assert set(stop_signals()) == {signal.SIGINT, signal.SIGTERM}


def test_the_parent_process_kills_a_frozen_worker_before_docker_kills_the_parent_process() -> None:
    assert parent_stop_seconds(shutdown_delay=1.0) + 2 * STEP_SECONDS < DOCKER_STOP_SECONDS


@pytest.mark.acceptance
def test_a_stopped_process_ends_with_0_without_the_teardown_of_the_interpreter() -> None:
    script = (
        "import atexit, time\n"
        "from shortener.cli import stopping\n"
        "class Service:\n"
        "    def begin_stop(self, seconds): pass\n"
        "atexit.register(time.sleep, 600)\n"
        "stopping.stop_within(Service(), 600)\n"
        "print('closed')\n"
        "stopping.end_process()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\n", "")
