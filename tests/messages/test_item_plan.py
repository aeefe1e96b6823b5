from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from shortener.accounts.directory import Domain
from shortener.messages import item_plan, spans, url_detection
from shortener.messages.item_plan import MAX_CACHED_CHARACTERS, MAX_LIFETIME, MAX_LINKS, REMEMBERED_TEXTS, ItemPlan, PlanCache
from shortener.messages.rewrite_item import RewriteItem
from shortener.storage.types import from_ms
from tests.conftest import NOON
from tests.messages.rewriting import LIMITS, LINK, Hosts, application, item, only, reason, rejection


def test_a_trackurl_directive_or_an_application_setting_causes_an_event_for_every_click_on_a_link() -> None:
    assert only(item('#trackurl("https://x.example/","sale")')).plan.links[0].every_click
    assert only(item(), application=application(click_events="every")).plan.links[0].every_click


def test_the_lifetime_of_a_link_is_set_by_the_request_then_the_application_then_the_installation() -> None:
    def expires_at(planned_item: RewriteItem, **settings: Any) -> datetime:
        return from_ms(only(planned_item, application=application(**settings)).expires_at)

    day = timedelta(days=1)
    assert expires_at(item()) == NOON + LIMITS.link_ttl
    assert expires_at(item(expires_in=60)) == NOON + timedelta(seconds=60)
    assert expires_at(item(expires_at=NOON + day)) == NOON + day
    assert expires_at(item(), link_ttl_days=2) == NOON + 2 * day
    assert expires_at(item(expires_at=NOON + 9 * day), link_ttl_days=2) == NOON + 2 * day


def test_a_link_without_a_requested_lifetime_expires_at_a_whole_second() -> None:
    now = NOON + timedelta(milliseconds=771)
    every: tuple[dict[str, Any], ...] = ({}, {"link_ttl_days": 2})
    for settings in every:
        assert from_ms(only(item(), application=application(**settings), now=now).expires_at).microsecond == 0


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_link_expiry_that_is_not_in_the_future_is_rejected(seconds: int) -> None:
    assert reason(item(expires_at=NOON + timedelta(seconds=seconds))) == ("expires_at", "must be in the future")


@pytest.mark.parametrize(
    "at",
    [
        datetime.max.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),  # this time is in the year 10000 in UTC
        NOON + MAX_LIFETIME + timedelta(seconds=1),
    ],
)
def test_a_link_expiry_more_than_3650_days_in_the_future_is_rejected(at: datetime) -> None:
    assert reason(item(expires_at=at, message_ids=("m-1",))) == ("expires_at", "must be at most 3650 days in the future")


def test_the_first_representable_time_is_rejected_as_a_link_expiry() -> None:
    at = datetime.min.replace(tzinfo=timezone(timedelta(hours=12)))  # this time is in the year 0 in UTC
    assert reason(item(expires_at=at, message_ids=("m-1",))) == ("expires_at", "must be in the future")


# These tests check destinations and fallback URLs of links.


@pytest.mark.parametrize("field", ["body", "fallback_url"])
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://go.example/abcdefghij", "leads to a host of this service, so the redirect would loop"),
        ("https://bad.example/", "leads to a blocked host"),
        ("ftp://x.example/", "http"),
    ],
)
def test_a_destination_or_fallback_that_is_invalid_blocked_or_on_a_host_of_the_installation_is_rejected(
    field: str, url: str, expected: str
) -> None:
    planned = item(f'#track("{url}")') if field == "body" else item(fallback_url=url)
    name, text = reason(planned, hosts=Hosts(blocked={"bad.example"}))
    assert name == field
    assert expected in text


def test_a_fallback_url_is_stored_with_the_encoding_of_a_location_header() -> None:
    assert only(item(fallback_url="https://x.example/ü")).plan.fallback_location == "https://x.example/%C3%BC"


