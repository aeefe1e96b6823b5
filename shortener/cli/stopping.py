"""This module stops a process of `serve` or `deliver` after a signal, and limits the time of the stop.

SIGTERM and SIGHUP begin a stop: `/readyz` responds with 503. After SHUTDOWN_DELAY, the process accepts no more connections,
finishes its work and exits with 0. SIGINT does the same without SHUTDOWN_DELAY.

A terminal that is closed sends SIGHUP, so the service stops cleanly. If a supervisor always starts the process again, as
config/shortener.service does, SIGHUP restarts the service. If SIGHUP was ignored when the process started (`nohup`), it stays
ignored. The parent process of several workers does not stop on SIGHUP: it replaces the workers (workers.py).

A process that does not stop within its time limit ends itself: first by a signal handler, and if this fails, by a thread.
"""
# Tested by tests/acceptance/test_stop.py

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from shortener.container import Service

#: The time limit of a stop after the process has stopped accepting connections. Supervisors kill a process 10 s after SIGTERM. Of
#: these 10 s, SHUTDOWN_DELAY takes 1 s, and the parent process of several workers takes 0.5 s. The rest is a margin.
STOP_SECONDS = 7.5
#: A process that still runs this long after the time limit of its stop ends itself at once with the exit code 0.
HANG_SECONDS = 0.5
#: A process that still runs this long after HANG_SECONDS is killed by one of its threads. A worker is also killed by its parent
#: process.
KILL_SECONDS = 0.25

CloseListener = Callable[[int, None], None]


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop the process: SIGINT, SIGTERM, and SIGHUP unless it is ignored."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals


def parent_stop_seconds(shutdown_delay: float) -> float:
    """Return the time limit of a worker: its parent process kills it if it still runs this number of seconds after SIGTERM."""
    return shutdown_delay + STOP_SECONDS + HANG_SECONDS + KILL_SECONDS


def add_stop_handlers(service: Service, close_listener: CloseListener) -> list[signal.Signals]:
    """Let the event loop handle the stop signals, and return these signals. `close_listener` is called with a signal number and
    None. It must end the server as soon as no request is in flight."""
    loop, signals = asyncio.get_running_loop(), stop_signals()
    for number in signals:
        loop.add_signal_handler(number, handle_stop_signal, service, number, close_listener)
    return signals


@contextlib.contextmanager
def handle_stop_signals(service: Service, close_listener: CloseListener) -> Iterator[None]:
    """Call `add_stop_handlers` and remove the handlers at the end of the `with` block."""
    signals = add_stop_handlers(service, close_listener)
    try:
        yield
    finally:
        for number in signals:
            asyncio.get_running_loop().remove_signal_handler(number)


def handle_stop_signal(service: Service, number: int, close_listener: CloseListener) -> None:
    """Begin the stop. Call `close_listener` after SHUTDOWN_DELAY, so that load balancers have time to see the 503 of /readyz.

    After SIGINT, or a second signal, call it without this delay.
    """
    if service.is_stopping:
        close_listener(number, None)
        return
    delay = 0.0 if number == signal.SIGINT else service.settings.shutdown_delay
    stop_within(service, delay + STOP_SECONDS)
    asyncio.get_running_loop().call_later(delay, close_listener, number, None)


def stop_within(service: Service, seconds: float) -> None:
    """Begin the stop of the service. If the process still runs HANG_SECONDS after the time limit, end it."""
    service.begin_stop(seconds)
    signal.signal(signal.SIGALRM, _cut_off)
    signal.setitimer(signal.ITIMER_REAL, seconds + HANG_SECONDS)
    # While a C function blocks the main thread, Python calls no signal handler. Therefore a thread of faulthandler also ends the
    # process.
    faulthandler.dump_traceback_later(seconds + HANG_SECONDS + KILL_SECONDS, exit=True)


def end_process() -> NoReturn:
    """End the process with the exit code 0 after a complete stop.

    Python itself takes seconds to exit on a busy machine, and removes its signal handlers first. The timer of `stop_within` would
    then kill the process, and the exit code would not be 0."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # raised if the reader of the output has closed its end
            stream.flush()
    os._exit(0)


def _cut_off(number: int, frame: object) -> None:
    """End the process at once, because a part of it still waits, for example for a database that does not respond.

    The stop has already written all data that can be written, and has logged which data is lost. This signal handler does not
    log, because the main thread may hold the lock of the logger."""
    os.write(2, b"The stop took too long and was cut off.\n")
    os._exit(0)
