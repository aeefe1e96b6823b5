"""Tests of the first part of short links: their URLs and hosts, and the path before the code."""

import pytest

from shortener.urls import BaseUrl, UrlError, canonical_host, fill_link_path, host_of, matches_link_path, parse_base_url
from tests.one_test import in_one_test


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://go.example/", "https://go.example"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:0", "http://127.0.0.1:0"),
        ("https://Go.Example.", "https://go.example"),
        ("https://go.example.:8443/", "https://go.example:8443"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_base_url_has_no_final_slash(url: str, base: str) -> None:
    assert parse_base_url(url) == BaseUrl(base, "")


@in_one_test
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("go.example", "must be http://HOST"),
        ("ftp://go.example", "must be http://HOST"),
        ("https://u@go.example", "must be http://HOST"),
        ("https://go.example?x", "must be http://HOST"),
        ("https://go.example/a b", "must have a path"),
        ("https://go.example/a/../b", "must have a path"),
        ("https://go.example/{phone}", "must have a path"),
        ("https://go.example/" + "a" * 101, "must have a path"),
        ("https://go.example/a/b/c/d/e/f", "must have a path"),
        ("https://go.example/api", "the service uses it"),
        ("https://go.example/.well-known", "the service uses it"),
        ("https://*.go.example", "wildcard"),
        ("https://go..example", "invalid host name"),
        ("https://bücher.example", "punycode"),
        ("https://*.brand.example", "wildcard"),
        ("https://brand..example", "invalid host name"),
        ("https://go.example:x", "not a valid URL"),
        ("https://[::1", "not a valid URL"),
    ],
)
def test_an_invalid_base_url_is_rejected_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(UrlError, match=reason):
        parse_base_url(url)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Go.Example:443/x", "go.example"),
        ("http://go.example:443", "go.example:443"),
        ("http://[2001:db8::1]:8000", "[2001:db8::1]:8000"),
        ("//go.example:8000", "go.example:8000"),
        ("myapp://order:4711223/x", ""),
        ("myapp://[abc", ""),
        ("tel:+14155550100", ""),
    ],
)
def test_the_host_of_a_web_address_has_its_port_unless_it_is_the_default(url: str, host: str) -> None:
    assert host_of(url) == host


def test_a_base_url_may_have_a_path_before_the_codes() -> None:
    assert parse_base_url("https://go.example/ABCDEF/") == BaseUrl("https://go.example", "/ABCDEF")
    assert parse_base_url("https://go.example/s/{sender}") == BaseUrl("https://go.example", "/s/{sender}")


@pytest.mark.parametrize(
    ("sender", "path"),
    [("ABCDEF", "/s/ABCDEF"), ("VM-ABCDEF", "/s/VM-ABCDEF"), ("+14085550100", "/s/14085550100")],
)
def test_the_sender_of_a_message_replaces_the_placeholder_in_the_path_of_a_domain(sender: str, path: str) -> None:
    assert fill_link_path("/s/{sender}", sender) == path
    assert matches_link_path("/s/{sender}", path)
    assert matches_link_path("/s/{sender}", path.lower())


@pytest.mark.parametrize("sender", ["", "My Shop", "a/b", "..", "Ünal", "x" * 65])
def test_a_sender_with_characters_that_a_url_path_cannot_contain_is_rejected(sender: str) -> None:
    with pytest.raises(UrlError, match="contain the sender"):
        fill_link_path("/{sender}", sender)
    assert fill_link_path("/ABCDEF", sender) == "/ABCDEF"


@pytest.mark.parametrize("requested", ["", "/a", "/s/a/b", "/t/a", "/s"])
def test_matches_link_path_rejects_a_path_of_another_form(requested: str) -> None:
    assert not matches_link_path("/s/{sender}", requested)
    assert not matches_link_path("/ABCDEF", requested)


@pytest.mark.parametrize(
    ("host", "canonical"),
    [
        ("GO.brand.example:8443", "go.brand.example:8443"),
        ("[::0:1]", "[::1]"),
        ("[2001:DB8:0::1]:8443", "[2001:db8::1]:8443"),
        ("[::1", "[::1"),
        ("x@GO.brand.example", "x@go.brand.example"),
        ("", ""),
    ],
)
def test_a_host_has_one_canonical_form_and_text_that_is_no_host_only_becomes_lower_case(host: str, canonical: str) -> None:
    assert canonical_host(host) == canonical
