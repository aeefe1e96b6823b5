"""These tests check responses, time limits, memory use and local failures of the sender with local receivers."""

import asyncio
import errno
import gzip
import socket
import tracemalloc
from collections.abc import Callable

import aiohttp
import pytest
import uvloop
from aiohttp.connector import Connection

from shortener.delivery.guard import Guard
from shortener.delivery.http_exchange import EXCERPT_BYTES, OutgoingRequest
from shortener.delivery.http_sender import HttpSender
from shortener.delivery.receiver_connection import MAX_BODY_BYTES, SendState
from shortener.delivery.send_failures import ERRORS
from shortener.delivery.sender import Sender
from tests.delivery.receiver import Behaviour, drip, flood, hang, hang_up, receiver, reset, respond, send_bytes, then
from tests.delivery.sending import DEADLINE, DEADLINES, GRACE, PLENTY, attempt, attempt_on_idle_connection, post
from tests.servers import PATIENCE

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("status", [101, 200, 201, 204, 301, 302, 304, 307, 308, 400, 401, 404, 410, 429, 500, 503, 599])
async def test_the_sender_returns_every_http_status(sender: Sender, status: int) -> None:
    result, _ = await attempt(sender, respond(status))
    assert (result.status, result.error, result.is_local) == (status, None, False)
    assert result.body == (b"" if status in (101, 204, 304) else b"ok")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        ("Fri, 20 Nov 2026 12:05:00 GMT", 300.0),
        ("315360000", 86400.0),
        ("-3", 1.0),
        ("soon", None),
    ],
)
async def test_the_sender_returns_the_retry_after_header_in_seconds(sender: Sender, text: str, seconds: float | None) -> None:
    result, _ = await attempt(sender, respond(429, Retry_After=text))
    assert (result.status, result.retry_after) == (429, seconds)


