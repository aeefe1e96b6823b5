"""Tests of the contextual rules, and of RecentAddresses and RecentLinks, which the rules use."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.accounts.settings import ApplicationSettings
from shortener.clicks.verdicts.contextual_rules import RULES, HitContext, RecentAddresses, RecentLinks, classify_by_context
from shortener.model import Verdict
from tests.conftest import NOON

SECOND = timedelta(seconds=1)


def settings_with(**chosen: Any) -> ApplicationSettings:
    return ApplicationSettings(**chosen)


EVERYTHING = settings_with(
    min_seconds_after_sent=2,
    min_seconds_after_delivered=2,
    max_recipients_per_address_minute=1,
    all_links_within_second=True,
)


def rule(settings: ApplicationSettings, context: HitContext) -> str | None:
    classification = classify_by_context(settings, context)
    assert classification is None or classification.verdict is Verdict.SUSPECTED
    return classification.rule if classification else None


@given(
    st.builds(
        HitContext,
        st.just(NOON),
        st.none() | st.integers(-100, 100).map(lambda seconds: NOON + seconds * SECOND),
        st.none() | st.just(NOON),
        st.integers(0, 10_000),
        st.just(2),
        st.just((NOON, NOON)),
    )
)
def test_no_hit_is_suspected_if_the_application_sets_no_contextual_rule(context: HitContext) -> None:
    assert classify_by_context(settings_with(), context) is None


def test_a_hit_whose_times_and_address_are_unknown_matches_no_contextual_rule() -> None:
    assert classify_by_context(EVERYTHING, HitContext(NOON)) is None


@pytest.mark.parametrize(("seconds", "suspected"), [(-30, True), (-0.1, True), (0, True), (1.9, True), (2.0, False), (600, False)])
def test_a_hit_before_or_too_soon_after_the_time_of_sending_is_suspected(seconds: float, suspected: bool) -> None:
    settings = settings_with(min_seconds_after_sent=2.0)
    assert rule(settings, HitContext(NOON + seconds * SECOND, sent_at=NOON)) == ("soon_after_sent" if suspected else None)


@pytest.mark.parametrize(("seconds", "suspected"), [(-30, False), (-2, False), (-1.9, True), (0, True), (1.9, True), (2.0, False)])
def test_a_hit_close_to_the_time_of_delivery_is_suspected_but_not_a_hit_long_before_the_delivery(
    seconds: float, suspected: bool
) -> None:
    settings = settings_with(min_seconds_after_delivered=2.0)
    assert rule(settings, HitContext(NOON + seconds * SECOND, delivered_at=NOON)) == ("soon_after_delivered" if suspected else None)


def test_the_reason_for_a_suspected_hit_contains_the_seconds_between_the_hit_and_the_report() -> None:
    settings = settings_with(min_seconds_after_sent=5, min_seconds_after_delivered=5)
    after = classify_by_context(settings, HitContext(NOON + 1.25 * SECOND, sent_at=NOON))
    before = classify_by_context(settings, HitContext(NOON - SECOND, delivered_at=NOON))
    assert after is not None
    assert after.reason == "1.2 s after the message was sent"
    assert before is not None
    assert before.reason == "1.0 s before the message was delivered"


def test_a_hit_from_an_address_with_too_many_recipients_is_suspected() -> None:
    settings = settings_with(max_recipients_per_address_minute=20)
    assert rule(settings, HitContext(NOON, recipients_of_address=20)) is None
    assert rule(settings, HitContext(NOON, recipients_of_address=21)) == "many_recipients"


@pytest.mark.parametrize(
    ("links", "seconds", "suspected"),
    [
        (2, (0, 1), True),
        (3, (0, 0.4, 0.9), True),
        (2, (1, 0), True),
        (2, (0, 1.1), False),
        (3, (0, 0.1), False),  # one link of the message was not opened
        (1, (0,), False),  # a message with only one link never matches the rule
    ],
)
def test_hits_on_all_links_of_a_message_within_a_second_are_suspected(
    links: int, seconds: tuple[float, ...], suspected: bool
) -> None:
    settings = settings_with(all_links_within_second=True)
    context = HitContext(NOON, links_of_message=links, opened_at=[NOON + s * SECOND for s in seconds])
    assert rule(settings, context) == ("all_links_at_once" if suspected else None)


def test_the_contextual_rules_have_a_fixed_order() -> None:
    context = HitContext(NOON, NOON, NOON, recipients_of_address=9, links_of_message=2, opened_at=(NOON, NOON))
    assert rule(EVERYTHING, context) == RULES[0] == "soon_after_sent"
    assert RULES == ("soon_after_sent", "soon_after_delivered", "before_sent", "many_recipients", "all_links_at_once")


def test_the_recipients_whose_links_an_ip_address_opens_are_counted_for_one_minute() -> None:
    recent = RecentAddresses()
    assert recent.count("192.0.2.1", 1, NOON) == 1
    assert recent.count("192.0.2.1", 2, NOON + 30 * SECOND) == 2
    assert recent.count("192.0.2.2", 2, NOON + 30 * SECOND) == 1
    assert recent.count("192.0.2.1", 3, NOON + 59 * SECOND) == 3
    # the hit on the first recipient's link was a minute ago, so it does not count any more
    assert recent.count("192.0.2.1", 4, NOON + 60 * SECOND) == 3
    assert recent.count("192.0.2.1", 5, NOON + 200 * SECOND) == 1


def test_a_recipient_whose_links_are_opened_several_times_from_an_address_counts_once() -> None:
    recent = RecentAddresses()
    counts = [recent.count("192.0.2.1", 7, NOON + s * SECOND) for s in range(300)]
    assert set(counts) == {1}
    assert len(recent) == 1


def test_recipients_of_an_address_are_counted_for_one_minute_also_after_the_clock_was_set_back() -> None:
    recent = RecentAddresses()
    assert [recent.count("192.0.2.1", recipient, NOON + recipient * SECOND) for recipient in range(4)] == [1, 2, 3, 4]
    assert recent.count("192.0.2.1", 4, NOON + 2.5 * SECOND) == 5, "hits of the same second may arrive in another order"
    back = NOON - 600 * SECOND
    assert [recent.count("192.0.2.1", 10 + number, back + 20 * number * SECOND) for number in range(5)] == [1, 2, 3, 3, 3]
    assert len(recent) == 3


def test_recipients_of_an_unknown_address_are_not_counted() -> None:
    recent = RecentAddresses()
    assert [recent.count("", recipient, NOON) for recipient in range(3)] == [0, 0, 0]
    assert len(recent) == 0


def test_the_oldest_pairs_of_address_and_recipient_are_forgotten_above_a_limit() -> None:
    recent = RecentAddresses(limit=100)
    for recipient in range(1_000):
        assert recent.count(f"192.0.2.{recipient % 2}", recipient, NOON) <= 100
    assert len(recent) == 100
    assert recent.count("192.0.2.0", 998, NOON) == 50


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 4), st.integers(0, 40)), max_size=60))
def test_the_number_of_recipients_of_an_address_equals_the_number_of_a_simple_reference_implementation(
    hits: list[tuple[str, int, int]],
) -> None:
    recent = RecentAddresses()
    at, seen = NOON, list[tuple[str, int, datetime]]()
    for address, recipient, pause in hits:
        at += pause * SECOND
        seen.append((address, recipient, at))
        within = {r for a, r, when in seen if a == address and at - when < timedelta(minutes=1)}
        assert recent.count(address, recipient, at) == len(within)


def test_the_opened_links_of_a_message_are_remembered_for_one_second() -> None:
    recent = RecentLinks()
    recent.add(1, 10, NOON)
    recent.add(1, 11, NOON + 0.9 * SECOND)
    assert sorted(recent.opened_at(1)) == [NOON, NOON + 0.9 * SECOND]
    recent.add(1, 10, NOON + SECOND)
    assert sorted(recent.opened_at(1)) == [NOON + 0.9 * SECOND, NOON + SECOND]
    recent.add(2, 20, NOON + 3 * SECOND)
    assert (list(recent.opened_at(1)), list(recent.opened_at(2))) == ([], [NOON + 3 * SECOND])


def test_the_number_of_messages_whose_opened_links_are_remembered_is_limited() -> None:
    recent = RecentLinks(limit=10)
    for message in range(100):
        recent.add(message, 1, NOON)
    assert len(recent) == 10
    assert list(recent.opened_at(99)) == [NOON]
