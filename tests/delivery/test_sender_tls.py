"""Sender: certificates and TLS errors."""
# Part of the tests of shortener/delivery/sender.py.

import asyncio
from pathlib import Path

import pytest

from shortener.delivery.guard import Guard
from shortener.delivery.sender import Sender
from tests.delivery.receiver import hang, receiver, respond
from tests.delivery.sending import DEADLINE, post
from tests.servers import self_signed, tls_context


async def test_a_trusted_certificate_is_accepted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = tls_context(certificate)
    async with receiver(respond(200), tls) as peer, Sender(Guard(allow_private=True), user_agent="test", limit=1) as sender:
        assert (await post(sender, peer.url())).status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
async def test_an_unknown_certificate_or_another_name_is_a_tls_error(
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


async def test_https_to_a_plain_or_silent_port_ends_in_time(sender: Sender) -> None:
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
