"""Tests of clients that read or send slowly: the memory and the time that one connection may use."""

import asyncio
import contextlib
import socket

import orjson
import pytest

from shortener.accounts.credentials import Credentials
from shortener.container import Service
from shortener.server import connection_limits, http_protocol
from shortener.server.http_protocol import MAX_HEAD_BYTES
from tests.conftest import MakeService
from tests.one_service import at_once_on_one_service, on_one_service
from tests.server.raw_http import (
    LAST_REQUEST,
    create_link,
    get,
    read_response,
    run_server,
    status_of,
    wait_until,
)
from tests.servers import PATIENCE


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_server_stops_reading_requests_from_a_client_that_reads_no_responses(service: Service, at_once: bool) -> None:
    """If a client reads nothing, the server must buffer at most 256 KiB of its requests and 64 KiB of the responses to it."""
    async with run_server(service) as server:
        _, writer = await server.connect(receive_buffer=4096)
        connection = await server.only_connection()
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        request = get("/nosuchcode")
        async with asyncio.timeout(PATIENCE):
            if at_once:
                writer.write(request * 20_000)
            while not (connection.flow.write_paused and connection.flow.read_paused):
                if not at_once:
                    writer.write(request)
                await asyncio.sleep(0)  # let the server process the data
        assert connection.transport.get_write_buffer_size() < 2**17
        assert len(connection.pipeline) * len(request) <= 2**18
        stored_count = len(connection.pipeline)
        for _ in range(20):  # a server without a limit would read more in these iterations of the event loop
            await asyncio.sleep(0)
        assert len(connection.pipeline) <= stored_count


async def test_no_further_response_is_buffered_while_the_send_buffer_of_the_connection_is_full(service: Service) -> None:
    request = get("/nosuchcode")
    async with run_server(service) as server:
        _, writer = await server.connect(receive_buffer=4096)
        connection = await server.only_connection()
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection.transport.set_write_buffer_limits(high=4096)

        async def send_request() -> None:
            before = server.server.server_state.total_requests
            writer.write(request)
            await wait_until(lambda: server.server.server_state.total_requests > before)

        while not connection.flow.write_paused:
            await send_request()
        stored_count = connection.transport.get_write_buffer_size()
        assert server.app.paths == []
        writer.write(request)
        await wait_until(lambda: server.app.paths == ["/nosuchcode"])
        await service.recorder.flush()
        assert connection.transport.get_write_buffer_size() == stored_count


async def test_the_server_stores_at_most_256_kib_of_pipelined_requests_for_a_connection(make_service: MakeService) -> None:
    service = await make_service(base_url="https://s.example", unknown_code_limit=0)
    async with run_server(service) as server:
        reader, writer = await server.connect()
        connection = await server.only_connection()
        request = get("/nosuchcode", b"X-Fill: " + b"x" * 1000)
        max_pipelined, answered = 0, 0
        writer.write(request * 600 + LAST_REQUEST)
        async with asyncio.timeout(PATIENCE):
            while response := await reader.read(2**16):
                answered += response.count(b"HTTP/1.1 404")
                max_pipelined = max(max_pipelined, len(connection.pipeline))
        assert answered == 600
        assert 0 < max_pipelined * len(request) <= 2**18


@on_one_service
@pytest.mark.parametrize(
    ("begin", "more"),
    [(b"GET /", b"a"), (b"GET / HTTP/1.1\r\nX-Long: ", b"a"), (b"GET / HTTP/1.1\r\n", b"a: b\r\n")],
    ids=["path", "header", "headers"],
)
async def test_a_request_head_that_is_too_long_gets_400_and_closes_the_connection(
    service: Service, begin: bytes, more: bytes
) -> None:
    async with run_server(service, timeout_keep_alive=30) as server:
        reader, writer = await server.connect()
        connection = await server.only_connection()
        writer.write(begin)
        await wait_until(lambda: connection.incomplete_head is not None)
        head = connection.incomplete_head
        assert head is not None
        writer.write((more * MAX_HEAD_BYTES)[:MAX_HEAD_BYTES])
        await wait_until(lambda: head.size == MAX_HEAD_BYTES)
        assert not connection.transport.is_closing()
        # The test exceeds the limit by only one byte. If the server left bytes unread, the kernel would reset the connection and
        # discard the response.
        writer.write(b"a")
        response = await asyncio.wait_for(reader.read(), PATIENCE)
        error = orjson.loads(response.rpartition(b"\r\n\r\n")[2])
        assert (status_of(response), error["status"], error["error_code"], error["details"]) == (400, False, "INVALID_REQUEST", [])
        assert error["description"] == "The head of the request is too long."
        assert b"\r\nx-request-id: " in response
        await wait_until(lambda: not server.server.server_state.connections)


