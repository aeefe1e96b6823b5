"""Tests that the number of log lines about an unavailable database is limited for each error."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from shortener.errors import StoreUnavailable
from shortener.storage.open import open_database
from shortener.storage.outage_log import MAX_ERRORS, PAUSE_SECONDS, OutageLog


def warn(log: OutageLog, *errors: str) -> list[dict[str, Any]]:
    with capture_logs() as lines:
        for error in errors:
            log.warn(ConnectionRefusedError(error))
    return [dict(line) for line in lines]


def test_an_error_that_repeats_during_an_outage_is_logged_once_in_a_pause_with_the_number_of_repeats() -> None:
    now = [100.0]
    log = OutageLog(lambda: now[0])
    [first] = warn(log, *["refused\nat 10.0.0.1"] * 1000)
    assert first == {"event": "store_unavailable", "log_level": "warning", "error": "ConnectionRefusedError: refused"}
    now[0] += PAUSE_SECONDS - 0.1
    assert warn(log, "refused") == []
    now[0] += 0.1
    [second] = warn(log, "refused", "refused")
    assert second["repeated"] == 1000
    now[0] += PAUSE_SECONDS
    assert [line["repeated"] for line in warn(log, "refused")] == [1]
    now[0] += PAUSE_SECONDS
    assert "repeated" not in warn(log, "refused")[0]


def test_another_error_is_logged_at_once() -> None:
    log = OutageLog(lambda: 0.0)
    assert [line["error"] for line in warn(log, "refused", "starting up", "refused")] == [
        "ConnectionRefusedError: refused",
        "ConnectionRefusedError: starting up",
    ]


def test_errors_with_changing_texts_do_not_fill_the_memory() -> None:
    log = OutageLog(lambda: 0.0)
    assert len(warn(log, *(f"error {number}" for number in range(3 * MAX_ERRORS)))) == 3 * MAX_ERRORS
    assert len(log._errors) <= MAX_ERRORS


async def test_connections_that_are_refused_cause_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shortener.storage.postgres.outage_log", OutageLog(lambda: 0.0))
    with capture_logs() as lines:
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await open_database("postgresql://127.0.0.1:1/none", owner=False)
    assert [line["event"] for line in lines] == ["store_unavailable"]
