"""Signals that stop a process of `serve` or `deliver`, and the time limits of a stop.

SIGTERM and SIGHUP begin a stop: `/readyz` responds with 503. SHUTDOWN_DELAY later, the process accepts no more connections,
finishes its work and exits with 0. SIGINT does the same without SHUTDOWN_DELAY. Therefore a closed terminal stops the service
cleanly. A SIGHUP to a single process restarts the service if a supervisor always starts the process again, as
config/shortener.service does. If SIGHUP was ignored when the process started (`nohup`), it stays ignored. The parent process of
several workers handles SIGHUP itself: it replaces the workers (workers.py).

A process that does not stop within its time limit ends itself: first by a signal handler, then by a thread.
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

#: Time limit of a stop, from the moment when the process accepts no more connections. Supervisors kill a process 10 s after
#: SIGTERM. SHUTDOWN_DELAY takes 1 s of them, and the parent process of several workers takes 0.5 s. The rest is a margin.
STOP_SECONDS = 7.5
#: If a process still runs this long after the time limit of its stop, it ends itself at once with the exit code 0.
HANG_SECONDS = 0.5
#: If a process still runs this long after HANG_SECONDS, one of its threads kills it. If it is a worker, its parent process kills
#: it, too.
KILL_SECONDS = 0.25

CloseListener = Callable[[int, None], None]


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop the process: SIGINT, SIGTERM, and SIGHUP unless it is ignored."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals


def parent_stop_seconds(shutdown_delay: float) -> float:
    """Return the number of seconds after SIGTERM at which the parent process kills a worker that still runs."""
    return shutdown_delay + STOP_SECONDS + HANG_SECONDS + KILL_SECONDS


def add_stop_handlers(service: Service, close_listener: CloseListener) -> list[signal.Signals]:
    """Let the event loop handle the stop signals. Return the handled signals. `close_listener` is called with a signal number and
    None. It must end the server when the requests in flight have ended."""
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
    """Begin the stop, and call `close_listener` after SHUTDOWN_DELAY, when load balancers have seen the 503 of /readyz.

    SIGINT and a second signal skip the delay.
    """
    if service.is_stopping:
        close_listener(number, None)
        return
    delay = 0.0 if number == signal.SIGINT else service.settings.shutdown_delay
    stop_within(service, delay + STOP_SECONDS)
    asyncio.get_running_loop().call_later(delay, close_listener, number, None)


def stop_within(service: Service, seconds: float) -> None:
    """Begin the stop of the service. End the process if it still runs HANG_SECONDS after the time limit."""
    service.begin_stop(seconds)
    signal.signal(signal.SIGALRM, _cut_off)
    signal.setitimer(signal.ITIMER_REAL, seconds + HANG_SECONDS)
    # A thread of faulthandler also ends the process, because Python calls no signal handler while a C function blocks the main
    # thread.
    faulthandler.dump_traceback_later(seconds + HANG_SECONDS + KILL_SECONDS, exit=True)


def end_process() -> NoReturn:
    """End the process with the exit code 0 after a complete stop.

    The teardown of the interpreter takes seconds on a busy machine. Meanwhile the timer of `stop_within` would kill the process
    with another exit code, because Python removes its signal handlers first."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # raised if the reader of the output has closed it
            stream.flush()
    os._exit(0)


def _cut_off(number: int, frame: object) -> None:
    """End the process at once. Call this if a part of the process still waits, for example for a database that does not respond.
    Before this call, the stop has written all data that can be written, and has logged lost data. A signal handler must not use a
    logger, because the main thread may hold its lock."""
    os.write(2, b"The stop took too long and was cut off.\n")
    os._exit(0)
