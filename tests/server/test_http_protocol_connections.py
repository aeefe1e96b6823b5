"""Tests of connections: pipelined requests, idle connections, clients that disconnect, and the stop of the server."""

import asyncio
import gc
import logging
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shortener.container import Service
from tests.conftest import Clock
from tests.server.raw_http import (
    LAST_REQUEST,
    RunningServer,
    blocked_writes,
    create_link,
    get,
    open_isolated_service,
    read_response,
    run_server,
    status_of,
    stored_hits,
    wait_until,
    without_date,
)
from tests.servers import PATIENCE


async def test_responses_to_pipelined_requests_are_sent_in_the_order_of_the_requests(service: Service, clock: Clock) -> None:
    codes = [await create_link(service, fallback_url=f"https://x.example/{n}", expires_in=60) for n in range(4)]
    clock.forward(minutes=2)
    others = [
        get("/healthz"),
        get("/nosuchcode"),
        get("/api/v1/messages", b"Content-Length: 2") + b"{}",
        get("/api/v1/rewrite", b"Content-Type: application/json", b"Content-Length: 2", method=b"POST") + b"{}",
        get(codes[0] + "?x=1", method=b"HEAD"),
        get("/portal/nothing"),
    ]
    mixed = [one for n, other in enumerate(others) for one in (get(codes[n % 4]), other, get(codes[(n + 1) % 4]))]
    segments = [
        (b"".join(mixed), b"0112233000112"),
        (b"".join(map(get, codes)), b"0123"),
        (get(codes[0]) + get(codes[1], b"Connection: close") + get(codes[2]), b"01"),
    ]
    async with run_server(service) as server, run_server(service, HttpToolsProtocol) as reference:
        for segment, expected_links in segments:
            streams = []
            for one in (server, reference):
                reader, writer = await one.connect()
                writer.write(segment + LAST_REQUEST)
                streams.append(without_date(await asyncio.wait_for(reader.read(), PATIENCE)))
            assert streams[0] == streams[1]
            assert b"".join(re.findall(rb"location: https://x.example/(\d)", streams[0])) == expected_links
        assert len(server.app.paths) == len(reference.app.paths) - len(segments), "the protocol handled one redirect per segment"


async def test_a_request_may_arrive_byte_by_byte(service: Service) -> None:
    code = await create_link(service)
    async with run_server(service) as server:
        reader, _ = await server.connect()
        connection = await server.only_connection()
        for request in (get(code), get(code, b"Content-Length: 2") + b"ab", get("/healthz"), get(code)):
            for byte in request:
                connection.data_received(bytes([byte]))
            assert status_of(await read_response(reader)) == (200 if b"healthz" in request else 302)
        assert server.app.paths == [code, "/healthz"]


async def test_a_connection_uses_one_timer_for_many_requests(service: Service) -> None:
    code = await create_link(service)
    async with run_server(service) as server:
        reader, writer = await server.connect()
        connection = await server.only_connection()
        timers = set()
        for path in (code, "/healthz", "/nosuchcode", *([code] * 30)):
            writer.write(get(path))
            await read_response(reader)
            timers.add(connection.timer)
        assert len(timers) == 1
        assert None not in timers
        assert server.server.server_state.total_requests == 33
        (timer,) = timers
        writer.close()
        await wait_until(lambda: not server.server.server_state.connections)
        assert timer is not None
        assert timer.cancelled


async def test_an_idle_connection_is_closed_but_a_connection_with_a_pending_request_stays_open(service: Service) -> None:
    code = await create_link(service)
    async with run_server(service, timeout_keep_alive=PATIENCE) as server:
        reader, writer = await server.connect()
        connection = await server.only_connection()
        writer.write(get(code))
        await read_response(reader)
        assert connection.timer is not None
        connection.timer.check()  # the timer fires too early: the connection was not idle for long enough
        assert not connection.transport.is_closing()
    async with run_server(service, timeout_keep_alive=0.2) as server:
        async with blocked_writes(service):
            reader, writer = await server.connect()
            writer.write(get(code))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.4)
        assert status_of(await read_response(reader)) == 302
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""


async def test_the_server_stops_after_it_has_sent_the_response_to_a_pending_redirect(service: Service) -> None:
    code = await create_link(service)
    async with run_server(service) as server:
        reader, writer = await server.connect()
        idle, _ = await server.connect()
        async with blocked_writes(service):
            writer.write(get(code))
            await wait_until(lambda: service.recorder.unrecorded == 1)
            stop = asyncio.create_task(server.server.shutdown())
            assert await asyncio.wait_for(idle.read(), PATIENCE) == b""
            assert not stop.done()
        response = await asyncio.wait_for(reader.read(), PATIENCE)
        assert (status_of(response), b"\r\nconnection: close\r\n" in response) == (302, True)
        await asyncio.wait_for(stop, PATIENCE)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("pipelined", [b"", get("/healthz")], ids=["alone", "pipelined"])
def test_a_click_is_recorded_if_the_client_disconnects_before_the_response(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, pipelined: bytes, new_loop: Any
) -> None:
    async def send_request(service: Service, server: RunningServer, code: str) -> asyncio.WriteTransport:
        before = service.recorder.unrecorded
        _, writer = await server.connect()
        writer.write(get(code) + pipelined)
        await wait_until(lambda: service.recorder.unrecorded > before)
        return writer.transport

    async def connect_and_disconnect(service: Service) -> None:
        code = await create_link(service)
        asyncio.get_running_loop().set_exception_handler(handler)
        async with run_server(service) as server:
            async with blocked_writes(service):
                (await send_request(service, server, code)).abort()
                (await send_request(service, server, code)).close()
                # While a pipelined request waits, the server does not read from the connection, so it does not detect the
                # disconnect yet.
                await wait_until(lambda: bool(pipelined) or not server.server.server_state.connections)
            await wait_until(lambda: not server.server.server_state.connections)
            await service.recorder.flush()
            assert server.server.server_state.tasks == set()
        assert len(await stored_hits(service)) == 2

    async def run() -> None:
        async with open_isolated_service(tmp_path, clock) as service:
            await connect_and_disconnect(service)

    handler = ExceptionRecorder()
    with capture_logs() as logs, caplog.at_level(logging.INFO), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())
    assert logs == []
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    assert handler.contexts == []


class ExceptionRecorder:
    """An exception handler of an event loop that records its calls."""

    def __init__(self) -> None:
        self.contexts: list[Any] = []

    def __call__(self, loop: asyncio.AbstractEventLoop, context: Any) -> None:
        self.contexts.append(context)


@pytest.mark.parametrize("path", ["redirect", "asgi"])
async def test_a_closed_connection_is_freed_without_garbage_collection(service: Service, path: str) -> None:
    code = await create_link(service) + ("?x=1" if path == "asgi" else "")
    async with run_server(service) as server:
        gc.disable()
        try:
            reader, writer = await server.connect()
            connection = weakref.ref(await server.only_connection())
            writer.write(get(code))
            await read_response(reader)
            writer.close()
            await wait_until(lambda: connection() is None)
            if path == "redirect":  # in this case, also test a client that disconnects before the response
                async with blocked_writes(service):
                    reader, writer = await server.connect()
                    writer.write(get(code))
                    connection = weakref.ref(await server.only_connection())
                    await wait_until(lambda: service.recorder.unrecorded == 1)
                    writer.close()
                    await wait_until(lambda: not server.server.server_state.connections)
                await wait_until(lambda: connection() is None)
        finally:
            gc.enable()