@pytest.mark.parametrize(
    ("behaviour", "status", "error"),
    [
        pytest.param(hang, None, "timeout", id="no answer"),
        pytest.param(drip(b"H"), None, "protocol_error", id="drip of what is not HTTP"),
        pytest.param(then(send_bytes(HEAD), drip(b"X-A: b\r\n")), 200, "timeout", id="header drip"),
        pytest.param(then(send_bytes(HEAD + b"X-A: "), drip(b"b")), 200, "timeout", id="drip inside a header"),
        pytest.param(then(send_bytes(HEAD + b"Content-Length: 9999\r\n\r\n"), drip(b"b")), 200, "timeout", id="body drip"),
        pytest.param(then(send_bytes(CHUNKED), drip(b"1\r\nb\r\n")), 200, "timeout", id="chunked body drip"),
        pytest.param(drip(b"HTTP/1.1 100 Continue\r\n\r\n"), None, "timeout", id="interim answer drip"),
        pytest.param(flood(b"HTTP/1.1 100 Continue\r\n\r\n" * 500), None, "too_large", id="interim answer flood"),
        pytest.param(then(send_bytes(HEAD + b"\r\n"), flood(b"x" * 60_000)), 200, None, id="endless body"),
        pytest.param(then(send_bytes(CHUNKED), flood(b"1\r\nb\r\n" * 5000)), 200, "too_large", id="endless chunks"),
        pytest.param(send_bytes(HEAD + b"Content-Length: 70000\r\n\r\n", b"x" * 70_000), 200, None, id="long body"),
        pytest.param(then(send_bytes(HEAD + b"X-A: " + b"b" * 65_536 + b"\r\n\r\n"), hang_up), 200, None, id="64 KiB header"),
        pytest.param(send_bytes(HEAD + b"X-A: b\r\n" * 1000 + b"Content-Length: 2\r\n\r\nok"), 200, None, id="1,000 header lines"),
        pytest.param(then(send_bytes(HEAD + b"X-A: "), flood(b"b" * 60_000)), 200, "too_large", id="endless header"),
        pytest.param(send_bytes(HEAD + b"Content-Length: 1\r\n\r\nok"), 200, "protocol_error", id="one byte too many"),
        pytest.param(
            send_bytes(HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok"), 200, "protocol_error", id="length twice"
        ),
        pytest.param(
            send_bytes(b"HTTP/1.1 100 Continue\r\n\r\n", HEAD, b"X\x00: b\r\n\r\n"), 200, "protocol_error", id="bad header"
        ),
        pytest.param(drip(b"HTTP/1.1 200 "), None, "timeout", id="drip of the start of a status line"),
        pytest.param(then(send_bytes(b"HTTP/1.1 200 O"), hang), None, "timeout", id="part of a status line"),
        pytest.param(then(send_bytes(HEAD), flood(b"X-A: b\r\n" * 1000)), 200, "protocol_error", id="endless headers"),
        pytest.param(hang_up, None, "connection_reset", id="hang up"),
        pytest.param(reset, None, "connection_reset", id="reset"),
        pytest.param(then(send_bytes(HEAD + b"Content-Length: 9\r\n\r\nabc"), hang_up), 200, "protocol_error", id="body cut off"),
        pytest.param(
            then(send_bytes(HEAD + b"Content-Length: 9\r\n\r\nabc"), reset), 200, "protocol_error", id="reset in the body"
        ),
        pytest.param(send_bytes(CHUNKED + b"zz\r\n"), 200, "protocol_error", id="malformed chunk"),
        pytest.param(send_bytes(b"220 mail.example ESMTP\r\n"), None, "protocol_error", id="not HTTP"),
        pytest.param(send_bytes(HEAD + b"Content-Length: 1, 2\r\n\r\n"), 200, "protocol_error", id="malformed length"),
        pytest.param(
            then(send_bytes(b"HTTP/1.1 429 Slow\r\nRetry-After: 9\r\n\r\n"), hang), 429, "timeout", id="429 without an end"
        ),
    ],
)
async def test_a_request_ends_within_its_time_limit_whatever_the_receiver_does(
    sender: Sender, behaviour: Behaviour, status: int | None, error: str | None
) -> None:
    for deadline in DEADLINES if error == "timeout" else (PLENTY,):
        # Both attempts can last until their time limits. They run at the same time, which makes the test faster.
        (result, _), on_idle_connection = await asyncio.gather(
            attempt(sender, behaviour, deadline), attempt_on_idle_connection(sender, behaviour, deadline)
        )
        results = [result, on_idle_connection]
        if {result.status for result in results} == {status}:
            break
    for result in results:
        assert (result.status, result.error, result.is_local) == (status, error, False), result.detail
        assert bool(result.detail) == (error is not None)
        assert len(result.body) <= MAX_BODY_BYTES
        assert error is None or error in ERRORS


async def test_the_sender_returns_the_part_of_the_body_that_arrived_before_the_time_limit(sender: Sender) -> None:
    for deadline in DEADLINES:
        result, _ = await attempt(sender, then(send_bytes(b"HTTP/1.1 503 Busy\r\nRetry-After: 9\r\n\r\nsorry"), hang), deadline)
        if result.body:
            break
    assert (result.status, result.error, result.retry_after, result.body) == (503, "timeout", 9.0, b"sorry")


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "rest",
    [
        b"X-A: " + b"b" * 200_000 + b"\r\n\r\n",
        b"X-A: b\r\n" * 20_000 + b"\r\n",
        b"no header\r\n\r\n",
        b"X\x00: b\r\n\r\n",
        b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"",
    ],
)
async def test_the_sender_returns_the_retry_after_header_also_if_the_other_headers_are_malformed_or_huge(
    sender: Sender, status: int, rest: bytes
) -> None:
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 %d Busy\r\nrEtry-after:  9 \r\n" % status
    for behaviour in (then(send_bytes(head + rest), hang_up), then(send_bytes(head[:-4], head[-4:]), send_bytes(rest), hang_up)):
        result, _ = await attempt(sender, behaviour)
        assert (result.status, result.retry_after) == (status, 9.0)
        assert (await attempt_on_idle_connection(sender, behaviour, PLENTY)).retry_after == 9.0


