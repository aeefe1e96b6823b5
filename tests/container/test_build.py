from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event

from shortener.container import open_service
from shortener.container.connections import open_sender
from shortener.delivery.sender import Sender
from shortener.settings import Settings
from shortener.storage.open import open_database
from tests.conftest import MakeService


async def test_a_failure_while_the_service_is_built_closes_everything_that_was_opened(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    senders: list[Sender] = []

    def open_and_remember(*args: Any) -> Sender:
        senders.append(open_sender(*args))
        return senders[-1]

    def fail(*args: Any, **more: Any) -> None:
        raise RuntimeError("this part cannot be built")

    monkeypatch.setattr("shortener.container.build.open_sender", open_and_remember)
    monkeypatch.setattr("shortener.container.build.Dispatcher", fail)
    with pytest.raises(RuntimeError, match="cannot be built"):
        await open_service(Settings(data_dir=tmp_path, database_url=store_url))
    assert [sender.is_closed for sender in senders] == [True] * 3
    # Only one process may own a SQLite database. This call raises an error if the failed service still owns it.
    await (await open_database(store_url, owner=True)).close()


async def test_a_start_and_a_stop_without_deliveries_execute_few_transactions(make_service: MakeService) -> None:
    """Each transaction needs three round trips to PostgreSQL, or several thread switches with SQLite."""
    transactions: list[Connection] = []
    # `event.remove` finds a listener by its identity. Each evaluation of `transactions.append` would create another object.
    add = transactions.append
    await (await make_service()).close(grace=1)
    event.listen(Engine, "begin", add)
    try:
        service = await make_service()
        at_start = len(transactions)
        await service.close(grace=1)
        at_stop = len(transactions) - at_start
    finally:
        event.remove(Engine, "begin", add)
    # At the start, the transactions read the values of the installation, the accounts and the newest ids. With PostgreSQL, the
    # start also reads the version of the schema and leases a node number, and the stop gives the number back.
    expected = {"sqlite": (3, 0), "postgresql": (5, 1)}
    assert (at_start, at_stop) == expected[service.database.dialect]
