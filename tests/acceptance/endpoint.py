"""An HTTP endpoint that acts as a customer's endpoint. It runs in a thread, for tests without an event loop."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.receiver import Request
from tests.servers import PATIENCE


class Endpoint:
    """An HTTP endpoint that stores every request. It responds with the next status in `answers`, or with 200 if the list is
    empty.

    `slow` says, for some paths, by how many seconds the response is delayed. `body` is the body of each response."""

    def __init__(self) -> None:
        self.arrived: list[Request] = []
        self.answers: list[int] = []
        self.body = b""
        self.slow: dict[str, float] = {}
        self._changed = threading.Condition()
        self._closed = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(headers.get("content-length", 0)))
                with endpoint._changed:
                    endpoint.arrived.append(Request(self.command, self.path, headers, body))
                    status = endpoint.answers.pop(0) if endpoint.answers else 200
                    endpoint._changed.notify_all()
                if self.path in endpoint.slow:
                    endpoint._closed.wait(endpoint.slow[self.path])
                with contextlib.suppress(OSError):  # the client may have disconnected before the response
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(endpoint.body)))
                    self.end_headers()
                    self.wfile.write(endpoint.body)

            do_GET = do_POST

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def wait(self, number: int) -> list[Request]:
        """Wait until at least `number` requests have arrived, and return all of them."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.arrived) >= number, PATIENCE), f"{len(self.arrived)} of {number} arrived"
            return self.arrived[:number]

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