def test_destinations_with_an_app_scheme_are_accepted_if_the_application_permits_the_scheme() -> None:
    urls = ("myapp://open/5", "tel:+14155550100")
    for url in urls:
        assert "http://" in reason(item(f'#track("{url}")'))[1]
        assert "http://" in reason(item(fallback_url=url))[1]
    sender = application(extra_schemes=["myapp", "tel"])
    planned = only(item(f'#track("{urls[0]}") #track("{urls[1]}")', fallback_url=urls[0]), application=sender)
    assert [link.destination.location.decode() for link in planned.plan.links] == list(urls)
    assert planned.plan.fallback_location == urls[0]


def test_an_application_with_strict_destinations_rejects_macros_that_the_service_does_not_replace() -> None:
    sender = application(strict_destinations=True)
    body = 'see #track("https://x.example/?m={message_id}") #track("https://x.example/?m={{message_id}}")'
    (detail,) = rejection(item(body), application=sender).details
    assert (detail.field, detail.position) == ("body", 48)
    assert "contains {{message_id}}, which is not a placeholder; write {message_id}" in detail.reason
    assert reason(item(fallback_url="https://x.example/{cdoe}"), application=sender)[0] == "fallback_url"
    assert only(item(body)).plan.warnings == (
        "position 48: the destination contains {{message_id}}, which is not a placeholder; write {message_id}",
    )


def test_a_request_without_a_track_mode_uses_the_track_mode_of_the_application() -> None:
    body = "see https://x.example/1 and https://x.example/2"
    for track, count in (("directives", 0), ("first_url", 1), ("all_urls", 2)):
        assert len(only(item(body), application=application(track=track)).plan.links) == count
        assert len(only(item(body, track=track), application=application(track="all_urls")).plan.links) == count


@pytest.mark.parametrize("track", ["directives", "first_url", "all_urls"])
@pytest.mark.parametrize("body", ["see shop.example/1 now, or https://x.example/2", "no URL"])
def test_a_request_detects_the_urls_of_each_text_only_once(monkeypatch: pytest.MonkeyPatch, track: str, body: str) -> None:
    # A request with 1,000 long texts spends most of its time with the detection of URLs. A second detection would double this time.
    calls = []

    def detect(text: str) -> url_detection.Detection:
        calls.append(text)
        return detect_urls(text)

    detect_urls = url_detection.detect_urls
    for module in (url_detection, spans, item_plan):
        monkeypatch.setattr(module, "detect_urls", detect)
    only(item(body, track=track))
    assert calls == [body]


def test_the_position_of_every_malformed_directive_is_reported() -> None:
    details = rejection(item('#track() and ＃track("https://x.example/") and #trackurl("u")')).details
    assert [detail.position for detail in details] == [7, 13, 59]


def test_a_message_with_more_than_thirty_links_is_rejected_with_the_position_of_the_next_link() -> None:
    urls = [f"https://x.example/{number:02}" for number in range(MAX_LINKS + 1)]
    (detail,) = rejection(item(" ".join(urls), track="all_urls")).details
    assert detail.position == len(" ".join(urls[:MAX_LINKS])) + 1


# These tests check the cache of plans. A plan that is used again must be the plan that the message would get without the cache.


def test_messages_with_the_same_content_share_a_rewrite_plan_but_not_their_expiry() -> None:
    hosts = Hosts()
    cache = PlanCache(hosts)
    only(item(), hosts=hosts, cache=cache)  # the plan of a text that occurs only once is not kept
    first = only(item(), hosts=hosts, cache=cache)
    second = only(item(to="+14085550101", expires_in=60), hosts=hosts, cache=cache)
    assert second.plan is first.plan
    assert from_ms(first.expires_at) == NOON + LIMITS.link_ttl
    assert from_ms(second.expires_at) == NOON + timedelta(seconds=60)
    assert reason(item(expires_at=NOON), hosts=hosts, cache=cache) == ("expires_at", "must be in the future")


