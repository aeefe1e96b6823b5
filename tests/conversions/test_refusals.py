"""Tests of rejected conversion reports: they are stored with the reason, up to a maximum number of rows."""

from __future__ import annotations

import asyncio

import pytest

from shortener.container import Service
from shortener.container.connections import key_prefix
from shortener.conversions import refusals
from shortener.conversions.refusals import RefusedConversions
from shortener.errors import ApiError, Detail, ErrorCode, StoreUnavailable
from shortener.redis import rate_limit
from shortener.redis.rate_limit import RateLimiter, RateLimits
from shortener.storage import schema
from shortener.storage.types import to_ms
from tests.conftest import NOON, Clock, MakeService
from tests.factory import rows
from tests.servers import RedisProcess

ERROR = ApiError(ErrorCode.MESSAGE_NOT_FOUND, details=[Detail("message_id", "does not belong to a message")])


async def test_a_rejected_conversion_report_is_stored_with_endpoint_reason_and_parameters(service: Service) -> None:
    await service.refused_conversions.record(1, "GET /api/v1/track", ERROR, {"message_id": "m", "token": "tt_secret"})
    (row,) = await rows(service.database, schema.refused_conversions)
    assert (row.application_id, row.received_at, row.endpoint, row.reason) == (1, NOON, "GET /api/v1/track", "MESSAGE_NOT_FOUND")
    assert row.details == [{"field": "message_id", "reason": "does not belong to a message"}]
    assert (row.message_id, row.parameters) == ("m", {"message_id": "m", "token": "[removed]"})


async def test_an_application_has_a_maximum_number_of_stored_rejected_conversion_reports(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "MAX_ROWS", 20)
    monkeypatch.setattr(refusals, "TRIM_INTERVAL_ROWS", 5)
    await service.refused_conversions.record(2, "", ERROR, {})
    for number in range(50):
        await service.refused_conversions.record(1, "", ERROR, {"number": number})
    stored = await rows(service.database, schema.refused_conversions)
    own = [row.parameters["number"] for row in stored if row.application_id == 1]
    assert 20 <= len(own) <= 25
    assert own == list(range(50 - len(own), 50))
    assert len(stored) == len(own) + 1


async def test_rejected_conversion_reports_above_the_rate_limit_are_counted_but_not_stored(service: Service, clock: Clock) -> None:
    limiter = RateLimiter("refused", 20, lambda: to_ms(clock()))
    refused = RefusedConversions(service.database, service.ids, clock, limiter)
    await asyncio.gather(*(refused.record(1, "", ERROR, {}) for _ in range(30)))
    assert (refused.counted["MESSAGE_NOT_FOUND"], refused.not_stored) == (30, 10)
    assert len(await rows(service.database, schema.refused_conversions)) == 20


async def test_processes_share_the_rate_limit_of_stored_rejected_conversion_reports_through_redis(
    make_service: MakeService, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit, "MAX_REFUSED_PER_MINUTE", 50)
    service = await make_service(redis_url=redis_server.url, redis_timeout=5)
    other = RateLimits(
        unknown_codes=0,
        rejected_credentials=0,
        now_ms=lambda: to_ms(NOON),
        redis=service.redis,
        prefix=key_prefix(service.secret),
    )
    assert not any(other.refused.take(1) for _ in range(40))
    await service.refused_conversions.record(1, "", ERROR, {})
    await other.share()
    await service.rate_limits.share()
    await asyncio.gather(*(service.refused_conversions.record(1, "", ERROR, {}) for _ in range(30)))
    assert len(await rows(service.database, schema.refused_conversions)) == 10
    text, _ = service.metrics.text("text/plain")
    assert b'kind="refused"' not in text, "these reports do not cause responses with status 429"


async def test_a_rejected_conversion_report_that_cannot_be_stored_is_counted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (StoreUnavailable("down"), RuntimeError("bug")):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(refusals, "_insert", fail)
        await service.refused_conversions.record(1, "", ERROR, {})
    assert service.refused_conversions.not_stored == 2
