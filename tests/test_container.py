from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from shortener import container
from shortener.container import Service, open_service
from shortener.delivery.sender import Sender
from shortener.settings import Settings
from shortener.storage.open import open_database


async def test_a_failure_while_the_service_is_built_closes_everything_that_was_opened(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    senders: list[Sender] = []
    open_sender = container.open_sender

    def open_and_remember(*args: Any) -> Sender:
        senders.append(open_sender(*args))
        return senders[-1]

    def fail(*args: Any, **more: Any) -> None:
        raise RuntimeError("this part cannot be built")

    monkeypatch.setattr(container, "open_sender", open_and_remember)
    monkeypatch.setattr(container, "Dispatcher", fail)
    with pytest.raises(RuntimeError, match="cannot be built"):
        await open_service(Settings(data_dir=tmp_path, database_url=store_url))
    assert [sender._session.closed for sender in senders] == [True, True]
    # Only one process may own a SQLite database. This call raises an error if the first container still owns it.
    await (await open_database(store_url, owner=True)).close()


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
