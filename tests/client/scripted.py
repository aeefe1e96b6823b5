"""An HTTP server on a loopback address. As responses, it sends exactly the bytes that a test has prepared."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Answer = Callable[[socket.socket], None]


@dataclass
class ScriptedRequest:
    """One request that the scripted server received."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def reply(status: int, body: Any = None, **headers: str) -> Answer:
    """Return a response. If the body is bytes, it is sent unchanged; any other body is sent as JSON. In header names, underscores
    become hyphens."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(content)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]

    def answer(connection: socket.socket) -> None:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + content)

    return answer


def cut_off(connection: socket.socket) -> None:
    """Send the first half of a response and close the connection."""
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"status": true, ')


def no_response(connection: socket.socket) -> None:
    """Close the connection without a response."""


def hang(connection: socket.socket) -> None:
    """Send nothing until the client closes the connection."""
    with contextlib.suppress(OSError):
        connection.recv(1)


def drip(connection: socket.socket) -> None:
    """Send an endless response, one byte every 20 ms, until the client closes the connection."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n")
    connection.settimeout(0.02)
    with contextlib.suppress(OSError):
        while True:
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1):
                    return
            connection.sendall(b" ")


@dataclass
class ScriptedServer:
    """A server that sends the n-th prepared response to the n-th request, and the last one to all later requests."""

    answers: Sequence[Answer]
    requests: list[ScriptedRequest] = field(default_factory=list)
    port: int = 0

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._respond, args=(connection,), daemon=True).start()

    def _respond(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as file:
            line = file.readline()
            if not line:
                return
            method, target, _ = line.decode().split(" ", 2)
            headers = {}
            while (line := file.readline()) not in (b"\r\n", b""):
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            body = file.read(int(headers.get("content-length", 0)))
            self.requests.append(ScriptedRequest(method, target, headers, body))
            self.answers[min(len(self.requests), len(self.answers)) - 1](connection)


@contextlib.contextmanager
def scripted(*answers: Answer) -> Iterator[ScriptedServer]:
    """Run a scripted server until the context ends."""
    server = ScriptedServer(answers)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.port = listener.getsockname()[1]
        thread = threading.Thread(target=server.serve, args=(listener,), daemon=True)
        thread.start()
        yield server
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def rewritten(to: str = "+14085550100", message_id: str = "m-1", **fields: Any) -> dict[str, Any]:
    """Return the entry for one message in the response to a rewrite."""
    return {
        "message_id": message_id,
        "message_request_id": "r-1",
        "to": to,
        "body": "see http://127.0.0.1:8000/8kVnq2LmRd",
        "links": [
            {
                "code": "8kVnq2LmRd",
                "short_url": "http://127.0.0.1:8000/8kVnq2LmRd",
                "url": "https://shop.example/a",
                "label": None,
                "expires_at": "2027-02-18T12:00:00Z",
            }
        ],
        "encoding": "GSM-7",
        "segments": 1,
        "segments_without_rewriting": 1,
        "warnings": [],
        **fields,
    }


def accepted(*messages: dict[str, Any]) -> Answer:
    """Return a successful response to a rewrite."""
    return reply(200, {"status": True, "messages": list(messages) or [rewritten()]})


def refused(status: int, code: str, **headers: str) -> Answer:
    """Return an error response of the service."""
    return reply(status, {"status": False, "error_code": code, "description": code.lower(), "details": []}, **headers)
