"""These tests check how claims.py divides the slots of a process among queues and applications."""

import random
from collections import Counter
from typing import Any

import pytest

from shortener.delivery.claims import LEASE_MARGIN_MS, Candidate, SlotUsage, plan_claims
from shortener.delivery.dispatch_queries import FIRST_ATTEMPTS, RETRIES, DeliveryQueue
from shortener.delivery.health import EndpointHealth
from shortener.delivery.pace import EndpointPace

NOW = 1_000_000
DEFAULT_CONCURRENCY = 16


def candidate(name: str, concurrency: int = DEFAULT_CONCURRENCY, application_id: int = 1, **values: Any) -> Candidate:
    values.setdefault("health", EndpointHealth())
    return Candidate(DeliveryQueue(name, NOW, None), application_id, concurrency, 5.0, **values)


def plan(candidates: list[Candidate], usage: SlotUsage, limit: int | None = None, rate: float = 50.0) -> Counter[str]:
    """Plan claims for the candidates and add them to `usage`, as attempts that never end. Return the number of claims by queue."""
    limit = usage.free if limit is None else limit
    counts: Counter[str] = Counter()
    applications = {one.queue.name: one.application_id for one in candidates}
    for request in plan_claims(candidates, usage, limit, now=NOW, recovery_rate=rate, rng=random.Random(1)):
        counts[request.queue] += request.limit
    for name, count in counts.items():
        usage.take(name, applications[name], count)
    return counts


def hang(candidates: list[Candidate], usage: SlotUsage) -> None:
    """Plan claims until no candidate gets another slot. The attempts of these candidates never end."""
    while plan(candidates, usage):
        pass


def test_a_tracker_uses_three_quarters_of_the_slots_if_no_other_tracker_has_due_deliveries() -> None:
    usage = SlotUsage(256)
    hang([candidate("t1", concurrency=256)], usage)
    assert usage.by_queue == {"t1": 192}


def test_one_application_with_many_trackers_can_use_nearly_all_slots() -> None:
    usage = SlotUsage(256)
    hang([candidate(f"t{number}") for number in range(40)], usage)
    assert usage.busy >= 224


@pytest.mark.parametrize("application", [1, 2])
def test_at_least_forty_of_fifty_trackers_get_a_slot_at_once_while_another_tracker_hangs(application: int) -> None:
    usage = SlotUsage(256)
    hang([candidate("t0", concurrency=256)], usage)
    due = [candidate(f"t{number}", application_id=application) for number in range(1, 51)]
    assert len(plan(due, usage)) >= 40


def test_a_tracker_uses_at_most_half_of_the_slots_if_another_tracker_has_due_deliveries() -> None:
    usage = SlotUsage(256)
    hang([candidate("t1", concurrency=256), candidate("t2", concurrency=1, application_id=2)], usage)
    assert usage.by_queue == {"t1": 128, "t2": 1}


def test_a_tracker_that_has_slots_gets_no_more_than_half_of_the_slots_in_one_cycle_if_another_tracker_has_due_deliveries() -> None:
    usage = SlotUsage(256)
    usage.take("t1", 1, 100)
    plan([candidate("t1", concurrency=256), candidate("t2", concurrency=1, application_id=2)], usage)
    assert usage.by_queue == {"t1": 128, "t2": 1}


@pytest.mark.parametrize("application", [1, 2])
def test_a_tracker_with_concurrency_256_that_hangs_leaves_slots_for_other_trackers(application: int) -> None:
    usage = SlotUsage(256)
    hang([candidate("t1", concurrency=256)], usage)
    others = [candidate(f"t{number}", application_id=application) for number in range(2, 5)]
    counts = plan(others, usage)
    assert len(counts) == 3
    assert min(counts.values()) >= 4
    assert usage.free > 0


@pytest.mark.parametrize("application", [1, 2])
def test_sixteen_hanging_trackers_with_the_default_concurrency_leave_slots_for_other_trackers(application: int) -> None:
    usage = SlotUsage(256)
    hang([candidate(f"t{number}") for number in range(16)], usage)
    assert usage.free >= 256 // 16
    assert plan([candidate("t99", application_id=application)], usage)["t99"] >= 4


def test_a_tracker_gets_four_slots_while_many_trackers_of_its_application_hang() -> None:
    usage = SlotUsage(256)
    hang([candidate(f"t{number}", 256) for number in range(20)], usage)
    assert plan([candidate("t99")], usage)["t99"] == 4


def test_an_application_whose_hundred_trackers_hang_leaves_slots_for_other_applications() -> None:
    usage = SlotUsage(256)
    hang([candidate(f"t{number}", 256) for number in range(100)], usage)
    assert usage.free >= 256 // 16
    for application in range(2, 5):
        assert plan([candidate(f"t{application}00", 256, application)], usage)[f"t{application}00"] >= 1


def test_an_application_uses_at_most_three_quarters_of_the_slots_if_another_application_has_due_deliveries() -> None:
    usage = SlotUsage(256)
    hang([candidate(f"t{number}", 256) for number in range(3)] + [candidate("t9", 1, application_id=2)], usage)
    assert usage.by_application[1] <= 3 * usage.free + 4


