"""These tests check how the sender handles certificates and TLS errors."""
# Part of the tests of shortener/delivery/sender.py.

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from shortener.delivery.guard import Guard
from shortener.delivery.http_exchange import SendResult
from shortener.delivery.receiver_connection import default_tls_context
from shortener.delivery.sender import Sender
from tests.delivery.receiver import Behaviour, hang, hang_up, receiver, reset, respond, send_bytes
from tests.delivery.sending import DEADLINE, GRACE, post
from tests.receiver import LoopbackServer
from tests.servers import self_signed, tls_context


async def test_the_sender_accepts_a_receiver_with_a_trusted_certificate(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = tls_context(certificate)
    async with receiver(respond(200), tls) as peer, Sender(Guard(allow_private=True), user_agent="test", limit=1) as sender:
        assert (await post(sender, peer.url())).status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
async def test_an_untrusted_certificate_or_a_certificate_for_another_name_is_a_tls_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    certificate = self_signed(tmp_path, host)
    tls = tls_context(certificate)
    if host != "127.0.0.1":
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with receiver(respond(200), tls) as peer, Sender(Guard(allow_private=True), user_agent="test", limit=1) as sender:
        result = await post(sender, peer.url())
        assert (result.status, result.error, result.is_local) == (None, "tls_error", False)
        assert peer.requests == []


async def test_an_https_request_to_a_port_without_tls_or_without_response_ends_in_time(sender: Sender) -> None:
    async with receiver(hang) as silent:
        assert (await post(sender, silent.url().replace("http:", "https:"), DEADLINE)).error == "timeout"

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    async with server:
        result = await post(sender, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    assert (result.status, result.error, result.is_local) == (None, "tls_error", False)


class RawServer(LoopbackServer):
    """A local server that calls the function `behaviour` for each new connection and reads no request itself."""

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__()
        self.behaviour = behaviour

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.behaviour(reader, writer)


async def close_in_the_handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.close()


@pytest.mark.parametrize(
    ("behaviour", "errors"),
    [
        pytest.param(close_in_the_handshake, {"tls_error"}, id="closed in the handshake"),
        pytest.param(hang_up, {"tls_error", "connection_reset"}, id="closed before the handshake"),
        pytest.param(reset, {"tls_error", "connection_reset"}, id="reset before the handshake"),
        pytest.param(send_bytes(b"\x15\x03\x03\x00\x02\x02\x28"), {"tls_error"}, id="handshake refused"),
    ],
)
@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_broken_tls_handshake_counts_against_the_receiver(
    behaviour: Behaviour, errors: set[str], loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def scene() -> SendResult:
        server = RawServer(behaviour)
        async with server.listen("127.0.0.1"), Sender(Guard(allow_private=True), user_agent="test", limit=1) as sender:
            return await post(sender, f"https://127.0.0.1:{server.port}/?token=SECRET")

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        result = runner.run(scene())
    assert (result.status, result.is_local) == (None, False)
    assert result.error in errors
    assert result.detail
    assert "SECRET" not in result.detail


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_request_without_the_required_client_certificate_counts_as_an_attempt(
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: ssl.TLSVersion,
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = tls_context(certificate)
    tls.minimum_version = tls.maximum_version = version
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(certificate)

    async def scene() -> SendResult:
        async with receiver(respond(200), tls) as peer, Sender(Guard(allow_private=True), user_agent="test", limit=1) as sender:
            return await post(sender, peer.url())

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        result = runner.run(scene())
    assert (result.status, result.is_local) == (None, False)
    assert result.error in ("tls_error", "connection_reset")  # in TLS 1.3, the connection may be reset before the alert is read


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_invalid_bytes_after_the_tls_handshake_count_against_the_receiver(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = tls_context(certificate)

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        side = tls.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                connection.sendall(outgoing.read())
                incoming.write(connection.recv(65536))
            else:
                break
        connection.sendall(outgoing.read())
        while True:  # Read the request. A part of it may have arrived together with the last message of the handshake.
            try:
                side.read(65536)
            except ssl.SSLWantReadError:
                incoming.write(connection.recv(65536))
            else:
                break
        connection.sendall(b"garbage " * 100)
        connection.recv(65536)
        connection.close()

    async def scene(port: int) -> SendResult:
        async with Sender(Guard(allow_private=True), user_agent="test", limit=1) as sender:
            return await post(sender, f"https://127.0.0.1:{port}/", 5)

    with socket.create_server(("127.0.0.1", 0)) as listener, asyncio.Runner(loop_factory=loop_factory) as runner:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        result = runner.run(scene(listener.getsockname()[1]))
        thread.join(GRACE)
    assert (result.status, result.is_local) == (None, False)
    assert result.error in ("tls_error", "timeout")  # uvloop sometimes reports no error, so that the request times out


def test_all_senders_share_one_tls_context_until_the_path_of_the_certificate_authorities_changes(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = default_tls_context()
    assert default_tls_context() is context
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert default_tls_context() is not context
