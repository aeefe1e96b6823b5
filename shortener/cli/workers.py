"""This module supervises the processes of `serve --workers`: it starts, replaces, reloads and stops them.

All workers accept connections from one listening socket. The supervisor never waits for a worker. It examines all of them every
STEP_SECONDS, so that a signal takes effect even while a worker starts or hangs.

- The supervisor replaces a worker that ends, or that does not respond to it for RESPONSE_SECONDS. A worker may take START_SECONDS
  to start: it needs some seconds of processor time, which take longer on a busy machine.
- A worker that cannot start, for example because the database is down, is started again after a pause. There is one exception: if
  no worker has served yet and a worker ends with STARTUP_FAILURE, the supervisor stops and `failed` is True.
- A reload replaces one worker after the other. A worker gets SIGHUP when its successor serves. If a successor cannot start, the
  reload ends, and the remaining workers keep running.
- A stop sends SIGTERM to all workers, and kills the workers that still run after `stop_seconds`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from socket import socket
from typing import Any, Protocol

import structlog

log = structlog.get_logger(__name__)

STEP_SECONDS = 0.1
START_SECONDS = 120.0
RESPONSE_SECONDS = 15.0
#: At this interval, the supervisor asks each worker whether it still responds.
QUESTION_SECONDS = 1.0
#: The shortest and the longest pause before a worker is started again. Each failed start doubles the pause of this worker.
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 30.0
#: uvicorn exits with this code if its application cannot start.
STARTUP_FAILURE = 3


class WorkerProcess(Protocol):
    """The interface of a worker process. `UvicornWorker` implements it."""

    @property
    def pid(self) -> int | None: ...

    @property
    def exit_code(self) -> int | None:
        """The exit code of the process, or None while it runs."""
        ...

    def ask(self) -> None:
        """Ask the worker whether it serves. `read_answer` returns its response."""
        ...

    def read_answer(self) -> bool | None:
        """Return the worker's response to `ask`: True if it serves. Return None if it has not responded yet."""
        ...

    def send_signal(self, number: int) -> None: ...


class UvicornWorker:
    """A worker process that runs uvicorn. One thread of the process responds to the supervisor."""

    def __init__(self, config: Any, sockets: Sequence[socket]) -> None:
        from shortener.cli.worker_server import UvicornProcess

        self._uvicorn = UvicornProcess(config, list(sockets))
        self._uvicorn.start()

    @property
    def pid(self) -> int | None:
        return self._uvicorn.pid

    @property
    def exit_code(self) -> int | None:
        code: int | None = self._uvicorn.exitcode
        if code is not None:
            self._uvicorn.parent_conn.close()
            self._uvicorn.child_conn.close()
        return code

    def ask(self) -> None:
        try:
            self._uvicorn.parent_conn.send(b"ping")
        except OSError:
            return  # The worker has just ended, so it cannot be asked.

    def read_answer(self) -> bool | None:
        try:
            return bool(self._uvicorn.parent_conn.recv()) if self._uvicorn.parent_conn.poll() else None
        except (OSError, EOFError):
            return None

    def send_signal(self, number: int) -> None:
        if self._uvicorn.exitcode is None and self._uvicorn.pid is not None:
            os.kill(self._uvicorn.pid, number)


@dataclass
class _Worker:
    process: WorkerProcess
    started_at: float
    responded_at: float
    is_asked: bool = False
    is_ready: bool = False
    kill_at: float | None = None  # If the worker is stopping: the time at which the supervisor kills it.


@dataclass
class _WorkerPosition:
    """The place of one of the `count` workers that the supervisor keeps running.

    `worker` is the process that runs there now, or None. `successor` is the process that replaces it during a reload as soon as
    it is ready, or None."""

    worker: _Worker | None = None
    successor: _Worker | None = None
    start_at: float = 0.0
    failed_starts: int = 0
    is_outdated: bool = False  # Whether a reload still has to replace the worker.


