"""These tests check the learned rate of a tracker with simulated receivers that limit requests."""

import math
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable

import pytest

from shortener.delivery.pace import HALVED, LOWERED, MAX_AGE_MS, MAX_PER_SECOND, MAX_RATE, MIN_PER_SECOND, MIN_RATE, EndpointPace

NOW = 1_000_000_000

#: A simulated receiver: a function that returns whether a request is accepted at the given time in milliseconds.
Limiter = Callable[[int], bool]


def windows(limit: int, length_ms: int = 1000) -> Limiter:
    """Return a simulated receiver that accepts up to `limit` requests in each period of `length_ms` milliseconds."""
    counts: dict[int, int] = {}

    def accepts(at: int) -> bool:
        window = at // length_ms
        counts[window] = counts.get(window, 0) + 1
        return counts[window] <= limit

    return accepts


def bucket(rate: float, size: float) -> Limiter:
    """Return a simulated receiver that limits requests with a token bucket of `size` tokens, refilled at `rate` per second."""
    state = {"tokens": size, "at": float(NOW)}

    def accepts(at: int) -> bool:
        state["tokens"] = min(size, state["tokens"] + (at - state["at"]) * rate / 1000)
        state["at"] = at
        if state["tokens"] < 1:
            return False
        state["tokens"] -= 1
        return True

    return accepts


def simulate(accepts: Limiter, events: int, retry_after_ms: int | None = None, max_seconds: int = 3600) -> tuple[float, int]:
    """Simulate the delivery of `events` events with 16 slots and a response time of 10 ms.

    Return the number of seconds that it takes and the number of 429 responses."""
    pace = EndpointPace()
    waiting = [NOW] * events  # the times at which the deliveries are due, in order
    recent: deque[int] = deque()
    now, refused = NOW, 0
    while waiting and now < NOW + max_seconds * 1000:
        allowed = pace.allowance(now)
        count = min(bisect_right(waiting, now), 16, 16 if allowed is None else allowed)
        del waiting[:count]
        pace = pace.claimed(count, now)
        started, now = now, now + 10
        while recent and recent[0] <= now - 1000:
            recent.popleft()
        for _ in range(count):
            if accepts(started):
                recent.append(now)
                pace = pace.succeeded(1)
            else:
                refused += 1
                insort(waiting, now + (retry_after_ms or 1000))
                quiet_until = None if retry_after_ms is None else now + retry_after_ms
                pace = pace.throttled(now, started=started, successes=len(recent), quiet_until=quiet_until)
    assert not waiting
    return (now - NOW) / 1000, refused


@pytest.mark.parametrize("retry_after_ms", [None, 1000, 2000])
def test_400_events_to_a_receiver_that_accepts_5_requests_per_second_take_at_most_104_seconds(retry_after_ms: int | None) -> None:
    seconds, refused = simulate(windows(5), 400, retry_after_ms)
    assert seconds <= 104
    assert refused < 100


@pytest.mark.parametrize("retry_after_ms", [None, 1000])
@pytest.mark.parametrize(
    ("limiter", "events", "ideal"),
    [
        (lambda: windows(1), 60, 60),
        (lambda: windows(20), 2000, 100),
        (lambda: windows(100), 6000, 60),
        (lambda: windows(60, 60_000), 180, 120),
        (lambda: bucket(5, 5), 400, 80),
        (lambda: bucket(5, 50), 600, 110),
        (lambda: bucket(0.5, 1), 40, 80),
    ],
    ids=["1/s", "20/s", "100/s", "60/min", "bucket 5/s", "bucket 5/s with 50 tokens", "bucket 0.5/s"],
)
def test_deliveries_to_a_receiver_that_limits_requests_take_at_most_twice_the_shortest_possible_time(
    limiter: Callable[[], Limiter], events: int, ideal: float, retry_after_ms: int | None
) -> None:
    seconds, _ = simulate(limiter(), events, retry_after_ms)
    assert seconds <= 2 * ideal


def test_a_receiver_that_rejects_all_requests_gets_few_requests_and_recovers_later() -> None:
    accepts = windows(1000)
    opens_at = NOW + 1_800_000
    seconds, refused = simulate(lambda at: at >= opens_at and accepts(at), 200, max_seconds=7200)
    assert refused < 150
    assert seconds < 1800 + 300


