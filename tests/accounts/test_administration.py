"""Tests of changes to applications, domains and blocked hosts, and of the directory that every process reads."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import insert

from shortener.accounts.administration import (
    add_domain,
    block_host,
    create_application,
    list_blocked_hosts,
    remove_domain,
    unblock_host,
    update_application,
    update_domain,
)
from shortener.accounts.directory import Directory
from shortener.accounts.hit_policies import HitPolicies
from shortener.accounts.own_hosts import OwnHosts
from shortener.accounts.settings import ApplicationSettings
from shortener.container import Service
from shortener.delivery.trackers import NewTracker
from shortener.errors import ApiError, ErrorCode
from shortener.model import ALL_APPLICATIONS
from shortener.storage import schema
from tests.conftest import NOON
from tests.delivery.conftest import changes
from tests.factory import AUDIT, rows
from tests.one_service import on_one_service


def chosen(**settings: Any) -> ApplicationSettings:
    return ApplicationSettings(**settings)


async def change(service: Service, **settings: Any) -> None:
    await service.database.write(update_application, 1, settings, NOON)
    await service.directory.refresh()


@on_one_service
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
        {"track": "everything"},
        {"extra_schemes": ["javascript"]},
        {"extra_schemes": "myapp, Data:"},
        {"extra_schemes": ["my app!"]},
        {"strict_destinations": "perhaps"},
        {"fallback_url": "myapp://home"},
    ],
)
async def test_invalid_settings_of_an_application_are_rejected(service: Service, settings: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        await change(service, **settings)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert [detail.field for detail in caught.value.details] == list(settings)


async def test_the_reason_for_an_invalid_setting_of_an_application_is_worded_as_in_the_api(service: Service) -> None:
    with pytest.raises(ApiError) as caught:
        await change(service, link_ttl_days="x", click_events="each", nope=1, trak="all_urls")
    assert {detail.field: detail.reason for detail in caught.value.details} == {
        "link_ttl_days": "must be an integer",
        "click_events": "must be 'first' or 'every'",
        "nope": "is not a known field",
        "trak": "is not a known field; did you mean track?",
    }


async def test_an_unknown_macro_in_a_fallback_url_is_rejected_only_with_strict_destinations(service: Service) -> None:
    known = "https://shop.example/?m={message_id}&c={campaign}&p={phone_sha256}"
    for url in ("https://shop.example/?p={phone}", "https://shop.example/?m={{code}}"):
        await change(service, fallback_url=known, strict_destinations=True)
        with pytest.raises(ApiError) as caught:
            await change(service, fallback_url=url)
        assert [detail.field for detail in caught.value.details] == ["fallback_url"]
        await change(service, fallback_url=url, strict_destinations=False)
        with pytest.raises(ApiError):
            await change(service, strict_destinations=True)


@pytest.mark.parametrize(
    ("settings", "uses_rules"),
    [
        ({}, False),
        ({"retract_clicks": True}, False),
        ({"min_seconds_after_sent": 2}, True),
        ({"min_seconds_after_delivered": 0.5}, True),
        ({"max_recipients_per_address_minute": 1}, True),
        ({"all_links_within_second": True}, True),
    ],
)
def test_an_application_uses_contextual_rules_if_at_least_one_rule_is_on(settings: dict[str, Any], uses_rules: bool) -> None:
    assert chosen(**settings).uses_contextual_rules is uses_rules


async def test_hit_policies_are_empty_by_default(service: Service) -> None:
    assert service.directory.hit_policies == HitPolicies()


async def test_hit_policies_contain_the_settings_of_each_application(service: Service) -> None:
    await change(service, min_seconds_after_sent=2, ip_privacy="none")
    await service.database.write(block_host, ALL_APPLICATIONS, "evil.example", NOON)
    await service.database.write(block_host, 1, "Shop.Example", NOON)
    await service.directory.refresh()
    hit_policies = service.directory.hit_policies
    assert hit_policies.contextual_rules == {1: chosen(min_seconds_after_sent=2, ip_privacy="none")}
    assert hit_policies.ip_privacy == {1: "none"}
    assert hit_policies.blocked_hosts == {ALL_APPLICATIONS: {"evil.example"}, 1: {"shop.example"}}
    assert hit_policies.with_suspected == frozenset()
    assert hit_policies.disabled_applications == hit_policies.disabled_domains == frozenset()


async def test_hit_policies_contain_the_disabled_domains_and_applications(service: Service) -> None:
    domain_id = await service.database.write(add_domain, 1, "https://go.brand.example", NOON)
    await service.database.write(update_domain, "go.brand.example", {"disabled": True}, NOON)
    await service.directory.refresh()
    assert service.directory.hit_policies == HitPolicies(disabled_domains=frozenset({domain_id}))
    await change(service, disabled=True)
    await service.database.write(update_domain, "go.brand.example", {"disabled": False}, NOON)
    await service.directory.refresh()
    assert service.directory.hit_policies == HitPolicies(disabled_applications=frozenset({1}))


async def test_hit_policies_contain_the_applications_with_a_tracker_that_receives_suspected_hits(service: Service) -> None:
    other = Directory(service.database)
    await other.refresh()
    tracker = (
        await service.trackers.create(AUDIT, 1, NewTracker(url="https://t.example/", events=["click"], with_suspected=True))
    ).tracker
    assert await other.refresh()
    assert other.hit_policies.with_suspected == {1}
    for changed, expected in (
        ({"events": ["state"]}, set()),
        ({"events": ["click"]}, {1}),
        ({"with_suspected": False}, set()),
        ({"with_suspected": True}, {1}),
        # `with_suspected` also contains the application of a disabled tracker, which can be enabled again.
        ({"enabled": False}, {1}),
    ):
        await service.trackers.update(AUDIT, tracker.id, changes(**changed))
        await other.refresh()
        assert other.hit_policies.with_suspected == expected, changed
    await service.trackers.delete(AUDIT, tracker.id)
    await other.refresh()
    assert other.hit_policies.with_suspected == frozenset()


@pytest.mark.parametrize(
    ("blocked", "url", "matches"),
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
def test_a_blocked_host_blocks_only_itself_and_a_blocked_wildcard_blocks_subdomains(blocked: str, url: str, matches: bool) -> None:
    for owner, application, expected in ((ALL_APPLICATIONS, 7, matches), (7, 7, matches), (8, 7, False)):
        hit_policies = HitPolicies(blocked_hosts={owner: frozenset({blocked})})
        assert hit_policies.blocks(application, url) is expected


@on_one_service
@pytest.mark.parametrize(
    ("host", "normalized"),
    [
        ("Evil.Example", "evil.example"),
        ("*.Evil.example", "*.evil.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("[2001:DB8::1]", "2001:db8::1"),
        ("2001:DB8::1", "2001:db8::1"),
    ],
)
async def test_a_blocked_host_is_stored_in_the_normalized_form_of_a_destination_host(
    service: Service, host: str, normalized: str
) -> None:
    for is_new in (True, False):
        assert await service.database.write(block_host, 1, host, NOON) == (normalized, is_new)
    (row,) = await service.database.read(list_blocked_hosts, 1)
    assert row == {"application_id": 1, "host": normalized, "created_at": NOON}
    assert await service.database.write(unblock_host, 1, host) == normalized
    assert await service.database.read(list_blocked_hosts) == []


@on_one_service
@pytest.mark.parametrize(
    "host", ["", "*.", "https://evil.example", "evil.example/x", "evil.example:80", "u@evil.example", "evil.example?", "a b"]
)
async def test_blocking_a_text_that_is_not_a_host_name_is_rejected(service: Service, host: str) -> None:
    with pytest.raises(ApiError) as caught:
        await service.database.write(block_host, 1, host, NOON)
    assert [detail.field for detail in caught.value.details] == ["host"]


async def test_an_application_can_block_only_a_limited_number_of_hosts(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shortener.accounts.administration.MAX_BLOCKED_HOSTS", 2)
    for number in range(2):
        await service.database.write(block_host, 1, f"x{number}.example", NOON)
    with pytest.raises(ApiError) as caught:
        await service.database.write(block_host, 1, "x3.example", NOON)
    assert caught.value.code is ErrorCode.CONFLICT
    await service.database.write(block_host, ALL_APPLICATIONS, "x3.example", NOON)


async def test_changing_an_unknown_application_blocked_host_or_domain_raises_not_found(service: Service) -> None:
    transactions: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (unblock_host, (1, "evil.example")),
        (add_domain, (7, "https://orphan.example", NOON)),
        (update_application, (7, {"name": "x"}, NOON)),
        (block_host, (7, "evil.example", NOON)),
        (update_domain, ("nosuch.example", {"disabled": True}, NOON)),
    ]
    for transact, arguments in transactions:
        with pytest.raises(ApiError) as caught:
            await service.database.write(transact, *arguments)
        assert caught.value.code is ErrorCode.NOT_FOUND


async def test_a_domain_can_be_disabled_and_enabled_and_its_fallback_url_can_be_changed(service: Service) -> None:
    await service.database.write(add_domain, 1, "https://go.brand.example", NOON)
    for changed, disabled, fallback in (
        ({"disabled": True}, True, None),
        ({"fallback_url": "https://über.example/"}, True, "https://xn--ber-goa.example/"),
        ({"disabled": False, "fallback_url": None}, False, None),
    ):
        await service.database.write(update_domain, "go.brand.example", changed, NOON)
        await service.directory.refresh()
        domain = service.directory.domain("go.brand.example")
        assert domain is not None
        assert (domain.disabled, domain.fallback_url) == (disabled, fallback)
    with pytest.raises(ApiError) as caught:
        await service.database.write(update_domain, "go.brand.example", {"fallback_url": "ftp://x"}, NOON)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


@on_one_service
@pytest.mark.parametrize(
    "host", ["-bad-.example", "-bad-.com", "a_b.example", "go.bad-", "go._dmarc.example", "go..example", "go.brand.123"]
)
async def test_a_domain_with_a_host_name_that_the_standards_forbid_is_rejected(service: Service, host: str) -> None:
    with pytest.raises(ApiError, match="INVALID_REQUEST") as caught:
        await service.database.write(add_domain, 1, f"https://{host}", NOON)
    assert caught.value.details[0].field == "domain"
    with pytest.raises(ApiError, match="INVALID_REQUEST"):
        await service.database.write(create_application, "other", NOON, domain=f"https://{host}/ABCDEF")


async def test_a_domain_of_an_earlier_version_with_a_forbidden_host_name_can_be_changed_and_removed_and_added_again(
    service: Service,
) -> None:
    values = {"application_id": 1, "host": "a_b.example", "base_url": "https://a_b.example", "created_at": NOON}
    await service.database.write(lambda connection: connection.execute(insert(schema.domains).values(values)))
    await service.database.write(update_domain, "a_b.example", {"path": "/ABC", "default": True}, NOON)
    await service.database.write(remove_domain, "a_b.example", NOON)
    await service.database.write(add_domain, 1, "https://A_b.example", NOON)
    await service.directory.refresh()
    domain = service.directory.domain("a_b.example")
    assert domain is not None
    assert (domain.path, domain.disabled) == ("", False)


@on_one_service
@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "[2001:db8::1]", "a--b.example", "xn--bcher-kva.example"])
async def test_hosts_of_domains_may_be_local_names_ip_addresses_or_international_names(service: Service, host: str) -> None:
    await service.database.write(add_domain, 1, f"https://{host}", NOON)
    await service.directory.refresh()
    assert service.directory.domain(host) is not None


async def test_a_domain_of_an_unknown_application_is_not_stored(service: Service) -> None:
    with pytest.raises(ApiError):
        await service.database.write(add_domain, 999, "https://go.brand.example", NOON)
    await service.database.write(add_domain, 1, "https://go.brand.example", NOON)


@on_one_service
@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "a\x00b"])
async def test_an_invalid_application_name_is_rejected_on_creation_and_on_renaming(service: Service, name: str) -> None:
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (create_application, (name, NOON)),
        (update_application, (1, {"name": name}, NOON)),
    ]
    for transact, arguments in calls:
        with pytest.raises(ApiError) as caught:
            await service.database.write(transact, *arguments)
        assert caught.value.code is ErrorCode.INVALID_REQUEST
        assert [detail.field for detail in caught.value.details] == ["name"]


async def test_two_applications_cannot_have_the_same_name(service: Service) -> None:
    await service.database.write(create_application, "second", NOON)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (create_application, ("second", NOON)),
        (update_application, (1, {"name": "second"}, NOON)),
    ]
    for transact, arguments in calls:
        with pytest.raises(ApiError) as caught:
            await service.database.write(transact, *arguments)
        assert caught.value.code is ErrorCode.CONFLICT
    await change(service, name="default")  # an application can be renamed to its current name


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/abcdefghij",
        "http://localhost:8000/abcdefghij",
        "http://[::1]:8000/abcdefghij",
        "https://GO.brand.example:443/abcdefghij",
        "http://go.brand.example:8443/abcdefghij",
    ],
)
async def test_a_fallback_url_that_leads_to_a_host_of_the_installation_is_rejected(service: Service, url: str) -> None:
    await service.database.write(add_domain, 1, "https://go.brand.example", NOON)
    own_hosts = OwnHosts.of(service.settings)
    transactions: list[tuple[Callable[..., None], Any]] = [(update_application, 1), (update_domain, "go.brand.example")]
    for transact, target in transactions:
        with pytest.raises(ApiError) as caught:
            await service.database.write(transact, target, {"fallback_url": url}, NOON, own_hosts=own_hosts)
        assert [detail.field for detail in caught.value.details] == ["fallback_url"]
        await service.database.write(transact, target, {"fallback_url": "https://shop.example/"}, NOON, own_hosts=own_hosts)


async def test_a_fallback_url_may_contain_the_placeholders_code_and_click_id_and_a_permitted_scheme(service: Service) -> None:
    await change(service, extra_schemes="myapp,TEL:", track="all_urls", strict_destinations="true")
    await change(service, fallback_url="myapp://home/{code}?c={click_id}")
    application = service.directory.application(1)
    assert application is not None
    settings = application.settings
    assert (settings.extra_schemes, settings.track, settings.strict_destinations) == (("myapp", "tel"), "all_urls", True)
    assert settings.fallback_url == "myapp://home/{code}?c={click_id}"
    await service.database.write(add_domain, 1, "https://go.brand.example", NOON)
    await service.database.write(update_domain, "go.brand.example", {"fallback_url": "tel:+14155550100"}, NOON)
    with pytest.raises(ApiError):
        await service.database.write(update_domain, "go.brand.example", {"fallback_url": "other://x"}, NOON)
    with pytest.raises(ApiError):  # this change would remove the scheme of the fallback URL
        await change(service, extra_schemes=["tel"])


async def test_changes_of_the_path_of_a_domain_at_the_same_time_keep_every_earlier_path(service: Service) -> None:
    write, paths = service.database.write, [f"/A{number}" for number in range(6)]
    await write(add_domain, 1, f"https://go.brand.example{paths[0]}", NOON)
    await asyncio.gather(*(write(update_domain, "go.brand.example", {"path": path}, NOON) for path in paths[1:]))
    (row,) = await rows(service.database, schema.domains)
    assert sorted([*row.previous_paths, row.path]) == paths


async def _codes(*transactions: Awaitable[object]) -> Counter[str]:
    """Run transactions at the same time. Return how often each error code occurred; the key "" counts successes."""
    results = await asyncio.gather(*transactions, return_exceptions=True)
    return Counter(
        one.code.name if isinstance(one, ApiError) else repr(one) if isinstance(one, Exception) else "" for one in results
    )


async def test_concurrent_requests_create_one_application_with_a_name_and_one_domain_with_a_host(service: Service) -> None:
    write = service.database.write
    created = await asyncio.gather(*(write(create_application, f"application {number}", NOON) for number in range(3)))
    assert await _codes(*(write(create_application, "same", NOON) for _ in range(4))) == {"": 1, "CONFLICT": 3}
    domains = (write(add_domain, one.application_id, "https://go.brand.example", NOON) for one in created)
    assert await _codes(*domains) == {"": 1, "CONFLICT": 2}
    renamed = (write(update_application, one.application_id, {"name": "renamed"}, NOON) for one in created)
    assert await _codes(*renamed) == {"": 1, "CONFLICT": 2}
