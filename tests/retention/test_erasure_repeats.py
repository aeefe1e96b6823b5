"""Tests that no personal data reappears after an erasure, even if other requests ran at the same time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, Table, select, update

from shortener.accounts.credentials import Credentials
from shortener.clicks.batch import HitBatchWriter
from shortener.clicks.resolver import LinkResolver
from shortener.container import Service
from shortener.redis.link_cache import NoLinkCache
from shortener.retention.erasure import REPEAT_AFTER_SECONDS, erase, erase_message
from shortener.retention.erasure_repeats import ErasureRepeats
from shortener.storage import schema
from shortener.storage.postgres import async_engine
from tests.clicks.helpers import create_codes, fetch_rows, forget_expressions, make_hit
from tests.conftest import Clock
from tests.delivery.conftest import Story
from tests.factory import AUDIT, keep_sends
from tests.rows import Rows

PHONE = "+14085550100"  # the phone number to which `create_codes` sends its messages
NAME = "Kola Adeyemi"


def read_all(connection: Connection, table: Table) -> list[Any]:
    return list(connection.execute(select(table)).all())


class RecordingCache(NoLinkCache):
    """A link cache that records which codes it must remove. While `is_down` is true, it removes no codes."""

    def __init__(self) -> None:
        self.removed: list[str] = []
        self.is_down = False

    async def invalidate(self, codes: Collection[str]) -> bool:
        if not self.is_down:
            self.removed += codes
        return not self.is_down


@pytest.fixture
def repeats(service: Service) -> ErasureRepeats:
    return ErasureRepeats(service.database, RecordingCache())


@pytest.fixture
def story(service: Service) -> Story:
    return Story(service)


async def test_a_click_that_is_stored_during_an_erasure_leaves_no_personal_data(
    service: Service, store_url: str, clock: Clock, repeats: ErasureRepeats
) -> None:
    if store_url.startswith("sqlite"):
        pytest.skip("SQLite runs one transaction after the other")
    (code,) = await create_codes(service)
    (message,) = await fetch_rows(service, schema.messages)
    writer = HitBatchWriter(service.ids, LinkResolver(service.directory, service.click_ids), service.directory)
    engine = async_engine(store_url)
    async with engine.connect() as connection, connection.begin() as transaction:
        hit = make_hit(service, code, address="203.0.113.9", user_agent=f"the phone of {NAME}")
        await connection.run_sync(writer.write, [hit])
        await service.database.write(erase_message, 1, message.message_id, clock(), AUDIT, keep_sends)
        await transaction.commit()
    await engine.dispose()
    clock.forward(seconds=REPEAT_AFTER_SECONDS[0])
    assert await repeats.step(clock()) == 1
    (stored,) = await fetch_rows(service, schema.hits)
    assert (stored.id, stored.address, stored.user_agent) == (hit.id, "", "")


async def test_a_message_that_is_stored_during_the_erasure_of_its_phone_number_is_erased(
    service: Service, store_url: str, clock: Clock
) -> None:
    if store_url.startswith("sqlite"):
        pytest.skip("SQLite runs one transaction after the other")
    await create_codes(service)
    engine = async_engine(store_url)
    async with engine.connect() as connection, connection.begin() as transaction:

        def add(connection: Connection) -> None:
            (known,) = connection.execute(select(schema.messages)).all()
            Rows(connection).message(clock(), cohort_id=known.cohort_id, to_address=PHONE)

        await connection.run_sync(add)
        erasing = asyncio.create_task(erase(service.database, 1, PHONE, clock(), AUDIT, keep_sends))
        while [row.to_address for row in await fetch_rows(service, schema.messages)] != [""]:
            await asyncio.sleep(0.01)  # a pause before the test checks again whether the message is committed
        await transaction.commit()
    await engine.dispose()
    assert (await erasing).messages == 2
    assert [row.to_address for row in await fetch_rows(service, schema.messages)] == ["", ""]


async def test_data_that_is_stored_shortly_after_an_erasure_is_deleted_when_the_erasure_is_repeated(
    service: Service, story: Story, clock: Clock, repeats: ErasureRepeats
) -> None:
    message = await story.first_click()
    await service.database.write(erase_message, 1, message.message_id, clock(), AUDIT, keep_sends)

    def store_late(connection: Connection) -> None:
        """Store what a delivery attempt, a conversion report and a repeated rewrite store if they began before the erasure and
        end after it."""
        # a later millisecond, because the service has already created ids in this one
        rows = Rows(connection, clock() + timedelta(milliseconds=1))
        event = rows.event(message.row, data={"metadata": {"name": NAME}}, facts={"to_address": PHONE, "mt_price": "0.01"})
        rows.attempt(rows.delivery(event), answer=f"hello {NAME}")
        rows.conversion(message.row, metadata={"name": NAME})
        answer = [{"message_id": message.message_id, "to": PHONE, "body": NAME}]
        rows.idempotent_response(clock(), "a repeat with another key", answer=answer)
        rows.idempotent_response(clock(), "another message", answer=[{"message_id": message.message_id + "0", "body": "x"}])

    for seconds in (
        REPEAT_AFTER_SECONDS[0],
        *(b - a for a, b in itertools.pairwise(REPEAT_AFTER_SECONDS)),
    ):
        assert await repeats.step(clock()) == 0, "the repeat of the erasure is not due yet"
        await service.database.write(store_late)
        clock.forward(seconds=seconds)
        assert await repeats.step(clock()) == 1
        stored: list[Any] = []
        for table in (schema.events, schema.attempts, schema.conversions, schema.idempotency):
            stored += await service.database.read(read_all, table)
        assert not [row for row in stored if NAME in str(row) or PHONE in str(row)]
        assert [row.key for row in stored if hasattr(row, "key")] == ["another message"]

        def delete(connection: Connection) -> None:
            connection.execute(schema.conversions.delete())
            connection.execute(schema.idempotency.delete())

        await service.database.write(delete)
    assert await fetch_rows(service, schema.erasure_repeats) == []
    clock.forward(days=1)
    assert await repeats.step(clock()) == 0


async def test_a_repeated_erasure_removes_the_links_of_the_message_from_the_cache_when_redis_responds(
    service: Service, story: Story, clock: Clock
) -> None:
    message = await story.message()
    await service.database.write(erase_message, 1, message.message_id, clock(), AUDIT, keep_sends)
    cache = RecordingCache()
    repeats = ErasureRepeats(service.database, cache)
    clock.forward(seconds=REPEAT_AFTER_SECONDS[0])
    cache.is_down = True
    assert await repeats.step(clock()) == 0
    assert len(await fetch_rows(service, schema.erasure_repeats)) == 1, "the erasure is repeated when Redis responds"
    cache.is_down = False
    assert await repeats.step(clock()) == 1
    assert cache.removed == list(message.codes)


async def test_an_erasure_is_repeated_although_the_clock_was_set_back(
    service: Service, story: Story, repeats: ErasureRepeats, clock: Clock
) -> None:
    message = await story.message()
    await service.database.write(erase_message, 1, message.message_id, clock(), AUDIT, keep_sends)
    clock.now -= timedelta(hours=5)
    assert [await repeats.step(clock()) for _ in range(2)] == [1, 0]
    clock.forward(seconds=REPEAT_AFTER_SECONDS[1])
    assert await repeats.step(clock()) == 1


async def test_later_reports_about_an_erased_message_store_no_personal_data(
    service: Service, client: httpx.AsyncClient, credentials: Credentials, story: Story, clock: Clock
) -> None:
    message = await story.first_click()
    await service.database.write(erase_message, 1, message.message_id, clock(), AUDIT, keep_sends)
    report = {
        "message_id": message.message_id,
        "state": "DELIVERED",
        "reason_code": "000",
        "reason_description": f"handset of {NAME}",
        "telecom_message_id": NAME,
    }
    assert (await client.post("/api/v1/sms/status", json=report)).json()["accepted"] == 1
    tracker = {"X-Api-Token": credentials.tracker_token}
    parameters = {"message_id": message.message_id, "value": NAME, "name": NAME}
    answer = await client.get("/api/v1/track", params=parameters, headers=tracker)
    assert answer.status_code == 200, answer.text
    (stored,) = await fetch_rows(service, schema.messages)
    assert (stored.reason_code, stored.reason_description, stored.telecom_message_id) == ("000", None, None)
    for table in (schema.messages, schema.conversions, schema.events):
        assert not [row for row in await fetch_rows(service, table) if NAME in str(row)], table.name


@pytest.mark.parametrize("subject", [{"phone": PHONE}, {"message_id": "m-1"}])
async def test_an_erasure_and_its_repeats_load_the_expressions_for_user_agents_before_their_transactions(
    service: Service,
    client: httpx.AsyncClient,
    clock: Clock,
    repeats: ErasureRepeats,
    monkeypatch: pytest.MonkeyPatch,
    subject: dict[str, str],
) -> None:
    (code,) = await create_codes(service, message_ids=("m-1",))
    await service.recorder.record(make_hit(service, code))
    with monkeypatch.context() as patch:
        forget_expressions(patch)
        assert (await client.post("/api/v1/erasures", json=subject)).json()["erased"]["hits"] == 1
    late = {"user_agent": "a click that was stored just after the erasure", "device_class": None}
    await service.database.write(lambda connection: connection.execute(update(schema.hits).values(late)))
    clock.forward(seconds=REPEAT_AFTER_SECONDS[0])
    with monkeypatch.context() as patch:
        forget_expressions(patch)
        assert await repeats.step(clock()) == 1
    (hit,) = await fetch_rows(service, schema.hits)
    assert (hit.user_agent, hit.device_class) == ("", "other\nother")
