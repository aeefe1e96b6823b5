from hypothesis import given
from hypothesis import strategies as st

from shortener.delivery.health import MAX_FAILURES, MAX_PAUSE_MS, MIN_PAUSE_MS, EndpointHealth, pause

T = 1_800_000_000_000


def fail(health: EndpointHealth, times: int, at: int = T) -> EndpointHealth:
    for _ in range(times):
        health = health.failed(at)
    return health


def test_the_circuit_breaker_opens_after_ten_failures_in_a_row() -> None:
    health = fail(EndpointHealth(), MAX_FAILURES - 1)
    assert (health.breaker(T), health.last_failure_at) == ("closed", T)
    health = health.failed(T)
    assert health.breaker(T) == health.breaker(T + MIN_PAUSE_MS - 1) == "open"
    assert health.breaker(T + MIN_PAUSE_MS) == "half_open"


def test_a_success_resets_the_failure_count_of_the_circuit_breaker() -> None:
    health = fail(fail(EndpointHealth(), MAX_FAILURES - 1).succeeded(T), MAX_FAILURES - 1)
    assert (health.breaker(T), health.last_success_at) == ("closed", T)


def test_attempts_that_started_before_the_circuit_breaker_opened_do_not_extend_its_pause() -> None:
    opened = fail(EndpointHealth(), MAX_FAILURES)
    assert fail(opened, 20, T + 5).open_until == opened.open_until


def test_a_failed_probe_doubles_the_pause_of_the_circuit_breaker_up_to_the_maximum() -> None:
    health = fail(EndpointHealth(), MAX_FAILURES)
    pauses = []
    for _ in range(6):
        at = health.open_until
        assert at is not None
        health = health.probing(at + 15_000).failed(at, probe=True)
        assert health.open_until is not None
        pauses.append(health.open_until - at)
    assert pauses == [60_000, 120_000, 240_000, 300_000, 300_000, 300_000]


def test_a_success_closes_the_circuit_breaker_and_the_backlog_is_sent_at_the_recovery_rate() -> None:
    health = fail(EndpointHealth(), MAX_FAILURES).succeeded(T)
    assert health.breaker(T) == "recovering"
    assert health.allowance(T, 10) == 0
    assert health.allowance(T + 500, 10) == 5
    health = health.released(5, T + 500, 10)
    assert health.allowance(T + 500, 10) == 0
    assert health.allowance(T + 60_000, 10) == 10, "unused time allows at most one burst"
    assert health.recovered().breaker(T) == "closed"
    assert health.recovered().allowance(T, 10) is None


@given(st.floats(0.01, 500), st.integers(1, 3))
def test_a_recovering_tracker_gets_deliveries_at_every_recovery_rate(rate: float, deliveries: int) -> None:
    health, now = EndpointHealth(recovering_at=T), T
    for _ in range(deliveries):
        now += 1001 + round(1000 / rate)
        assert health.allowance(now, rate) in range(1, int(rate) + 2)
        health = health.released(1, now, rate)


def test_a_retry_after_header_opens_the_circuit_breaker_for_at_most_the_maximum_pause() -> None:
    assert EndpointHealth().failed(T, quiet_until=T + 60_000).open_until == T + 60_000
    assert EndpointHealth().failed(T, quiet_until=T + 86_400_000).open_until == T + MAX_PAUSE_MS
    assert fail(EndpointHealth(), MAX_FAILURES - 1).failed(T, quiet_until=T + 1000).open_until == T + MIN_PAUSE_MS


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=60), st.floats(0.01, 500))
def test_the_backlog_of_a_tracker_is_never_sent_faster_than_the_recovery_rate(steps: list[int], rate: float) -> None:
    health, now, released = EndpointHealth(recovering_at=T), T, 0
    for step in steps:
        now += step
        allowed = health.allowance(now, rate)
        assert allowed is not None
        if allowed > 0:
            health = health.released(allowed, now, rate)
            released += allowed
    # Times are rounded to a millisecond, so each step may allow the deliveries of one additional millisecond.
    assert released <= (now - T + len(steps)) * rate / 1000 + 1


@given(st.integers(0, 1000))
def test_the_pause_of_an_open_circuit_breaker_has_a_minimum_and_a_maximum(failures: int) -> None:
    assert MIN_PAUSE_MS <= pause(failures) <= MAX_PAUSE_MS
