"""Tests of rewrites whose connection to the database ended during COMMIT: no message is lost, and none is sent twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, text

from shortener.container import Service
from shortener.errors import CommitUncertain
from shortener.messages.balances import change_balance, read_balance
from shortener.messages.prices import set_price
from shortener.storage import schema
from shortener.storage.postgres import PostgresDatabase
from tests.conftest import NOON
from tests.databases import Cut, CutCommits
from tests.factory import rows
from tests.servers import PATIENCE

TO, OTHER = "+14085550100", "+14085550101"
_REPORT = {"message_id": "m-1", "timestamp": "2026-11-20T12:00:00Z"}
CORRECTED_REPORTS = [
    {**_REPORT, "state": "SENT", "mt_price": "0.01"},
    {**_REPORT, "state": "DELIVERED", "mt_price": "0.02", "status": "DELIVRD"},
    {**_REPORT, "state": "DELIVERED", "mt_price": "0.03", "status": "seen"},
]
SEND = {"to": [TO, OTHER], "message": 'Hi #track("https://shop.example/a")', "sender_id": "18775550100"}


def cut_commits(service: Service, monkeypatch: pytest.MonkeyPatch, *cuts: Cut) -> None:
    """Let the connection to the database end during COMMIT in the next transactions of rewrites, as `cuts` states."""
    monkeypatch.setattr(service.rewriter._commits._batcher, "_database", CutCommits(service.database, cuts))


async def prepare(service: Service, client: httpx.AsyncClient) -> None:
    """Make the default application prepaid, with the simulator as its gateway."""
    assert (await client.patch("/api/v1/application", json={"gateway": "simulator"})).status_code == 200
    await service.database.write(set_price, 0, "", Decimal("0.01"))
    await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal("1"), currency="USD")


async def assert_sent_once(service: Service, results: Sequence[Any]) -> None:
    """Check that the response to SEND contains the stored links, and that each message is stored, queued and paid once."""
    stored = await rows(service.database, schema.messages)
    assert sorted(row.message_id for row in stored) == sorted(result["message_id"] for result in results)
    links = {row.code for row in await rows(service.database, schema.links)}
    assert links == {result["links"][0]["code"] for result in results}
    for result in results:
        assert result["body"] == f"Hi {result['links'][0]['short_url']}"
        assert (result["status"], result["cost"]) == ("accepted", "0.01")
    assert len(await rows(service.database, schema.sends)) == len(results) == 2
    balance = await service.database.read(read_balance, 1)
    assert balance is not None
    assert balance.amount == Decimal("0.98")


@pytest.mark.parametrize(
    "cuts", [("stored",), ("rolled back",), ("stored", "down", "down"), ("rolled back", "rolled back", "stored")], ids=", ".join
)
async def test_a_send_without_an_idempotency_key_is_sent_once_if_its_commit_was_cut(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, cuts: Sequence[Cut]
) -> None:
    await prepare(service, client)
    cut_commits(service, monkeypatch, *cuts)
    response = await client.post("/api/v1/sms/send", json=SEND)
    assert response.status_code == 200, response.text
    found = response.json()
    assert (found["sent"], found["summary"]["total_cost"]) == (True, "0.02")
    await assert_sent_once(service, found["results"])


async def test_the_response_after_a_cut_commit_equals_the_response_without_the_cut(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = {"to": [TO, "12"], "body": 'Hi #track("https://shop.example/a") ok', "message_request_id": "r", "campaign": "c"}
    body = {"on_invalid": "skip", "messages": [message]}

    def without_codes(response: httpx.Response) -> list[dict[str, Any]]:
        assert response.status_code == 200, response.text
        entries: list[dict[str, Any]] = response.json()["messages"]
        for entry in entries:
            entry["body"] = len(entry.get("body", ""))
            del entry["message_id"]
            for link in entry.get("links", ()):
                del link["code"], link["short_url"]
        return entries

    usual = without_codes(await client.post("/api/v1/rewrite", json=body))
    cut_commits(service, monkeypatch, "stored")
    assert without_codes(await client.post("/api/v1/rewrite", json=body)) == usual


async def test_a_send_whose_commit_was_interrupted_and_cannot_be_looked_up_says_so_and_its_repeat_is_sent_once(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortener.storage.group_commit.UNCERTAIN_SECONDS", 0.0)
    await prepare(service, client)
    cut_commits(service, monkeypatch, "stored")
    key = {"Idempotency-Key": "k"}
    first = await client.post("/api/v1/sms/send", json=SEND, headers=key)
    assert (first.status_code, first.json()["error_code"]) == (503, "OUTCOME_UNKNOWN")
    assert first.headers["Retry-After"]
    assert "othing was stored" not in first.text
    second = await client.post("/api/v1/sms/send", json=SEND, headers=key)
    assert second.status_code == 200, second.text
    await assert_sent_once(service, second.json()["results"])


async def test_a_conversion_and_a_delivery_report_are_stored_once_if_their_commit_was_cut(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.post("/api/v1/rewrite", json={"to": TO, "body": "x", "message_id": "m-1"})
    reports = service.delivery_reports._group._batcher
    monkeypatch.setattr(reports, "_database", CutCommits(service.database, ["stored"]))
    report = {"message_id": "m-1", "state": "DELIVERED", "timestamp": "2026-11-20T12:00:00Z"}
    assert (await client.post("/api/v1/sms/status", json=report)).status_code == 200

    conversions = service.conversions._group._batcher
    monkeypatch.setattr(conversions, "_database", CutCommits(service.database, ["stored"]))
    assert service.first_credentials is not None
    token = {"X-Api-Token": service.first_credentials.tracker_token}
    converted = await client.post("/api/v1/track", json={"message_id": "m-1", "value": "5", "transaction_id": "t"}, headers=token)
    assert converted.status_code == 200, converted.text
    assert converted.json()["duplicate"] is False, "the client sent one report"
    assert len(await rows(service.database, schema.conversions)) == 1
    events = await rows(service.database, schema.events)
    assert len([event for event in events if event.conversion_id is not None]) == 1
    assert len(events) == 2  # the state event and the event of the conversion


@pytest.mark.parametrize("cuts", [("stored",), ("rolled back",), ("rolled back", "stored"), ("stored", "down")], ids=", ".join)
async def test_delivery_reports_that_correct_each_other_create_their_events_once_if_their_commit_was_cut(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, cuts: Sequence[Cut]
) -> None:
    await client.post("/api/v1/rewrite", json={"to": TO, "body": "x", "message_id": "m-1"})
    monkeypatch.setattr(service.delivery_reports._group._batcher, "_database", CutCommits(service.database, cuts))
    response = (await client.post("/api/v1/sms/status", json=CORRECTED_REPORTS)).json()
    assert (response["accepted"], response["refused"]) == (3, 0)
    events = await rows(service.database, schema.events)
    assert [event.data["status"] for event in events] == [None, "DELIVRD", "seen"]
    [message] = await rows(service.database, schema.messages)
    assert (message.mt_price, message.report_status) == (Decimal("0.03"), "seen")
    assert await rows(service.database, schema.first_clicks) == []
    repeated = await client.post("/api/v1/sms/status", json=CORRECTED_REPORTS[2:])
    assert repeated.json()["accepted"] == 1
    assert len(await rows(service.database, schema.events)) == 3


class CommitsLater:
    """A PostgreSQL database in which the first transaction of bulk work loses its connection to the client during COMMIT. The
    transaction is committed when another transaction waits for its rows."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._commit: asyncio.Task[None] | None = None

    async def write_later(self, transact: Any, *args: Any, **kwargs: Any) -> Any:
        if self._commit is not None:
            return await self._database.write_later(transact, *args, **kwargs)
        connection = await self._database._engine.connect()
        await connection.run_sync(transact, *args, **kwargs)

        async def commit() -> None:
            try:
                while not await self._database.read(_waits_for_a_row):
                    await asyncio.sleep(0.01)  # wait a moment before the condition is checked again
                await connection.commit()
            finally:
                await connection.close()

        self._commit = asyncio.create_task(commit())
        raise CommitUncertain("cut at COMMIT")

    async def finish(self) -> None:
        assert self._commit is not None
        await self._commit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


