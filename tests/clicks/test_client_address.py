from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.clicks.client_address import client_address, shorten_address

PROXIES = (ip_network("10.0.0.0/8"), ip_network("2001:db8:ffff::/48"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        # Without a trusted proxy the header is anybody's word.
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),
        ("203.0.113.7", "", "203.0.113.7"),
        ("2001:db8:1::7", "198.51.100.1", "2001:db8:1::7"),
        # From a trusted proxy, the right-most address that is not a proxy's wins; what the client wrote stands to its left.
        ("10.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "1.2.3.4, 203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "1.2.3.4, 203.0.113.7, 10.9.9.9", "203.0.113.7"),
        ("10.0.0.1", "nonsense, 203.0.113.7,10.9.9.9", "203.0.113.7"),
        ("2001:db8:ffff::1", "2001:db8:2::9", "2001:db8:2::9"),
        ("::ffff:10.0.0.1", "203.0.113.7", "203.0.113.7"),
        # All of them trusted: somebody inside.
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "", "10.0.0.1"),
        # Spellings.
        ("10.0.0.1", "203.0.113.7:4711", "203.0.113.7"),
        ("10.0.0.1", "[2001:DB8:0::9]:443", "2001:db8::9"),
        ("10.0.0.1", "[2001:db8::9]", "2001:db8::9"),
        ("10.0.0.1", "::ffff:203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", " 203.0.113.7 ", "203.0.113.7"),
        ("fe80::1%eth0", "", "fe80::1"),
        # Malformed: the peer.
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.7, ", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.7, _hidden, 10.0.0.2", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.700", "10.0.0.1"),
        ("10.0.0.1", "1" * 70_000, "10.0.0.1"),
        # A local socket.
        (None, "203.0.113.7", "203.0.113.7"),
        (None, "203.0.113.7, 10.0.0.2", "203.0.113.7"),
        (None, "unknown", ""),
        (None, "", ""),
        ("", "", ""),
        ("not an address", "", ""),
    ],
)
def test_the_client_is_told_by_trusted_proxies_only(peer: str | None, forwarded: str, client: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == client


def test_no_header_is_believed_where_no_proxy_is_trusted() -> None:
    assert client_address("203.0.113.7", "198.51.100.1", ()) == "203.0.113.7"
    assert client_address(None, "198.51.100.1", ()) == ""


@given(st.text(), st.text())
def test_no_header_and_no_peer_makes_it_fail_or_gives_what_is_no_address(peer: str, forwarded: str) -> None:
    address = client_address(peer, forwarded, PROXIES)
    assert address == "" or ip_address(address)


@pytest.mark.parametrize(
    ("address", "short"),
    [
        ("203.0.113.7", "203.0.113.0"),
        ("203.0.113.0", "203.0.113.0"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        ("::ffff:203.0.113.7", "203.0.113.0"),
        ("::1", "::"),
        ("", ""),
        ("not an address", ""),
    ],
)
def test_a_short_address_is_its_network(address: str, short: str) -> None:
    assert shorten_address(address, "short") == short


def test_an_address_is_kept_or_dropped_as_a_whole() -> None:
    assert shorten_address("203.0.113.7", "full") == "203.0.113.7"
    assert shorten_address("203.0.113.7", "none") == ""


@given(st.ip_addresses())
def test_a_short_address_can_be_shortened_again_and_stays(address: object) -> None:
    short = shorten_address(str(address), "short")
    assert shorten_address(short, "short") == short