@pytest.mark.parametrize(
    "rest", [b"no header\r\n\r\nRetry-After: 9\r\n", b"no header\r\nX-Retry-After: 9\r\n", b"no header\r\nRetry-After: 9"]
)
async def test_a_retry_after_outside_of_the_headers_or_without_its_end_has_no_effect(sender: Sender, rest: bytes) -> None:
    result, _ = await attempt(sender, then(send_bytes(b"HTTP/1.1 503 Busy\r\n" + rest), hang_up))
    assert (result.status, result.retry_after) == (503, None)


async def test_the_sender_does_not_decompress_a_gzip_bomb(sender: Sender) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    assert len(bomb) < MAX_BODY_BYTES
    result, peer = await attempt(sender, respond(200, bomb, Content_Encoding="gzip"))
    assert (result.status, result.error, result.body) == (200, None, bomb)
    assert b"Accept-Encoding: identity\r\n" in peer.requests[0][0]


async def test_endless_responses_use_a_limited_amount_of_memory(sender: Sender) -> None:
    peers = [
        flood(b"HTTP/1.1 100 Continue\r\n\r\n" * 500),
        then(send_bytes(HEAD + b"\r\n"), flood(b"x" * 60_000)),
        drip(HEAD + b"X-A: b", 0),
    ]
    await attempt(sender, respond(200))
    tracemalloc.start()
    try:
        for behaviour in peers:
            async with receiver(behaviour) as peer:
                await asyncio.gather(*(post(sender, peer.url(), 5) for _ in range(4)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000  # the limit includes the memory of client and server for 4 connections


async def test_the_stored_excerpt_is_the_first_kib_of_the_response_body(sender: Sender) -> None:
    text = b"x" * (MAX_BODY_BYTES - 4) + b"good"
    result, _ = await attempt(sender, respond(200, text))
    assert result.error is None
    assert result.body == text
    assert result.excerpt == text[:EXCERPT_BYTES]


async def test_the_sender_never_follows_redirects(sender: Sender) -> None:
    async with receiver(respond(200)) as elsewhere:
        result, peer = await attempt(sender, respond(307, Location=elsewhere.url("/metadata")))
        assert result.status == 307
        assert elsewhere.connections == 0
        assert len(peer.requests) == 1


async def test_the_sender_does_not_store_cookies(sender: Sender) -> None:
    async with receiver(respond(200, Set_Cookie="tenant=a; Path=/")) as peer:
        await post(sender, peer.url())
        await post(sender, peer.url())
    assert b"cookie" not in peer.requests[1][0].lower()


async def test_the_sender_ignores_proxies_in_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver(respond(500)) as proxy, receiver(respond(200)) as peer:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url())
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        async with Sender(Guard(allow_private=True), user_agent="test", limit=1) as sender:
            assert (await post(sender, peer.url())).status == 200
        assert proxy.connections == 0


async def test_a_connection_is_reused_after_a_complete_response(sender: Sender) -> None:
    async with receiver(respond(200)) as peer:
        for _ in range(3):
            await post(sender, peer.url())
        assert (peer.connections, len(peer.requests)) == (1, 3)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda url: OutgoingRequest(
            "POST", url + "?a=%41&b", {"Content-Type": "text/x", "authorization": "Basic eA=="}, b"raw \xff"
        ),
        lambda url: OutgoingRequest("PUT", url + "#fragment", {"Content-Type": "application/json"}, b""),
        lambda url: OutgoingRequest("GET", url, {"webhook-id": "evt_1"}),
        lambda url: OutgoingRequest("POST", url, {"USER-AGENT": "own", "accept": "text/x"}, b"x"),
        lambda url: OutgoingRequest("POST", url.replace("//", "//user:secret@", 1), {}, b"x"),
        lambda url: OutgoingRequest("POST", url.rstrip("/") + "?path=/a/b", {}, b"x"),
    ],
    ids=["body", "empty body", "GET", "own headers", "credentials", "no path"],
)
async def test_requests_on_a_new_and_on_an_idle_connection_have_the_same_bytes(
    sender: Sender, request_of: Callable[[str], OutgoingRequest]
) -> None:
    async with receiver(respond(200)) as peer:
        results = [await sender.send(request_of(peer.url()), PLENTY) for _ in range(3)]
        assert (peer.connections, len(peer.requests), {result.status for result in results}) == (1, 3, {200})
    assert peer.requests[0] == peer.requests[1] == peer.requests[2]


