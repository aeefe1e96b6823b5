from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st

from shortener.delivery import guard as guard_module
from shortener.delivery.guard import MAX_CHECKS, ForbiddenTarget, Guard, HostUnresolved, rejection_reason
from tests.delivery.receiver import receiver, respond
from tests.one_test import in_one_test
from tests.servers import PATIENCE

# The special-purpose networks of IANA. The test does not use the list of the guard, so that it finds a network that this list
# lacks.
_IPV4 = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24
    192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
"""
_IPV6 = """
    ::/96 64:ff9b:1::/48 100::/64 2001::/23 2001:db8::/32 2002::/16 3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8
"""
SPECIAL_IPV4: list[IPv4Network | IPv6Network] = [IPv4Network(network) for network in _IPV4.split()]
SPECIAL_IPV6: list[IPv4Network | IPv6Network] = [IPv6Network(network) for network in _IPV6.split()]


def near(networks: Sequence[IPv4Network | IPv6Network], bits: int) -> st.SearchStrategy[int]:
    """Return a strategy for the addresses in some networks and next to them, as integers of `bits` bits."""
    return st.sampled_from(networks).flatmap(
        lambda network: st.integers(max(int(network[0]) - 2, 0), min(int(network[-1]) + 2, 2**bits - 1))
    )


# Random addresses are rarely in a small special network, so half of the generated addresses are chosen from these networks.
ANY_IPV4 = st.one_of(st.integers(0, 2**32 - 1), near(SPECIAL_IPV4, 32))
ANY_IPV6 = st.one_of(st.integers(0, 2**128 - 1), near(SPECIAL_IPV6, 128))


@in_one_test
@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "172.15.255.255",
        "172.32.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "223.255.255.255",
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2a00:1450:4001::200e",
        "2001:4860:4860::8888",
    ],
)
def test_the_address_guard_allows_public_addresses(address: str) -> None:
    assert rejection_reason(address) is None


@in_one_test
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1", guard_module.LOOPBACK),
        ("127.255.255.255", guard_module.LOOPBACK),
        ("0.0.0.0", guard_module.UNSPECIFIED),
        ("0.1.2.3", guard_module.UNSPECIFIED),
        ("10.0.0.1", guard_module.PRIVATE),
        ("172.16.0.1", guard_module.PRIVATE),
        ("172.31.255.255", guard_module.PRIVATE),
        ("192.168.1.1", guard_module.PRIVATE),
        ("100.64.0.1", guard_module.SHARED),
        ("169.254.1.1", guard_module.LINK_LOCAL),
        ("169.254.169.254", guard_module.METADATA),
        ("100.100.100.200", guard_module.METADATA),
        ("168.63.129.16", guard_module.METADATA),
        ("169.254.170.2", guard_module.METADATA),
        ("192.0.0.192", guard_module.METADATA),
        ("192.0.0.8", guard_module.RESERVED),
        ("192.0.2.1", guard_module.RESERVED),
        ("192.88.99.1", guard_module.RESERVED),
        ("198.18.0.1", guard_module.RESERVED),
        ("198.51.100.1", guard_module.RESERVED),
        ("203.0.113.1", guard_module.RESERVED),
        ("224.0.0.1", guard_module.MULTICAST),
        ("239.1.1.1", guard_module.MULTICAST),
        ("240.0.0.1", guard_module.RESERVED),
        ("255.255.255.255", guard_module.RESERVED),
        ("::", guard_module.UNSPECIFIED),
        ("::1", guard_module.LOOPBACK),
        ("::127.0.0.1", guard_module.TUNNELLED),
        ("::ffff:127.0.0.1", guard_module.LOOPBACK),
        ("::ffff:100.64.0.1", guard_module.SHARED),
        ("::ffff:0:127.0.0.1", guard_module.RESERVED),
        ("64:ff9b::7f00:1", guard_module.LOOPBACK),
        ("64:ff9b::a9fe:a9fe", guard_module.METADATA),
        ("64:ff9b:1::a00:1", guard_module.TUNNELLED),
        ("2002:7f00:1::", guard_module.TUNNELLED),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", guard_module.TUNNELLED),
        ("fc00::1", guard_module.PRIVATE),
        ("fd00:ec2::254", guard_module.METADATA),
        ("fd20:ce::254", guard_module.METADATA),
        ("fe80::1", guard_module.LINK_LOCAL),
        ("fe80::1%eth0", guard_module.LINK_LOCAL),
        ("fec0::1", guard_module.RESERVED),
        ("ff02::1", guard_module.MULTICAST),
        ("ff0e::1", guard_module.MULTICAST),
        ("2001:2::1", guard_module.RESERVED),
        ("2001:20::1", guard_module.RESERVED),
        ("2001:db8::1", guard_module.RESERVED),
        ("3fff::1", guard_module.RESERVED),
        ("5f00::1", guard_module.RESERVED),
        ("100::1", guard_module.RESERVED),
        ("127.0.0.1%lo", guard_module.LOOPBACK),
    ],
)
def test_the_address_guard_rejects_special_addresses(address: str, reason: str) -> None:
    assert rejection_reason(address) == reason
    if "%" not in address:
        assert rejection_reason(ip_address(address)) == reason


def test_the_address_guard_rejects_each_special_purpose_network() -> None:
    for network in (*SPECIAL_IPV4, *SPECIAL_IPV6):
        for address in (network[0], network[network.num_addresses // 2], network[-1]):
            assert rejection_reason(address) is not None, address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        "[::1]",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "8.8.8.8 ",
        "8.8.8.8:80",
    ],
)
def test_the_address_guard_rejects_a_text_that_is_not_an_address(text: str) -> None:
    assert rejection_reason(text) is not None


@given(ANY_IPV4)
def test_the_guard_checks_the_ipv4_address_that_a_mapped_or_nat64_address_contains(number: int) -> None:
    plain = rejection_reason(IPv4Address(number))
    assert rejection_reason(IPv6Address(0xFFFF << 32 | number)) == plain
    assert rejection_reason(IPv6Address(0x64_FF9B << 96 | number)) == plain


@given(ANY_IPV4, st.integers(0, 2**80 - 1))
def test_ipv6_tunnel_addresses_are_rejected_whatever_ipv4_address_they_contain(number: int, rest: int) -> None:
    # The addresses are, in this order: IPv4-compatible, 6to4, Teredo and local NAT64.
    assert rejection_reason(IPv6Address(number)) is not None
    assert rejection_reason(IPv6Address(0x2002 << 112 | number << 80 | rest)) is not None
    assert rejection_reason(IPv6Address(0x2001_0000 << 96 | rest >> 48 << 64 | (number ^ 0xFFFFFFFF))) is not None
    assert rejection_reason(IPv6Address(0x64_FF9B_0001 << 80 | rest >> 32 << 32 | number)) is not None


@given(st.one_of(ANY_IPV4.map(IPv4Address), ANY_IPV6.map(IPv6Address)))
def test_every_address_that_the_ipaddress_library_classifies_as_private_is_rejected(address: IPv4Address | IPv6Address) -> None:
    if address.is_private or address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
        mapped = isinstance(address, IPv6Address) and address.ipv4_mapped
        assert rejection_reason(address) is not None or (mapped and mapped.is_global)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "::1",
        "10.1.2.3",
        "192.168.0.1",
        "100.64.0.1",
        "fd12::1",
        "::ffff:127.0.0.1",
    ],
)
def test_the_guard_option_allow_private_permits_private_addresses(address: str) -> None:
    Guard(allow_private=True).check_address(address)
    with pytest.raises(ForbiddenTarget):
        Guard().check_address(address)


@in_one_test
@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.170.2",
        "192.0.0.192",
        "168.63.129.16",
        "169.254.1.1",
        "0.0.0.0",
        "224.0.0.1",
        "fe80::1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "100.100.100.200",
        "2002:a00:1::",
    ],
)
def test_with_the_option_allow_private_the_guard_still_rejects_metadata_and_reserved_addresses(address: str) -> None:
    with pytest.raises(ForbiddenTarget):
        Guard(allow_private=True).check_address(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "::1",
        "::ffff:7f00:1",
        "fe80::1%lo",
        "localhost",
        "LocalHost",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "0x7f000001",
        "017700000001",
        "169.254.169.254",
        "0",
    ],
)
async def test_check_host_rejects_a_host_with_an_internal_address(host: str) -> None:
    with pytest.raises(ForbiddenTarget):
        await Guard().check_host(host, 80)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["2606:4700::1111", "::ffff:10.0.0.1"]])
async def test_check_host_rejects_a_name_with_one_forbidden_address(addresses: list[str]) -> None:
    with pytest.raises(ForbiddenTarget) as caught:
        await Guard(lookup=lambda host, port: addresses).check_host("mixed.example", 443)
    assert not any(address in str(caught.value) for address in addresses)


async def test_check_host_accepts_a_public_name() -> None:
    await Guard(lookup=lambda host, port: ["8.8.8.8", "2606:4700::1111"]).check_host("public.example", 443)


def _missing(host: str, port: int) -> list[str]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def _nothing(host: str, port: int) -> list[str]:
    return []


def _unspeakable(host: str, port: int) -> list[str]:
    return [str(info[4][0]) for info in socket.getaddrinfo("a" * 70 + ".example", port)]


@pytest.mark.parametrize("lookup", [_missing, _nothing, _unspeakable])
async def test_check_host_raises_host_unresolved_for_a_name_without_an_address(lookup: guard_module.Lookup) -> None:
    with pytest.raises(HostUnresolved):
        await Guard(lookup=lookup).check_host("nowhere.example", 80)


async def test_check_host_stops_waiting_for_a_resolver_that_hangs() -> None:
    released = threading.Event()

    def hanging(host: str, port: int) -> list[str]:
        released.wait(PATIENCE)
        return ["8.8.8.8"]

    try:
        with pytest.raises(HostUnresolved, match="in time"):
            await Guard(lookup=hanging).check_host("slow.example", 80, timeout=0.05)
    finally:
        released.set()


class Rebinding(AbstractResolver):
    """A resolver that returns a public address first and loopback afterwards."""

    def __init__(self) -> None:
        self.calls = 0

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        self.calls += 1
        address = "8.8.8.8" if self.calls == 1 else "127.0.0.1"
        return [ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        pass


async def test_the_guard_checks_the_address_of_each_connection_again() -> None:
    guard, rebinding = Guard(), Rebinding()
    (vetted,) = await rebinding.resolve("rebinding.example", 80)
    guard.check_address(vetted["host"])
    async with receiver(respond(200)) as local_server:
        connector = aiohttp.TCPConnector(socket_factory=guard.socket_factory, resolver=rebinding)
        async with aiohttp.ClientSession(connector=connector) as session:
            with pytest.raises(aiohttp.ClientConnectorError) as caught:
                await session.get(f"http://rebinding.example:{local_server.port}/")
            assert isinstance(caught.value.os_error, ForbiddenTarget)
        assert rebinding.calls == 2
        assert local_server.connections == 0


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.2",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "%31%32%37.0.0.1",
        "①②⑦.⓪.⓪.①",
    ],
)
async def test_no_notation_of_a_loopback_address_reaches_a_local_server(host: str) -> None:
    async with receiver(respond(200), host="0.0.0.0") as local_server:
        connector = aiohttp.TCPConnector(socket_factory=Guard().socket_factory)
        async with aiohttp.ClientSession(connector=connector) as session:
            with pytest.raises((aiohttp.ClientError, ValueError)) as caught:
                await session.get(f"http://{host}:{local_server.port}/")
        assert local_server.connections == 0
    error = caught.value  # the server does not listen on IPv6, so a connection without the guard would be refused
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientConnectorDNSError):
        assert isinstance(error.os_error, ForbiddenTarget)


async def test_a_local_server_is_reached_if_the_guard_allows_loopback_addresses() -> None:
    async with receiver(respond(200)) as local_server:
        connector = aiohttp.TCPConnector(socket_factory=Guard(allow_private=True).socket_factory)
        async with aiohttp.ClientSession(connector=connector) as session, session.get(local_server.url()) as response:
            assert response.status == 200
        assert local_server.connections == 1


async def test_dns_look_ups_that_hang_use_a_limited_number_of_threads() -> None:
    released, started = threading.Event(), []

    def hanging(host: str, port: int) -> list[str]:
        started.append(host)
        released.wait(PATIENCE)
        return ["8.8.8.8"]

    guard = Guard(lookup=hanging)

    async def check(number: int) -> None:
        with pytest.raises(HostUnresolved):
            await guard.check_host(f"host{number}.example", 80, timeout=0.05)

    try:
        for _ in range(3):
            await asyncio.gather(*(check(number) for number in range(2 * MAX_CHECKS)))
        assert len(started) == MAX_CHECKS
    finally:
        released.set()
    await guard.check_host("later.example", 80, timeout=PATIENCE)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.1.2.3", "[::1]", "::1", "169.254.169.254", "localhost", "db.internal", "a.local"]
)
def test_check_literal_rejects_internal_hosts_without_a_dns_look_up(host: str) -> None:
    with pytest.raises(ForbiddenTarget):
        Guard().check_literal(host)


@pytest.mark.parametrize("host", ["8.8.8.8", "[2606:4700::1111]", "shop.example", "mylocalhost.example"])
def test_check_literal_accepts_public_addresses_and_names(host: str) -> None:
    Guard().check_literal(host)


def test_check_literal_permits_loopback_addresses_if_private_targets_are_permitted() -> None:
    for host in ("127.0.0.1", "localhost"):
        Guard(allow_private=True).check_literal(host)
    with pytest.raises(ForbiddenTarget):
        Guard(allow_private=True).check_literal("169.254.169.254")


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "fd00:ec2::254"])
def test_the_error_text_of_the_guard_does_not_contain_the_kind_of_the_address(address: str) -> None:
    with pytest.raises(ForbiddenTarget) as caught:
        Guard().check_address(address)
    assert str(caught.value).startswith("the host must have a public address")
    assert not any(word in str(caught.value) for word in ("loopback", "link-local", "metadata", "127.", "10.0", "169.254"))


@pytest.mark.parametrize("host", ["localhost.", "a.localhost", "metadata.google.internal", "metadata.google.internal.", "x.local"])
async def test_check_host_rejects_a_name_that_is_always_local_even_if_it_does_not_resolve(host: str) -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror("the name does not exist")

    with pytest.raises(ForbiddenTarget):
        await Guard(lookup=unknown).check_host(host, 80)
