"""Tests of rejected conversion reports: they are stored with the reason, up to a maximum number of rows."""

from __future__ import annotations

import asyncio

import pytest

from shortener.container import Service
from shortener.conversions import refusals
from shortener.conversions.refusals import MAX_ROWS_PER_MINUTE, RefusedConversions
from shortener.errors import ApiError, Detail, ErrorCode, StoreUnavailable
from shortener.storage import schema
from tests.conftest import NOON, Clock
from tests.factory import rows

ERROR = ApiError(ErrorCode.MESSAGE_NOT_FOUND, details=[Detail("message_id", "does not belong to a message")])


async def test_a_rejected_conversion_report_is_stored_with_endpoint_reason_and_parameters(service: Service) -> None:
    await service.refused_conversions.record(1, "GET /api/v1/track", ERROR, {"message_id": "m", "token": "tt_secret"})
    (row,) = await rows(service.database, schema.refused_conversions)
    assert (row.application_id, row.received_at, row.endpoint, row.reason) == (1, NOON, "GET /api/v1/track", "MESSAGE_NOT_FOUND")
    assert row.details == [{"field": "message_id", "reason": "does not belong to a message"}]
    assert (row.message_id, row.parameters) == ("m", {"message_id": "m", "token": "[removed]"})


async def test_an_application_has_a_maximum_number_of_stored_rejected_reports(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "MAX_ROWS", 20)
    monkeypatch.setattr(refusals, "TRIM_INTERVAL_ROWS", 5)
    await service.refused_conversions.record(2, "", ERROR, {})
    for number in range(50):
        await service.refused_conversions.record(1, "", ERROR, {"number": number})
    stored = await rows(service.database, schema.refused_conversions)
    own = [row.parameters["number"] for row in stored if row.application_id == 1]
    assert len(own) <= 25
    assert own[-1] == 49
    assert len(stored) == len(own) + 1


async def test_rejected_reports_above_the_rate_limit_are_counted_but_not_stored(service: Service, clock: Clock) -> None:
    refused = RefusedConversions(service.database, service.ids, clock)
    await asyncio.gather(*(refused.record(1, "", ERROR, {}) for _ in range(MAX_ROWS_PER_MINUTE + 50)))
    assert refused.counted["MESSAGE_NOT_FOUND"] == MAX_ROWS_PER_MINUTE + 50
    assert refused.not_stored == 50
    assert len(await rows(service.database, schema.refused_conversions)) == MAX_ROWS_PER_MINUTE


async def test_a_rejected_report_that_cannot_be_stored_is_counted(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (StoreUnavailable("down"), RuntimeError("bug")):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(refusals, "_insert", fail)
        await service.refused_conversions.record(1, "", ERROR, {})
    assert service.refused_conversions.not_stored == 2