def _waits_for_a_row(connection: Connection) -> bool:
    """Return whether a statement in this database waits until another transaction ends."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(connection.execute(text(waiting)).scalar_one())


async def test_a_send_is_sent_once_if_postgresql_commits_it_after_the_look_up(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(service.database, PostgresDatabase):
        return  # SQLite has no connection that can be cut.
    assert (await client.patch("/api/v1/application", json={"gateway": "simulator"})).status_code == 200
    # These messages create the cohort and the link set, so that the second attempt of the next request waits only for the rows of
    # its own messages.
    await client.post("/api/v1/sms/send", json=SEND)
    database = CommitsLater(service.database)
    monkeypatch.setattr(service.rewriter._commits._batcher, "_database", database)
    response = await asyncio.wait_for(client.post("/api/v1/sms/send", json=SEND), PATIENCE)
    assert response.status_code == 200, response.text
    await database.finish()
    sent = {result["message_id"] for result in response.json()["results"]}
    stored = {row.message_id for row in await rows(service.database, schema.messages)}
    assert sent < stored
    assert len(stored) == len(await rows(service.database, schema.sends)) == 4


async def test_delivery_reports_create_their_events_once_if_postgresql_commits_them_after_the_look_up(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(service.database, PostgresDatabase):
        return  # SQLite has no connection that can be cut.
    await client.post("/api/v1/rewrite", json={"to": TO, "body": "x", "message_id": "m-1"})
    database = CommitsLater(service.database)
    monkeypatch.setattr(service.delivery_reports._group._batcher, "_database", database)
    response = await asyncio.wait_for(client.post("/api/v1/sms/status", json=CORRECTED_REPORTS), PATIENCE)
    assert response.json()["accepted"] == 3
    await database.finish()
    events = await rows(service.database, schema.events)
    assert [event.data["status"] for event in events] == [None, "DELIVRD", "seen"]
