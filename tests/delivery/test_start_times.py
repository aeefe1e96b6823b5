"""Tests for shortener/delivery/start_times.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.delivery import start_times
from shortener.delivery.start_times import StartTimes


@given(st.sampled_from([0.05, 0.5, 2.0, 5.0, 100.0]), st.lists(st.floats(0, 0.5), max_size=60))
def test_no_second_has_more_starts_than_the_rate_and_its_tolerance(rate: float, gaps: list[float]) -> None:
    starts, now, times = [], 1000.0, StartTimes()
    for gap in gaps:
        now += gap
        starts.append(now + times.pause("t1", rate, now))
    starts.sort()
    for first in starts:
        assert sum(first <= start < first + 1 for start in starts) <= rate + max(0.1 * rate, 1.5) + 1e-6


@given(st.sampled_from([0.5, 2.0, 5.0, 100.0]), st.integers(1, 50))
def test_attempts_that_the_rate_permits_are_not_delayed(rate: float, number: int) -> None:
    times = StartTimes()
    assert [times.pause("t1", rate, 1000 + step / rate) for step in range(number)] == pytest.approx([0.0] * number, abs=1e-9)


def test_queues_that_permit_a_start_at_once_are_removed_above_the_maximum_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_times, "MAX_QUEUES", 2)
    times = StartTimes()
    for number in range(10):
        assert times.pause(f"t{number}", 1.0, 1000.0 + 10 * number) == 0
    assert len(times._next) <= 3
    assert times.pause("t9", 1.0, 1090.0) == 0.5


def test_attempts_are_not_delayed_after_the_clock_was_set_back() -> None:
    times = StartTimes()
    assert [times.pause("t1", 1.0, now) for now in (5000.0, 5000.0, 1000.0)] == [0, 0.5, 0]
