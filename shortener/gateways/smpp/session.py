"""A session with an SMPP gateway: one bound connection.

- At most `window` requests wait for a response. `submit` waits for a place in the window.
- The session responds to enquire_link and unbind. If nothing was received for a while, it tests the connection with enquire_link.
  If there is no response, the connection is closed.
- Each deliver_sm is passed to a handler, and the status that the handler returns is sent as the response. If a receipt could not be
  stored, or if its message is not known yet, this status is a temporary error, so the gateway sends the receipt again.
- If the connection ends, all requests without a response fail with `SessionLost`. The field `was_sent` of the error states whether
  the gateway may have received the request.
- While the gateway does not read the responses, the session reads nothing from the gateway, so that the memory of a session is
  limited.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import structlog

from shortener.gateways.smpp import pdus
from shortener.gateways.smpp.pdus import PduError, ReceivedPdu

log = structlog.get_logger(__name__)

#: Maximum number of deliver_sm whose handlers run at the same time. The response to a further deliver_sm is a temporary error.
MAX_DELIVERIES = 256
MAX_ENQUIRE_SECONDS = 10.0
CLOSE_SECONDS = 1.0
_RESPONSES = {"enquire_link": "enquire_link_resp", "unbind": "unbind_resp", "deliver_sm": "deliver_sm_resp"}

#: A function that handles a deliver_sm and returns the command status of the response.
DeliveryHandler = Callable[[ReceivedPdu], Awaitable[int]]


class SessionLost(Exception):
    """Raised if the connection ended. `was_sent` is true if the request may have reached the gateway."""

    def __init__(self, reason: str, *, was_sent: bool) -> None:
        super().__init__(reason)
        self.was_sent = was_sent


class BindRefused(Exception):
    """Raised if the gateway refuses the session. `status` is the command status of its response."""

    def __init__(self, status: int) -> None:
        super().__init__(pdus.status_text(status))
        self.status = status


class SmppSession:
    """A session with an SMPP gateway. Create it with `open_session`."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: DeliveryHandler, window: int, idle: float
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._handler = handler
        self._window = asyncio.Semaphore(window)
        self._idle = idle
        self._sequence = 0
        self._pending: dict[int, asyncio.Future[ReceivedPdu]] = {}
        self._deliveries: set[asyncio.Task[None]] = set()
        self._received_at = 0.0
        self._closed_reason = ""
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_open(self) -> bool:
        """Whether requests can be sent."""
        return not self._closed_reason

    async def bind(self, command: str, timeout: float, **fields: Any) -> None:
        """Start to read PDUs, and bind to the gateway. Raise BindRefused, SessionLost or TimeoutError."""
        self._received_at = asyncio.get_running_loop().time()
        self._tasks.append(asyncio.create_task(self._read()))
        async with asyncio.timeout(timeout):
            response = await self._request(command, **fields)
        if response.status != pdus.OK:
            raise BindRefused(response.status)
        self._tasks.append(asyncio.create_task(self._check_connection()))

    async def submit(self, timeout: float, late: Callable[[ReceivedPdu], None], **fields: Any) -> ReceivedPdu:
        """Send a submit_sm and return its response. Raise SessionLost or TimeoutError.

        `timeout` includes the wait for a place in the window. If this time ends before the request is sent, raise SessionLost with
        `was_sent` False. `late` is called with a response that arrives after the timeout."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        try:
            async with asyncio.timeout_at(deadline):
                await self._window.acquire()
        except TimeoutError:
            raise SessionLost("the window is full", was_sent=False) from None
        try:
            waiting = self._request("submit_sm", **fields)
            try:
                async with asyncio.timeout_at(deadline):
                    return await asyncio.shield(waiting)
            except (TimeoutError, asyncio.CancelledError):
                waiting.add_done_callback(lambda done: _pass_on(done, late))
                raise
        finally:
            self._window.release()

    async def check(self) -> None:
        """Test the connection with enquire_link. Close the session if there is no response."""
        try:
            async with asyncio.timeout(min(self._idle, MAX_ENQUIRE_SECONDS)):
                await self._request("enquire_link")
        except (TimeoutError, SessionLost):
            self._end("the gateway does not respond to enquire_link")

    async def close(self) -> None:
        """Send unbind, and close the connection."""
        if self.is_open:
            with suppress(TimeoutError, SessionLost):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._request("unbind")
        self._end("the session was closed")
        tasks = [*self._tasks, *self._deliveries]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(Exception):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._writer.wait_closed()

    def _request(self, command: str, **fields: Any) -> asyncio.Future[ReceivedPdu]:
        """Send a request and return a future of its response. Raise SessionLost if the session is closed."""
        if self._closed_reason:
            raise SessionLost(self._closed_reason, was_sent=False)
        self._sequence = self._sequence % pdus.MAX_SEQUENCE + 1
        sequence = self._sequence
        data = pdus.build_pdu(command, sequence, **fields)
        future = self._pending[sequence] = asyncio.get_running_loop().create_future()
        # Read the exception, because asyncio logs an exception that nobody reads.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._writer.write(data)
        return future

    async def _read(self) -> None:
        reason = "the gateway closed the connection"
        try:
            while True:
                head = await self._reader.readexactly(4)
                length = int.from_bytes(head, "big")
                if not pdus.HEADER_BYTES <= length <= pdus.MAX_PDU_BYTES:
                    reason = f"the gateway sent a PDU with the length {length}"
                    break
                data = head + await self._reader.readexactly(length - 4)
                self._received_at = asyncio.get_running_loop().time()
                try:
                    pdu = pdus.parse_pdu(data)
                except PduError as error:  # the session continues, because the length of the wrong PDU is known
                    log.warning("smpp_pdu_unreadable", error=str(error))
                    self._write(pdus.build_pdu("generic_nack", int.from_bytes(data[12:16], "big"), pdus.INVALID_LENGTH))
                else:
                    self._handle(pdu)
                await self._writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        except Exception:
            log.exception("smpp_session_failed")
            reason = "the session failed"
        self._end(reason)

    def _handle(self, pdu: ReceivedPdu) -> None:
        if pdu.is_response:
            future = self._pending.pop(pdu.sequence, None)
            if future is not None and not future.done():
                future.set_result(pdu)
        elif pdu.command == "deliver_sm":
            if len(self._deliveries) >= MAX_DELIVERIES:
                self._respond(pdu, pdus.QUEUE_FULL)
                return
            task = asyncio.create_task(self._deliver(pdu))
            self._deliveries.add(task)
            task.add_done_callback(self._deliveries.discard)
        elif pdu.command in _RESPONSES:
            self._respond(pdu)
            if pdu.command == "unbind":
                self._end("the gateway ended the session")
        elif pdu.command != "alert_notification":  # alert_notification has no response
            self._write(pdus.build_pdu("generic_nack", pdu.sequence, pdus.INVALID_COMMAND))

    async def _deliver(self, pdu: ReceivedPdu) -> None:
        try:
            status = await self._handler(pdu)
        except Exception:
            log.exception("smpp_delivery_failed")
            status = pdus.TEMPORARY_APP_ERROR
        self._respond(pdu, status)

    def _respond(self, pdu: ReceivedPdu, status: int = pdus.OK) -> None:
        self._write(pdus.build_pdu(_RESPONSES[pdu.command], pdu.sequence, status))

    def _write(self, data: bytes) -> None:
        if self.is_open:
            self._writer.write(data)

    async def _check_connection(self) -> None:
        loop = asyncio.get_running_loop()
        while self.is_open:
            quiet = loop.time() - self._received_at
            if quiet < self._idle:
                await asyncio.sleep(self._idle - quiet)
            else:
                await self.check()

    def _end(self, reason: str) -> None:
        """End the session: every request without a response fails."""
        if self._closed_reason:
            return
        self._closed_reason = reason
        self._writer.close()
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(SessionLost(reason, was_sent=True))


def _pass_on(done: asyncio.Future[ReceivedPdu], late: Callable[[ReceivedPdu], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        late(done.result())


async def open_session(
    addresses: list[str],
    port: int,
    host: str,
    tls: ssl.SSLContext | None,
    handler: DeliveryHandler,
    *,
    window: int,
    idle: float,
    timeout: float,
    command: str,
    **fields: Any,
) -> SmppSession:
    """Connect to the first address that accepts the connection, and bind within `timeout` seconds.

    `idle` is the time in seconds without received data after which the connection is tested. `command` is the kind of bind, and
    `fields` are its fields. Raise OSError, TimeoutError, SessionLost or BindRefused."""
    deadline = asyncio.get_running_loop().time() + timeout
    error: OSError = OSError("the host has no address")
    for address in addresses:
        try:
            async with asyncio.timeout_at(deadline):
                reader, writer = await asyncio.open_connection(address, port, ssl=tls, server_hostname=host if tls else None)
        except TimeoutError:
            raise
        except OSError as caught:
            error = caught
            continue
        session = SmppSession(reader, writer, handler, window, idle)
        try:
            await session.bind(command, max(deadline - asyncio.get_running_loop().time(), 0.01), **fields)
        except BaseException:
            await session.close()
            raise
        return session
    raise error