def test_callbacks_of_one_application_to_thousands_of_hanging_hosts_leave_slots_for_trackers() -> None:
    usage = SlotUsage(256)
    hosts = [Candidate(DeliveryQueue(f"c1/host{number}", NOW, None), 1, 1, 5.0) for number in range(3000)]
    hang(hosts, usage)
    assert usage.free == 256 // 8
    assert plan([candidate("t98", application_id=1)], usage)["t98"] == 4
    assert plan([candidate("t99", application_id=2)], usage)["t99"] >= 8


def test_trackers_with_due_deliveries_get_equal_shares_of_the_claims_of_a_dispatch_cycle() -> None:
    counts = plan([candidate("t1", 256), candidate("t2", 256), candidate("t3", 256)], SlotUsage(256), limit=9)
    assert counts == {"t1": 3, "t2": 3, "t3": 3}


def test_claims_never_exceed_the_limit_of_a_dispatch_cycle_or_the_concurrency_of_a_tracker() -> None:
    assert plan([candidate(f"t{number}") for number in range(10)], SlotUsage(256), limit=4).total() == 4
    usage = SlotUsage(256)
    usage.take("t1", 1, 3)
    assert plan([candidate("t1", concurrency=4)], usage) == {"t1": 1}


@pytest.mark.parametrize("total", [1, 2, 3])
def test_a_tracker_gets_a_slot_even_if_the_process_has_only_one_to_three_slots(total: int) -> None:
    assert plan([candidate("t1")], SlotUsage(total))["t1"] >= 1
    full = SlotUsage(total)
    full.take("t2", 2, total)
    assert plan([candidate("t1")], full) == {}


def test_all_callbacks_that_an_older_release_stored_share_one_limit_of_slots() -> None:
    usage = SlotUsage(16)
    callbacks = [Candidate(DeliveryQueue(f"chost{number}", NOW, None), None, 16, 5.0) for number in range(50)]
    hang(callbacks, usage)
    assert usage.free == 2
    assert plan([candidate("t1")], usage)["t1"] == 1


def test_one_delivery_of_a_tracker_with_a_half_open_circuit_breaker_is_claimed_as_a_probe() -> None:
    health = EndpointHealth(failures_in_row=10, open_until=NOW)
    usage = SlotUsage(256)
    assert plan([candidate("t1", health=health)], usage) == {"t1": 1}
    assert plan([candidate("t1", health=health)], usage) == {}


def test_no_deliveries_of_a_tracker_with_an_open_circuit_breaker_are_claimed() -> None:
    assert plan([candidate("t1", health=EndpointHealth(failures_in_row=10, open_until=NOW + 1))], SlotUsage(256)) == {}


def test_deliveries_of_a_recovering_tracker_are_claimed_at_the_recovery_rate() -> None:
    health = EndpointHealth(recovering_at=NOW - 500)
    assert plan([candidate("t1", 256, health=health)], SlotUsage(256), rate=10.0) == {"t1": 5}


def test_the_rate_limit_of_a_tracker_limits_how_many_deliveries_are_claimed() -> None:
    pace = EndpointPace(max_per_second=40.0)
    usage = SlotUsage(256)
    assert plan([candidate("t1", 256, health=EndpointHealth(), pace=pace)], usage) == {"t1": 4}
    used = EndpointPace(max_per_second=40.0, paced_until=NOW)
    assert plan([candidate("t1", 256, health=EndpointHealth(), pace=used)], usage) == {}


def test_first_attempts_and_retries_of_a_tracker_each_get_half_of_its_claims() -> None:
    both = Candidate(DeliveryQueue("t1", NOW, NOW - 1), 1, 8, 5.0)
    requests = plan_claims([both], SlotUsage(256), 256, now=NOW, recovery_rate=1.0, rng=random.Random(1))
    assert [(request.part, request.limit) for request in requests] == [(FIRST_ATTEMPTS, 4), (RETRIES, 4)]


def test_only_retries_of_a_tracker_are_claimed_if_no_first_attempt_is_due() -> None:
    retries = Candidate(DeliveryQueue("t1", NOW + 1, NOW), 1, 8, 5.0)
    (request,) = plan_claims([retries], SlotUsage(256), 256, now=NOW, recovery_rate=1.0, rng=random.Random(1))
    assert (request.queue, request.part, request.limit) == ("t1", RETRIES, 8)
    assert request.lease_until == NOW + 5000 + LEASE_MARGIN_MS


def test_planning_claims_does_not_change_the_slot_usage_that_is_passed_as_an_argument() -> None:
    usage = SlotUsage(256)
    plan_claims([candidate("t1")], usage, 256, now=NOW, recovery_rate=1.0, rng=random.Random(1))
    assert usage == SlotUsage(256)


def test_a_released_delivery_slot_can_be_used_again() -> None:
    usage = SlotUsage(4)
    usage.take("t1", 1, 2)
    usage.release("t1", 1)
    assert (usage.free, usage.by_queue, usage.by_application) == (3, {"t1": 1}, {1: 1})
    usage.release("t1", 1)
    assert usage == SlotUsage(4)
