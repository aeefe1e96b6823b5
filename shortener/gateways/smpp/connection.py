"""This module opens the SMPP session of this process with a gateway when a caller needs the session, and opens a new session
after an earlier one has ended. All callers share one attempt to connect. After a failed attempt to connect, the next attempt
starts after a pause of 1 second. Each further failure doubles the pause, up to MAX_PAUSE_SECONDS. If the time limit of a caller
ends before the pause ends, the caller gets the error of the previous attempt at once.

The address guard checks every IP address of the host before each connection. Each connection looks up its host in its own thread. A
resolver that does not respond therefore delays neither other gateways nor the database.
"""
# Tested by tests/gateways/smpp/test_gateway.py

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from ipaddress import ip_address

import structlog

from shortener.delivery.guard import ForbiddenTarget, Guard, LookupThreads
from shortener.gateways.smpp.pdus import status_name
from shortener.gateways.smpp.session import BindRefused, DeliveryHandler, SessionLost, SmppSession, open_session
from shortener.gateways.smpp.settings import SmppSettings

log = structlog.get_logger(__name__)

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 30.0
CONNECT_SECONDS = 10.0


class NotConnected(Exception):
    """Raised if no session with the gateway could be opened. `reason` is a short name of the cause, and the text explains it.
    `status` is an SMPP command status or None."""

    def __init__(self, reason: str, detail: str, status: int | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.status = status


class SmppConnection:
    """The connection of this process to an SMPP gateway, with at most one session. If `receives` is true, the session also receives
    receipts and replies (transceiver)."""

    def __init__(self, name: str, settings: SmppSettings, guard: Guard, handler: DeliveryHandler, *, receives: bool) -> None:
        self._name = name
        self._settings = settings
        self._guard = guard
        self._handler = handler
        self._receives = receives
        self._lookups = LookupThreads(1)
        self._session: SmppSession | None = None
        self._connecting: asyncio.Task[SmppSession] | None = None
        self._failures = 0
        self._next_at = 0.0
        self._error = NotConnected("not_connected", "there is no session")
        self._is_closed = False

    @property
    def is_up(self) -> bool:
        """Whether a session with the gateway is open."""
        return self._session is not None and self._session.is_open

    async def session(self, timeout: float) -> SmppSession:
        """Return the open session. Raise NotConnected if no session can be opened within `timeout` seconds."""
        if self._session is not None and self.is_up:
            return self._session
        loop = asyncio.get_running_loop()
        task = self._connecting
        if task is None and self._next_at - loop.time() > timeout:
            raise self._error
        task = self._start()
        await asyncio.wait([task], timeout=timeout)
        if not task.done():
            raise NotConnected("not_connected", f"no session within {timeout:g} s")
        return task.result()

    def keep_open(self) -> None:
        """Open the session in the background if there is none and the pause after the last failed attempt has ended."""
        if not self.is_up and self._connecting is None and self._next_at <= asyncio.get_running_loop().time():
            self._start()

    async def close(self) -> None:
        """End the SMPP session, and start no new one."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _start(self) -> asyncio.Task[SmppSession]:
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._ended)
        return self._connecting

    def _ended(self, task: asyncio.Task[SmppSession]) -> None:
        self._connecting = None
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, NotConnected):
            log.error("smpp_link_failed", gateway=self._name, error=repr(error))

    async def _connect(self) -> SmppSession:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(self._next_at - loop.time(), 0))
        if self._session is not None:
            previous, self._session = self._session, None
            await previous.close()
        try:
            session = await self._open()
        except NotConnected as error:
            self._failures += 1
            pause = min(FIRST_PAUSE_SECONDS * 2 ** (self._failures - 1), MAX_PAUSE_SECONDS)
            self._next_at, self._error = loop.time() + pause, error
            log.warning("smpp_link_down", gateway=self._name, error=str(error), pause=pause)
            raise
        self._failures = 0
        # A new session may end at once. Without this pause, the process would then connect again and again.
        self._next_at = loop.time() + FIRST_PAUSE_SECONDS
        self._session = session
        log.info("smpp_link_up", gateway=self._name)
        return session

    async def _open(self) -> SmppSession:
        settings = self._settings
        host, port = settings.target
        tls = ssl.create_default_context(cadata=settings.tls_ca or None) if settings.is_tls else None
        try:
            return await open_session(
                await self._resolve(host, port),
                port,
                host,
                tls,
                self._handler,
                window=settings.window,
                idle=settings.enquire_link_seconds,
                timeout=CONNECT_SECONDS,
                command="bind_transceiver" if self._receives else "bind_transmitter",
                system_id=settings.system_id,
                password=settings.password,
                system_type=settings.system_type,
                address_range="",
            )
        except BindRefused as error:
            raise NotConnected("bind_refused", f"{status_name(error.status)}: {error}", error.status) from None
        except ForbiddenTarget as error:
            raise NotConnected("blocked_address", str(error)) from None
        except TimeoutError:
            raise NotConnected("connect_timeout", f"no session within {CONNECT_SECONDS:g} seconds") from None
        except ssl.SSLError as error:
            raise NotConnected("tls_error", _tls_text(error)) from None
        except ConnectionRefusedError:
            raise NotConnected("connection_refused", f"port {port} refuses connections") from None
        except UnicodeError:  # the host is not a name that the resolver can look up, such as a..b
            raise NotConnected("not_connected", "the host name is invalid") from None
        except (OSError, SessionLost) as error:
            raise NotConnected("not_connected", str(error) or type(error).__name__) from None

    async def _resolve(self, host: str, port: int) -> list[str]:
        """Return the IP addresses of a host that the address guard permits."""
        self._guard.check_literal(host)
        with suppress(ValueError):
            return [str(ip_address(host))]
        async with asyncio.timeout(CONNECT_SECONDS):
            found = await self._lookups.run(self._guard.lookup, host, port)
        addresses = list(dict.fromkeys(found))
        for address in addresses:
            self._guard.check_address(address)
        return addresses


def _tls_text(error: ssl.SSLError) -> str:
    text = getattr(error, "verify_message", "") or error.reason or str(error)
    return f"the TLS handshake failed: {text}"
