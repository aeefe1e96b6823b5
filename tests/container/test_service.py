from __future__ import annotations

import asyncio
import time

import pytest

from shortener.container import Service


async def test_closing_the_service_finishes_within_the_time_limit_of_the_first_begin_stop_call(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.start()

    async def hang() -> None:
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(service.sender, "close", hang)
        begin = time.monotonic()
        service.begin_stop(1.0)
        service.begin_stop(60.0)
        assert service.is_stopping
        assert not service.ready
        await service.close()
        assert time.monotonic() - begin < 30, "the second begin_stop must not extend the time of the first"
        assert not service.jobs.running
    await service.sender.close()
