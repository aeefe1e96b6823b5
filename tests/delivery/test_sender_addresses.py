"""These tests check that the sender never connects to forbidden addresses, whatever their notation."""
# Part of the tests of shortener/delivery/sender.py.

import asyncio
import contextlib
import ipaddress
import socket

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortener.delivery.guard import Guard
from shortener.delivery.sender import Sender
from tests.delivery.receiver import Receiver, receiver, respond
from tests.delivery.sending import post


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "localhost.", "LOCALHOST", "127.1", "2130706433", "0x7f.1"]
)
async def test_the_sender_never_connects_to_a_loopback_address_whatever_its_notation(host: str) -> None:
    async with receiver(respond(200)) as local_server, Sender(Guard(), user_agent="test", limit=1) as sender:
        result = await post(sender, f"http://{host}:{local_server.port}/")
        # Some resolvers do not resolve a host name with a trailing dot.
        assert result.error == "blocked_address" or (host, result.error) == ("localhost.", "dns_error")
        assert local_server.connections == 0


@st.composite
def loopback_notations(draw: st.DrawFn) -> tuple[str, str]:
    """Generate a loopback address in two notations: as the host of a URL, and as the result of a resolver."""
    number = draw(st.integers(0x7F00_0001, 0x7FFF_FFFE))
    prefixes = (0xFFFF << 32, 0x64_FF9B << 96, 0x64_FF9B_0001 << 80, 0)
    embedded = str(ipaddress.IPv6Address(draw(st.sampled_from(prefixes)) | number))
    if draw(st.booleans()):
        embedded = str(ipaddress.IPv6Address(0x2002 << 112 | number << 80 | draw(st.integers(0, 2**80 - 1))))
    if draw(st.booleans()):
        return f"[{embedded}]", embedded
    # The function inet_aton accepts addresses of one to four parts, each decimal, octal or hexadecimal.
    parts = draw(st.integers(1, 4))
    numbers = [number >> 24 - 8 * place & 255 for place in range(parts - 1)] + [number & (1 << 8 * (5 - parts)) - 1]
    styles = st.sampled_from(["{}", "0{:o}", "0x{:x}"])
    return ".".join(draw(styles).format(part) for part in numbers), embedded


def test_the_sender_never_connects_to_a_loopback_address_in_a_generated_notation() -> None:
    """The loopback address is in the URL, or the resolver returns it. A server on all local addresses must get no connection."""
    resolved: list[str] = []

    async def prepare(stack: contextlib.AsyncExitStack) -> tuple[Receiver, Sender, Sender]:
        local_server = await stack.enter_async_context(receiver(respond(200), host="0.0.0.0"))
        plain = await stack.enter_async_context(Sender(Guard(), user_agent="test", limit=1))
        return local_server, plain, await stack.enter_async_context(Sender(Guard(), user_agent="test", limit=1, lookup=lookup))

    def lookup(host: str, port: int) -> list[str]:
        return resolved[-1:]

    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        local_server, plain, misled = runner.run(prepare(stack))

        @settings(deadline=None)
        @given(loopback_notations())
        def check(notation: tuple[str, str]) -> None:
            host, address = notation
            resolved.append(address)
            for sender, url in (
                (plain, f"http://{host}:{local_server.port}/"),
                (misled, f"http://n{len(resolved)}.example:{local_server.port}/"),
            ):
                result = runner.run(post(sender, url))
                assert (result.status, result.error) == (None, "blocked_address"), url
            assert local_server.connections == 0

        check()
        runner.run(stack.aclose())


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["64:ff9b::7f00:1"], ["fe80::1%lo"], ["nonsense"]])
async def test_the_sender_does_not_connect_to_a_forbidden_address_that_a_name_gets_after_the_check(addresses: list[str]) -> None:
    def public(host: str, port: int) -> list[str]:
        return ["8.8.8.8"]

    def rebound(host: str, port: int) -> list[str]:
        return addresses

    guard = Guard(lookup=public)
    async with receiver(respond(200)) as local_server, Sender(guard, user_agent="test", limit=1, lookup=rebound) as sender:
        await guard.check_host("rebinding.example", local_server.port)
        result = await post(sender, f"http://rebinding.example:{local_server.port}/")
        assert result.error == "blocked_address"
        assert "127" not in result.detail
        assert local_server.connections == 0


async def test_the_sender_creates_no_socket_for_a_name_with_one_forbidden_address() -> None:
    class Counting(Guard):
        sockets = 0

        def socket_factory(self, info: aiohttp.AddrInfoType) -> socket.socket:
            self.sockets += 1
            return super().socket_factory(info)

    guard = Counting(lookup=lambda host, port: ["8.8.8.8", "10.0.0.1"])
    async with Sender(guard, user_agent="test", limit=1) as sender:
        assert (await post(sender, "http://mixed.example/")).error == "blocked_address"
    assert guard.sockets == 0