@pytest.mark.parametrize(("version", "sent"), [(aiohttp.__version__, 2), ("3.99.0", 0)])
async def test_only_with_a_known_version_of_aiohttp_requests_are_sent_without_its_request_objects(
    sender: Sender, monkeypatch: pytest.MonkeyPatch, version: str, sent: int
) -> None:
    taken: list[object] = []

    async def exchange_on(self: HttpSender, connection: Connection, data: bytes, attempt: SendState) -> None:
        taken.append(connection)
        await original(self, connection, data, attempt)

    original = HttpSender._exchange_on
    monkeypatch.setattr(HttpSender, "_exchange_on", exchange_on)
    monkeypatch.setattr(aiohttp, "__version__", version)
    async with receiver(respond(200)) as peer:
        results = [await post(sender, peer.url()) for _ in range(3)]
        assert (peer.connections, len(peer.requests), {result.status for result in results}) == (1, 3, {200})
    assert len(taken) == sent


async def test_a_header_with_a_line_break_is_not_sent_on_an_idle_connection(sender: Sender) -> None:
    async with receiver(respond(200)) as peer:
        await sender.send(OutgoingRequest("POST", peer.url(), {"X-One": "1"}, b"x"), PLENTY)
        result = await sender.send(OutgoingRequest("POST", peer.url(), {"X-One": "1\r\nX-Two: 2"}, b"x"), PLENTY)
        assert (result.status, result.error, len(peer.requests)) == (None, "internal_error", 1)


async def test_a_request_that_was_cancelled_on_an_idle_connection_closes_the_connection(sender: Sender) -> None:
    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (hang if len(peer.requests) == 2 else respond(200))(reader, writer)

    async with receiver(behaviour) as peer:
        await post(sender, peer.url())
        assert (await post(sender, peer.url(), DEADLINE)).error == "timeout"
        assert (await post(sender, peer.url())).status == 200
        assert peer.connections == 2


async def test_a_connection_is_not_reused_after_an_incomplete_response(sender: Sender) -> None:
    async with receiver(send_bytes(HEAD + b"Content-Length: 900000\r\n\r\n", b"x" * 900_000)) as peer:
        for _ in range(2):
            await post(sender, peer.url())
        assert peer.connections == 2


async def test_the_sender_sends_method_url_headers_and_body_unchanged(sender: Sender) -> None:
    path = "/a//b/../%2e%2F/[x];y=1?phone=%2B1415&u[0]=%41&empty=&q=a+b?c/d'(e)*!"
    async with receiver(respond(200)) as peer:
        request = OutgoingRequest("POST", peer.url(path), {"Content-Type": "text/x", "X-One": "two"}, b"raw \xff")
        await sender.send(request, PLENTY)
    head, body = peer.requests[0]
    lines = head.split(b"\r\n")
    assert lines[0] == f"POST {path} HTTP/1.1".encode()
    assert {b"Content-Type: text/x", b"X-One: two", b"User-Agent: test", f"Host: 127.0.0.1:{peer.port}".encode()} <= set(lines)
    assert body == b"raw \xff"


async def test_a_get_request_has_no_body(sender: Sender) -> None:
    async with receiver(respond(200)) as peer:
        await sender.send(OutgoingRequest("GET", peer.url("/x?a=1"), {}, b"ignored"), PLENTY)
    head, body = peer.requests[0]
    assert head.startswith(b"GET /x?a=1 HTTP/1.1\r\n")
    assert (body, b"content-length" in head.lower()) == (b"", False)


