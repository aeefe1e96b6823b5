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


def limits(**chosen: Any) -> ApplicationSettings:
    return ApplicationSettings(**chosen)


EVERYTHING = limits(
    min_seconds_after_sent=2,
    min_seconds_after_delivered=2,
    max_recipients_per_address_minute=1,
    all_links_within_second=True,
)


def rule(settings: ApplicationSettings, facts: HitContext) -> str | None:
    judgement = classify_by_context(settings, facts)
    assert judgement is None or judgement.verdict is Verdict.SUSPECTED
    return judgement.rule if judgement else None


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
def test_nothing_is_suspected_unless_it_is_set(facts: HitContext) -> None:
    assert classify_by_context(limits(), facts) is None


def test_what_is_not_known_suspects_nobody() -> None:
    assert classify_by_context(EVERYTHING, HitContext(NOON)) is None


@pytest.mark.parametrize(("seconds", "suspected"), [(-30, True), (-0.1, True), (0, True), (1.9, True), (2.0, False), (600, False)])
def test_a_hit_sooner_than_n_seconds_after_sent_or_before_it_is_suspected(seconds: float, suspected: bool) -> None:
    settings = limits(min_seconds_after_sent=2.0)
    assert rule(settings, HitContext(NOON + seconds * SECOND, sent_at=NOON)) == ("soon_after_sent" if suspected else None)


@pytest.mark.parametrize(("seconds", "suspected"), [(-30, False), (-2, False), (-1.9, True), (0, True), (1.9, True), (2.0, False)])
def test_a_hit_within_n_seconds_of_delivered_is_suspected_but_not_one_long_before_a_late_report(
    seconds: float, suspected: bool
) -> None:
    settings = limits(min_seconds_after_delivered=2.0)
    assert rule(settings, HitContext(NOON + seconds * SECOND, delivered_at=NOON)) == ("soon_after_delivered" if suspected else None)


def test_the_reason_tells_how_far_away_it_was() -> None:
    settings = limits(min_seconds_after_sent=5, min_seconds_after_delivered=5)
    after = classify_by_context(settings, HitContext(NOON + 1.25 * SECOND, sent_at=NOON))
    before = classify_by_context(settings, HitContext(NOON - SECOND, delivered_at=NOON))
    assert after is not None
    assert after.reason == "1.2 s after the message was sent"
    assert before is not None
    assert before.reason == "1.0 s before the message was delivered"


def test_an_address_is_suspected_above_the_number_of_recipients_that_is_set() -> None:
    settings = limits(max_recipients_per_address_minute=20)
    assert rule(settings, HitContext(NOON, recipients_of_address=20)) is None
    assert rule(settings, HitContext(NOON, recipients_of_address=21)) == "many_recipients"


@pytest.mark.parametrize(
    ("links", "seconds", "suspected"),
    [
        (2, (0, 1), True),
        (3, (0, 0.4, 0.9), True),
        (2, (1, 0), True),
        (2, (0, 1.1), False),
        (3, (0, 0.1), False),  # one was not opened
        (1, (0,), False),  # the only link of a message is always all of them
    ],
)
def test_all_links_of_a_message_within_a_second_are_suspected(links: int, seconds: tuple[float, ...], suspected: bool) -> None:
    settings = limits(all_links_within_second=True)
    facts = HitContext(NOON, links_of_message=links, opened_at=[NOON + s * SECOND for s in seconds])
    assert rule(settings, facts) == ("all_links_at_once" if suspected else None)


def test_the_rules_are_named_in_the_order_in_which_they_are_asked() -> None:
    facts = HitContext(NOON, NOON, NOON, recipients_of_address=9, links_of_message=2, opened_at=(NOON, NOON))
    assert rule(EVERYTHING, facts) == RULES[0] == "soon_after_sent"
    assert RULES == ("soon_after_sent", "soon_after_delivered", "many_recipients", "all_links_at_once")


def test_an_address_is_watched_for_a_minute() -> None:
    watch = RecentAddresses()
    assert watch.count("192.0.2.1", 1, NOON) == 1
    assert watch.count("192.0.2.1", 2, NOON + 30 * SECOND) == 2
    assert watch.count("192.0.2.2", 2, NOON + 30 * SECOND) == 1
    assert watch.count("192.0.2.1", 3, NOON + 59 * SECOND) == 3
    assert watch.count("192.0.2.1", 4, NOON + 60 * SECOND) == 3  # the first is a minute old
    assert watch.count("192.0.2.1", 5, NOON + 200 * SECOND) == 1


def test_a_recipient_who_opens_links_again_and_again_is_one_recipient() -> None:
    watch = RecentAddresses()
    counts = [watch.count("192.0.2.1", 7, NOON + s * SECOND) for s in range(300)]
    assert set(counts) == {1}
    assert len(watch) == 1


def test_an_address_that_was_not_kept_is_not_watched() -> None:
    watch = RecentAddresses()
    assert [watch.count("", recipient, NOON) for recipient in range(3)] == [0, 0, 0]
    assert len(watch) == 0


def test_the_watch_is_bounded_and_forgets_the_oldest_first() -> None:
    watch = RecentAddresses(limit=100)
    for recipient in range(1_000):
        assert watch.count(f"192.0.2.{recipient % 2}", recipient, NOON) <= 100
    assert len(watch) == 100
    assert watch.count("192.0.2.0", 998, NOON) == 50


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 4), st.integers(0, 40)), max_size=60))
def test_the_watch_counts_what_a_plain_list_counts(hits: list[tuple[str, int, int]]) -> None:
    watch = RecentAddresses()
    at, told = NOON, list[tuple[str, int, datetime]]()
    for address, recipient, pause in hits:
        at += pause * SECOND
        told.append((address, recipient, at))
        within = {r for a, r, when in told if a == address and at - when < timedelta(minutes=1)}
        assert watch.count(address, recipient, at) == len(within)


def test_the_links_of_a_message_are_watched_for_a_second() -> None:
    watch = RecentLinks()
    watch.add(1, 10, NOON)
    watch.add(1, 11, NOON + 0.9 * SECOND)
    assert sorted(watch.opened_at(1)) == [NOON, NOON + 0.9 * SECOND]
    watch.add(1, 10, NOON + SECOND)
    assert sorted(watch.opened_at(1)) == [NOON + 0.9 * SECOND, NOON + SECOND]
    watch.add(2, 20, NOON + 3 * SECOND)
    assert (list(watch.opened_at(1)), list(watch.opened_at(2))) == ([], [NOON + 3 * SECOND])


def test_the_watch_of_links_is_bounded() -> None:
    watch = RecentLinks(limit=10)
    for message in range(100):
        watch.add(message, 1, NOON)
    assert len(watch) == 10
    assert list(watch.opened_at(99)) == [NOON]
