"""Redirects read off the wire: byte for byte what uvicorn's own protocol would have sent, over real sockets.

On SQLite alone: the wire knows no store, only the recorder, which has tests on both engines.
"""

import asyncio
import contextlib
import gc
import logging
import re
import socket
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shortener.server.header_cache import Heads
from sqlalchemy import Connection, select, update
from structlog.testing import capture_logs
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shortener.accounts.administration import create_application, update_domain
from shortener.accounts.directory import increment_version
from shortener.cli.serve import uvicorn_config
from shortener.clicks.redirect import REDIRECT
from shortener.container import Service, open_service
from shortener.messages.rewriter import RewriteItem
from shortener.server import application
from shortener.server.application import HttpApplication
from shortener.server.http_protocol import LONGEST_HEAD, RedirectProtocol, _spell
from shortener.settings import Settings
from shortener.storage import schema
from tests.clicks.helpers import unreliable_recorder as unwilling
from tests.conftest import Clock, MakeService

PATIENCE = 5.0  # seconds
HOST = b"s.example"
AGENT = b"Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 Version/18.6 Mobile/15E148 Safari/604.1"
#: Ends a connection, and shows that what came before it was read and answered to its last byte.
LAST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(params=["sqlite"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'shortener.db'}"


# A server, and a client that sees every byte.


class Asked(HttpApplication):
    """The application, which notes the paths that were asked the usual way."""

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.paths: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        await super().__call__(scope, receive, send)


@dataclass
class Serving:
    server: uvicorn.Server
    app: Asked
    port: int
    clients: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self, *, buffer: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """`buffer`: bytes that the kernel keeps of answers nobody reads."""
        client = socket.socket()
        client.setblocking(False)
        if buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=client)
        self.clients.append(writer)
        return reader, writer

    async def wire(self) -> RedirectProtocol:
        """The only connection, as the server has it."""
        await until(lambda: len(self.server.server_state.connections) == 1)
        (wire,) = self.server.server_state.connections
        assert isinstance(wire, RedirectProtocol)
        return wire

    async def ask(self, request: bytes) -> bytes:
        """Everything that one request is answered, and then LAST; its date is left out."""
        reader, writer = await self.connect()
        writer.write(request)
        answer = await read_answer(reader, head=request.startswith(b"HEAD"))
        with contextlib.suppress(ConnectionError):
            writer.write(LAST)
            answer += await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
        return undated(answer)


@contextlib.asynccontextmanager
async def serving(service: Service, protocol: type[Any] = RedirectProtocol, **more: Any) -> AsyncIterator[Serving]:
    """`protocol`: HttpToolsProtocol is uvicorn's own, and so the measure."""
    application = Asked(service)
    config = uvicorn_config(application, service.settings.model_copy(update={"port": 0}), **more)
    config.http = protocol
    config.lifespan = "off"  # the fixture starts and closes the service
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    await server.on_tick(0)
    one = Serving(server, application, server.servers[0].sockets[0].getsockname()[1])
    try:
        yield one
    finally:
        for writer in one.clients:
            writer.transport.abort()
        await asyncio.wait_for(server.shutdown(), PATIENCE)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.002)  # and look again


async def read_answer(reader: asyncio.StreamReader, *, head: bool = False) -> bytes:
    async with asyncio.timeout(PATIENCE):
        top = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", top)
        return top + await reader.readexactly(0 if head or length is None else int(length[1]))


def undated(answer: bytes) -> bytes:
    return re.sub(rb"\r\ndate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n", b"\r\ndate: ...\r\n", answer)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def get(path: str | bytes, *headers: bytes, method: bytes = b"GET", host: bytes | None = HOST) -> bytes:
    path = path.encode() if isinstance(path, str) else path
    lines = [b"%s %s HTTP/1.1" % (method, path), *([b"Host: " + host] if host is not None else []), b"User-Agent: " + AGENT]
    return b"\r\n".join([*lines, *headers, b"", b""])


# Links.


@pytest.fixture(autouse=True)
def heads(monkeypatch: pytest.MonkeyPatch) -> Heads:
    """What headers say is remembered for all connections of a process."""
    monkeypatch.setattr(RedirectProtocol, "heads", found := Heads())
    return found


@pytest.fixture
async def service(make_service: MakeService, clock: Clock) -> Service:
    """On s.example, with a second application that has a domain of its own."""
    service = await make_service(base_url="https://s.example", trusted_proxies="127.0.0.0/8")
    await service.database.write(create_application, "brand", clock(), domain="https://go.brand.example")
    await service.directory.refresh()
    return service


