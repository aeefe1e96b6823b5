"""Tests of what callers of the API get if the database fails during the commit of their change, or directly after it, on SQLite
and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from shortener.container import Service
from shortener.errors import CommitUncertain
from shortener.redis.link_cache import NoLinkCache
from shortener.web import idempotency
from shortener.web.endpoints import ENDPOINTS
from tests.clicks.helpers import create_link
from tests.conftest import Clock, client_of
from tests.databases import Cut, CutCommits, take_down_after

TO = "+14085550100"


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/api/v1/tokens", {}, "tracker_token"),
        ("POST", "/api/v1/postback-keys", {"name": "network"}, "postback_key"),
        ("POST", "/api/v1/blocked-hosts", {"host": "bad.example"}, "host"),
        ("POST", "/api/v1/gateways", {"name": "gw", "kind": "simulator"}, "report_url"),
        ("POST", "/api/v1/trackers", {"url": "http://127.0.0.1:9/", "events": ["click"]}, "url"),
        ("POST", "/api/v1/application/callback-secret", {}, "callback_secret"),
        ("POST", "/api/v1/links/update", {"campaign": "autumn", "enabled": False}, "update"),
    ],
)
async def test_a_change_is_answered_with_its_result_if_the_database_fails_after_the_commit(
    service: Service,
    client: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    body: dict[str, Any],
    expected: str,
) -> None:
    take_down_after(service, monkeypatch)
    response = await client.request(method, path, json=body)
    assert response.is_success, response.text
    assert response.json()[expected]


async def test_a_new_api_key_is_shown_if_the_database_fails_after_the_commit_and_works_when_it_is_back(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = take_down_after(service, monkeypatch)
    response = await client.post("/api/v1/keys", json={"name": "pipeline"})
    assert response.status_code == 201, response.text
    database.is_back = True
    async with client_of(service, {"X-API-Key": response.json()["api_key"]}) as other:
        assert (await other.post("/api/v1/rewrite", json={"to": TO, "body": "x"})).status_code == 200


async def test_an_updated_application_is_shown_with_its_new_settings_if_the_database_fails_after_the_commit(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_down_after(service, monkeypatch)
    url = "http://127.0.0.1:9/c"
    changes = {"click_events": "every", "gateway": "simulator", "conversion_url": url}
    response = await client.patch("/api/v1/application", json=changes)
    assert response.status_code == 200, response.text
    changed = response.json()
    assert (changed["click_events"], changed["gateway"], changed["conversion_url"]) == ("every", "simulator", url)


async def test_a_domain_is_shown_with_its_new_values_if_the_database_fails_after_the_commit(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = take_down_after(service, monkeypatch)
    added = await client.post("/api/v1/domains", json={"domain": "go.brand.example"})
    assert (added.status_code, added.json()["domain"]["new_links"]) == (201, True), added.text
    database.is_back = True
    await service.directory.refresh()
    take_down_after(service, monkeypatch)
    changed = await client.patch("/api/v1/domains/go.brand.example", json={"home_url": "https://brand.example/"})
    assert (changed.status_code, changed.json()["domain"]["home_url"]) == (200, "https://brand.example/"), changed.text


async def test_a_changed_link_is_shown_if_the_database_fails_after_the_commit(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await create_link(client)
    database, removed = take_down_after(service, monkeypatch), []

    class Cache(NoLinkCache):
        async def invalidate(self, codes: Collection[str]) -> bool:
            removed.append((list(codes), database.is_down))
            return True

    monkeypatch.setattr(service, "cache", Cache())
    response = await client.patch(f"/api/v1/links{path}", json={"enabled": False})
    assert response.status_code == 200, response.text
    link = response.json()["link"]
    assert (link["enabled"], len(link["history"])) == (False, 1)
    assert removed == [([path[1:]], False), ([path[1:]], True)], "the link cache must not keep the old values"


@pytest.mark.parametrize(("decision", "status"), [("resend", "pending"), ("discard", "failed")])
async def test_a_decision_about_a_message_is_shown_if_the_database_fails_after_the_commit(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, decision: str, status: str
) -> None:
    rewritten = await client.post("/api/v1/rewrite", json={"to": TO, "body": "x", "gateway": "simulator", "message_id": "m-1"})
    assert rewritten.status_code == 200, rewritten.text
    take_down_after(service, monkeypatch)
    response = await client.post(f"/api/v1/sends/m-1/{decision}")
    assert response.status_code == 200, response.text
    assert response.json()["send"]["send_status"] == status


async def test_a_request_with_an_idempotency_key_gets_its_response_if_this_response_cannot_be_stored(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The database stores the claim of the Idempotency-Key and the new API key. Then it is unavailable and stores no response.
    database = take_down_after(service, monkeypatch, commits=2)
    first = await client.post("/api/v1/keys", json={"name": "pipeline"}, headers={"Idempotency-Key": "k"})
    assert first.status_code == 201, first.text
    assert first.json()["api_key"]
    database.is_back = True
    second = await client.post("/api/v1/keys", json={"name": "pipeline"}, headers={"Idempotency-Key": "k"})
    assert (second.status_code, second.json()["error_code"]) == (409, "REQUEST_IN_PROGRESS")
    assert len((await client.get("/api/v1/keys")).json()["keys"]) == 2


async def test_the_error_of_a_request_with_an_idempotency_key_is_returned_if_its_claim_cannot_be_released(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = (await client.post("/api/v1/keys", json={"name": "limited", "permissions": ["admin"]})).json()["api_key"]
    take_down_after(service, monkeypatch)
    async with client_of(service, {"X-API-Key": limited, "Idempotency-Key": "k"}) as other:
        response = await other.post("/api/v1/keys", json={"name": "x", "permissions": ["sms.send"]})
    assert (response.status_code, response.json()["error_code"]) == (403, "FORBIDDEN")


async def test_a_change_whose_commit_was_interrupted_gets_the_error_outcome_unknown(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cut(*args: Any, **kwargs: Any) -> Any:
        raise CommitUncertain("cut at COMMIT")

    monkeypatch.setattr(service.database, "write", cut)
    response = await client.post("/api/v1/keys", json={"name": "pipeline"})
    assert (response.status_code, response.json()["error_code"]) == (503, "OUTCOME_UNKNOWN")
    assert "Retry-After" not in response.headers, "clients repeat such requests automatically, and a repeat creates a second key"
    assert "nothing was stored" not in response.text


@pytest.mark.parametrize("cut", ["stored", "rolled back"])
@pytest.mark.parametrize("is_down", [False, True])
async def test_the_repeat_of_a_request_whose_commit_was_interrupted_is_not_performed_although_its_claim_has_ended(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, clock: Clock, cut: Cut, is_down: bool
) -> None:
    database = service.database
    created = len((await client.get("/api/v1/keys")).json()["keys"]) + (cut == "stored")

    async def create() -> httpx.Response:
        return await client.post("/api/v1/keys", json={"name": "pipeline"}, headers={"Idempotency-Key": "k"})

    cuts: list[Cut] = ["down"] * 3 if is_down else []
    cut_database = CutCommits(database, ["committed", cut, *cuts])
    monkeypatch.setattr(service, "database", cut_database)
    monkeypatch.setattr("shortener.web.idempotency.REPEAT_SECONDS", 0.0)
    first = await create()
    assert (first.status_code, first.json()["error_code"]) == (503, "OUTCOME_UNKNOWN")
    clock.forward(seconds=1)  # the outcome must be stored later than the claim
    await asyncio.gather(*idempotency._tasks)
    clock.forward(seconds=60)
    repeat = await create()
    assert (repeat.status_code, repeat.json()["error_code"]) == (503, "OUTCOME_UNKNOWN")
    assert "Retry-After" not in repeat.headers
    assert "Idempotency-Replayed" not in repeat.headers, "the first request has no response that could be sent again"
    assert "with a new Idempotency-Key" in repeat.text
    assert len((await client.get("/api/v1/keys")).json()["keys"]) == created


async def test_an_unknown_outcome_that_is_stored_late_does_not_replace_the_response_to_a_repeat_that_was_performed(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    is_down = True

    def cuts() -> Iterator[Cut]:
        yield from ("committed", "stored")
        while True:  # only the process that performed the first request cannot reach the database
            yield "down" if is_down and asyncio.current_task() in idempotency._tasks else "committed"

    monkeypatch.setattr(service, "database", CutCommits(service.database, cuts()))
    monkeypatch.setattr("shortener.web.idempotency.REPEAT_SECONDS", 0.01)

    async def create() -> httpx.Response:
        return await client.post("/api/v1/keys", json={"name": "pipeline"}, headers={"Idempotency-Key": "k"})

    assert (await create()).json()["error_code"] == "OUTCOME_UNKNOWN"
    clock.forward(seconds=61)
    performed = await create()
    assert performed.status_code == 201
    is_down = False
    await asyncio.gather(*idempotency._tasks)
    repeat = await create()
    assert (repeat.status_code, repeat.json()) == (201, performed.json())


async def test_a_request_is_not_performed_if_the_commit_that_claimed_its_idempotency_key_was_interrupted(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(service, "database", CutCommits(service.database, ["stored"]))
    headers = {"Idempotency-Key": "k"}
    first = await client.post("/api/v1/keys", json={"name": "pipeline"}, headers=headers)
    assert (first.status_code, first.json()["error_code"], first.headers["Retry-After"]) == (503, "UNAVAILABLE", "2")
    repeat = await client.post("/api/v1/keys", json={"name": "pipeline"}, headers=headers)
    assert (repeat.status_code, repeat.headers["Retry-After"]) == (409, "1")
    clock.forward(seconds=15)
    repeat = await client.post("/api/v1/keys", json={"name": "pipeline"}, headers=headers)
    assert (repeat.status_code, repeat.headers["Retry-After"]) == (409, "45"), "the claim ends after 60 s"
    clock.forward(seconds=45)
    assert (await client.post("/api/v1/keys", json={"name": "pipeline"}, headers=headers)).status_code == 201


@pytest.mark.parametrize(
    ("method", "path", "key", "may_repeat"),
    [
        ("POST", "/api/v1/rewrite", {}, False),
        ("POST", "/api/v1/rewrite", {"Idempotency-Key": "k"}, True),
        ("POST", "/api/v1/sms/send", {"Idempotency-Key": "k"}, True),
        ("POST", "/api/v1/keys", {"Idempotency-Key": "k"}, False),
        ("POST", "/api/v1/sms/status", {}, True),
        ("POST", "/api/v1/track", {}, True),
        ("PATCH", "/api/v1/application", {}, True),
        ("PATCH", "/api/v1/trackers/{tracker_id:int}", {}, False),
        ("PATCH", "/api/v1/gateways/{gateway_id:int}", {}, False),
        ("DELETE", "/api/v1/blocked-hosts/{host}", {}, True),
    ],
)
def test_clients_are_asked_to_repeat_a_request_with_an_unknown_outcome_only_if_the_repeat_changes_nothing(
    method: str, path: str, key: dict[str, str], may_repeat: bool
) -> None:
    (endpoint,) = (one for one in ENDPOINTS if (one.method, one.path) == (method, path))
    headers = [(name.lower().encode(), value.encode()) for name, value in key.items()]
    assert endpoint.may_repeat(Request({"type": "http", "headers": headers})) is may_repeat
