"""A fake SMSC in the test process. It accepts sessions, stores each submit_sm, and sends the response that a test selects."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from smpplib import smpp

from tests.servers import PATIENCE

#: The response to a submit_sm: a command status, or None for no response.
Decision = Callable[[Any], int | None]


@dataclass
class Smsc:
    """A running SMSC.

    `submitted`: the received submit_sm PDUs in order. `delivered`: the status of each received deliver_sm_resp."""

    port: int = 0
    bind_status: int = 0
    decide: Decision = lambda pdu: 0
    submitted: list[Any] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)
    binds: list[Any] = field(default_factory=list)
    answers_enquire_link: bool = True
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _sequence: int = 0

    def message_id(self, pdu: Any) -> str:
        """Return the id that the SMSC gives to a message. It contains the sequence number of the submit_sm."""
        return f"id-{pdu.sequence}"

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition is true. The condition is examined after each received PDU."""
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(condition), PATIENCE)

    def deliver(self, text: bytes, **fields: Any) -> None:
        """Send a deliver_sm on the latest session."""
        addresses: dict[str, Any] = {"source_addr": "14085550100", "destination_addr": "18775550100", "data_coding": 0}
        self._sequence += 1
        self.writers[-1].write(build("deliver_sm", self._sequence, short_message=text, **addresses | fields))

    def respond(self, pdu: Any, status: int = 0) -> None:
        """Send the response to a submit_sm on the latest session."""
        self.writers[-1].write(response(pdu, status, self.message_id(pdu)))

    def drop(self) -> None:
        """Cut all connections to the SMSC."""
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        try:
            while True:
                head = await reader.readexactly(4)
                data = head + await reader.readexactly(struct.unpack(">L", head)[0] - 4)
                pdu = smpp.parse_pdu(data, client=None, sequence=1, allow_unknown_opt_params=True)
                self.commands.append(pdu.command)
                self._handle(pdu, writer)
                async with self.changed:
                    self.changed.notify_all()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

    def _handle(self, pdu: Any, writer: asyncio.StreamWriter) -> None:
        if pdu.command in ("bind_transceiver", "bind_transmitter"):
            self.binds.append(pdu)
            writer.write(response(pdu, self.bind_status, ""))
        elif pdu.command == "submit_sm":
            self.submitted.append(pdu)
            status = self.decide(pdu)
            if status is not None:
                writer.write(response(pdu, status, self.message_id(pdu)))
        elif pdu.command == "deliver_sm_resp":
            self.delivered.append(pdu.status)
        elif pdu.command == "unbind" or (pdu.command == "enquire_link" and self.answers_enquire_link):
            writer.write(response(pdu, 0, None))


def build(command: str, sequence: int, status: int = 0, **fields: Any) -> bytes:
    """Return the bytes of a PDU."""
    pdu = smpp.make_pdu(command, client=None, sequence=sequence, **fields)
    pdu.sequence, pdu.status = sequence, status
    data: bytes = pdu.generate()
    return data


def response(pdu: Any, status: int, text: str | None) -> bytes:
    """Return the bytes of the response to a PDU. An error response has no body."""
    codes = {"bind_transceiver": 9, "bind_transmitter": 2, "submit_sm": 4, "enquire_link": 0x15, "unbind": 6}
    body = b"" if text is None or status else text.encode() + b"\0"
    return struct.pack(">LLLL", 16 + len(body), 0x80000000 | codes[pdu.command], status, pdu.sequence) + body


@asynccontextmanager
async def running_smsc(**values: Any) -> AsyncIterator[Smsc]:
    """Run an SMSC on a free port of 127.0.0.1."""
    smsc = Smsc(**values)
    server = await asyncio.start_server(smsc.serve, "127.0.0.1", smsc.port)
    smsc.port = server.sockets[0].getsockname()[1]
    try:
        yield smsc
    finally:
        server.close()
        smsc.drop()
        await asyncio.gather(*smsc.tasks, return_exceptions=True)
