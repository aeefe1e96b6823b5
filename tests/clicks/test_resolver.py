"""Where a hit leads: what is known of its link, application and domain says it all, and no store is asked."""

import dataclasses
from typing import Any

import pytest

from shortener.accounts.directory import ALL_APPLICATIONS, HitPolicies
from shortener.clicks.resolver import UNKNOWN_LINK, Hit, LinkResolver, Places, Resolution
from shortener.ids import ClickIds
from shortener.model import LinkFlag, Verdict
from shortener.redis.link_cache import CachedLink

HIT = Hit(41, "code", None, 1_000, Verdict.HUMAN, "test", "", "")
LINK = CachedLink("code", 1, 2, 3, 4, 0, "https://x.example/a", None, expires_at=1_001)
CLICK_IDS = ClickIds(b"key")


def resolution(hit: Hit = HIT, hit_policies: HitPolicies | None = None, **link: Any) -> Resolution:
    """`link`: what is other than in LINK."""
    places = Places(lambda *place: f"https://x.example/fallback{place}", {3: "cid"}.get, HitPolicies)
    return LinkResolver(places, CLICK_IDS).resolution(hit, dataclasses.replace(LINK, **link), hit_policies or HitPolicies())


def test_a_link_leads_to_its_destination_until_it_expires() -> None:
    assert resolution() == Resolution(b"https://x.example/a", 3)
    assert resolution(expires_at=1_000, fallback_url="https://x.example/own") == Resolution(b"https://x.example/own", 3, gone=True)
    assert resolution(expires_at=1_000) == Resolution(b"https://x.example/fallback(3, 4)", 3, gone=True)


@pytest.mark.parametrize(("domain_id", "known"), [(None, True), (4, True), (5, False)])
def test_a_code_counts_on_its_own_domain_and_on_the_default_host(domain_id: int | None, known: bool) -> None:
    assert (resolution(dataclasses.replace(HIT, domain_id=domain_id)) is not UNKNOWN_LINK) is known


def test_a_code_that_no_link_has_is_unknown() -> None:
    assert (
        LinkResolver(Places(lambda *_: None, lambda _: None, HitPolicies), CLICK_IDS).resolution(HIT, None, HitPolicies())
        is UNKNOWN_LINK
    )


@pytest.mark.parametrize("expires_at", [1_000, 1_001])
@pytest.mark.parametrize(
    ("hit_policies", "off"),
    [
        (HitPolicies(disabled_applications=frozenset({3})), True),
        (HitPolicies(disabled_domains=frozenset({4})), True),
        (HitPolicies(blocked_hosts={ALL_APPLICATIONS: frozenset({"x.example"})}), True),
        (HitPolicies(disabled_applications=frozenset({4}), disabled_domains=frozenset({3})), False),
        (HitPolicies(blocked_hosts={4: frozenset({"x.example"})}), False),
    ],
)
def test_what_is_switched_off_leads_nowhere_expired_or_not(hit_policies: HitPolicies, off: bool, expires_at: int) -> None:
    found = resolution(hit_policies=hit_policies, expires_at=expires_at)
    if off:
        assert found == Resolution(None, 3, gone=True, off=True)
    else:
        assert found.location
        assert not found.off


def test_a_destination_that_wants_the_click_id_gets_that_of_the_hit() -> None:
    spelled = CLICK_IDS.encode(HIT.id).encode()
    filled = resolution(flags=int(LinkFlag.FILL_CLICK_ID), url="https://x.example/{click_id}")
    assert filled.location == b"https://x.example/" + spelled
    assert resolution(flags=int(LinkFlag.APPEND_CLICK_ID)).location == b"https://x.example/a?cid=" + spelled
    without = resolution(flags=int(LinkFlag.APPEND_CLICK_ID), application_id=9)
    assert without.location == b"https://x.example/a"
