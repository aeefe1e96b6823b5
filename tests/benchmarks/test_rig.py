"""The goals of the benchmarks, for machines of different speed."""

from __future__ import annotations

import pytest

from benchmarks import rig
from benchmarks.rig import Figure, Goal

HALF = 0.5  # the speed of a machine whose baseline is half of REFERENCE_BASELINE


@pytest.mark.parametrize(
    ("goal", "met", "missed", "target"),
    [
        (rig.rate(8_000), 4_000, 3_999, "4,000 ms"),
        (rig.share(0.5), 0.25 * rig.REFERENCE_BASELINE, 0.24 * rig.REFERENCE_BASELINE, "12,425 ms"),
        (rig.duration(8), 16, 16.1, "16.00 ms"),
        (rig.minimum(0.8), 0.8, 0.79, "0.80 ms"),
        (rig.maximum(60), 60, 60.1, "60.00 ms"),
    ],
)
def test_a_slow_machine_needs_less_rate_and_may_take_more_time(goal: Goal, met: float, missed: float, target: str) -> None:
    for value, expected in ((met, True), (missed, False)):
        figure = Figure("a load", value, "ms", goal=goal)
        figure.judge(HALF)
        assert (figure.target, figure.met) == (target, expected)


def test_a_figure_without_a_goal_is_not_judged() -> None:
    figure = Figure("a load", 1.0, "/s")
    figure.judge(HALF)
    assert (figure.target, figure.met) == ("", None)


def test_the_columns_of_the_report_stay_apart() -> None:
    figures = [
        Figure("a load with a name of more than forty characters", 12_345, "messages/s", 0.5, rig.rate(25_000)),
        Figure("b", 1, "s"),
    ]
    figures[0].judge(HALF)
    assert "forty characters 12,345 messages/s 0.50 12,500 messages/s NO" in " ".join(rig.table(figures).split())
