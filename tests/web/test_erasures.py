"""POST /api/v1/erasures erases the personal data of a phone number or a message."""

from collections.abc import Collection
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from shortener.accounts.administration import create_application
from shortener.container import Service
from shortener.redis.link_cache import NoLinkCache
from shortener.reporting.count_check import verify
from tests.clicks.helpers import PHONE_HEADERS as PHONE
from tests.clicks.helpers import create_link as link
from tests.conftest import NOON, Clock, client_of
from tests.factory import audited_rows
from tests.one_service import on_one_service
from tests.rows import KINDS


async def everything(service: Service) -> str:
    """Return all rows of all tables as one text."""
    return await service.database.read(
        lambda connection: "\n".join(str(row) for table in KINDS for row in connection.execute(text(f"SELECT * FROM {table.name}")))
    )


async def test_statistics_stay_correct_after_a_phone_number_is_erased(
    client: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    paths = [await link(client, metadata={"name": "Kola"}) for _ in range(2)]
    await client.get(paths[0], headers=PHONE)
    answer = await client.post("/api/v1/erasures", json={"phone": "+1 (408) 555-0100"})
    assert answer.json() == {
        "status": True,
        "erased": {"messages": 2, "links": 2, "hits": 1, "conversions": 0, "events": 1, "attempts": 0},
    }
    left = await everything(service)
    for personal in ("4085550100", "Kola", "iPhone", "x.example"):
        assert personal not in left
    assert (await client.get(paths[0], headers=PHONE)).status_code == 410
    stats = (await client.get("/api/v1/sms/stats")).json()
    assert (stats["messages"], stats["clicked_messages"], stats["clicks"]) == (2, 1, 1)
    assert await service.database.read(verify, NOON, clock.forward(hours=1)) == []
    again = await client.post("/api/v1/erasures", json={"phone": "001 408-555-0100"})
    assert set(again.json()["erased"].values()) == {0}


async def test_the_audit_log_names_the_api_key_that_has_erased_personal_data(client: httpx.AsyncClient, service: Service) -> None:
    for number in range(3):
        await link(client, message_id=f"m-{number}")
    await client.post("/api/v1/erasures", json={"message_id": "m-0"})
    await client.post("/api/v1/erasures", json={"phone": "+14085550100"})
    await client.post("/api/v1/erasures", json={"phone": "+14085550100"})
    rows = await audited_rows(service.database)
    assert [(row.operator, row.action, row.application_id, row.object, row.after["messages"]) for row in rows] == [
        ("key 1", "data_erased", 1, "one message", 1),
        ("key 1", "data_erased", 1, "messages to a number", 2),
    ]
    assert "555" not in f"{[(row.object, row.after) for row in rows]}"


async def test_the_personal_data_of_a_single_message_can_be_erased(client: httpx.AsyncClient) -> None:
    for number in range(2):
        await link(client, message_id=f"m-{number}")
    assert (await client.post("/api/v1/erasures", json={"message_id": "m-0"})).json()["erased"]["messages"] == 1
    assert (await client.get("/api/v1/sms/status/m-0")).json()["to"] == ""
    assert (await client.get("/api/v1/sms/status/m-1")).json()["to"] == "+14085550100"
    await link(client, message_id=4712)
    assert (await client.post("/api/v1/erasures", json={"message_id": 4712})).json()["erased"]["messages"] == 1


@on_one_service
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "INVALID_REQUEST"),
        ({"phone": "+14085550100", "message_id": "m-1"}, 400, "INVALID_REQUEST"),
        ({"phone": "4085550100"}, 400, "INVALID_RECIPIENT"),
        ({"phone": ""}, 400, "INVALID_RECIPIENT"),
        ({"phone": "Kola"}, 400, "INVALID_RECIPIENT"),
        ({"phone": "+14085550100x"}, 400, "INVALID_RECIPIENT"),
        ({"phone": "+0"}, 400, "INVALID_RECIPIENT"),
        ({"phone": None}, 400, "INVALID_REQUEST"),
        ({"message_id": "nosuch"}, 404, "MESSAGE_NOT_FOUND"),
        ({"message_id": "a\0b"}, 400, "INVALID_REQUEST"),
        ({"number": "+14085550100"}, 400, "INVALID_REQUEST"),
    ],
)
async def test_an_invalid_erasure_request_is_rejected(
    client: httpx.AsyncClient, body: dict[str, Any], status: int, code: str
) -> None:
    answer = await client.post("/api/v1/erasures", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (status, code)
    if code == "INVALID_RECIPIENT":
        (detail,) = answer.json()["details"]
        assert detail["field"] == "phone"
        assert "is not an E.164 number" in detail["reason"]


@pytest.mark.parametrize(
    "phone", ["+1 (408) 555-0100", "001 408-555-0100", "14085550100", "\u202a+14085550100\u202c", " +1\u2011408\u20115550100 "]
)
async def test_an_erasure_accepts_the_same_notations_of_a_phone_number_as_a_rewrite(client: httpx.AsyncClient, phone: str) -> None:
    await link(client, to=phone, message_id="m-1")
    assert (await client.post("/api/v1/erasures", json={"phone": phone})).json()["erased"]["messages"] == 1
    assert (await client.get("/api/v1/sms/status/m-1")).json()["to"] == ""


async def test_an_erasure_does_not_affect_messages_of_another_application(
    client: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    await link(client, message_id="m-1")
    made = await service.database.write(create_application, "other", clock())
    await service.directory.refresh()
    async with client_of(service, {"X-API-Key": made.api_key}) as other:
        assert (await other.post("/api/v1/erasures", json={"phone": "+14085550100"})).json()["erased"]["messages"] == 0
        assert (await other.post("/api/v1/erasures", json={"message_id": "m-1"})).status_code == 404
    assert (await client.get("/api/v1/sms/status/m-1")).json()["to"] == "+14085550100"


async def test_an_erasure_fails_and_erases_nothing_while_redis_is_unavailable(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away(NoLinkCache):
        async def invalidate(self, codes: Collection[str]) -> bool:
            return not codes

    await link(client, message_id="m-1")
    monkeypatch.setattr(service, "cache", Away())
    answer = await client.post("/api/v1/erasures", json={"message_id": "m-1"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert (await client.get("/api/v1/sms/status/m-1")).json()["to"] == "+14085550100"
