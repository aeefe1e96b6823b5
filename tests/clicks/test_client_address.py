"""Tests of client addresses: which address of a request through proxies is the client address, and which part of it is stored."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from shortener.clicks.client_address import (
    address_ranges,
    address_text,
    client_address,
    client_of,
    find_client,
    hash_client,
    shorten_address,
)
from shortener.clicks.redirect import read_client_info
from tests.one_test import in_one_test

PROXIES = (ip_network("10.0.0.0/8"), ip_network("2001:db8:ffff::/48"))


@in_one_test
@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        # The peer is not a trusted proxy, so X-Forwarded-For is ignored.
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),
        ("203.0.113.7", "", "203.0.113.7"),
        ("2001:db8:1::7", "198.51.100.1", "2001:db8:1::7"),
        # The peer is a trusted proxy. The client is the right-most address that is not a trusted proxy.
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


#: Texts that often contain an address.
NEAR_ADDRESSES = st.lists(
    st.sampled_from(["203.0.113.7", "10.0.0.1", "2001:db8::1", "::ffff:10.0.0.2", "unknown", "%eth0", *"[]:,. 10\0\u0661"]),
    max_size=6,
).map("".join)


@given(NEAR_ADDRESSES | st.text(), NEAR_ADDRESSES | st.text())
def test_the_client_address_is_valid_or_empty_for_any_x_forwarded_for_header_and_any_peer(peer: str, forwarded: str) -> None:
    address = client_address(peer, forwarded, PROXIES)
    assert address == "" or ip_address(address)


@given(st.ip_addresses(), st.sampled_from(["{}", "[{}]", "[{}]:443", " {} ", "{}:80"]))
def test_client_addresses_are_parsed_and_formatted_as_by_the_module_ipaddress(
    address: IPv4Address | IPv6Address, form: str
) -> None:
    if form == "{}:80" and address.version == 6:
        form = "{}"
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    assert client_address(form.format(address), "", ()) == str(mapped or address)


@pytest.mark.parametrize("text", ["::", "::1", "::1.2.3.4", "::ffff:1.2.3.4", "1::", "1:0:0:2::", "fe80::1%2", "1:2:3:4:5:6:7::"])
def test_unusual_ipv6_addresses_have_the_canonical_form_of_the_module_ipaddress(text: str) -> None:
    address = IPv6Address(text.partition("%")[0])
    assert client_address(text, "", ()) == str(address.ipv4_mapped or address)


@pytest.mark.parametrize(
    "text", ["010.0.0.1", "1.2.3", "1.2.3.4.5", "1.2.3.04", "1:2", "::1::", "1.2.3.4\0", "١.2.3.4", "fe80::1%"]
)
def test_text_that_the_module_ipaddress_rejects_is_not_an_address(text: str) -> None:
    assert client_address(text, "", ()) == ""


@pytest.mark.parametrize(
    ("one", "other", "is_same_client"),
    [
        ("203.0.113.7", "203.0.113.7", True),
        ("203.0.113.7", "::ffff:203.0.113.7", True),
        ("203.0.113.7", "203.0.113.8", False),
        ("2001:db8:1:2::3", "2001:db8:1:2:ffff::", True),
        ("2001:db8:1:2::3", "2001:db8:1:3::3", False),
    ],
)
def test_all_addresses_in_one_ipv6_network_of_64_bits_have_the_same_client_hash(one: str, other: str, is_same_client: bool) -> None:
    assert (hash_client(one, b"key") == hash_client(other, b"key")) is is_same_client
    assert hash_client(one, b"key") != hash_client(one, b"other key")


def test_the_client_hash_of_an_unknown_address_is_0() -> None:
    assert hash_client("", b"key") == 0


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
def test_with_the_privacy_setting_short_only_the_network_of_a_client_address_is_stored(address: str, short: str) -> None:
    assert shorten_address(address, "short") == short


def test_the_privacy_setting_full_stores_the_whole_address_and_none_stores_no_address() -> None:
    assert shorten_address("203.0.113.7", "full") == "203.0.113.7"
    assert shorten_address("203.0.113.7", "none") == ""


@given(st.ip_addresses())
def test_shortening_a_client_address_twice_returns_the_same_result_as_shortening_it_once(address: object) -> None:
    short = shorten_address(str(address), "short")
    assert shorten_address(short, "short") == short


@pytest.mark.parametrize(
    ("values", "client"),
    [
        ([], "10.0.0.1"),
        (["203.0.113.7"], "203.0.113.7"),
        (["1.2.3.4, 203.0.113.7", "10.9.9.9"], "203.0.113.7"),
        (["203.0.113.7", "unknown"], "10.0.0.1"),
        (["203.0.113.7", ""], "10.0.0.1"),
        (["", "203.0.113.7"], "203.0.113.7"),
    ],
)
def test_the_api_the_portal_and_a_redirect_read_several_headers_as_one_list(values: list[str], client: str) -> None:
    headers = [(b"x-forwarded-for", value.encode()) for value in values]
    request = Request({"type": "http", "client": ("10.0.0.1", 4711), "headers": headers})
    assert client_of(request, PROXIES) == client
    found = find_client("10.0.0.1", read_client_info("GET", headers).forwarded, address_ranges(PROXIES))
    assert found is not None
    assert address_text(found) == client


def test_a_request_over_a_local_socket_has_no_peer() -> None:
    headers = [(b"x-forwarded-for", b"203.0.113.7")]
    request = Request({"type": "http", "client": None, "headers": headers})
    assert client_of(request, PROXIES) == "203.0.113.7"
    assert client_of(request, ()) == ""