def test_a_tracker_without_rate_limits_may_get_any_number_of_deliveries() -> None:
    assert EndpointPace().allowance(NOW) is None
    assert EndpointPace().claimed(100, NOW) == EndpointPace()
    assert EndpointPace().succeeded(5) == EndpointPace()


@pytest.mark.parametrize("rate", [0.01, 0.3, 1, 3, 7, 10, 33, 100, 700, 1000])
def test_deliveries_exceed_the_setting_max_per_second_by_at_most_ten_percent(rate: float) -> None:
    pace = EndpointPace(max_per_second=rate)
    duration_ms = max(10_000, round(20_000 / rate))
    count, now = 0, NOW
    while now < NOW + duration_ms:
        allowed = pace.allowance(now)
        assert allowed is not None
        pace = pace.claimed(allowed, now)
        count += allowed
        now = max(now + 20, min(pace.next_at(now), now + 60_000))
    ideal = rate * duration_ms / 1000
    assert ideal * 0.9 - 1 <= count <= ideal * 1.1 + 1


def test_the_first_429_response_sets_the_rate_to_the_number_of_successes_in_the_last_second() -> None:
    pace = EndpointPace().throttled(NOW, started=NOW - 10, successes=5)
    assert (pace.rate, pace.ceiling, pace.limit(NOW), pace.allowance(NOW)) == (5.0, 5.0, 5.0, 0)
    assert EndpointPace().throttled(NOW, started=NOW - 10, successes=0).rate == 1.0


def test_429_responses_lower_the_rate_once_a_second_at_most_and_halve_a_rate_that_has_not_recovered() -> None:
    pace = EndpointPace().throttled(NOW, started=NOW - 10, successes=5)
    assert pace.throttled(NOW + 5, started=NOW - 8, successes=5).rate == 5.0
    assert pace.throttled(NOW + 950, started=NOW + 900, successes=5).rate == 5.0
    pace = pace.throttled(NOW + 1050, started=NOW + 1020, successes=0)
    assert pace.rate == 5.0 * LOWERED
    assert pace.throttled(NOW + 3000, started=NOW + 2900, successes=0).rate == 5.0 * LOWERED * HALVED


def test_a_429_response_lowers_the_rate_by_a_tenth_if_the_rate_has_recovered() -> None:
    pace = EndpointPace().throttled(NOW, started=NOW - 10, successes=5).succeeded(10)
    assert pace.rate is not None
    assert pace.throttled(NOW + 5000, started=NOW + 4000, successes=5).rate == pytest.approx(pace.rate * LOWERED)


def test_a_429_response_pauses_the_tracker_for_the_whole_time_in_its_retry_after_header() -> None:
    day = 86_400_000
    pace = EndpointPace().throttled(NOW, started=NOW - 10, successes=5, quiet_until=NOW + day)
    assert pace.allowance(NOW + day - 1) == 0
    assert pace.allowance(NOW + day + 200) == 1


def test_a_learned_rate_has_a_minimum_and_is_removed_after_many_successes_or_after_an_hour() -> None:
    pace, now = EndpointPace(), NOW
    for _ in range(100):
        now += 2000
        pace = pace.throttled(now, started=now - 10, successes=0)
    assert pace.rate == MIN_RATE
    assert pace.limit(now + MAX_AGE_MS) is None
    for _ in range(100_000):
        pace = pace.succeeded(1)
    assert (pace.rate, MAX_RATE) == (None, 1000.0)


def test_the_learned_rate_or_the_setting_max_per_second_applies_whichever_is_lower() -> None:
    pace = EndpointPace(max_per_second=3.0).throttled(NOW, started=NOW, successes=2)
    assert pace.limit(NOW) == 2.0
    assert EndpointPace(max_per_second=3.0).throttled(NOW, started=NOW, successes=9).limit(NOW) == 3.0


@pytest.mark.parametrize("stored", [1e-310, 0.0, math.nan, math.inf])
def test_a_stored_max_per_second_outside_its_range_counts_as_the_nearest_value_in_the_range(stored: float) -> None:
    pace, nearest = EndpointPace(stored), EndpointPace(MAX_PER_SECOND if stored == math.inf else MIN_PER_SECOND)
    assert pace.limit(NOW) == nearest.limit(NOW)
    assert pace.allowance(NOW) == nearest.allowance(NOW)
    assert pace.claimed(3, NOW).next_at(NOW) == nearest.claimed(3, NOW).next_at(NOW)
