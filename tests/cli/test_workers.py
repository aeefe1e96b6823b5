"""Tests of the supervisor of `serve --workers`, with fake worker processes and a fake clock."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import pytest

from shortener.cli.workers import (
    MAX_PAUSE_SECONDS,
    MIN_PAUSE_SECONDS,
    RESPONSE_SECONDS,
    START_SECONDS,
    STARTUP_FAILURE,
    STEP_SECONDS,
    Supervisor,
    run,
)

STOP_SECONDS = 9.0


class FakeWorker:
    """A fake worker process that a test controls. A signal stops it, unless the test has frozen it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exit_code: int | None = None
        self.serves = False
        self.is_frozen = False
        self._is_asked = False
        self.signals: list[int] = []

    def ask(self) -> None:
        self._is_asked = True

    def read_answer(self) -> bool | None:
        if not self._is_asked or self.is_frozen:
            return None
        self._is_asked = False
        return self.serves

    def send_signal(self, number: int) -> None:
        self.signals.append(number)
        if self.exit_code is None and (number == signal.SIGKILL or not self.is_frozen):
            self.exit_code = -signal.SIGKILL if number == signal.SIGKILL else 0


class Workers:
    """A supervisor with two fake workers and a fake clock. `started` contains all workers that the supervisor has started."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.started: list[FakeWorker] = []
        self.supervisor = Supervisor(self._start, 2, STOP_SECONDS, clock=lambda: self.now)

    def _start(self) -> FakeWorker:
        self.started.append(FakeWorker(len(self.started)))
        return self.started[-1]

    @property
    def running(self) -> list[int]:
        return [worker.pid for worker in self.started if worker.exit_code is None]

    def run(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> None:
        """Call the supervisor every 0.1 s of the fake clock, for this number of seconds."""
        for _ in range(round(seconds * 10)):
            if until():
                return
            self.supervisor.step()
            self.now += 0.1

    def run_until_all_serve(self) -> None:
        for worker in self.started:
            worker.serves = True
        self.run(1)


@pytest.fixture
def workers() -> Workers:
    workers = Workers()
    workers.run(0.2)
    assert workers.running == [0, 1]
    return workers


def test_a_worker_whose_start_is_slow_is_not_killed(workers: Workers) -> None:
    workers.run(START_SECONDS - 1)
    assert workers.running == [0, 1]
    workers.run_until_all_serve()
    workers.run(RESPONSE_SECONDS * 3)
    assert workers.running == [0, 1]
    assert len(workers.started) == 2


def test_a_worker_that_never_finishes_its_start_is_replaced(workers: Workers) -> None:
    workers.started[1].serves = True
    workers.run(START_SECONDS + 2)
    assert workers.running == [1, 2]


def test_a_worker_that_was_killed_is_replaced_while_another_one_hangs(workers: Workers) -> None:
    workers.run_until_all_serve()
    workers.started[0].is_frozen = True
    workers.run(2)
    workers.started[1].exit_code = -signal.SIGKILL
    workers.run(0.2)
    assert workers.running == [0, 2], "the supervisor does not wait for the worker that hangs"
    workers.run(RESPONSE_SECONDS + 2)
    assert workers.running == [2, 3], "the worker that hangs is replaced later"


def test_if_no_worker_can_start_the_supervisor_stops_with_a_failure(workers: Workers) -> None:
    workers.started[0].exit_code = STARTUP_FAILURE
    workers.run(1)
    assert workers.supervisor.is_done
    assert workers.supervisor.failed
    assert workers.running == []
    assert len(workers.started) == 2


def test_a_worker_that_cannot_start_during_an_outage_does_not_stop_other_workers_and_is_started_again(workers: Workers) -> None:
    workers.run_until_all_serve()
    workers.started[0].exit_code = -signal.SIGKILL
    workers.run(0.2)
    for number in range(2, 8):
        assert workers.running == [1, number]
        workers.started[number].exit_code = STARTUP_FAILURE
        workers.run(0.2)
        assert workers.running == [1], "a pause before the next start"
        workers.run(MAX_PAUSE_SECONDS, until=lambda: len(workers.running) == 2)
    assert not workers.supervisor.failed
    workers.run_until_all_serve()
    workers.run(MAX_PAUSE_SECONDS)
    workers.started[-1].exit_code = -signal.SIGKILL
    began = workers.now
    workers.run(MAX_PAUSE_SECONDS, until=lambda: len(workers.running) == 2)
    assert workers.now - began < MIN_PAUSE_SECONDS, "after a good start there is no pause"


def test_a_reload_replaces_the_workers_one_by_one_and_each_worker_serves_until_its_replacement_serves(workers: Workers) -> None:
    workers.run_until_all_serve()
    workers.supervisor.reload()
    workers.run(5)
    assert workers.running == [0, 1, 2]
    workers.started[2].serves = True
    workers.run(5)
    assert workers.running == [1, 2, 3]
    workers.started[3].serves = True
    workers.run(60)
    assert workers.running == [2, 3]
    assert [worker.signals for worker in workers.started] == [[signal.SIGHUP], [signal.SIGHUP], [], []]


def test_a_reload_is_aborted_and_the_old_workers_continue_if_a_new_worker_cannot_start(workers: Workers) -> None:
    workers.run_until_all_serve()
    workers.supervisor.reload()
    workers.run(1)
    workers.started[2].exit_code = STARTUP_FAILURE
    workers.run(60)
    assert workers.running == [0, 1]
    assert len(workers.started) == 3
    assert not workers.supervisor.failed


def test_a_worker_that_dies_during_a_reload_is_replaced_by_the_new_worker(workers: Workers) -> None:
    workers.run_until_all_serve()
    workers.supervisor.reload()
    workers.run(1)
    workers.started[0].exit_code = -signal.SIGKILL
    workers.run(1)
    assert workers.running == [1, 2]
    workers.started[2].serves = True
    workers.run(1)
    workers.started[3].serves = True
    workers.run(30)
    assert workers.running == [2, 3]


def test_a_stop_during_a_reload_stops_old_and_new_workers_at_once(workers: Workers) -> None:
    workers.run_until_all_serve()
    workers.supervisor.reload()
    workers.run(1)
    assert workers.running == [0, 1, 2]
    workers.supervisor.stop()
    workers.run(0.2)
    assert workers.supervisor.is_done
    assert workers.running == []
    assert [worker.signals for worker in workers.started] == [[signal.SIGTERM]] * 3


def test_the_parent_process_closes_the_listening_socket_before_the_workers_can_close_theirs() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    open_at_signal = []

    class Worker(FakeWorker):
        def ask(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        def send_signal(self, number: int) -> None:
            open_at_signal.append(listener.fileno() >= 0)
            super().send_signal(number)

    run(Supervisor(lambda: Worker(0), 1, STOP_SECONDS), listener)
    assert open_at_signal == [False]


def test_a_stop_kills_a_worker_that_does_not_end_within_the_stop_timeout(workers: Workers) -> None:
    workers.run_until_all_serve()
    workers.started[1].is_frozen = True
    workers.supervisor.stop()
    workers.run(STOP_SECONDS - 0.5)
    assert workers.running == [1]
    assert not workers.supervisor.is_done
    workers.run(1)
    assert workers.supervisor.is_done


def test_with_frozen_workers_the_parent_process_ends_two_steps_after_the_stop_timeout_at_the_latest(workers: Workers) -> None:
    workers.run_until_all_serve()
    for worker in workers.started:
        worker.is_frozen = True
    began = workers.now
    workers.supervisor.stop()
    workers.run(60, until=lambda: workers.supervisor.is_done)
    assert workers.supervisor.is_done
    assert workers.now - began <= STOP_SECONDS + 2 * STEP_SECONDS + 0.01


def test_a_worker_process_that_the_operating_system_cannot_start_is_started_later() -> None:
    workers = Workers()
    start, workers.supervisor.start = workers.supervisor.start, refuse
    workers.run(1)
    assert not workers.supervisor.failed
    workers.supervisor.start = start
    workers.run(MAX_PAUSE_SECONDS)
    assert workers.running == [0, 1]


def refuse() -> FakeWorker:
    raise BlockingIOError("too many processes")
