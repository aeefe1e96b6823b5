"""Where a hit leads: what is known of its link, application and domain says it all, and no store is asked."""

import dataclasses
from typing import Any

import pytest

from shortener.accounts import EVERYBODY, Special
from shortener.click.landing import UNKNOWN, Guide, Hit, Landing, Places
from shortener.ids import ClickIds
from shortener.model import LinkFlag, Verdict
from shortener.store.links import CachedLink

HIT = Hit(41, "code", None, 1_000, Verdict.HUMAN, "test", "", "")
LINK = CachedLink("code", 1, 2, 3, 4, 0, "https://x.example/a", None, expires_at=1_001)
CLICK_IDS = ClickIds(b"key")


def landing(hit: Hit = HIT, special: Special | None = None, **link: Any) -> Landing:
    """`link`: what is other than in LINK."""
    places = Places(lambda *place: f"https://x.example/fallback{place}", {3: "cid"}.get, Special)
    return Guide(places, CLICK_IDS).landing(hit, dataclasses.replace(LINK, **link), special or Special())


def test_a_link_leads_to_its_destination_until_it_expires() -> None:
    assert landing() == Landing(b"https://x.example/a", 3)
    assert landing(expires_at=1_000, fallback_url="https://x.example/own") == Landing(b"https://x.example/own", 3, gone=True)
    assert landing(expires_at=1_000) == Landing(b"https://x.example/fallback(3, 4)", 3, gone=True)


@pytest.mark.parametrize(("domain_id", "known"), [(None, True), (4, True), (5, False)])
def test_a_code_counts_on_its_own_domain_and_on_the_default_host(domain_id: int | None, known: bool) -> None:
    assert (landing(dataclasses.replace(HIT, domain_id=domain_id)) is not UNKNOWN) is known


def test_a_code_that_no_link_has_is_unknown() -> None:
    assert Guide(Places(lambda *_: None, lambda _: None, Special), CLICK_IDS).landing(HIT, None, Special()) is UNKNOWN


@pytest.mark.parametrize("expires_at", [1_000, 1_001])
@pytest.mark.parametrize(
    ("special", "off"),
    [
        (Special(disabled_applications=frozenset({3})), True),
        (Special(disabled_domains=frozenset({4})), True),
        (Special(blocked_hosts={EVERYBODY: frozenset({"x.example"})}), True),
        (Special(disabled_applications=frozenset({4}), disabled_domains=frozenset({3})), False),
        (Special(blocked_hosts={4: frozenset({"x.example"})}), False),
    ],
)
def test_what_is_switched_off_leads_nowhere_expired_or_not(special: Special, off: bool, expires_at: int) -> None:
    found = landing(special=special, expires_at=expires_at)
    if off:
        assert found == Landing(None, 3, gone=True, off=True)
    else:
        assert found.location
        assert not found.off


def test_a_destination_that_wants_the_click_id_gets_that_of_the_hit() -> None:
    spelled = CLICK_IDS.spell(HIT.id).encode()
    filled = landing(flags=int(LinkFlag.FILL_CLICK_ID), url="https://x.example/{click_id}")
    assert filled.location == b"https://x.example/" + spelled
    assert landing(flags=int(LinkFlag.APPEND_CLICK_ID)).location == b"https://x.example/a?cid=" + spelled
    without = landing(flags=int(LinkFlag.APPEND_CLICK_ID), application_id=9)
    assert without.location == b"https://x.example/a"
