"""Tests of the certificates that the connection to an SMPP gateway accepts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shortener.delivery.guard import Guard
from shortener.gateways.smpp.connection import NotConnected, SmppConnection
from shortener.gateways.smpp.pdus import ReceivedPdu
from shortener.gateways.smpp.settings import SmppSettings
from tests.gateways.smpp.smsc import Smsc
from tests.servers import self_signed, tls_context

TIMEOUT = 20.0


def certificate_in(file: Path) -> str:
    """Return the certificate from a file that contains a key and a certificate."""
    _, begin, rest = file.read_text().partition("-----BEGIN CERTIFICATE")
    return begin + rest


async def bind(file: Path, *, is_trusted: bool) -> Smsc:
    """Bind to an SMSC that has the certificate in `file`. `is_trusted`: the setting `tls_ca` contains the certificate."""

    async def handle(pdu: ReceivedPdu) -> int:
        return 0

    smsc = Smsc()
    server = await asyncio.start_server(smsc.serve, "127.0.0.1", 0, ssl=tls_context(file))
    port = server.sockets[0].getsockname()[1]
    settings = SmppSettings(url=f"smpps://127.0.0.1:{port}", system_id="x", tls_ca=certificate_in(file) if is_trusted else "")
    connection = SmppConnection("x", settings, Guard(allow_private=True), handle, receives=True)
    try:
        assert (await connection.session(TIMEOUT)).is_open
    finally:
        await connection.close()
        smsc.drop()
        server.close()
        await asyncio.gather(*smsc.tasks, return_exceptions=True)
    return smsc


async def test_the_session_is_bound_if_tls_ca_contains_the_certificate(tmp_path: Path) -> None:
    assert len((await bind(self_signed(tmp_path, "127.0.0.1"), is_trusted=True)).binds) == 1


@pytest.mark.parametrize(
    ("host", "valid_days", "is_trusted", "reason"),
    [
        ("127.0.0.2", 1, True, "IP address mismatch"),
        ("127.0.0.1", -1, True, "certificate has expired"),
        ("127.0.0.1", 1, False, "self-signed certificate"),
    ],
)
async def test_a_wrong_an_expired_and_an_unknown_certificate_are_refused_with_the_reason(
    tmp_path: Path, host: str, valid_days: int, is_trusted: bool, reason: str
) -> None:
    with pytest.raises(NotConnected, match=reason) as raised:
        await bind(self_signed(tmp_path, host, valid_days=valid_days), is_trusted=is_trusted)
    assert raised.value.reason == "tls_error"
