"""Tests of requests that contain raw UTF-8 in their URL. They are sent over a socket."""

import asyncio

import pytest
from structlog.testing import capture_logs

from shortener.container import Service
from shortener.server.http_protocol import RedirectProtocol
from shortener.server.request_line import IncompleteHead, encode_request_line
from tests.one_service import on_one_service
from tests.server.raw_http import create_link, get, read_response, run_server, status_of, stored_hits
from tests.servers import PATIENCE

AFTER_CODES = ["👍", "」", "\u200b", "‽", "👍🏽!", "/”", "\xa0"]


@pytest.mark.parametrize("behind", AFTER_CODES)
async def test_a_request_with_punctuation_in_raw_utf8_after_the_link_code_is_redirected(service: Service, behind: str) -> None:
    code = await create_link(service)
    async with run_server(service) as server:
        for path in (code + behind, code + behind + "?x=" + behind):
            response = await server.exchange(get(path))
            assert (status_of(response), b"\r\nlocation: https://x.example/a?b=1#f\r\n" in response) == (302, True)
            assert b"HTTP/1.1 200" in response, "the connection accepts the next request"
        assert server.app.paths.count(code + behind) == 1, "only the request with a query was passed to the application"
    await service.recorder.flush()
    assert len(await stored_hits(service)) == 2


async def test_a_request_with_a_letter_in_raw_utf8_after_the_link_code_gets_404(service: Service) -> None:
    code = await create_link(service)
    async with run_server(service) as server:
        for path in (code + "é", "/é", "/portal/é"):
            assert status_of(await server.exchange(get(path))) == 404


@on_one_service
@pytest.mark.parametrize("before", [b"", b"\r\n", get("/healthz"), get("/portal/👍", b"X-Name: caf\xc3\xa9")])
async def test_a_request_with_raw_utf8_may_be_split_at_any_byte(service: Service, before: bytes) -> None:
    code = await create_link(service)
    request = before + get(code + "👍", b"X-Name: \xc3\xa9")
    async with run_server(service) as server:
        reader, _ = await server.connect()
        connection = await server.only_connection()
        for position in range(len(request)):
            connection.data_received(request[:position]) if position else None
            connection.data_received(request[position:])
            if before.strip():
                assert status_of(await read_response(reader)) in (200, 404)
            assert status_of(await read_response(reader)) == 302
        for byte in request:
            connection.data_received(bytes([byte]))
        if before.strip():
            await read_response(reader)
        assert status_of(await read_response(reader)) == 302


async def test_pipelined_requests_with_raw_utf8_are_redirected(service: Service) -> None:
    code = await create_link(service)
    async with run_server(service) as server:
        reader, writer = await server.connect()
        writer.write(get(code + "」") + get(code) + get(code + "\u200b") + get(code + "‽", b"Connection: close"))
        assert (await asyncio.wait_for(reader.read(), PATIENCE)).count(b"HTTP/1.1 302 ") == 4


@on_one_service
@pytest.mark.parametrize("body", ["x", "é👍", "é\r\n\r\nGET /é HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_request_with_raw_utf8_after_the_body_of_another_request_is_redirected(
    service: Service, body: str, is_chunked: bool
) -> None:
    code = await create_link(service)
    data = body.encode()
    length = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % len(data)
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if is_chunked else data
    first = get("/api/v1/unknown", b"Content-Type: text/plain", length, method=b"POST") + sent
    async with run_server(service) as server:
        reader, writer = await server.connect()
        writer.write(first + get(code + "」") + first + get(code + "‽", b"Connection: close"))
        received = await asyncio.wait_for(reader.read(), PATIENCE)
        assert (received.count(b"HTTP/1.1 404 "), received.count(b"HTTP/1.1 302 ")) == (2, 2)


async def test_a_request_with_raw_utf8_after_a_chunked_body_may_be_split_at_any_byte(service: Service) -> None:
    code = await create_link(service)
    body = get("/api/v1/unknown", b"Transfer-Encoding: chunked", method=b"POST") + "3\r\né!\r\n0\r\n\r\n".encode()
    request = get(code + "」")
    async with run_server(service) as server:
        reader, _ = await server.connect()
        connection = await server.only_connection()
        for position in range(len(body) - 12, len(body) + 1):
            connection.data_received(body[:position])
            connection.data_received(body[position:] + request)
            assert status_of(await read_response(reader)) == 404
            assert status_of(await read_response(reader)) == 302


async def test_non_ascii_bytes_in_request_bodies_stay_unchanged(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "GET /é HTTP/1.1\r\n\r\nGET /é HTTP/1.1\r\n\r\n".encode()
    headers = b"Content-Type: text/plain", b"Content-Length: %d" % len(body), "X-Request-Id: é".encode()
    request = get("/api/v1/rewrite👍", *headers, method=b"POST") + body
    received: list[bytes] = []
    monkeypatch.setattr(RedirectProtocol, "on_body", lambda _, data: received.append(data))
    async with run_server(service) as server:
        reader, _ = await server.connect()
        connection = await server.only_connection()
        for position in range(1, len(request)):
            connection.data_received(request[:position])
            connection.data_received(request[position:])
            assert status_of(await read_response(reader)) == 404
        assert b"".join(received) == body * (len(request) - 1)


@on_one_service
@pytest.mark.parametrize("line", ["GÉT / HTTP/1.1", "GET / HTTP/1.1é", "GET\xa0/ HTTP/1.1", "GET /\x01é HTTP/1.1", "éééé"])
async def test_a_malformed_request_line_with_raw_utf8_gets_one_400_response(service: Service, line: str) -> None:
    async with run_server(service) as server:
        with capture_logs() as logs:
            reader, writer = await server.connect()
            writer.write(line.encode() + b"\r\nHost: s.example\r\n\r\n" + get("/é"))
            assert (await asyncio.wait_for(reader.read(), PATIENCE)).count(b"HTTP/1.1 400 ") == 1
        assert [line["event"] for line in logs] == ["invalid_request"]


def test_only_the_bytes_above_0x7f_of_the_first_line_are_percent_encoded() -> None:
    assert (
        encode_request_line("GET /a%20\t\x7f👍 HTTP/1.1\r\nX: é".encode())
        == "GET /a%20\t\x7f%F0%9F%91%8D HTTP/1.1\r\nX: é".encode()
    )
    assert encode_request_line(b"\x91\x8d HTT") == b"%91%8D HTT"


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([b"GET /a"], True),
        ([b"GET /a", b"b"], True),
        ([b"GET / HTTP/1.1\r"], True),
        ([b"GET / HTTP/1.1\r\n"], False),
        ([b"GET / HTTP/1.1\r\nX", b"-A: "], False),
        ([b"GET / HTTP/1.1\r\n\r\nGET /a"], True),
        ([b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nX"], False),
    ],
)
def test_the_parser_of_an_incomplete_head_reports_whether_the_request_line_is_incomplete(
    chunks: list[bytes], expected: bool
) -> None:
    head = IncompleteHead()
    for chunk in chunks:
        head.note_end_of_chunk(chunk)
    assert head.is_in_request_line is expected
