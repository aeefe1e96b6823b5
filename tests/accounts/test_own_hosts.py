"""Tests of the hosts on which the service responds: a destination or fallback that leads to one of them would loop."""

from __future__ import annotations

from typing import Any

import pytest

from shortener.accounts.own_hosts import OwnHosts, is_local, name_of, unreachable_host_warnings
from shortener.settings import Settings
from tests.one_test import in_one_test


@pytest.mark.parametrize(
    ("name", "expected"),
    [("localhost", True), ("127.0.0.1", True), ("[::1]", True), ("s.example", False), ("localhost.example", False), ("", False)],
)
def test_localhost_and_ip_addresses_are_local_hosts(name: str, expected: bool) -> None:
    assert is_local(name) is expected


@pytest.mark.parametrize(
    ("host", "name"), [("s.example", "s.example"), ("s.example:8", "s.example"), ("[::1]", "[::1]"), ("[::1]:8", "[::1]"), ("", "")]
)
def test_the_function_name_of_returns_a_host_name_without_the_port(host: str, name: str) -> None:
    assert name_of(host) == name


PUBLIC: dict[str, Any] = {"base_url": "https://go.example/X", "portal_url": "https://portal.example", "port": 9000}
LOCAL: dict[str, Any] = {"base_url": "http://127.0.0.1:8000", "port": 8000}


@in_one_test
@pytest.mark.parametrize(
    ("settings", "url", "expected"),
    [
        (PUBLIC, "https://go.example/abc", True),
        (PUBLIC, "http://GO.example:8080/abc", True),
        (PUBLIC, "https://portal.example/", True),
        (PUBLIC, "http://localhost:9000/abc", True),
        (PUBLIC, "http://127.0.0.1:9000/abc", True),
        (PUBLIC, "http://127.9.9.9:9000/abc", True),
        (PUBLIC, "http://0.0.0.0:9000/abc", True),
        (PUBLIC, "http://[::1]:9000/abc", True),
        (PUBLIC, "http://[::ffff:127.0.0.1]:9000/abc", True),
        (PUBLIC, "http://localhost:9001/abc", False),
        (PUBLIC, "http://localhost/abc", False),
        (PUBLIC, "http://192.168.1.9:9000/abc", False),
        (PUBLIC, "https://shop.example/", False),
        (PUBLIC, "https://sub.go.example/", False),
        (PUBLIC, "myapp://open", False),
        (PUBLIC, "tel:+14155550100", False),
        (PUBLIC | {"host": "192.168.1.9"}, "http://192.168.1.9:9000/abc", True),
        (PUBLIC | {"host": "0.0.0.0"}, "http://192.168.1.9:9000/abc", True),  # the service listens on all addresses of its machine
        (PUBLIC | {"host": "0.0.0.0"}, "http://8.8.8.8:9000/abc", False),
        (LOCAL, "http://127.0.0.1:8000/abc", True),
        (LOCAL, "http://localhost:8000/abc", True),
        (LOCAL, "http://127.0.0.1:9000/landing", False),
        (LOCAL, "http://127.0.0.1/landing", False),
    ],
)
def test_urls_with_a_host_of_the_service_or_with_a_local_address_and_the_service_port_are_own_urls(
    settings: dict[str, Any], url: str, expected: bool
) -> None:
    assert OwnHosts.of(Settings(**settings)).contains(url) is expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost:8000", ["one machine or one network", "as on BASE_URL"]),
        ("shop.localhost", ["one machine or one network"]),
        ("intranet", ["one machine or one network"]),
        ("go.brand.local:81", ["one machine or one network"]),
        ("127.0.0.1:8000", ["not a public address", "as on BASE_URL"]),
        ("10.1.2.3", ["not a public address", "as on BASE_URL"]),
        ("[::1]:8000", ["not a public address", "as on BASE_URL"]),
        ("8.8.8.8", ["as on BASE_URL"]),
        ("go.brand.example", []),
        ("localhost.example:8", []),
    ],
)
def test_domains_that_phones_cannot_reach_and_ip_addresses_cause_warnings(host: str, expected: list[str]) -> None:
    warnings = unreachable_host_warnings(host)
    assert len(warnings) == len(expected)
    assert all(text in warning for text, warning in zip(expected, warnings, strict=True))
