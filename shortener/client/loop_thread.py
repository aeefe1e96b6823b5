"""This module runs an event loop in a background thread, which sends the calls of the blocking client."""
# Tested by tests/client/test_sync_client.py

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import TypeVar

from shortener.client.calls import ApiCall
from shortener.client.connection import Connection
from shortener.client.exceptions import ConnectionFailedError

T = TypeVar("T")


class LoopThread:
    """A background thread that sends the calls of any number of threads with one `Connection`, which `connect` creates. The
    thread starts with the first call. After a fork, the new process starts its own thread with its first call. The process can
    end while the thread runs."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        _instances.add(self)

    def send(self, call: ApiCall[T], timeout: float | None = None, remaining: float | None = None) -> T:
        """Send a call and wait for its result. If an exception such as KeyboardInterrupt ends the wait, the call is cancelled."""
        with self._lock:
            loop, connection = self._start()
            future = asyncio.run_coroutine_threadsafe(connection.send(call, timeout, remaining), loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ConnectionFailedError("another thread closed the client during the call") from None
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Close the connection and end the thread. Calls in progress are cancelled."""
        with self._lock:
            loop, thread, connection = self._loop, self._thread, self._connection
            self._loop = self._thread = self._connection = None
        if loop is None or thread is None or connection is None:
            return
        asyncio.run_coroutine_threadsafe(connection.close(), loop).result()
        _stop(loop)
        thread.join()

    def _start(self) -> tuple[asyncio.AbstractEventLoop, Connection]:
        if self._loop is None or self._connection is None:
            self._loop, self._connection = asyncio.new_event_loop(), self._connect()
            self._thread = threading.Thread(target=_run, args=(self._loop,), name="shortener-client", daemon=True)
            self._thread.start()
            weakref.finalize(self, _stop, self._loop)  # closes a client that is deleted although `close` was not called
        return self._loop, self._connection

    def forget(self) -> None:
        """Remove the references to the thread and the connection. This runs in a new process after a fork, because only the
        parent process has the thread."""
        self._lock = threading.Lock()
        self._loop = self._thread = self._connection = None


_instances: weakref.WeakSet[LoopThread] = weakref.WeakSet()


def _forget_all() -> None:
    for instance in list(_instances):
        instance.forget()


if hasattr(os, "register_at_fork"):  # Windows has no fork, so nothing is registered there.
    os.register_at_fork(after_in_child=_forget_all)


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    with contextlib.suppress(RuntimeError):  # raised if the event loop is already closed
        loop.call_soon_threadsafe(loop.stop)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