@on_one_service
@pytest.mark.parametrize("trailers", [b"X-Field: " + b"y" * 50 + b"\r\n", b"y", "X: é\r\n".encode(), b";extension"])
@pytest.mark.parametrize("is_answered", [True, False])
async def test_a_trailer_section_that_is_too_long_closes_the_connection(
    service: Service, credentials: Credentials, trailers: bytes, is_answered: bool
) -> None:
    # without the key, the server sends 401 before the body arrives
    key = b"" if is_answered else b"X-API-Key: " + credentials.api_key.encode() + b"\r\n"
    begin = b"POST /api/v1/rewrite HTTP/1.1\r\nHost: localhost\r\n" + key + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0"
    begin += b"" if trailers.startswith(b";") else b"\r\n" if trailers != b"y" else b"\r\nX: "
    async with run_server(service) as server:
        reader, writer = await server.connect()
        writer.write(begin)
        connection = await server.only_connection()
        await wait_until(lambda: connection.is_reading_body and (not is_answered or connection.cycle.response_complete))
        headers = len(connection.headers)
        received = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE):
                while not connection.transport.is_closing():
                    writer.write((trailers * MAX_HEAD_BYTES)[: 16 * 1024 // len(trailers) * len(trailers)])
                    await asyncio.sleep(0)
                received = await reader.read()
        assert len(connection.headers) == headers
        await wait_until(lambda: not server.server.server_state.connections)
    # The response may be missing, because a reset of the connection can discard it.
    assert not received or status_of(received) == (401 if is_answered else 400)


async def test_trailer_fields_are_not_headers(service: Service, credentials: Credentials) -> None:
    head = b"POST /api/v1/rewrite HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    async with run_server(service) as server:
        reader, writer = await server.connect()
        writer.write(head + b"X-API-Key: " + credentials.api_key.encode() + b"\r\n\r\n" + LAST_REQUEST)
        responses = await asyncio.wait_for(reader.read(), PATIENCE)
    assert status_of(responses) == 401
    assert responses.count(b"HTTP/1.1 200 OK") == 1, "the request after the trailer fields gets its response"


SLOW_PACE_SECONDS = 0.1  # The interval in seconds at which a slow client sends one byte.


async def test_a_connection_is_closed_if_its_client_sends_nothing_or_one_byte_at_a_time(service: Service) -> None:
    code = await create_link(service)
    async with run_server(service, timeout_keep_alive=0.3) as server:
        silent, _ = await server.connect()
        slow, writer = await server.connect()
        sent = 0

        async def send_slowly() -> None:
            nonlocal sent
            with contextlib.suppress(ConnectionError):
                for byte in get(code) * 5:
                    writer.write(bytes([byte]))
                    sent += 1
                    await asyncio.sleep(SLOW_PACE_SECONDS)

        sender = asyncio.create_task(send_slowly())
        assert await asyncio.wait_for(silent.read(), PATIENCE) == b""
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(slow.read(), PATIENCE)
        assert sent < len(get(code)), "closed before the first head was complete"
        sender.cancel()


REJECTED = b"POST /api/v1/rewrite HTTP/1.1\r\nHost: s.example\r\n"
JSON = b"Content-Type: application/json\r\n"
#: Each example is one complete request, and then bytes that do not begin another request.
HELD = {
    "empty line": (get("/healthz"), b"\r\n"),
    "empty line after 404": (get("/nosuchcode"), b"\r\n"),
    "empty line, unknown host": (get("/x", host=b"unknown.example"), b"\r\n"),
    "half a request line": (get("/healthz"), b"GET /he"),
    "rest of a body after 401": (REJECTED + JSON + b"Content-Length: 1000\r\n\r\n", b"{"),
    "a chunk after 401": (REJECTED + JSON + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n"),
}


@at_once_on_one_service
@pytest.mark.parametrize("held", HELD)
async def test_bytes_that_do_not_begin_a_request_do_not_keep_a_connection_open(service: Service, held: str) -> None:
    request, more = HELD[held]
    async with run_server(service, timeout_keep_alive=0.2, request_timeout=0.5) as server:
        reader, writer = await server.connect()
        writer.write(request)
        await read_response(reader)

        async def send_on() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(more[:1] if more == b"\r\n" else more)
                    await asyncio.sleep(0.05)  # the pause before the next byte of a client that tries to keep its connection open

        sender = asyncio.create_task(send_on()) if more == b"\r\n" else None
        writer.write(more)
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), PATIENCE)
        if sender is not None:
            sender.cancel()
        await wait_until(lambda: not server.server.server_state.connections)


async def test_a_connection_is_closed_if_the_body_of_a_request_stays_incomplete(service: Service, credentials: Credentials) -> None:
    async with run_server(service, timeout_keep_alive=0.2, request_timeout=0.3) as server:
        reader, writer = await server.connect()
        key = b"X-API-Key: " + credentials.api_key.encode() + b"\r\n"
        writer.write(REJECTED + key + JSON + b"Content-Length: 1000\r\n\r\n{")
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        await wait_until(lambda: not server.server.server_state.connections and not server.server.server_state.tasks)


async def test_a_request_body_that_arrives_steadily_is_read_even_if_it_takes_long(
    service: Service, credentials: Credentials
) -> None:
    async with run_server(service, timeout_keep_alive=0.1, request_timeout=1.0) as server:
        reader, writer = await server.connect()
        body = b'{"to": "+14085550100", "body": "%s"}' % (b"x" * 1_000_000)
        key = b"X-API-Key: " + credentials.api_key.encode() + b"\r\n"
        writer.write(REJECTED + key + JSON + b"Content-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 100_000):
            writer.write(body[start : start + 100_000])
            await asyncio.sleep(0.12)  # the sum of all pauses is longer than the time limit of a small body
        assert b"must have at most 100000 characters" in await read_response(reader)


async def test_a_connection_is_closed_if_its_client_reads_no_responses(service: Service) -> None:
    async with run_server(service, timeout_keep_alive=0.2, request_timeout=0.3) as server:
        _, writer = await server.connect(receive_buffer=4096)
        connection = await server.only_connection()
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        writer.write(get("/openapi.json") * 20)
        await wait_until(lambda: connection.flow.write_paused)
        await wait_until(lambda: not server.server.server_state.connections and not server.server.server_state.tasks)


async def test_a_client_that_reads_slowly_gets_its_whole_response(service: Service) -> None:
    async with run_server(service, timeout_keep_alive=0.2, request_timeout=1.0) as server:
        reader, writer = await server.connect(receive_buffer=4096)
        connection = await server.only_connection()
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        writer.write(get("/openapi.json", b"Connection: close"))
        received = 0
        async with asyncio.timeout(PATIENCE):
            while piece := await reader.read(20_000):
                received += len(piece)
                await asyncio.sleep(0.05)  # a slow client; the sum of all pauses is longer than the time limit
        assert received > 20 * 20_000


@pytest.mark.parametrize("headers", [b"", b"Connection: close\r\n"], ids=["keep-alive", "close"])
async def test_a_client_that_sends_a_too_long_body_before_it_reads_receives_413(
    service: Service, credentials: Credentials, headers: bytes
) -> None:
    async with run_server(service) as server:
        key = b"X-API-Key: " + credentials.api_key.encode() + b"\r\n"
        size = service.settings.body_limit + 5_000_000
        head = REJECTED + key + JSON + headers + b"Content-Length: %d\r\n\r\n" % size

        def send_all() -> bytes:
            with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
                client.sendall(head)
                client.sendall(b" " * size)
                return client.recv(65536)

        response = await asyncio.to_thread(send_all)
        assert status_of(response) == 413
        assert b"BODY_TOO_LARGE" in response


async def test_the_server_stops_reading_the_rest_of_a_rejected_body_after_a_limit(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "MAX_DISCARDED_BYTES", 100_000)
    async with run_server(service) as server:
        reader, writer = await server.connect()
        writer.write(REJECTED + JSON + b"Content-Length: 100000000\r\n\r\n")
        assert status_of(await read_response(reader)) == 401

        sent = 0

        async def send_for_ever() -> None:
            nonlocal sent
            while True:
                writer.write(b" " * 10_000)
                await writer.drain()
                sent += 10_000
                await asyncio.sleep(0)  # let the server run before the condition is checked again

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(send_for_ever(), PATIENCE)
        assert sent < 20_000_000, "the operating system buffers some megabytes"


async def test_the_limit_of_discarded_bytes_applies_to_each_request_of_a_connection(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "MAX_DISCARDED_BYTES", 100_000)
    async with run_server(service) as server:
        reader, writer = await server.connect()
        for _ in range(4):
            writer.write(REJECTED + JSON + b"Content-Length: 60000\r\n\r\n")
            assert status_of(await read_response(reader)) == 401
            writer.write(b" " * 60_000)


async def test_a_connection_above_the_limit_of_its_address_is_closed(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    # usually, loopback addresses have no limit; here they have one
    monkeypatch.setattr(connection_limits, "_limited_address", lambda peer, proxies: peer)
    async with run_server(service) as server:
        server.config.connection_limits.per_address = 3
        streams = [await server.connect() for _ in range(4)]
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(streams[3][0].read(), PATIENCE) == b""
        assert len(server.server.server_state.connections) == 3
        streams[0][1].close()
        await wait_until(lambda: len(server.server.server_state.connections) == 2)
        reader, writer = await server.connect()
        writer.write(get("/healthz"))
        assert status_of(await read_response(reader)) == 200


async def test_a_new_connection_above_the_total_limit_closes_the_connection_that_waited_longest(service: Service) -> None:
    async with run_server(service) as server:
        server.config.connection_limits.total = 4
        readers = [await server.connect() for _ in range(4)]
        await wait_until(lambda: len(server.server.server_state.connections) == 4)
        reader, writer = await server.connect()
        writer.write(get("/healthz"))
        assert status_of(await read_response(reader)) == 200
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(readers[0][0].read(), PATIENCE) == b""
        assert len(server.server.server_state.connections) == 4
