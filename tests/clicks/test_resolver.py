"""Tests of the link resolver. A resolution depends only on the link, its application and its domain, without a read of the
database.
"""

import dataclasses
from typing import Any

import pytest

from shortener.accounts.hit_policies import HitPolicies
from shortener.clicks.resolver import UNKNOWN_LINK, Hit, LinkResolver, Resolution
from shortener.ids import ClickIds
from shortener.model import ALL_APPLICATIONS, LinkFlag, Verdict
from shortener.redis.link_cache import CachedLink

HIT = Hit(41, "code", None, 1_000, Verdict.HUMAN, "test", "", "")
LINK = CachedLink("code", 1, 2, 3, 4, 0, "https://x.example/a", None, expires_at=1_001)
CLICK_IDS = ClickIds(b"key")


class FakeDirectory:
    """A directory in which every link has a fallback URL."""

    hit_policies = HitPolicies()

    def fallback_url(self, application_id: int, domain_id: int) -> str | None:
        return f"https://x.example/fallback/{application_id}/{domain_id}"

    def unknown_code_url(self, domain_id: int) -> str | None:
        return f"https://x.example/unknown/{domain_id}" if domain_id == 6 else None

    def is_own(self, url: str) -> bool:
        return url.startswith("https://own.example/")


RESOLVER = LinkResolver(FakeDirectory(), CLICK_IDS)


def resolve(hit: Hit = HIT, policies: HitPolicies | None = None, **changes: Any) -> Resolution:
    """Return the resolution of `hit` on the link LINK. `changes` replace fields of the link."""
    return RESOLVER.resolve(hit, dataclasses.replace(LINK, **changes), policies or HitPolicies())


def test_a_link_redirects_to_its_destination_until_it_expires() -> None:
    assert resolve() == Resolution(b"https://x.example/a", 3)
    assert resolve(expires_at=1_000, fallback_url="https://x.example/own") == Resolution(b"https://x.example/own", 3, gone=True)
    assert resolve(expires_at=1_000) == Resolution(b"https://x.example/fallback/3/4", 3, gone=True)


def test_a_fallback_url_contains_the_click_id_and_the_code_of_the_hit() -> None:
    fallback = resolve(expires_at=1_000, fallback_url="https://x.example/{code}?c={click_id}&m={message_id}")
    assert fallback.location == f"https://x.example/code?c={CLICK_IDS.encode(HIT.id)}&m={{message_id}}".encode()


def test_an_expired_link_does_not_redirect_to_a_fallback_url_on_a_host_of_the_installation() -> None:
    assert resolve(expires_at=1_000, fallback_url="https://own.example/code") == Resolution(None, 3, gone=True)


def test_a_link_with_an_app_scheme_redirects_even_if_the_application_has_blocked_hosts() -> None:
    policies = HitPolicies(blocked_hosts={3: frozenset({"evil.example"})})
    assert resolve(url="tel:+14155550100", policies=policies).location == b"tel:+14155550100"
    assert resolve(url="myapp://evil.example/x", policies=policies).off


@pytest.mark.parametrize(("domain_id", "is_known"), [(None, True), (4, True), (5, False)])
def test_a_code_is_valid_on_its_own_domain_and_on_the_default_host(domain_id: int | None, is_known: bool) -> None:
    assert (resolve(dataclasses.replace(HIT, domain_id=domain_id)) is not UNKNOWN_LINK) is is_known


def test_a_code_that_belongs_to_no_link_is_unknown() -> None:
    assert RESOLVER.resolve(HIT, None, HitPolicies()) is UNKNOWN_LINK
    assert UNKNOWN_LINK.unknown


def test_a_hit_with_an_unknown_code_redirects_to_the_fallback_url_of_the_domain() -> None:
    fallback = Resolution(b"https://x.example/unknown/6", unknown=True)
    on_domain = dataclasses.replace(HIT, domain_id=6)
    assert RESOLVER.resolve(on_domain, None, HitPolicies()) == resolve(on_domain) == fallback
    assert not resolve().unknown


@pytest.mark.parametrize("expires_at", [1_000, 1_001])
@pytest.mark.parametrize(
    ("policies", "is_off"),
    [
        (HitPolicies(disabled_applications=frozenset({3})), True),
        (HitPolicies(disabled_domains=frozenset({4})), True),
        (HitPolicies(blocked_hosts={ALL_APPLICATIONS: frozenset({"x.example"})}), True),
        (HitPolicies(disabled_applications=frozenset({4}), disabled_domains=frozenset({3})), False),
        (HitPolicies(blocked_hosts={4: frozenset({"x.example"})}), False),
    ],
)
def test_a_disabled_link_has_no_destination_whether_it_is_expired_or_not(
    policies: HitPolicies, is_off: bool, expires_at: int
) -> None:
    resolution = resolve(policies=policies, expires_at=expires_at)
    if is_off:
        assert resolution == Resolution(None, 3, gone=True, off=True)
    else:
        assert resolution.location
        assert not resolution.off


def test_the_placeholder_click_id_in_a_destination_is_replaced_by_the_click_id() -> None:
    click_id = CLICK_IDS.encode(HIT.id).encode()
    filled = resolve(flags=int(LinkFlag.FILL_CLICK_ID), url="https://x.example/{click_id}")
    assert filled.location == b"https://x.example/" + click_id


def test_the_setting_click_id_param_adds_the_click_id_to_every_web_destination_of_the_application() -> None:
    click_id = CLICK_IDS.encode(HIT.id).encode()
    policies = HitPolicies(click_id_params={3: "cid"})
    assert resolve(policies=policies).location == b"https://x.example/a?cid=" + click_id
    assert resolve(policies=policies, application_id=9).location == b"https://x.example/a"
    assert resolve(policies=policies, url="tel:+14085550100").location == b"tel:+14085550100"