async def link(service: Service, application: int = 1, **more: Any) -> str:
    """The path of a new short link."""
    outgoing = RewriteItem(("+14085550100",), '#track("https://x.example/a?b=1#f")', **more)
    found = service.directory.application(application)
    assert found is not None
    (answer,) = await service.rewriter.rewrite(found, [outgoing])
    return "/" + str(answer["links"][0]["code"])


async def hits(service: Service) -> list[Any]:
    return list(await service.database.read(lambda c: c.execute(select(schema.hits).order_by(schema.hits.c.id)).all()))


@contextlib.asynccontextmanager
async def held(service: Service) -> AsyncIterator[None]:
    """No hit lands: the one thread that writes is busy."""
    let_go, begun = threading.Event(), threading.Event()

    def hold(connection: object) -> None:
        begun.set()
        let_go.wait(2 * PATIENCE)

    busy = asyncio.ensure_future(service.database.write(hold))
    try:
        await until(begun.is_set)
        yield
    finally:
        let_go.set()
        await busy


# The same answer.


async def test_what_is_read_off_the_wire_is_answered_to_the_byte_as_uvicorn_would(service: Service, clock: Clock) -> None:
    code = await link(service)
    of_brand = await link(service, 2)
    killed = await link(service)
    await service.database.write(
        lambda c: c.execute(update(schema.links).where(schema.links.c.code == killed[1:]).values(disabled_at=clock()))
    )
    expired = await link(service, expires_in=60)
    with_fallback = await link(service, expires_in=60, fallback_url="https://x.example/over")
    clock.forward(minutes=2)
    cases = [
        (302, get(code)),
        (302, get(code, b"Connection: close")),
        (302, get(code).replace(b"HTTP/1.1", b"HTTP/1.0")),
        (302, get(code, b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")),
        (302, get(code, b"Sec-Purpose: prefetch", b"Cookie: a=b", b"Accept: */*")),
        (404, get("/nosuchcode")),
        (404, get("/nosuchcode", b"Connection: close")),
        (410, get(expired)),
        (302, get(with_fallback)),
        (410, get(killed)),
        (302, get(code + ").")),
        (302, get(code + "?")),
        (302, get(code + "?.")),
        (302, get(code + "%E2%80%9D%22")),
        (302, get(code + '"`*')),
        (302, get(code, host=b"S.Example.:8000")),
        (302, get(code, host=b"127.0.0.1:8000")),
        (302, get(of_brand, host=b"go.brand.example")),
        (404, get(code, host=b"go.brand.example")),
        (302, get(of_brand)),
    ]
    async with serving(service) as ours, serving(service, HttpToolsProtocol) as theirs:
        for expected, request in cases:
            for asked in (request, request, b"HEAD" + request[3:]):
                answer = await ours.ask(asked)
                assert (status(answer), answer) == (expected, await theirs.ask(asked)), asked
                assert b"\r\ndate: ...\r\n" in answer
        assert set(ours.app.paths) == {"/healthz"}, "all of them were read off the wire"
    kept = [(hit.link_id, hit.verdict, hit.rule, hit.flags & ~3, hit.address, hit.user_agent) for hit in await hits(service)]
    assert kept[::2] == kept[1::2], "and are the same hits"


async def test_everything_else_goes_the_usual_way_to_the_same_answers(service: Service) -> None:
    code = await link(service)
    long = code + "%E2%80%9D" * 8 + "?" + "x" * 128
    cases = [
        (302, get(code + "?x=1")),
        (302, get(code + "?utm=%0d%0a")),
        (302, get(long)),
        (404, get(code + "x" * 128)),
        (302, get(code, method=b"OPTIONS")),
        (404, get(code + "/")),
        (302, get("http://s.example" + code)),
        (404, get("http://elsewhere.example" + code, host=b"elsewhere.example")),
        (404, get(code, host=b"unknown.example")),
        (404, get(code, host=None)),
        (404, get(code, host=b"")),
        (404, get(code, b"Host: s.example", host=b"")),
        (404, get(code, b"Host: s.example", host=b"unknown.example")),
        (404, get("/portal", host=b"go.brand.example")),
        (404, get("/api", host=b"go.brand.example")),
        (200, get("/healthz")),
        (200, get("/docs")),
        (302, get(code, b"Content-Length: 0")),
        (302, get(code, b"Content-Length: 5") + b"hello"),
        (302, get(code, b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n"),
        (302, get(code, b"Transfer-Encoding: chunked") + b"0\r\nTrailer: x\r\nExpect: 100-continue\r\n\r\n"),
        (302, get(code, b"Expect: 100-continue")),
        (302, get(code, b"Expect: 100-continue", b"Content-Length: 5") + b"hello"),
        (302, get(code, b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABkAARAAAAA")),
        (302, get(code, b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")),
        (302, get(code, b"Upgrade: h2c")),
        (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ]
    async with serving(service) as ours, serving(service, HttpToolsProtocol) as theirs:
        for expected, request in cases:
            seen = len(ours.app.paths)
            answer = await ours.ask(request)
            assert (status(answer), answer) == (expected, await theirs.ask(request)), request
            assert expected == 400 or ours.app.paths[seen:][:1] not in ([], ["/healthz"]) or request.startswith(b"GET /healthz")


SPELLINGS = [
    b"Content-Length: 3\r\nContent-Length: 3",
    b"Content-Length: 3\r\nContent-Length: 0",
    b"Content-Length: 3, 3",
    b"Content-Length: +3",
    b"Content-Length: -1",
    b"Content-Length: 0x3",
    b"Content-Length:",
    b"Content-Length: 3\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 3",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding\t: chunked",
    b" Transfer-Encoding: chunked",
    b"X: y\r\n Transfer-Encoding: chunked",
    b"X: y\r\n\tContent-Length: 3",
    b"X: y\nContent-Length: 3",
    b"X: y\rContent-Length: 3",
    b"X: y\x00z",
    b"X: y\x01z",
    b"X\x00: y",
    b"\xc2\xa0Content-Length: 3",
    b": y",
    b"X",
]


async def test_no_spelling_of_a_body_is_read_in_another_way_than_uvicorns(service: Service) -> None:
    """Nothing smuggled behind a redirect is taken for a request, or for a body, by one of the two alone."""
    code = await link(service)
    async with serving(service) as ours, serving(service, HttpToolsProtocol) as theirs:
        for header in SPELLINGS:
            seen = len(ours.app.paths)
            smuggled = get(code, header) + b"0\r\n\r\n" + get("/nosuchcode")
            answer = await ours.ask(smuggled)
            assert answer == await theirs.ask(smuggled), header
            if status(answer) != 400:
                assert ours.app.paths[seen] == code, "what the parser takes for a body goes the usual way"


async def test_a_malformed_request_behind_a_redirect_gets_400_and_ends_the_connection(service: Service) -> None:
    code = await link(service)
    async with serving(service) as ours, serving(service, HttpToolsProtocol) as theirs:
        for serving_one in (ours, theirs):
            reader, writer = await serving_one.connect()
            writer.write(get(code))
            assert status(await read_answer(reader)) == 302
            writer.write(b"G\x00T / HTTP/1.1\r\n\r\n" + get(code))
            assert status(answer := await reader.read()) == 400
            assert answer.count(b"HTTP/1.1 ") == 1
        for path in (code, code + "?x=1"):
            at_once = get(path) + get("/healthz") + b"G\x00T / HTTP/1.1\r\n\r\n"
            answer = await ours.ask(at_once)
            assert (status(answer), answer) == (400, await theirs.ask(at_once))
        await until(lambda: not ours.server.server_state.tasks)
        await service.recorder.flush()
        assert ours.app.paths == [code], "what stood between was not begun"
    assert len(await hits(service)) == 6


# Headers that were read before.


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[RedirectProtocol]:
    """The connection of each request that a parser was asked about."""
    asked: list[RedirectProtocol] = []
    begin = RedirectProtocol.on_message_begin

    def on_message_begin(self: RedirectProtocol) -> None:
        asked.append(self)
        begin(self)

    monkeypatch.setattr(RedirectProtocol, "on_message_begin", on_message_begin)
    return asked


async def test_headers_that_were_read_before_need_no_parser(service: Service, parsed: list[RedirectProtocol]) -> None:
    codes = [await link(service) for _ in range(3)]
    async with serving(service) as ours:
        reader, writer = await ours.connect()
        for path in codes:
            writer.write(get(path))
            assert b"\r\nlocation: https://x.example/a?b=1#f\r\n" in await read_answer(reader)
        assert len(parsed) == 1
        reader, writer = await ours.connect()
        for path, expected in ((codes[0], 302), ("/nosuchcode", 404), (codes[1], 302)):
            writer.write(get(path))
            assert status(await read_answer(reader)) == expected
        assert len(parsed) == 1, "they are remembered for other connections too"
        writer.write(get(codes[2] + "?x=1") + get(codes[2]))
        for _ in range(2):
            assert status(await read_answer(reader)) == 302
        assert len(parsed) == 3
    kept = await hits(service)
    assert len(kept) == 7
    assert len({(hit.verdict, hit.rule, hit.address, hit.user_agent) for hit in kept}) == 1


async def test_each_client_behind_a_proxy_keeps_its_address(service: Service, parsed: list[RedirectProtocol]) -> None:
    code = await link(service)
    clients = ["203.0.113.7", "198.51.100.9", "2001:db8:7::1", "203.0.113.7, 127.0.0.9", "203.0.113.7,192.0.2.4"]
    clients += ["203.0.113.7:4711", ""]
    unusual = ["unknown, 203.0.113.7", "[2001:db8:7::1]", "203.0.113.7 , 127.0.0.9"]
    async with serving(service) as ours:
        reader, writer = await ours.connect()
        for client in clients + unusual:
            writer.write(get(code, b"X-Forwarded-For: " + client.encode(), b"Accept: */*"))
            assert status(await read_answer(reader)) == 302
        twice = b"X-Forwarded-For: 203.0.113.7"
        for _ in range(2):
            writer.write(get(code, twice, b"X-Forwarded-For: 198.51.100.9", b"Accept: */*"))
            assert status(await read_answer(reader)) == 302
    addresses = [hit.address for hit in await hits(service)]
    assert addresses[:5] == ["203.0.113.0", "198.51.100.0", "2001:db8:7::", "203.0.113.0", "192.0.2.0"]
    assert addresses[5:7] == ["203.0.113.0", "127.0.0.0"]
    assert addresses[7:] == ["203.0.113.0", "2001:db8:7::", "203.0.113.0", *["198.51.100.0"] * 2]
    assert len(parsed) == 1 + 3 + 2, "the first, and those that a proxy does not write"


async def test_only_requests_that_go_on_and_come_in_one_piece_are_remembered(service: Service, heads: Heads) -> None:
    code = await link(service)
    async with serving(service) as ours:
        for request in (
            get(code, b"Connection: close"),
            get(code).replace(b"HTTP/1.1", b"HTTP/1.0"),
            get(code, method=b"HEAD"),
            get(code + "."),
            get(code, host=b"unknown.example"),
            get("/healthz"),
            get(code, b"X: " + b"x" * 4096),
        ):
            await ours.ask(request)
        reader, writer = await ours.connect()
        for pieces in ([get(code)[:20], get(code)[20:]], [get(code) + get(code)], [b"\r\n" + get(code)]):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.02)  # or the two would be one
            for _ in range(b"".join(pieces).count(b"GET")):
                assert status(await read_answer(reader)) == 302
        assert len(heads) == 0
        await ours.ask(get(code))
        assert len(heads) == 1


async def test_a_body_is_not_taken_for_a_question_that_it_looks_like(service: Service, heads: Heads) -> None:
    """Its answer may be complete before it has come, as that of a request without a key is."""
    code = await link(service)
    question = get(code)
    async with serving(service) as ours, serving(service, HttpToolsProtocol) as theirs:
        await ours.ask(question)
        assert len(heads) == 1
        begun = get("/api/v1/rewrite", b"Content-Length: %d" % (2 * len(question)), method=b"POST")
        told = []
        for one in (ours, theirs):
            reader, writer = await one.connect()
            writer.write(begun)
            told.append([undated(await read_answer(reader))])
            for piece in (question, question, LAST):
                writer.write(piece)
                await asyncio.sleep(0.02)  # each comes alone
            told[-1].append(undated(await asyncio.wait_for(reader.read(), PATIENCE)))
        assert told[0] == told[1]
        assert status(told[0][0]) == 401
    assert len(await hits(service)) == 1


def _rename(connection: Connection, host: str, new: str) -> None:
    connection.execute(update(schema.domains).where(schema.domains.c.host == host).values(host=new))
    increment_version(connection)


async def test_what_is_remembered_is_asked_of_the_domain_and_the_store_each_time(service: Service, clock: Clock) -> None:
    of_brand = await link(service, 2)
    async with serving(service) as ours:
        reader, writer = await ours.connect()
        asked = get(of_brand, host=b"go.brand.example")
        writer.write(asked)
        assert status(await read_answer(reader)) == 302
        await service.database.write(update_domain, "go.brand.example", {"disabled": True}, clock())
        await service.directory.refresh()
        writer.write(asked)
        assert status(await read_answer(reader)) == 410
        await service.database.write(_rename, "go.brand.example", "other.example")
        await service.directory.refresh()
        writer.write(asked)
        assert status(await read_answer(reader)) == 404


# The order of answers, and how long a connection lives.


async def test_pipelined_requests_are_answered_in_their_order_whatever_they_are(service: Service, clock: Clock) -> None:
    codes = [await link(service, fallback_url=f"https://x.example/{n}", expires_in=60) for n in range(4)]
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
    async with serving(service) as ours, serving(service, HttpToolsProtocol) as theirs:
        for segment, places in segments:
            streams = []
            for one in (ours, theirs):
                reader, writer = await one.connect()
                writer.write(segment + LAST)
                streams.append(undated(await asyncio.wait_for(reader.read(), PATIENCE)))
            assert streams[0] == streams[1]
            assert b"".join(re.findall(rb"location: https://x.example/(\d)", streams[0])) == places
        assert len(ours.app.paths) == len(theirs.app.paths) - len(segments), "the first of each was read off the wire"


async def test_a_request_may_come_byte_by_byte(service: Service) -> None:
    code = await link(service)
    async with serving(service) as ours:
        reader, _ = await ours.connect()
        wire = await ours.wire()
        for request in (get(code), get(code, b"Content-Length: 2") + b"ab", get("/healthz"), get(code)):
            for byte in request:
                wire.data_received(bytes([byte]))
            assert status(await read_answer(reader)) == (200 if b"healthz" in request else 302)
        assert ours.app.paths == [code, "/healthz"]


async def test_a_connection_is_kept_for_many_requests_with_one_timer(service: Service) -> None:
    code = await link(service)
    async with serving(service) as ours:
        reader, writer = await ours.connect()
        wire = await ours.wire()
        timers = set()
        for path in (code, "/healthz", "/nosuchcode", *([code] * 30)):
            writer.write(get(path))
            await read_answer(reader)
            timers.add(wire._idle_timer)
        assert len(timers) == 1
        assert None not in timers
        assert ours.server.server_state.total_requests == 33
        (timer,) = timers
        writer.close()
        await until(lambda: not ours.server.server_state.connections)
        assert timer is not None
        assert timer.cancelled()


async def test_only_idle_connections_are_closed(service: Service) -> None:
    code = await link(service)
    async with serving(service, timeout_keep_alive=0.2) as ours:
        reader, writer = await ours.connect()
        wire = await ours.wire()
        writer.write(get(code))
        await read_answer(reader)
        wire.timeout_keep_alive_handler()  # too early: it was busy until now
        assert not wire.transport.is_closing()
        async with held(service):
            writer.write(get(code))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.4)
            assert wire._idle_timer is None
        assert status(await read_answer(reader)) == 302
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""


async def test_a_redirect_under_way_is_answered_before_a_stop_and_the_stop_waits_for_it(service: Service) -> None:
    code = await link(service)
    async with serving(service) as ours:
        reader, writer = await ours.connect()
        idle, _ = await ours.connect()
        async with held(service):
            writer.write(get(code))
            await until(lambda: service.recorder.unrecorded == 1)
            stop = asyncio.create_task(ours.server.shutdown())
            assert await asyncio.wait_for(idle.read(), PATIENCE) == b""
            assert not stop.done()
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
        assert (status(answer), b"\r\nconnection: close\r\n" in answer) == (302, True)
        await asyncio.wait_for(stop, PATIENCE)


# Those who go away, and those who do not listen.


@contextlib.asynccontextmanager
async def standing_alone(folder: Path, clock: Clock) -> AsyncIterator[Service]:
    """A service on a loop of its own: `shortener serve` runs on uvloop, whose transports differ."""
    values: Any = {"data_dir": folder, "base_url": "https://s.example"}
    service = await open_service(Settings(**values), clock=clock)
    try:
        service.recorder.start()
        await service.database.write(create_application, "brand", clock(), domain="https://go.brand.example")
        await service.directory.refresh()
        yield service
    finally:
        await service.close(grace=1)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("behind", [b"", get("/healthz")], ids=["alone", "pipelined"])
def test_a_client_that_goes_away_before_its_answer_has_clicked_all_the_same(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, behind: bytes, new_loop: Any
) -> None:
    async def ask(service: Service, ours: Serving, code: str) -> asyncio.WriteTransport:
        waiting = service.recorder.unrecorded
        _, writer = await ours.connect()
        writer.write(get(code) + behind)
        await until(lambda: service.recorder.unrecorded > waiting)
        return writer.transport

    async def come_and_go(service: Service) -> None:
        code = await link(service)
        asyncio.get_running_loop().set_exception_handler(gone)
        async with serving(service) as ours:
            async with held(service):
                (await ask(service, ours, code)).abort()
                (await ask(service, ours, code)).close()
                # With a request that waits behind, nothing is read, and so not seen that nobody is there.
                await until(lambda: bool(behind) or not ours.server.server_state.connections)
            await until(lambda: not ours.server.server_state.connections)
            await service.recorder.flush()
            assert ours.server.server_state.tasks == set()
        assert len(await hits(service)) == 2

    async def run() -> None:
        async with standing_alone(tmp_path, clock) as service:
            await come_and_go(service)

    gone = Caught()
    with capture_logs() as logs, caplog.at_level(logging.INFO), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())
    assert logs == []
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    assert gone.contexts == []


class Caught:
    """What a loop had to say of exceptions that nobody took."""

    def __init__(self) -> None:
        self.contexts: list[Any] = []

    def __call__(self, loop: asyncio.AbstractEventLoop, context: Any) -> None:
        self.contexts.append(context)


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_client_that_does_not_read_is_not_read_from(service: Service, at_once: bool) -> None:
    """At most one bufferful of requests (256 KiB) and one of answers (64 KiB) are held for it."""
    async with serving(service) as ours:
        _, writer = await ours.connect(buffer=4096)
        wire = await ours.wire()
        wire.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        request = get("/nosuchcode")
        async with asyncio.timeout(PATIENCE):
            if at_once:
                writer.write(request * 20_000)
            while not (wire.flow.write_paused and wire.flow.read_paused):
                if not at_once:
                    writer.write(request)
                await asyncio.sleep(0)  # the server's turn
        assert wire.transport.get_write_buffer_size() < 2**17
        assert len(wire.pipeline) * len(request) <= 2**18
        held_back = len(wire.pipeline)
        for _ in range(20):  # turns of the loop, in which more would be read
            await asyncio.sleep(0)
        assert len(wire.pipeline) <= held_back


async def test_a_client_that_asks_again_only_after_each_answer_and_reads_none_is_not_answered_without_end(service: Service) -> None:
    request = get("/nosuchcode")
    async with serving(service) as ours:
        _, writer = await ours.connect(buffer=4096)
        wire = await ours.wire()
        wire.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        wire.transport.set_write_buffer_limits(high=4096)

        async def ask() -> None:
            answered = ours.server.server_state.total_requests
            writer.write(request)
            await until(lambda: ours.server.server_state.total_requests > answered)

        while not wire.flow.write_paused:
            await ask()
        held_back = wire.transport.get_write_buffer_size()
        assert ours.app.paths == []
        writer.write(request)
        await until(lambda: ours.app.paths == ["/nosuchcode"])
        await service.recorder.flush()
        assert wire.transport.get_write_buffer_size() == held_back


async def test_of_requests_that_come_faster_than_answers_one_bufferful_is_held(service: Service) -> None:
    async with serving(service) as ours:
        reader, writer = await ours.connect()
        wire = await ours.wire()
        request = get("/nosuchcode")
        most, answered = 0, 0
        writer.write(request * 4000 + LAST)
        async with asyncio.timeout(2 * PATIENCE):
            while answer := await reader.read(2**16):
                answered += answer.count(b"HTTP/1.1 404")
                most = max(most, len(wire.pipeline))
        assert answered == 4000
        assert 0 < most * len(request) <= 2**18


@pytest.mark.parametrize("path", ["code", "usual"])
async def test_a_closed_connection_leaves_nothing_for_the_collector(service: Service, path: str) -> None:
    code = await link(service) + ("?x=1" if path == "usual" else "")
    async with serving(service) as ours:
        gc.disable()
        try:
            reader, writer = await ours.connect()
            wire = weakref.ref(await ours.wire())
            writer.write(get(code))
            await read_answer(reader)
            writer.close()
            await until(lambda: wire() is None)
            if path == "code":  # and of one that went before its answer
                async with held(service):
                    reader, writer = await ours.connect()
                    writer.write(get(code))
                    wire = weakref.ref(await ours.wire())
                    await until(lambda: service.recorder.unrecorded == 1)
                    writer.close()
                    await until(lambda: not ours.server.server_state.connections)
                await until(lambda: wire() is None)
        finally:
            gc.enable()


# What is not in order.


async def test_without_the_store_the_answer_is_503_as_uvicorn_would(service: Service) -> None:
    code = await link(service)
    store, service.recorder = await unwilling(service, deadline=0.02)
    store.refuse_writes = store.refuse_reads = True
    async with serving(service) as ours, serving(service, HttpToolsProtocol) as theirs:
        for request in (get(code), get(code, method=b"HEAD"), get(code, b"Connection: close")):
            answer = await ours.ask(request)
            assert (status(answer), answer) == (503, await theirs.ask(request))
            assert b"\r\nretry-after: 2\r\n" in answer
        assert ours.app.paths.count(code) == 0
        store.refuse_writes = store.refuse_reads = False
        await service.recorder.flush()
        assert await hits(service) == []
    await service.recorder.stop(1)


async def test_when_too_many_hits_wait_the_next_goes_the_usual_way(service: Service) -> None:
    code = await link(service)
    store, service.recorder = await unwilling(service, deadline=0.3, waiting_limit=1)
    async with serving(service) as ours:
        store.refuse_writes = True
        readers = []
        for _ in range(8):
            reader, writer = await ours.connect()
            writer.write(get(code))
            readers.append(reader)
        answers = [undated(await read_answer(reader)) for reader in readers]
        assert len(set(answers)) == 1
        assert status(answers[0]) == 302
        assert 0 < len(ours.app.paths) < 8
        assert service.recorder.totals.dropped == len(ours.app.paths)
        store.refuse_writes = False
        await service.recorder.flush()
        assert len(await hits(service)) == 8 - len(ours.app.paths)
    await service.recorder.stop(1)


async def test_a_location_that_cannot_be_a_header_is_not_sent_and_holds_up_no_other_answer(service: Service) -> None:
    """No destination has a control character; if one ever had, it could not split an answer in two."""
    codes = [await link(service) for _ in range(3)]
    bad = schema.links.c.code == codes[1][1:]
    url = "https://x.example/\r\nSet-Cookie: a=b"
    await service.database.write(lambda c: c.execute(update(schema.links).where(bad).values(url=url, location=url)))
    with capture_logs() as logs:
        async with serving(service) as ours:
            readers = []
            async with held(service):
                for code in codes:
                    reader, writer = await ours.connect()
                    writer.write(get(code) + LAST)
                    readers.append(reader)
                await until(lambda: service.recorder.unrecorded == 3)
            first, second, third = [await asyncio.wait_for(reader.read(), PATIENCE) for reader in readers]
    assert (status(first), second, status(third)) == (302, b"", 302)
    assert [(entry["event"], entry["code"]) for entry in logs] == [("answer_not_sent", codes[1][1:])]
    assert len(await hits(service)) == 3


@pytest.mark.parametrize("control", [chr(number) for number in (*range(9), *range(10, 32), 127)])
def test_no_header_is_spelled_with_a_control_character(control: str) -> None:
    location = f"https://x.example/{control}".encode()
    for keep_alive in (True, False):
        with pytest.raises(ValueError, match="control character"):
            _spell((302, [*REDIRECT, (b"location", location)], b""), [], False, keep_alive)
    with pytest.raises(ValueError, match="control character"):
        _spell((410, [(b"x", location), (b"content-length", b"0")], b""), [], False, True)


def test_an_answer_has_the_headers_of_the_second_that_it_is_sent_in() -> None:
    answer = (302, [*REDIRECT, (b"location", b"https://x.example/")], b"")
    one, two = ([(b"date", day), (b"x-more", b"1")] for day in (b"Fri", b"Sat"))
    assert b"date: Fri" in _spell(answer, one, False, True)
    assert _spell(answer, two, False, True) == _spell(answer, one, False, True).replace(b"Fri", b"Sat")
    closing = _spell(answer, one, False, False)
    assert closing == _spell(answer, one, False, True)[:-2] + b"connection: close\r\n\r\n"


async def test_a_host_longer_than_any_name_is_unknown_and_not_kept_in_memory(service: Service) -> None:
    code = await link(service)
    before = application._split_host.cache_info().currsize
    async with serving(service) as ours, serving(service, HttpToolsProtocol) as theirs:
        for host in (b"x" * 100_000, HOST + b"." * 100_000, b"1" * 100_000):
            answer = await ours.ask(get(code, host=host))
            assert (status(answer), answer) == (404, await theirs.ask(get(code, host=host)))
    assert application._split_host.cache_info().currsize <= before + 2, "that of LAST"


# Whatever is asked.

TOKENS = st.from_regex(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}", fullmatch=True)
_NAMES = b"Host User-Agent X-Forwarded-For Sec-Purpose Purpose Connection Content-Length Transfer-Encoding Upgrade Expect"
NAMES = st.one_of(TOKENS, st.sampled_from(_NAMES.split()))
VALUES = st.one_of(
    st.sampled_from(
        b"s.example||s.example:1|go.brand.example|127.0.0.1|[::1]:80|close|keep-alive|Upgrade|h2c|websocket|0|3|chunked|100-continue"
        b"|prefetch|192.0.2.1, 198.51.100.7|Mozilla/5.0 (iPhone)".split(b"|")
    ),
    st.binary(max_size=24),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=24).map(lambda text: text.encode("latin-1")),
)
TAILS = st.lists(
    st.sampled_from([".", "?", ")", "%22", "%E2%80%9D", "%e3%80%82", "#", "/", "x", "%", "\x01", "»", " "]), max_size=3
)
OTHERS = ["/portal", "/Docs.", "/healthz?", "*", "//", "http://s.example/abcd", "/nosuchcode"]


@settings(max_examples=300, deadline=None)
@given(
    path=st.one_of(
        st.tuples(st.sampled_from(["code", "of_brand"]), TAILS.map("".join)),
        st.tuples(st.just(""), st.from_regex(r"/[!-~]{0,40}", fullmatch=True)),
        st.tuples(st.just(""), st.sampled_from(OTHERS)),
    ),
    method=st.sampled_from([b"GET", b"GET", b"GET", b"HEAD", b"OPTIONS", b"get", b"GETX"]),
    version=st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0", b"0.9", b"2.0", b"1.2"]),
    host=st.sampled_from([[(b"Host", HOST)], [(b"hOST", b"go.brand.example")], []]),
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=5),
    body=st.sampled_from(
        [b"", b"", b"abc"]
    ),  # without a length it is the beginning of a bad request, and the answer to that comes first
)
# Some seeds bring no plain request among the three hundred.
@example(path=("code", ""), method=b"GET", version=b"1.1", host=[(b"Host", HOST)], headers=[], body=b"")
@example(path=("", "/nosuchcode"), method=b"GET", version=b"1.1", host=[(b"Host", HOST)], headers=[], body=b"")
@example(path=("code", ""), method=b"GET", version=b"1.1", host=[(b"Host", HOST)], headers=[], body=b"abc")
def check(pair: "Pair", path: tuple[str, str], method: bytes, version: bytes, host: Any, headers: Any, body: bytes) -> None:
    lines = [b"%s %s HTTP/%s" % (method, (pair.paths.get(path[0], "") + path[1]).encode(), version)]
    lines += [name + b": " + value for name, value in [*host, *headers]]
    pair.compare(b"\r\n".join([*lines, b"", body]), head=method == b"HEAD")


@dataclass
class Pair:
    """Ours and uvicorn's own, on the loop that `shortener serve` runs on."""

    runner: asyncio.Runner
    paths: dict[str, str] = field(default_factory=dict)
    servers: list[Serving] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)

    def compare(self, request: bytes, *, head: bool) -> None:
        answers = [self.runner.run(self.first_answer(one, request, head)) for one in self.servers]
        assert answers[0] == answers[1]
        self.statuses.add(status(answers[0]))

    async def first_answer(self, one: Serving, request: bytes, head: bool) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        try:
            writer.write(request)
            return undated(await read_answer(reader, head=head))
        finally:
            writer.close()


def test_whatever_path_and_headers_are_sent_the_answer_is_uvicorns(tmp_path: Path, clock: Clock) -> None:
    async def start(stack: contextlib.AsyncExitStack, pair: Pair) -> None:
        service = await stack.enter_async_context(standing_alone(tmp_path, clock))
        pair.paths = {"code": await link(service), "of_brand": await link(service, 2)}
        for protocol in (RedirectProtocol, HttpToolsProtocol):
            pair.servers.append(await stack.enter_async_context(serving(service, protocol)))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack, pair = contextlib.AsyncExitStack(), Pair(runner)
        runner.run(start(stack, pair))
        try:
            check(pair)
            assert {302, 400, 404} <= pair.statuses
            assert pair.servers[0].app.paths.count(pair.paths["code"]) < pair.servers[1].app.paths.count(pair.paths["code"])
        finally:
            runner.run(stack.aclose())


@pytest.mark.parametrize(
    ("begin", "more"),
    [(b"GET /", b"a"), (b"GET / HTTP/1.1\r\nX-Long: ", b"a"), (b"GET / HTTP/1.1\r\n", b"a: b\r\n")],
    ids=["path", "header", "headers"],
)
async def test_a_head_without_end_is_refused_and_its_connection_closed(service: Service, begin: bytes, more: bytes) -> None:
    async with serving(service, timeout_keep_alive=30) as ours:
        reader, writer = await ours.connect()
        wire = await ours.wire()
        writer.write(begin)
        await until(lambda: wire._head is not None)
        head = wire._head
        assert head is not None
        writer.write((more * LONGEST_HEAD)[:LONGEST_HEAD])
        await until(lambda: head.size == LONGEST_HEAD)
        assert not wire.transport.is_closing()
        writer.write(b"a")  # and nothing behind it: the kernel resets a connection closed with bytes unread, and the answer is lost
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
        assert (status(answer), answer.rpartition(b"\r\n\r\n")[2]) == (400, b"The head of the request is too long.")
        await until(lambda: not ours.server.server_state.connections)


async def test_who_sends_no_request_or_only_drops_of_one_is_not_waited_for(service: Service) -> None:
    code = await link(service)
    async with serving(service, timeout_keep_alive=0.3) as ours:
        silent, _ = await ours.connect()
        slow, writer = await ours.connect()
        began = asyncio.get_running_loop().time()

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for byte in get(code) * 5:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.02)  # a head that comes in drops

        dripping = asyncio.create_task(drip())
        assert await asyncio.wait_for(silent.read(), PATIENCE) == b""
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(slow.read(), PATIENCE)
        assert asyncio.get_running_loop().time() - began < len(get(code)) * 0.02, "before the first head was there"
        dripping.cancel()
