from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from shortener.errors import ApiError, ErrorCode
from shortener.messages.plan import MAX_LIFETIME, MAX_LINKS, PlannedMessage, RewriteItem
from shortener.storage.types import from_ms
from tests.conftest import NOON
from tests.messages.rewriting import LIMITS, LINK, TO, Hosts, application, item, plan


def only(planned_item: RewriteItem, **more: Any) -> PlannedMessage:
    request = plan(planned_item, **more)
    request.check(request.messages)
    (message,) = request.messages
    return message


def rejection(*items: RewriteItem, **more: Any) -> ApiError:
    request = plan(*items, **more)
    with pytest.raises(ApiError) as raised:
        request.check(request.messages)
    return raised.value


def reason(planned_item: RewriteItem, **more: Any) -> tuple[str, str]:
    (detail,) = rejection(planned_item, **more).details
    return detail.field, detail.reason


def test_the_plan_of_a_message_contains_its_link_and_generated_ids() -> None:
    message = only(item(f"see {LINK}"))
    (link,) = message.plan.links
    assert (link.span.start, link.destination.url, link.every_click) == (4, "https://x.example/", False)
    assert (message.number.e164, message.number.country) == (TO, "US")
    assert (len(message.message_id), len(message.request_id), message.has_own_id, message.content_hash) == (22, 22, False, "")
    assert from_ms(message.plan.expires_at) == NOON + LIMITS.link_ttl


def test_all_recipients_of_one_message_share_the_plan_and_the_request_id() -> None:
    first, second = plan(item(to=(TO, "+14085550101"))).messages
    assert first.plan is second.plan
    assert first.request_id == second.request_id
    assert first.message_id != second.message_id


def test_a_link_creates_an_event_for_every_click_if_it_is_from_trackurl_or_by_application_setting() -> None:
    assert only(item('#trackurl("https://x.example/","sale")')).plan.links[0].every_click
    assert only(item(), application=application(click_events="every")).plan.links[0].every_click


def test_a_request_with_too_many_recipients_is_rejected_before_any_other_check() -> None:
    error = rejection(item(to=("invalid",) * (LIMITS.max_recipients + 1)))
    assert (error.code, error.details) == (ErrorCode.BATCH_TOO_LARGE, ())


def test_all_problems_of_a_rewrite_request_are_reported_in_request_order() -> None:
    error = rejection(
        item("fine"),
        item("#track(", expires_in=5, expires_at=NOON, fallback_url="ftp://x"),
        item(to=(TO, "invalid"), message_ids=("m-1", "m-1")),
        item(to=(TO,), message_ids=("m-1",), callback_url="javascript:x"),
        item(to=()),
    )
    assert [detail.field for detail in error.details] == [
        "expires_at",
        "expires_at",
        "body",
        "fallback_url",
        "to",
        "message_id",
        "message_id",
        "lt_callbackurl",
        "to",
    ]
    assert error.code is ErrorCode.INVALID_REQUEST


def test_a_request_with_150_invalid_recipients_is_rejected_with_150_details() -> None:
    limits = type(LIMITS)(max_recipients=1000, link_ttl=LIMITS.link_ttl)
    assert len(rejection(item(to=("invalid",) * 150), limits=limits).details) == 150


def test_problems_of_messages_that_are_already_stored_do_not_reject_a_request() -> None:
    request = plan(item(expires_at=NOON, message_ids=("m-1",)))
    request.check([])
    with pytest.raises(ApiError):
        request.check(request.messages)


def test_a_request_must_have_one_message_id_for_each_recipient() -> None:
    assert reason(item(to=(TO, TO), message_ids=("m-1",))) == (
        "message_id",
        "must contain one id for each of the 2 recipients; it has 1",
    )


def test_only_a_request_with_an_idempotency_key_or_its_own_message_ids_can_be_a_repeat() -> None:
    assert not plan(item(to=(TO, TO), message_ids=(None, None))).may_be_repeat
    assert plan(item(to=(TO, TO), message_ids=(None, "m-1"))).may_be_repeat
    assert plan(item(), key="key").may_be_repeat


# Content hash of a message


def test_the_content_hash_of_a_message_depends_on_the_recipient_and_everything_except_generated_ids() -> None:
    def content_hash(**fields: Any) -> str:
        return only(item(message_ids=("m-1",), **fields)).content_hash

    assert content_hash() == content_hash(request_id="another")
    others: list[dict[str, Any]] = [
        {"body": "other"},
        {"to": "+14085550199"},
        {"track": "all_urls"},
        {"campaign": "other"},
        {"expires_in": 60},
        {"fallback_url": "https://x.example/bye"},
        {"metadata": {"a": 1}},
        {"tracking": ("SMS", "")},
    ]
    assert len({content_hash(), *(content_hash(**other) for other in others)}) == len(others) + 1
    assert content_hash(metadata={"a": 1, "b": 2}) == content_hash(metadata={"b": 2, "a": 1})


# Expiry of links


def test_the_lifetime_of_a_link_comes_from_the_request_the_application_or_the_installation() -> None:
    def expires_at(planned_item: RewriteItem, **settings: Any) -> datetime:
        return from_ms(only(planned_item, application=application(**settings)).plan.expires_at)

    day = timedelta(days=1)
    assert expires_at(item()) == NOON + LIMITS.link_ttl
    assert expires_at(item(expires_in=60)) == NOON + timedelta(seconds=60)
    assert expires_at(item(expires_at=NOON + day)) == NOON + day
    assert expires_at(item(), link_ttl_days=2) == NOON + 2 * day
    assert expires_at(item(expires_at=NOON + 9 * day), link_ttl_days=2) == NOON + 2 * day


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_link_expiry_that_is_not_in_the_future_is_rejected(seconds: int) -> None:
    assert reason(item(expires_at=NOON + timedelta(seconds=seconds))) == ("expires_at", "must be in the future")


@pytest.mark.parametrize(
    "at",
    [
        datetime.max.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),  # in UTC, its year is 10000
        NOON + MAX_LIFETIME + timedelta(seconds=1),
    ],
)
def test_a_link_expiry_more_than_3650_days_in_the_future_is_rejected(at: datetime) -> None:
    assert reason(item(expires_at=at, message_ids=("m-1",))) == ("expires_at", "must be at most 3650 days in the future")


def test_the_first_representable_time_is_rejected_as_a_link_expiry() -> None:
    at = datetime.min.replace(tzinfo=timezone(timedelta(hours=12)))  # in UTC, its year is 0
    assert reason(item(expires_at=at, message_ids=("m-1",))) == ("expires_at", "must be in the future")


# Destinations and fallback URLs of links


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


def test_a_fallback_url_is_stored_in_the_form_of_a_location_header() -> None:
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


def test_the_position_of_every_malformed_directive_is_reported() -> None:
    details = rejection(item('#track() and ＃track("https://x.example/") and #trackurl("u")')).details
    assert [detail.position for detail in details] == [7, 13, 59]


def test_a_message_with_more_than_thirty_links_is_rejected_with_the_position_of_the_next_link() -> None:
    urls = [f"https://x.example/{number:02}" for number in range(MAX_LINKS + 1)]
    (detail,) = rejection(item(" ".join(urls), track="all_urls")).details
    assert detail.position == len(" ".join(urls[:MAX_LINKS])) + 1