async def test_a_refused_connection_is_reported_as_connection_refused(sender: Sender) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        result = await post(sender, f"http://127.0.0.1:{bound.getsockname()[1]}/")
    assert (result.status, result.error, result.is_local) == (None, "connection_refused", False)


async def test_a_request_ends_in_time_if_the_receiver_never_accepts_the_connection(sender: Sender) -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        result = await post(sender, f"http://127.0.0.1:{full.getsockname()[1]}/", DEADLINE)
    assert (result.status, result.error, result.is_local) == (None, "timeout", False)
    assert result.milliseconds < (DEADLINE + GRACE) * 1000


def closes_after_each_response(status_line: bytes = HEAD) -> Behaviour:
    """Return a behaviour that sends a response without `Connection: close` and then closes the connection."""
    return then(send_bytes(status_line + b"Content-Length: 2\r\n\r\nok"), hang_up)


@pytest.mark.parametrize("close", [hang_up, reset], ids=["closed", "reset"])
async def test_a_request_on_an_idle_connection_that_the_receiver_closed_is_sent_again_at_once(
    sender: Sender, close: Behaviour
) -> None:
    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(peer.requests) in (2, 4):  # this request is the second request on its connection
            await close(reader, writer)
        else:
            await respond(200)(reader, writer)

    async with receiver(behaviour) as peer:
        results = [await post(sender, peer.url()) for _ in range(3)]
    assert [(result.status, result.error) for result in results] == [(200, None)] * 3
    assert (len(peer.requests), peer.connections) == (5, 3)


async def test_a_receiver_that_closes_connections_without_announcing_this_in_a_header_gets_each_request_once(
    sender: Sender,
) -> None:
    async with receiver(closes_after_each_response()) as peer:
        results = await asyncio.gather(*(post(sender, peer.url()) for _ in range(20)))
        results += [await post(sender, peer.url()) for _ in range(20)]
    assert {(result.status, result.error) for result in results} == {(200, None)}
    assert len(peer.requests) == 40


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}], ids=["", "connection: close"])
async def test_a_request_that_must_not_be_repeated_shares_its_connection_with_no_other_request(
    sender: Sender, headers: dict[str, str]
) -> None:
    async with receiver(respond(200)) as peer:  # the receiver ignores `Connection: close`
        once = OutgoingRequest("POST", peer.url(), headers, b"x", may_repeat=False)
        other = OutgoingRequest("POST", peer.url(), {}, b"x")
        results = [await sender.send(request, PLENTY) for request in (other, once, once, other, once)]
        assert {(result.status, result.error) for result in results} == {(200, None)}
        # The two requests `other` share a connection, and each of the three requests `once` has its own connection.
        assert (len(peer.requests), peer.connections) == (5, 4)


async def test_a_request_that_fails_on_a_new_connection_is_sent_once(sender: Sender) -> None:
    result, peer = await attempt(sender, reset)
    assert (result.error, len(peer.requests)) == ("connection_reset", 1)


@pytest.mark.parametrize("behaviour", [hang, hang_up, reset, send_bytes(b"garbage\r\n"), send_bytes(HEAD + b"X\0\r\n\r\n")])
async def test_the_error_text_of_a_failed_request_does_not_contain_the_url(sender: Sender, behaviour: Behaviour) -> None:
    async with receiver(behaviour) as peer:
        for url in (peer.url("/in?token=SECRET"), peer.url("/in?token=SECRET").replace("http:", "https:")):
            result = await post(sender, url, DEADLINE)
            assert "SECRET" not in result.detail
            assert "127.0.0.1" not in result.detail
    for url in (peer.url("/?token=SECRET"), "http://name.invalid/?token=SECRET", "http://[::1]:1/?token=SECRET"):
        result = await post(sender, url)
        assert "SECRET" not in result.detail
        assert "127.0.0.1" not in result.detail
    odd = OutgoingRequest("POST", peer.url("/?token=SECRET"), {"X-A": "SECRET\r\n"}, b"")
    assert "SECRET" not in (await sender.send(odd, PLENTY)).detail


