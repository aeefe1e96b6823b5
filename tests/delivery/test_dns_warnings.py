"""Tests of the warnings about new domains without an address in the DNS."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from shortener.delivery import dns_warnings
from shortener.delivery.guard import Guard


@pytest.fixture(autouse=True)
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were looked up. Only go.brand.example has an address."""
    names: list[str] = []

    def lookup(host: str, port: int) -> Sequence[str]:
        names.append(host)
        if host != "go.brand.example":
            raise OSError("no such name")
        return ["10.0.0.1"]

    monkeypatch.setattr(dns_warnings, "_LOOKUPS", Guard(allow_private=True, lookup=lookup))
    return names


async def test_a_new_domain_without_an_address_in_the_dns_causes_a_warning(looked_up: list[str]) -> None:
    assert await dns_warnings.new_domain_warnings("https://go.brand.example:8443/ABC") == []
    (warning,) = await dns_warnings.new_domain_warnings("https://Two.Brand.Example./ABC")
    assert "no DNS address for two.brand.example" in warning
    assert looked_up == ["go.brand.example", "two.brand.example"]


@pytest.mark.parametrize("url", ["http://localhost:8000", "http://[::1]:8000", "http://8.8.8.8"])
async def test_local_names_and_ip_addresses_of_new_domains_are_not_looked_up(url: str, looked_up: list[str]) -> None:
    assert any("BASE_URL" in warning for warning in await dns_warnings.new_domain_warnings(url))
    assert looked_up == []


@pytest.mark.parametrize("host", ["[::1]:8000", "[2001:db8::1]", "8.8.8.8:80"])
async def test_an_ip_address_needs_no_dns_lookup(host: str, looked_up: list[str]) -> None:
    assert await dns_warnings.has_address(host)
    assert looked_up == []
