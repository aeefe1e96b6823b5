"""The cost of a verdict that benchmarks/verdicts.py compares with its target."""

from __future__ import annotations

import time

import pytest

from benchmarks import verdicts
from shortener.clicks.verdicts.request_rules import Classification, RequestTraits, classify


def test_the_cost_of_a_verdict_does_not_contain_the_time_in_which_other_processes_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def classify_after_a_pause(request: RequestTraits) -> Classification:
        if request.user_agent == "agent 0":
            time.sleep(0.1)  # as if the operating system ran another process meanwhile
        return classify(request)

    agents = [f"agent {number}" for number in range(1000)]
    monkeypatch.setattr(verdicts, "classify", classify_after_a_pause)
    verdicts.microseconds(agents)
    assert verdicts.microseconds(agents) < 50, "a pause of 0.1 seconds would be 100 µs for each verdict"