@pytest.mark.parametrize("number", [None, errno.EPIPE, errno.ENOTCONN, errno.EPROTO, errno.EHOSTDOWN])
async def test_an_error_that_is_not_clearly_local_counts_against_the_receiver(number: int | None) -> None:
    class Failing(Guard):
        def socket_factory(self, info: aiohttp.AddrInfoType) -> socket.socket:
            raise OSError(number, "text") if number else OSError("text")

    async with Sender(Failing(allow_private=True), user_agent="test", limit=1) as sender:
        result = await post(sender, "http://127.0.0.1:1/")
    assert (result.status, result.error, result.is_local) == (None, "connection_reset", False)


async def test_a_request_without_a_free_socket_is_a_local_failure() -> None:
    class Exhausted(Guard):
        def socket_factory(self, info: aiohttp.AddrInfoType) -> socket.socket:
            raise OSError(errno.EMFILE, "Too many open files")

    async with Sender(Exhausted(allow_private=True), user_agent="test", limit=1) as sender:
        result = await post(sender, "http://127.0.0.1:1/")
    assert (result.status, result.error, result.is_local) == (None, "local_error", True)


async def test_a_request_that_waits_too_long_for_a_slot_of_the_sender_is_a_local_failure() -> None:
    async with receiver(hang) as peer, Sender(Guard(allow_private=True), user_agent="test", limit=1) as sender:
        first = asyncio.create_task(post(sender, peer.url(), deadline=PATIENCE))
        await peer.received.wait()
        second = await post(sender, peer.url(), DEADLINE)
        assert (second.error, second.is_local) == ("no_slot", True)
        assert not first.done(), "the first request still uses the only slot"
        first.cancel()


async def test_a_request_that_cannot_be_sent_counts_as_an_attempt(sender: Sender) -> None:
    async with receiver(respond(200)) as peer:
        result = await sender.send(OutgoingRequest("POST", peer.url(), {"X-A": "b\r\nX-C: d"}, b""), PLENTY)
        assert (result.status, result.error, result.is_local) == (None, "internal_error", False)
        assert peer.requests == []


async def test_a_cancelled_request_raises_cancelled_error(sender: Sender) -> None:
    async with receiver(hang) as peer:
        task = asyncio.create_task(post(sender, peer.url(), deadline=PATIENCE))
        await peer.received.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_the_sender_returns_the_same_results_with_uvloop_as_with_asyncio() -> None:
    async def scene() -> list[tuple[int | None, str | None]]:
        found = []
        async with Sender(Guard(allow_private=True), user_agent="test", limit=8) as sender:
            for behaviour in (
                respond(200),
                hang,
                hang_up,
                flood(b"HTTP/1.1 100 Continue\r\n\r\n" * 500),
                then(send_bytes(HEAD + b"\r\n"), flood(b"x" * 60_000)),
            ):
                result, _ = await attempt(sender, behaviour, DEADLINE if behaviour is hang else PLENTY)
                found.append((result.status, result.error))
            with socket.socket() as bound:
                bound.bind(("127.0.0.1", 0))
                result = await post(sender, f"http://127.0.0.1:{bound.getsockname()[1]}/")
                found.append((result.status, result.error))
        async with receiver(respond(200)) as local_server, Sender(Guard(), user_agent="test", limit=8) as guarded:
            for host in ("127.0.0.1", "localhost", "[::1]"):
                result = await post(guarded, f"http://{host}:{local_server.port}/")
                found.append((result.status, result.error))
            assert local_server.connections == 0
        return found

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(scene()) == [
            (200, None),
            (None, "timeout"),
            (None, "connection_reset"),
            (None, "too_large"),
            (200, None),
            (None, "connection_refused"),
            (None, "blocked_address"),
            (None, "blocked_address"),
            (None, "blocked_address"),
        ]