@pytest.mark.parametrize(
    "other",
    [
        {"body": f"{LINK}!"},
        {"track": "all_urls"},
        {"from_address": "ACME"},
        {"sender_id_alias": "ACME"},
        {"campaign": "spring"},
        {"domain": "go.brand.example"},
        {"gateway": ""},
        {"fallback_url": "https://x.example/over"},
        {"callback_url": "https://x.example/clicked"},
    ],
)
def test_messages_with_different_content_have_different_rewrite_plans(other: dict[str, Any]) -> None:
    brand = Domain(7, 1, "go.brand.example", "https://go.brand.example", None, False)
    hosts = Hosts()
    cache, app = PlanCache(hosts), application(domains=(brand,), allow_shared_host=True)
    plans = [only(item(**fields), application=app, hosts=hosts, cache=cache).plan for fields in ({}, {}, {}, other, other, other)]
    assert plans[2] is plans[1]
    assert plans[5] is plans[4]
    assert plans[4] is not plans[2]
    assert plans[4] == only(item(**other), application=app, hosts=hosts).plan


def test_a_rewrite_plan_is_not_used_again_after_a_change_of_the_application_or_of_the_blocked_hosts() -> None:
    hosts = Hosts()
    cache, app = PlanCache(hosts), application()
    plans = [only(item(), application=app, hosts=hosts, cache=cache).plan for _ in range(3)]
    assert plans[2] is plans[1]
    assert not plans[2].links[0].every_click
    assert only(item(), application=application(click_events="every"), hosts=hosts, cache=cache).plan.links[0].every_click
    hosts.blocked, hosts.version = {"x.example"}, "2"
    assert reason(item(), hosts=hosts, cache=cache)[1].endswith("leads to a blocked host")


def test_the_cache_of_rewrite_plans_contains_no_problems_and_no_long_texts() -> None:
    hosts = Hosts()
    cache = PlanCache(hosts)
    for _ in range(3):
        rejection(item('#track("nothing")'), hosts=hosts, cache=cache)
        only(item("x" * (MAX_CACHED_CHARACTERS + 1)), hosts=hosts, cache=cache)
    assert len(cache) == 0


def test_texts_that_all_differ_are_not_kept_and_do_not_displace_the_rewrite_plan_of_a_campaign() -> None:
    hosts = Hosts()
    cache, app = PlanCache(hosts), application()

    def plan(body: str) -> ItemPlan:
        return only(item(body), application=app, hosts=hosts, cache=cache).plan

    plan(LINK)
    campaign = plan(LINK)
    for number in range(3 * REMEMBERED_TEXTS):
        plan(f"Your code is {number:06}.")
        if number % 100 == 0:
            assert plan(LINK) is campaign
    assert len(cache) == 1
    assert plan(LINK) is campaign
    for number in range(REMEMBERED_TEXTS - 1):
        plan(f"Your next code is {number:06}.")
    assert plan(LINK) is campaign


def test_the_cache_of_rewrite_plans_is_bounded_and_drops_the_plan_that_was_not_used_for_the_longest_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(item_plan, "MAX_CACHED_PLANS", 3)
    hosts = Hosts()
    cache, app = PlanCache(hosts), application()

    def plan(body: str) -> ItemPlan:
        return only(item(body), application=app, hosts=hosts, cache=cache).plan

    plans = {body: [plan(body) for _ in range(2)][1] for body in ("a", "b", "c")}
    assert plan("a") is plans["a"]
    for body in ("d", "d"):
        plan(body)
    assert len(cache) == 3
    assert plan("a") is plans["a"]
    assert plan("c") is plans["c"]
    assert plan("b") is not plans["b"]
    assert len(cache) == 3


def test_a_rewrite_plan_is_kept_only_if_its_text_occurs_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_plan, "REMEMBERED_TEXTS", 4)
    hosts = Hosts()
    cache = PlanCache(hosts)
    for text in ("a", *"123", "a"):
        only(item(text), hosts=hosts, cache=cache)
    assert len(cache) == 1
    for text in ("b", *"456789xyz", "b"):
        only(item(text), hosts=hosts, cache=cache)
    assert len(cache) == 1
    assert len(cache._latest) <= 4
    assert len(cache._earlier) <= 4
