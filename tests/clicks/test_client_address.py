"""Tests of client addresses: which address is the client's behind proxies, and which part of it is stored."""

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
        # The peer is not a trusted proxy, so X-Forwarded-For is ignored.
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),
        ("203.0.113.7", "", "203.0.113.7"),
        ("2001:db8:1::7", "198.51.100.1", "2001:db8:1::7"),
        # The peer is a trusted proxy, so the client is the right-most address that is not a trusted proxy.
        ("10.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "1.2.3.4, 203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "1.2.3.4, 203.0.113.7, 10.9.9.9", "203.0.113.7"),
        ("10.0.0.1", "nonsense, 203.0.113.7,10.9.9.9", "203.0.113.7"),
        ("2001:db8:ffff::1", "2001:db8:2::9", "2001:db8:2::9"),
        ("::ffff:10.0.0.1", "203.0.113.7", "203.0.113.7"),
        # All addresses are trusted proxies, so the client is the left-most address.
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "", "10.0.0.1"),
        # An entry of X-Forwarded-For may have a port, brackets, a zone or the IPv4-mapped form.
        ("10.0.0.1", "203.0.113.7:4711", "203.0.113.7"),
        ("10.0.0.1", "[2001:DB8:0::9]:443", "2001:db8::9"),
        ("10.0.0.1", "[2001:db8::9]", "2001:db8::9"),
        ("10.0.0.1", "::ffff:203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", " 203.0.113.7 ", "203.0.113.7"),
        ("fe80::1%eth0", "", "fe80::1"),
        # If an entry of X-Forwarded-For is not an address, the peer is the client.
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.7, ", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.7, _hidden, 10.0.0.2", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.700", "10.0.0.1"),
        ("10.0.0.1", "1" * 70_000, "10.0.0.1"),
        # The peer is a local socket, which has no address.
        (None, "203.0.113.7", "203.0.113.7"),
        (None, "203.0.113.7, 10.0.0.2", "203.0.113.7"),
        (None, "unknown", ""),
        (None, "", ""),
        ("", "", ""),
        ("not an address", "", ""),
    ],
)
def test_x_forwarded_for_is_read_from_trusted_proxies_only(peer: str | None, forwarded: str, client: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == client


def test_x_forwarded_for_is_ignored_if_no_proxy_is_trusted() -> None:
    assert client_address("203.0.113.7", "198.51.100.1", ()) == "203.0.113.7"
    assert client_address(None, "198.51.100.1", ()) == ""


@given(st.text(), st.text())
def test_any_x_forwarded_for_and_peer_give_a_valid_address_or_an_empty_string(peer: str, forwarded: str) -> None:
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
def test_the_privacy_setting_short_stores_the_network_of_an_address(address: str, short: str) -> None:
    assert shorten_address(address, "short") == short


def test_the_privacy_setting_full_stores_the_whole_address_and_none_stores_no_address() -> None:
    assert shorten_address("203.0.113.7", "full") == "203.0.113.7"
    assert shorten_address("203.0.113.7", "none") == ""


@given(st.ip_addresses())
def test_shortening_an_address_twice_gives_the_same_result_as_once(address: object) -> None:
    short = shorten_address(str(address), "short")
    assert shorten_address(short, "short") == short
