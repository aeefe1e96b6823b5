"""Tests of the traffic of a demo installation. It must contain all data that screenshots and the tests of the portal need."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, select

from shortener.cli.demo_receivers import FAILS_AFTER, TRACKERS
from shortener.cli.demo_traffic import CAMPAIGNS, DAYS, fill_installation
from shortener.container import open_service
from shortener.model import DeliveryStatus, utcnow
from shortener.settings import Settings
from shortener.storage.schema import attempts, conversions, deliveries, gateways, messages, sends, trackers


@pytest.mark.slow
async def test_the_demo_data_contain_campaigns_failing_trackers_a_gateway_and_conversions_with_statuses(tmp_path: Path) -> None:
    await fill_installation(tmp_path, messages=160)
    service = await open_service(Settings(data_dir=tmp_path))

    def read(connection: Connection) -> None:
        names = connection.scalars(select(trackers.c.name)).all()
        assert names == [tracker["name"] for tracker in TRACKERS]
        statuses = {(row.tracker_id, row.status) for row in connection.execute(select(deliveries))}
        assert {(1, DeliveryStatus.DELIVERED), (2, DeliveryStatus.DELIVERED), (3, DeliveryStatus.DELIVERED)} <= statuses
        assert connection.scalar(select(attempts.c.id).where(attempts.c.status == 503).limit(1)) is not None
        assert len(connection.scalars(select(deliveries.c.id).where(deliveries.c.tracker_id == 3)).all()) > FAILS_AFTER
        assert {"lead", "approved"} <= set(connection.scalars(select(conversions.c.status)))
        # the built-in simulator and the gateway of the demo
        assert connection.scalar(select(func.count()).select_from(gateways)) == 2
        assert connection.scalar(select(sends.c.id).limit(1)) is not None
        first, last = connection.execute(select(func.min(messages.c.created_at), func.max(messages.c.created_at))).one()
        # The demo sends messages only in working hours. Therefore the first and the last of 160 messages may each be more than a
        # day away from the start and the end of the period.
        assert timedelta(days=DAYS - 4) < last - first <= timedelta(days=DAYS)
        assert utcnow() - last < timedelta(days=2)

    try:
        await service.database.read(read)
        assert len(CAMPAIGNS) == 4
    finally:
        await service.close(grace=1)
