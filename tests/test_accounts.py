"""Applications, domains and blocked hosts: what may be set, and what every process knows of it."""

from typing import Any

import pytest

from shortener import accounts
from shortener.accounts import EVERYBODY, ApplicationSettings, Directory, Special
from shortener.delivery.trackers import NewTracker
from shortener.errors import ApiError, ErrorCode
from shortener.service import Service
from tests.conftest import NOON
from tests.delivery.conftest import changes


def chosen(**settings: Any) -> ApplicationSettings:
    return ApplicationSettings(**settings)


async def change(service: Service, **settings: Any) -> None:
    await service.database.write(accounts.update_application, 1, settings, NOON)
    await service.directory.refresh()


@pytest.mark.parametrize(
    "settings",
    [
        {"min_seconds_after_sent": 0},
        {"min_seconds_after_sent": -1},
        {"min_seconds_after_delivered": float("nan")},
        {"min_seconds_after_delivered": 1e9},
        {"max_recipients_per_address_minute": 0},
        {"max_recipients_per_address_minute": 1.5},
        {"all_links_within_second": "perhaps"},
        {"retract_clicks": 7},
        {"ip_privacy": "half"},
    ],
)
async def test_settings_that_make_no_sense_are_refused(service: Service, settings: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        await change(service, **settings)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert [detail.field for detail in caught.value.details] == list(settings)


@pytest.mark.parametrize(
    ("settings", "judges"),
    [
        ({}, False),
        ({"retract_clicks": True}, False),
        ({"min_seconds_after_sent": 2}, True),
        ({"min_seconds_after_delivered": 0.5}, True),
        ({"max_recipients_per_address_minute": 1}, True),
        ({"all_links_within_second": True}, True),
    ],
)
def test_an_application_judges_by_circumstance_when_one_of_the_rules_is_on(settings: dict[str, Any], judges: bool) -> None:
    assert chosen(**settings).judges_by_circumstance is judges


async def test_what_no_application_asks_for_is_empty(service: Service) -> None:
    assert service.directory.special == Special()


async def test_what_one_asks_for_is_known_by_its_number(service: Service) -> None:
    await change(service, min_seconds_after_sent=2, ip_privacy="none")
    await service.database.write(accounts.block_host, EVERYBODY, "evil.example", NOON)
    await service.database.write(accounts.block_host, 1, "Shop.Example", NOON)
    await service.directory.refresh()
    special = service.directory.special
    assert special.circumstances == {1: chosen(min_seconds_after_sent=2, ip_privacy="none")}
    assert special.ip_privacy == {1: "none"}
    assert special.blocked_hosts == {EVERYBODY: {"evil.example"}, 1: {"shop.example"}}
    assert special.with_suspected == frozenset()
    assert special.disabled_applications == special.disabled_domains == frozenset()


async def test_what_is_switched_off_is_known_by_its_number(service: Service) -> None:
    domain_id = await service.database.write(accounts.add_domain, 1, "https://go.brand.example", NOON)
    await service.database.write(accounts.update_domain, "go.brand.example", {"disabled": True}, NOON)
    await service.directory.refresh()
    assert service.directory.special == Special(disabled_domains=frozenset({domain_id}))
    await change(service, disabled=True)
    await service.database.write(accounts.update_domain, "go.brand.example", {"disabled": False}, NOON)
    await service.directory.refresh()
    assert service.directory.special == Special(disabled_applications=frozenset({1}))


async def test_every_process_learns_which_applications_want_suspected_hits(service: Service) -> None:
    other = Directory(service.database)
    await other.refresh()
    asking = {"url": "https://t.example/", "events": ["click"], "with_suspected": True}
    tracker = (await service.trackers.create(1, NewTracker.model_validate(asking))).tracker
    assert await other.refresh()
    assert other.special.with_suspected == {1}
    for given, wanted in (
        ({"events": ["state"]}, set()),
        ({"events": ["click"]}, {1}),
        ({"with_suspected": False}, set()),
        ({"with_suspected": True}, {1}),
        ({"enabled": False}, {1}),  # what is parked goes on one day
    ):
        await service.trackers.update(tracker.id, changes(**given))
        await other.refresh()
        assert other.special.with_suspected == wanted, given
    await service.trackers.delete(tracker.id)
    await other.refresh()
    assert other.special.with_suspected == frozenset()


@pytest.mark.parametrize(
    ("blocked", "url", "hit"),
    [
        ("evil.example", "https://evil.example/x", True),
        ("evil.example", "http://evil.example:8080?x", True),
        ("evil.example", "https://evil.example", True),
        ("evil.example", "https://www.evil.example/", False),
        ("evil.example", "https://evil.example.net/", False),
        ("evil.example", "https://x.example/?u=https://evil.example/", False),
        ("*.evil.example", "https://a.b.evil.example/#f", True),
        ("*.evil.example", "https://evil.example/", False),
        ("*.evil.example", "https://notevil.example/", False),
        ("2001:db8::1", "https://[2001:db8::1]:8443/x", True),
        ("192.0.2.1", "http://192.0.2.1/", True),
    ],
)
def test_a_host_is_blocked_exactly_or_with_everything_under_it(blocked: str, url: str, hit: bool) -> None:
    for owner, application, expected in ((EVERYBODY, 7, hit), (7, 7, hit), (8, 7, False)):
        special = Special(blocked_hosts={owner: frozenset({blocked})})
        assert special.blocks(application, url) is expected


@pytest.mark.parametrize(
    ("given", "spelled"),
    [
        ("Evil.Example", "evil.example"),
        ("*.Evil.example", "*.evil.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("[2001:DB8::1]", "2001:db8::1"),
        ("2001:DB8::1", "2001:db8::1"),
    ],
)
async def test_a_host_is_kept_as_destinations_spell_it(service: Service, given: str, spelled: str) -> None:
    for _ in range(2):
        assert await service.database.write(accounts.block_host, 1, given, NOON) == spelled
    (row,) = await service.database.read(accounts.list_blocked_hosts, 1)
    assert row == {"application_id": 1, "host": spelled, "created_at": NOON}
    assert await service.database.write(accounts.unblock_host, 1, given) == spelled
    assert await service.database.read(accounts.list_blocked_hosts) == []


@pytest.mark.parametrize(
    "host", ["", "*.", "https://evil.example", "evil.example/x", "evil.example:80", "u@evil.example", "evil.example?", "a b"]
)
async def test_what_is_no_host_cannot_be_blocked(service: Service, host: str) -> None:
    with pytest.raises(ApiError) as caught:
        await service.database.write(accounts.block_host, 1, host, NOON)
    assert [detail.field for detail in caught.value.details] == ["host"]


async def test_only_so_many_hosts_are_blocked(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "MOST_BLOCKED", 2)
    for number in range(2):
        await service.database.write(accounts.block_host, 1, f"x{number}.example", NOON)
    with pytest.raises(ApiError) as caught:
        await service.database.write(accounts.block_host, 1, "x3.example", NOON)
    assert caught.value.code is ErrorCode.CONFLICT
    await service.database.write(accounts.block_host, EVERYBODY, "x3.example", NOON)


async def test_what_is_not_there_cannot_be_changed(service: Service) -> None:
    for transact, arguments in (
        (accounts.unblock_host, (1, "evil.example")),
        (accounts.block_host, (7, "evil.example", NOON)),
        (accounts.update_domain, ("nosuch.example", {"disabled": True}, NOON)),
    ):
        with pytest.raises(ApiError) as caught:
            await service.database.write(transact, *arguments)
        assert caught.value.code is ErrorCode.NOT_FOUND


async def test_a_domain_is_switched_off_and_on_and_its_fallback_changed(service: Service) -> None:
    await service.database.write(accounts.add_domain, 1, "https://go.brand.example", NOON)
    for given, disabled, fallback in (
        ({"disabled": True}, True, None),
        ({"fallback_url": "https://über.example/"}, True, "https://xn--ber-goa.example/"),
        ({"disabled": False, "fallback_url": None}, False, None),
    ):
        await service.database.write(accounts.update_domain, "go.brand.example", given, NOON)
        await service.directory.refresh()
        domain = service.directory.domain("go.brand.example")
        assert domain is not None
        assert (domain.disabled, domain.fallback_url) == (disabled, fallback)
    with pytest.raises(ApiError) as caught:
        await service.database.write(accounts.update_domain, "go.brand.example", {"fallback_url": "ftp://x"}, NOON)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