@dataclass
class Supervisor:
    """A supervisor that keeps `count` workers running.

    `start` starts a process. A worker that still runs `stop_seconds` after SIGTERM is killed."""

    start: Callable[[], WorkerProcess]
    count: int
    stop_seconds: float
    clock: Callable[[], float] = time.monotonic
    failed: bool = False  # Whether the supervisor has stopped because no worker could start.
    _positions: list[_WorkerPosition] = field(default_factory=list)
    _stopping: list[_Worker] = field(default_factory=list)  # workers that have received a signal to stop and still run
    _is_stopping: bool = False
    _has_served: bool = False

    def __post_init__(self) -> None:
        self._positions = [_WorkerPosition() for _ in range(self.count)]

    @property
    def is_done(self) -> bool:
        """Whether a stop was requested and all workers have ended."""
        return self._is_stopping and not self._stopping

    def reload(self) -> None:
        """Replace all workers, one after the other, in the next calls of `step`."""
        for position in self._positions:
            position.is_outdated = True

    def stop(self) -> None:
        """Send SIGTERM to all workers, and start no more workers. A second call sends SIGTERM again; the workers then skip
        SHUTDOWN_DELAY."""
        self._is_stopping = True
        for worker in self._stopping:
            worker.process.send_signal(signal.SIGTERM)
        for position in self._positions:
            for running in (position.worker, position.successor):
                if running is not None:
                    self._end(running, signal.SIGTERM)
            position.worker = position.successor = None

    def step(self) -> None:
        """Examine all workers once: replace workers that ended or hang, continue a reload, and kill workers that do not stop."""
        now = self.clock()
        self._stopping = [worker for worker in self._stopping if not self._has_stopped(worker, now)]
        for position in self._positions:
            if self._is_stopping:
                return
            self._examine_successor(position, now)
            self._examine(position, now)
        self._continue_reload(now)

    def _examine(self, position: _WorkerPosition, now: float) -> None:
        worker = position.worker
        if worker is None:
            self._start_if_due(position, now)
            return
        code = self._exit_code(worker, now)
        if code is None:
            if worker.is_ready:
                position.failed_starts = 0
            return
        log.warning("worker_ended", worker=worker.process.pid, exit_code=code)
        position.worker, position.successor = position.successor, None
        if code == STARTUP_FAILURE and not self._has_served:
            self.failed = True
            self.stop()
        elif position.worker is not None:  # A reload has already started a successor, which takes the place now.
            position.is_outdated = False
        else:
            if not worker.is_ready:
                self._pause(position, now)
            self._start_if_due(position, now)

    def _start_if_due(self, position: _WorkerPosition, now: float) -> None:
        if now >= position.start_at:
            position.worker, position.is_outdated = self._started(now), False
            if position.worker is None:
                self._pause(position, now)

    def _pause(self, position: _WorkerPosition, now: float) -> None:
        position.start_at = now + min(MIN_PAUSE_SECONDS * 2**position.failed_starts, MAX_PAUSE_SECONDS)
        position.failed_starts = min(position.failed_starts + 1, 10)

    def _examine_successor(self, position: _WorkerPosition, now: float) -> None:
        successor = position.successor
        if successor is None:
            return
        code = self._exit_code(successor, now)
        if code is not None:
            position.successor = None
            self._end_reload(successor.process.pid, code)
        elif successor.is_ready:
            if position.worker is not None:
                self._end(position.worker, signal.SIGHUP)  # the other workers accept the connections that wait
            position.worker, position.successor, position.is_outdated = successor, None, False

    def _continue_reload(self, now: float) -> None:
        """Start the next successor, but only if no other worker starts or stops. A reload therefore uses little processor time
        and memory."""
        if self._stopping or any(
            position.successor or position.worker is None or not position.worker.is_ready for position in self._positions
        ):
            return
        outdated = next((position for position in self._positions if position.is_outdated), None)
        if outdated is not None:
            outdated.successor = self._started(now)
            if outdated.successor is None:
                self._end_reload(None, None)

    def _end_reload(self, worker: int | None, code: int | None) -> None:
        log.error("reload_failed", worker=worker, exit_code=code)
        for position in self._positions:
            position.is_outdated = False

    def _started(self, now: float) -> _Worker | None:
        """Start a process. Return None if the operating system cannot start one."""
        try:
            worker = _Worker(self.start(), now, now)
        except OSError:
            log.exception("worker_not_started")
            return None
        log.info("worker_started", worker=worker.process.pid)
        return worker

    def _exit_code(self, worker: _Worker, now: float) -> int | None:
        """Return the exit code of a worker, or None while it runs. If it runs, also ask it whether it serves, and kill it if it
        hangs."""
        process = worker.process
        if (code := process.exit_code) is not None:
            return code
        if worker.is_asked and (answer := process.read_answer()) is not None:
            worker.is_asked, worker.responded_at = False, now
            worker.is_ready = worker.is_ready or answer
            self._has_served = self._has_served or answer
        interval = QUESTION_SECONDS if worker.is_ready else STEP_SECONDS
        if not worker.is_asked and now - worker.responded_at >= interval:
            process.ask()
            worker.is_asked = True
        hangs = now - worker.responded_at > RESPONSE_SECONDS if worker.is_ready else now - worker.started_at > START_SECONDS
        if hangs:
            log.error("worker_hangs", worker=process.pid)
            process.send_signal(signal.SIGKILL)
            worker.responded_at = worker.started_at = now
        return None

    def _end(self, worker: _Worker, number: int) -> None:
        worker.kill_at = self.clock() + self.stop_seconds
        worker.process.send_signal(number)
        self._stopping.append(worker)

    def _has_stopped(self, worker: _Worker, now: float) -> bool:
        if worker.process.exit_code is not None:
            return True
        if worker.kill_at is not None and now >= worker.kill_at:
            log.error("worker_hangs", worker=worker.process.pid)
            worker.process.send_signal(signal.SIGKILL)
            worker.kill_at = None
        return False


def run(supervisor: Supervisor, listener: socket) -> None:
    """Run the supervisor until SIGTERM or SIGINT has stopped all workers. SIGHUP reloads them."""
    # A signal handler can run between any two instructions. Therefore it only appends the signal to this list.
    signals: list[int] = []
    previous = {
        number: signal.signal(number, lambda received, frame: signals.append(received))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        while not supervisor.is_done:
            while signals:
                number = signals.pop(0)
                if number == signal.SIGHUP:
                    supervisor.reload()
                else:
                    # Close the socket first. Otherwise connections would wait at the socket when no worker is left to accept
                    # them.
                    listener.close()
                    supervisor.stop()
            supervisor.step()
            time.sleep(STEP_SECONDS)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
