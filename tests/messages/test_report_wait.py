"""Tests of the wait for the messages of delivery reports."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from shortener.messages.report_wait import ReportWait
from tests.servers import PATIENCE


class Reports:
    """Reports of unknown messages. `known_at` contains the number of the try at which the message of a report becomes known."""

    def __init__(self, **known_at: int) -> None:
        self._known_at = {int(name[1:]): number for name, number in known_at.items()}
        self.tried: list[list[int]] = []

    async def retry(self, indexes: Sequence[int]) -> list[str | None]:
        self.tried.append(list(indexes))
        return [f"again {index}" if self._known_at.get(index) == len(self.tried) else None for index in indexes]


async def test_only_reports_of_unknown_messages_are_tried_again_until_their_messages_are_known() -> None:
    wait, reports = ReportWait(0.001, 1), Reports(_1=2, _3=1)
    results: list[str | None] = ["first", None, "third", None]
    found: list[str | None] = await wait.retry_unknown(results, reports.retry)
    assert found == ["first", "again 1", "third", "again 3"]
    assert (reports.tried, wait.requests) == ([[1, 3], [1]], 0)


async def test_a_message_that_stays_unknown_is_searched_three_times() -> None:
    reports, unknown = Reports(), list[str | None]([None])
    assert await ReportWait(0.001, 1).retry_unknown(unknown, reports.retry) == [None]
    assert reports.tried == [[0]] * 3


@pytest.mark.parametrize(("seconds", "max_requests"), [(0, 1), (PATIENCE, 0)])
async def test_without_a_wait_and_while_too_many_requests_wait_the_results_are_returned_at_once(
    seconds: float, max_requests: int
) -> None:
    reports = Reports()
    assert await ReportWait(seconds, max_requests).retry_unknown([None, "known"], reports.retry) == [None, "known"]
    assert reports.tried == []


async def test_a_cancelled_request_does_not_count_as_waiting() -> None:
    wait = ReportWait(PATIENCE, 1)
    request = asyncio.create_task(wait.retry_unknown(list[str | None]([None]), Reports().retry))
    await asyncio.sleep(0)  # let the request begin to wait
    assert wait.requests == 1
    request.cancel()
    await asyncio.wait([request])
    assert wait.requests == 0
