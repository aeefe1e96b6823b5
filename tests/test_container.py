from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from shortener import container as services
from shortener.container import Service, open_service
from shortener.delivery.sender import Sender
from shortener.settings import Settings
from shortener.storage.open import open_database


async def test_what_was_opened_is_closed_when_the_rest_cannot_be_built(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    senders: list[Sender] = []

    def open_sender(*args: Any) -> Sender:
        senders.append(made(*args))
        return senders[-1]

    def broken(*args: Any, **more: Any) -> None:
        raise RuntimeError("it cannot be built")

    made = services.open_sender
    monkeypatch.setattr(services, "open_sender", open_sender)
    monkeypatch.setattr(services, "Dispatcher", broken)
    with pytest.raises(RuntimeError, match="cannot be built"):
        await open_service(Settings(data_dir=tmp_path, database_url=store_url))
    assert [sender._session.closed for sender in senders] == [True]
    # SQLite belongs to one owner: this would be refused if the first still held it.
    await (await open_database(store_url, owner=True)).close()


async def test_a_close_that_follows_begin_stop_is_over_when_that_said(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.start()

    async def hang() -> None:
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(service.sender, "close", hang)
        began = time.monotonic()
        service.begin_stop(1.0)
        service.begin_stop(60.0)
        assert service.is_stopping
        assert not service.ready
        await service.close()
        assert 0.5 < time.monotonic() - began < 3
        assert not service.jobs.running
    await service.sender.close()
