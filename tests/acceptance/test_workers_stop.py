"""Tests that a stop and a reload of `serve --workers` lose no request, neither on new connections nor on connections that stay
open.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.acceptance.nodes import Nodes, wait_until
from tests.acceptance.process import Server
from tests.servers import PATIENCE, children

PAUSE_SECONDS = 0.005


class Client:
    """A client that sends one request after the other. If `is_kept` is true, it uses one connection until a response asks to
    close it. Otherwise it opens a new connection for each request."""

    def __init__(self, port: int, path: str, *, is_kept: bool) -> None:
        self._port, self._is_kept = port, is_kept
        self._request = f"GET {path} HTTP/1.1\r\nHost: go.example\r\nUser-Agent: Mozilla/5.0 (iPhone)\r\n\r\n".encode()
        self._connection: socket.socket | None = None

    def request(self) -> str:
        """Send a request. Return the status of the response, or "refused", "closed" (the server had closed the idle connection),
        or "lost"."""
        if self._connection is None:
            try:
                self._connection = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
            except ConnectionRefusedError:
                return "refused"
            except ConnectionResetError:
                return "lost"
        elif self._is_closed():
            self.close()
            return "closed"
        try:
            self._connection.sendall(self._request)
            response = b""
            while b"\r\n\r\n" not in response:
                data = self._connection.recv(65536)
                if not data:
                    raise ConnectionResetError
                response += data
        except (ConnectionResetError, BrokenPipeError):
            self.close()
            return "lost"
        if not self._is_kept or b"\r\nconnection: close\r\n" in response.lower():
            self.close()
        return response.split()[1].decode()

    def _is_closed(self) -> bool:
        assert self._connection is not None
        self._connection.setblocking(False)
        try:
            return not self._connection.recv(1)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True
        finally:
            self._connection.settimeout(PATIENCE)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def constant_requests(port: int, paths: list[str]) -> Iterator[Counter[str]]:
    """Send requests with eight clients: four open a new connection for each request, and four keep their connection. Yield how
    often each outcome occurred."""
    counts: Counter[str] = Counter()
    lock, end = threading.Lock(), threading.Event()

    def run(number: int) -> None:
        client = Client(port, paths[number % len(paths)], is_kept=number % 2 == 0)
        while not end.wait(PAUSE_SECONDS):
            outcome = client.request()
            with lock:
                counts[outcome] += 1
        client.close()

    threads = [threading.Thread(target=run, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        end.set()
        for thread in threads:
            thread.join()


def workers_of(server: Server) -> set[int]:
    assert server.process is not None
    return set(children(server.process.pid, "spawn_main"))


def test_a_reload_and_a_stop_lose_no_request_and_a_reload_keeps_the_node_ready(nodes_without_redis: Nodes) -> None:
    server = nodes_without_redis.serve("--workers", "2")
    before = workers_of(server)
    assert len(before) == 2
    codes = [message["links"][0]["code"] for message in nodes_without_redis.rewrite(6)]
    paths = ["/readyz", "/readyz", *(f"/{code}" for code in codes)]
    with constant_requests(server.port, paths) as reloaded:
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(workers_of(server)) == 2 and not workers_of(server) & before, "a worker was not replaced")
    assert set(reloaded) == {"200", "302"}

    with constant_requests(server.port, paths[2:]) as stopped:
        wait_until(lambda: stopped["302"] > 100, "the clients get no responses")
        assert server.stop() == 0
    # No connection was closed by the server ("closed"): during the stop, a response asks each client to close its connection.
    assert set(stopped) == {"302", "refused"}
