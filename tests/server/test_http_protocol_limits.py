"""Clients that read slowly or send slowly: the memory and the time that a connection may use."""

import asyncio
import contextlib
import socket

import pytest

from shortener.container import Service
from shortener.server.http_protocol import MAX_HEAD_BYTES
from tests.conftest import MakeService
from tests.server.raw_http import (
    LAST_REQUEST,
    TIMEOUT_SECONDS,
    create_link,
    get,
    run_server,
    status_of,
    wait_until,
)


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_server_stops_reading_from_a_client_that_does_not_read(service: Service, at_once: bool) -> None:
    """The server stores at most one buffer of requests (256 KiB) and one of responses (64 KiB) for such a client."""
    async with run_server(service) as server:
        _, writer = await server.connect(receive_buffer=4096)
        connection = await server.only_connection()
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        request = get("/nosuchcode")
        async with asyncio.timeout(TIMEOUT_SECONDS):
            if at_once:
                writer.write(request * 20_000)
            while not (connection.flow.write_paused and connection.flow.read_paused):
                if not at_once:
                    writer.write(request)
                await asyncio.sleep(0)  # lets the server run
        assert connection.transport.get_write_buffer_size() < 2**17
        assert len(connection.pipeline) * len(request) <= 2**18
        stored_count = len(connection.pipeline)
        for _ in range(20):  # iterations of the loop in which a server without a limit would read more
            await asyncio.sleep(0)
        assert len(connection.pipeline) <= stored_count


async def test_a_client_that_reads_no_responses_gets_no_further_ones_when_the_buffer_is_full(service: Service) -> None:
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


async def test_at_most_one_buffer_of_pipelined_requests_is_stored(make_service: MakeService) -> None:
    service = await make_service(base_url="https://s.example", unknown_code_limit=0)
    async with run_server(service) as server:
        reader, writer = await server.connect()
        connection = await server.only_connection()
        request = get("/nosuchcode")
        max_pipelined, answered = 0, 0
        writer.write(request * 4000 + LAST_REQUEST)
        async with asyncio.timeout(2 * TIMEOUT_SECONDS):
            while response := await reader.read(2**16):
                answered += response.count(b"HTTP/1.1 404")
                max_pipelined = max(max_pipelined, len(connection.pipeline))
        assert answered == 4000
        assert 0 < max_pipelined * len(request) <= 2**18


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
        # One byte only: if the server closed with bytes unread, the kernel would reset the connection and lose the response.
        writer.write(b"a")
        response = await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS)
        assert (status_of(response), response.rpartition(b"\r\n\r\n")[2]) == (400, b"The head of the request is too long.")
        await wait_until(lambda: not server.server.server_state.connections)


async def test_a_connection_is_closed_if_its_client_sends_nothing_or_one_byte_at_a_time(service: Service) -> None:
    code = await create_link(service)
    async with run_server(service, timeout_keep_alive=0.3) as server:
        silent, _ = await server.connect()
        slow, writer = await server.connect()
        started = asyncio.get_running_loop().time()

        async def send_slowly() -> None:
            with contextlib.suppress(ConnectionError):
                for byte in get(code) * 5:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.02)  # the pace of a slow client

        sender = asyncio.create_task(send_slowly())
        assert await asyncio.wait_for(silent.read(), TIMEOUT_SECONDS) == b""
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(slow.read(), TIMEOUT_SECONDS)
        assert asyncio.get_running_loop().time() - started < len(get(code)) * 0.02, "closed before the first head was complete"
        sender.cancel()
