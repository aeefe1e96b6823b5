"""Tests of RequestCycle: the bytes of a response of the ASGI application, and errors of the application.

The modules `test_http_protocol_*` test whole connections."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shortener.server.request_cycle import COMPLETE_RESPONSE, RequestCycle


class Connection:
    """A fake connection that stores the bytes that are sent to the client."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.is_closed = False
        self.completed = 0
        self.flow = SimpleNamespace(write_paused=False)
        self.logger = None
        self.server_state = SimpleNamespace(default_headers=[(b"date", b"today")])
        self.transport = SimpleNamespace(is_closing=lambda: self.is_closed, close=self.close_after_body)

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def close_after_body(self) -> None:
        self.is_closed = True

    def on_response_complete(self) -> None:
        self.completed += 1


def cycle_of(connection: Any, method: str = "POST", *, keep_alive: bool = True) -> RequestCycle:
    return RequestCycle(connection, {"method": method}, expects_continue=False, keep_alive=keep_alive)


def complete(headers: list[tuple[bytes, bytes]], body: bytes) -> dict[str, Any]:
    return {"type": COMPLETE_RESPONSE, "status": 200, "headers": headers, "body": body}


LENGTH = (b"content-length", b"2")
HEAD = b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 2\r\n"


async def test_a_complete_http_response_is_sent_with_one_write() -> None:
    await cycle_of(connection := Connection()).send(complete([LENGTH], b"{}"))
    assert (connection.sent, connection.completed, connection.is_closed) == ([HEAD + b"\r\n{}"], 1, False)


async def test_the_head_of_an_http_response_is_sent_with_the_first_part_of_its_body() -> None:
    cycle = cycle_of(connection := Connection())
    await cycle.send({"type": "http.response.start", "status": 200, "headers": []})
    assert connection.sent == []
    await cycle.send({"type": "http.response.body", "body": b"ab", "more_body": True})
    await cycle.send({"type": "http.response.body", "body": b"", "more_body": False})
    head = b"HTTP/1.1 200 OK\r\ndate: today\r\ntransfer-encoding: chunked\r\n\r\n"
    assert connection.sent == [head + b"2\r\nab\r\n", b"0\r\n\r\n"]


async def test_a_response_to_head_has_no_body() -> None:
    await cycle_of(connection := Connection(), "HEAD").send(complete([LENGTH], b"{}"))
    assert connection.sent == [HEAD + b"\r\n"]


@pytest.mark.parametrize("header", [(b"connection", b"close"), None])
async def test_a_response_that_closes_the_connection_has_one_connection_close_header(header: tuple[bytes, bytes] | None) -> None:
    cycle = cycle_of(connection := Connection(), keep_alive=header is not None)
    await cycle.send(complete([LENGTH, *([header] if header else [])], b"{}"))
    assert connection.sent == [HEAD + b"connection: close\r\n\r\n{}"]
    assert connection.is_closed


@pytest.mark.parametrize(
    "header", [(b"x", b"a\r\nset-cookie: b"), (b"x", b"a\n"), (b"x", b"a\r"), (b"x", b"\0"), (b"x", b"\x7f"), (b"x y", b"a")]
)
async def test_a_response_header_with_a_line_break_or_a_control_character_raises_an_error(header: tuple[bytes, bytes]) -> None:
    cycle = cycle_of(connection := Connection())
    with pytest.raises(RuntimeError, match="Invalid HTTP header"):
        await cycle.send(complete([LENGTH, header], b"{}"))
    assert connection.sent == []


async def test_a_tab_in_the_value_of_a_response_header_is_permitted() -> None:
    await cycle_of(connection := Connection()).send(complete([LENGTH, (b"x", b"a\tb")], b"{}"))
    assert connection.sent == [HEAD + b"x: a\tb\r\n\r\n{}"]


@pytest.mark.parametrize(("body", "reason"), [(b"{", "shorter"), (b"{}}", "longer")])
async def test_a_response_body_with_another_length_than_its_content_length_header_raises_an_error(body: bytes, reason: str) -> None:
    with pytest.raises(RuntimeError, match=reason):
        await cycle_of(Connection()).send(complete([LENGTH], body))


async def test_an_asgi_message_in_the_wrong_order_raises_an_error() -> None:
    cycle = cycle_of(Connection())
    with pytest.raises(RuntimeError, match="Expected"):
        await cycle.send({"type": "http.response.body", "body": b""})
    await cycle.send(complete([LENGTH], b"{}"))
    with pytest.raises(RuntimeError, match="already completed"):
        await cycle.send({"type": "http.response.body", "body": b""})


async def test_nothing_is_sent_to_a_client_that_has_disconnected() -> None:
    cycle = cycle_of(connection := Connection())
    cycle.disconnected = True
    await cycle.send(complete([LENGTH], b"{}"))
    assert connection.sent == []
