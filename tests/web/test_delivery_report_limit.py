"""Tests of the limit on deliveries: they send floods of delivery reports, and count the deliveries that the reports create, on
SQLite and PostgreSQL."""
# Part of the tests of shortener/web/delivery_reports.py.

from __future__ import annotations

from collections import Counter

import pytest
from sqlalchemy import Connection

from shortener.delivery.trackers import NewTracker
from shortener.storage import schema
from tests.conftest import MakeService, client_of
from tests.factory import AUDIT, add_message, rows

PATH = "/api/v1/sms/status"


@pytest.mark.parametrize("size", [1, 20])
async def test_two_thousand_reports_for_a_hundred_trackers_create_at_most_the_limit_of_deliveries_in_lists_of_any_size(
    make_service: MakeService, size: int
) -> None:
    """To save time, the test uses a tenth of the numbers in its name: 200 reports and 10 trackers, thus 2,000 deliveries."""
    service = await make_service(report_delivery_limit=600)
    for number in range(10):
        tracker = NewTracker(url=f"http://127.0.0.1:9/{number}", events=["delivery"])
        await service.trackers.create(AUDIT, 1, tracker)

    def add_messages(connection: Connection) -> None:
        for number in range(200):
            add_message(connection, service.ids, f"flood-{number}", links=0)

    await service.database.write(add_messages)
    assert service.first_credentials is not None
    statuses: Counter[int] = Counter()
    async with client_of(service, {"X-API-Key": service.first_credentials.api_key}) as client:
        for first in range(0, 200, size):
            reports = [{"message_id": f"flood-{number}", "state": "SENT"} for number in range(first, first + size)]
            statuses[(await client.post(PATH, json=reports)).status_code] += size
    assert statuses == {200: 60, 429: 140}
    await service.fanout.flush()
    assert len(await rows(service.database, schema.deliveries)) == 600
