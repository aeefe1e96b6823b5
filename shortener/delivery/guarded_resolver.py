"""A resolver of host names for aiohttp that returns only IP addresses to which requests may be sent."""

# Tested by tests/delivery/test_sender_resolver.py

from __future__ import annotations

import asyncio
import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from shortener.delivery.guard import Guard, Lookup, LookupThreads
from shortener.delivery.send_failures import NO_SUCH_NAME

#: The maximum number of simultaneous DNS look-ups, and the time limit of each.
MAX_LOOKUPS, LOOKUP_TIMEOUT_SECONDS = 32, 15.0


class GuardedResolver(AbstractResolver):
    """A resolver that returns only IP addresses that the address guard permits.

    If no response arrives for a name, either the resolver of the operating system is down, or only this name has a fault. To
    distinguish the two cases, the class notes the names for which a response arrived in `Guard.responses`."""

    def __init__(self, guard: Guard, lookup: Lookup) -> None:
        self._guard = guard
        self._lookup = lookup
        self._loop = asyncio.get_running_loop()
        self._threads = LookupThreads(MAX_LOOKUPS)
        self._pending: set[tuple[str, int]] = set()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        """Return the IP addresses of a host. Raise `ForbiddenTarget` if one of them is forbidden, and `socket.gaierror` if the host
        has no address."""
        self._pending.add((host, port))
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_SECONDS):
                addresses = await self._threads.run(self._lookup, host, port)
        except TimeoutError:
            raise socket.gaierror(socket.EAI_AGAIN, "no response in time") from None
        except UnicodeError:
            raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None
        except socket.gaierror as error:
            if error.errno in NO_SUCH_NAME:
                self._note(host)
            raise
        finally:
            self._pending.discard((host, port))
        self._note(host)
        for address in addresses:
            self._guard.check_address(address)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)
            for address in addresses
        ]

    def is_pending(self, host: str, port: int) -> bool:
        """Return whether a DNS look-up of the given host and port is running."""
        return (host, port) in self._pending

    def answered_another(self, host: str, since: float) -> bool:
        """Return whether the resolver has responded for a name other than `host` since `since` (a time of the event loop)."""
        return self._guard.responses.has_other(host, since)

    def _note(self, host: str) -> None:
        self._guard.responses.note(host, self._loop.time())

    async def close(self) -> None:
        """Do nothing. Running look-ups end by themselves."""
