"""Tests with random requests: RedirectProtocol must send the same responses as uvicorn's protocol."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shortener.server.http_protocol import RedirectProtocol
from shortener.server.request_line import encode_request_line
from tests.conftest import Clock
from tests.server.raw_http import (
    HOST,
    RunningServer,
    create_link,
    open_isolated_service,
    read_response,
    run_server,
    status_of,
    without_date,
)

TOKENS = st.from_regex(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}", fullmatch=True)
_KNOWN_HEADERS = b"Host User-Agent X-Forwarded-For Sec-Purpose Purpose Connection Content-Length Transfer-Encoding Upgrade Expect"
HEADER_NAMES = st.one_of(TOKENS, st.sampled_from(_KNOWN_HEADERS.split()))
HEADER_VALUES = st.one_of(
    st.sampled_from(
        b"s.example||s.example:1|go.brand.example|127.0.0.1|[::1]:80|close|keep-alive|Upgrade|h2c|websocket|0|3|chunked|100-continue"
        b"|prefetch|192.0.2.1, 198.51.100.7|Mozilla/5.0 (iPhone)".split(b"|")
    ),
    st.binary(max_size=24),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=24).map(lambda text: text.encode("latin-1")),
)
PATH_SUFFIXES = st.lists(
    st.sampled_from([".", "?", ")", "%22", "%E2%80%9D", "%e3%80%82", "#", "/", "x", "%", "\x01", "»", " "]), max_size=3
)
OTHER_PATHS = ["/portal", "/Docs.", "/healthz?", "*", "//", "http://s.example/abcd", "/nosuchcode"]


@settings(max_examples=3 * settings().max_examples, deadline=None)
@given(
    path=st.one_of(
        st.tuples(st.sampled_from(["code", "of_brand"]), PATH_SUFFIXES.map("".join)),
        st.tuples(st.just(""), st.from_regex(r"/[!-~]{0,40}", fullmatch=True)),
        st.tuples(st.just(""), st.sampled_from(OTHER_PATHS)),
    ),
    method=st.sampled_from([b"GET", b"GET", b"GET", b"HEAD", b"OPTIONS", b"get", b"GETX"]),
    version=st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0", b"0.9", b"2.0", b"1.2"]),
    host=st.sampled_from([[(b"Host", HOST)], [(b"hOST", b"go.brand.example")], []]),
    headers=st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=5),
    # Without Content-Length, the server reads the body as a second request, which is invalid. It responds to the first request
    # before it sends 400.
    body=st.sampled_from([b"", b"", b"abc"]),
)
# These examples are explicit, because with some random seeds no plain redirect request is generated.
@example(path=("code", ""), method=b"GET", version=b"1.1", host=[(b"Host", HOST)], headers=[], body=b"")
@example(path=("", "/nosuchcode"), method=b"GET", version=b"1.1", host=[(b"Host", HOST)], headers=[], body=b"")
@example(path=("code", ""), method=b"GET", version=b"1.1", host=[(b"Host", HOST)], headers=[], body=b"abc")
@example(
    path=("", "/"),
    method=b"GET",
    version=b"1.1",
    host=[(b"Host", HOST)],
    headers=[(b"Connection", b"Upgrade"), (b"Upgrade", b"\x80")],
    body=b"abc",
)
def compare_responses(
    pair: "ServerPair", path: tuple[str, str], method: bytes, version: bytes, host: Any, headers: Any, body: bytes
) -> None:
    # RedirectProtocol and uvicorn differ here: RedirectProtocol rejects Transfer-Encoding in other versions than 1.1
    # (tests/server/test_http_protocol_responses.py).
    assume(version == b"1.1" or all(name.lower() != b"transfer-encoding" for name, _ in headers))
    lines = [b"%s %s HTTP/%s" % (method, (pair.paths.get(path[0], "") + path[1]).encode(), version)]
    lines += [name + b": " + value for name, value in [*host, *headers]]
    pair.compare(b"\r\n".join([*lines, b"", body]), head=method == b"HEAD")


@dataclass
class ServerPair:
    """Two servers of one service on uvloop: one with RedirectProtocol, and as the reference one with uvicorn's protocol."""

    runner: asyncio.Runner
    paths: dict[str, str] = field(default_factory=dict)
    servers: list[RunningServer] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)

    def compare(self, request: bytes, *, head: bool) -> None:
        # uvicorn rejects raw UTF-8 in a URL. Therefore the reference server receives the request with percent-encoded bytes.
        requests = (request, encode_request_line(request))
        responses = [
            self.runner.run(self.first_response(server, one, head)) for server, one in zip(self.servers, requests, strict=True)
        ]
        assert responses[0] == responses[1]
        self.statuses.add(status_of(responses[0]))

    async def first_response(self, server: RunningServer, request: bytes, head: bool) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write(request)
            return without_date(await read_response(reader, head=head))
        finally:
            writer.close()


def test_any_path_and_headers_get_the_same_response_as_from_uvicorn(tmp_path: Path, clock: Clock) -> None:
    async def start(stack: contextlib.AsyncExitStack, pair: ServerPair) -> None:
        service = await stack.enter_async_context(open_isolated_service(tmp_path, clock))
        pair.paths = {"code": await create_link(service), "of_brand": await create_link(service, 2)}
        for protocol in (RedirectProtocol, HttpToolsProtocol):
            pair.servers.append(await stack.enter_async_context(run_server(service, protocol)))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack, pair = contextlib.AsyncExitStack(), ServerPair(runner)
        runner.run(start(stack, pair))
        try:
            compare_responses(pair)
            assert {302, 400, 404} <= pair.statuses
            assert pair.servers[0].app.paths.count(pair.paths["code"]) < pair.servers[1].app.paths.count(pair.paths["code"])
        finally:
            runner.run(stack.aclose())
