"""Tests of an SMPP session: PDUs of the SMSC that are not responses to messages."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from shortener.gateways.smpp.pdus import ReceivedPdu
from shortener.gateways.smpp.session import BindRefused, SessionLost, SmppSession, open_session
from tests.gateways.smpp.smsc import Smsc, build, running_smsc
from tests.servers import PATIENCE


async def handle(pdu: ReceivedPdu) -> int:
    return 0


async def opened(smsc: Smsc) -> SmppSession:
    return await open_session(
        ["127.0.0.1"],
        smsc.port,
        "127.0.0.1",
        None,
        handle,
        window=2,
        idle=60,
        timeout=20,
        command="bind_transceiver",
        system_id="shortener",
        password="",
    )


async def test_the_smpp_session_responds_to_requests_of_the_smsc() -> None:
    async with running_smsc() as smsc:
        session = await opened(smsc)
        smsc.writers[0].write(build("enquire_link", 1))
        await smsc.wait_for(lambda: "enquire_link_resp" in smsc.commands)
        smsc.writers[0].write(struct.pack(">LLLL", 16, 0x0111, 0, 2))  # SMPP 3.4 does not define this command
        await smsc.wait_for(lambda: "generic_nack" in smsc.commands)
        assert session.is_open
        smsc.writers[0].write(build("unbind", 3))
        await smsc.wait_for(lambda: "unbind_resp" in smsc.commands)
        assert not session.is_open
        with pytest.raises(SessionLost) as raised:
            await session.submit(1.0, lambda response: None, short_message=b"x")
        assert not raised.value.was_sent
        await session.close()


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\1"])
async def test_bytes_that_are_not_an_smpp_pdu_end_the_session(data: bytes) -> None:
    async with running_smsc() as smsc:
        session = await opened(smsc)
        smsc.writers[0].write(data)
        async with asyncio.timeout(PATIENCE):
            while session.is_open:
                await asyncio.sleep(0.01)  # wait a moment before the condition is checked again
        await session.close()


async def test_a_deliver_sm_that_cannot_be_parsed_is_rejected_and_the_session_continues() -> None:
    async with running_smsc() as smsc:
        session = await opened(smsc)
        smsc.writers[0].write(struct.pack(">LLLL", 20, 5, 0, 1) + b"abcd")
        await smsc.wait_for(lambda: "generic_nack" in smsc.commands)
        assert (await session.submit(20.0, lambda response: None, short_message=b"x")).status == 0
        await session.close()


async def test_a_generic_nack_pdu_ends_the_smpp_request_with_its_error_status() -> None:
    async with running_smsc(decide=lambda pdu: None) as smsc:
        session = await opened(smsc)
        waiting = asyncio.create_task(session.submit(20.0, lambda response: None, short_message=b"x"))
        await smsc.wait_for(lambda: bool(smsc.submitted))
        smsc.writers[0].write(struct.pack(">LLLL", 16, 0x80000000, 2, smsc.submitted[0].sequence))
        assert (await waiting).status == 2
        await session.close()


async def test_a_refused_smpp_bind_raises_an_error_with_the_status_of_the_smsc() -> None:
    async with running_smsc(bind_status=0x0D) as smsc:
        with pytest.raises(BindRefused) as raised:
            await opened(smsc)
        assert raised.value.status == 0x0D


async def test_the_smpp_session_stops_reading_while_the_smsc_does_not_read_its_responses() -> None:
    requests = 40_000
    loop = asyncio.get_running_loop()
    smsc, client = socket.socketpair()
    for one in (smsc, client):
        one.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=client)
    session = SmppSession(reader, writer, handle, 2, 60.0)
    binding = asyncio.create_task(session.bind("bind_transceiver", 20.0, system_id="x", password="", system_type=""))
    header = await loop.sock_recv(smsc, 16)
    await loop.sock_sendall(smsc, struct.pack(">LLLL", 17, 0x80000009, 0, int.from_bytes(header[12:16], "big")) + b"\0")
    await binding
    await loop.sock_recv(smsc, 1000)  # read the body of the bind request
    sending = asyncio.create_task(loop.sock_sendall(smsc, build("enquire_link", 1) * requests))
    async with asyncio.timeout(PATIENCE):
        while not sending.done() and not writer.transport.get_write_buffer_size():
            await asyncio.sleep(0)
    for _ in range(200):  # enough rounds to read all requests
        await asyncio.sleep(0)
    assert writer.transport.get_write_buffer_size() < 300_000
    received = 0
    async with asyncio.timeout(PATIENCE):
        while received < requests * 16:
            received += len(await loop.sock_recv(smsc, 1_000_000))
        await sending
    smsc.close()
    await session.close()
