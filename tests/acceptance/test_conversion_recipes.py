"""Tests of the recipes in docs/recipes with a real server process. They send the reports that each network's documents describe,
in the documented order.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, urlsplit

import httpx
import pytest

from tests.acceptance.endpoint import Endpoint
from tests.acceptance.process import NO_TLS, PHONE, Server, serving
from tests.document_blocks import shell_blocks, shortener_commands
from tests.servers import PATIENCE

RECIPES = sorted((Path(__file__).parents[2] / "docs" / "recipes").glob("*.md"))
#: For each network: the status words that it sends for a lead, for a sale and for a rejection, in the documented order.
SEQUENCES = {
    "Keitaro": [{"status": "lead", "value": "12.5"}, {"status": "sale", "value": "12.5"}, {"status": "rejected"}],
    "Everflow": [{"status": "pending"}, {"status": "approved", "value": "12.5"}, {"status": "rejected"}],
    "TUNE": [
        {"status": "pending", "value": "12.5"},
        {"status": "approved", "value": "12.5"},
        {"status": "rejected", "value": "12.5"},
    ],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that all tests of this module share. Each test creates its own message."""
    yield from serving(tmp_path_factory.mktemp("recipes"))


def blocks(recipe: Path) -> tuple[str, str, str]:
    """Return three URLs of a recipe: the destination, the postback URL of the network, and the URL of the tracker."""
    link, inbound = re.findall(r"```text\n(.*?)\n```", recipe.read_text(), re.DOTALL)
    return link, inbound, creation(recipe)[3]


def creation(recipe: Path, endpoint: Endpoint | None = None) -> list[str]:
    """Return the words of the command in a recipe that creates the tracker, without `shortener`. If `endpoint` is not None, its
    URL replaces the URL of the tracker."""
    (words,) = shortener_commands("\n".join(shell_blocks(recipe)))
    assert words[:3] == ["trackers", "add", "1"]
    if endpoint is not None:
        parts = urlsplit(words[3])
        words[3] = f"{endpoint.url}{parts.path}?{parts.query}"
    return words


def macros(recipe: Path) -> dict[str, list[str]]:
    """Return the macros (placeholders of the network) that a recipe lists. The value of each macro is the list of its examples."""
    rows = re.findall(r"^\| `(\{[^`]+\})` \| `[a-z_]+` \|.*\| ([^|]*) \|$", recipe.read_text(), re.MULTILINE)
    return {macro: [one.strip() for one in values.split(",")] if ", " in values else [values.strip()] for macro, values in rows}


def rewrite(server: Server, **fields: Any) -> dict[str, Any]:
    with server.api() as api:
        response = api.post("/api/v1/rewrite", json={"to": "+14085550100", **fields})
        assert response.status_code == 200, response.text
        message: dict[str, Any] = response.json()["messages"][0]
        return message


def conversions(server: Server, message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the conversions of a message."""
    with server.api() as api:
        response = api.get("/api/v1/conversions", params={"message_id": message["message_id"]})
        found: list[dict[str, Any]] = response.json()["conversions"]
        return found


@contextlib.contextmanager
def conversion_tracker(server: Server, *words: str) -> Iterator[int]:
    """Create a tracker with the words of a command, and yield its id. Delete the tracker at the end, because all tests share one
    server."""
    tracker: int = server.command(*words)["tracker_id"]
    try:
        yield tracker
    finally:
        server.command("trackers", "remove", str(tracker), "--yes")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_postback_url_in_each_conversion_guide_records_a_conversion(server: Server, recipe: Path) -> None:
    link, inbound, _ = blocks(recipe)
    message = rewrite(server, body=f'Look #track("{link}")')
    with server.client(**{"User-Agent": PHONE}) as phone:
        location = phone.get(f"/{message['links'][0]['code']}").headers["location"]
    parameter = next(part.partition("=")[0] for part in urlsplit(link).query.split("&") if part.endswith("={click_id}"))
    click_id = parse_qs(urlsplit(location).query)[parameter][0]
    values = macros(recipe)
    statuses = next((found for macro, found in values.items() if "status" in macro), [""])
    with server.api() as api:
        key = api.post("/api/v1/postback-keys", json={"name": recipe.stem}).json()["postback_key"]
    with server.client() as network:
        for status in statuses:
            url = inbound.replace("https://go.brand.example", "").replace("POSTBACK_KEY", key)
            for macro, examples in values.items():
                value = examples[0] or click_id
                url = url.replace(macro, quote(status if "status" in macro else value, safe=""))
            response = network.get(url)
            assert response.status_code == 200, response.text
            assert "warnings" not in response.json()
    (found,) = conversions(server, message)
    assert (found["message_id"], found["click_id"]) == (message["message_id"], click_id)
    assert found["revision"] == len(statuses)
    assert found["value"] is not None
    assert found["currency"] in ("USD", "EUR")
    if len(statuses) > 1:
        assert found["disposition"] == "negative"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_tracker_in_each_conversion_guide_receives_reported_conversions_but_no_click_and_no_reply(
    server: Server, endpoint: Endpoint, recipe: Path
) -> None:
    words = creation(recipe, endpoint)
    parts = urlsplit(words[3])
    endpoint.body = b"success=true"
    phone_number = f"+1408555010{RECIPES.index(recipe)}"
    metadata = dict.fromkeys(re.findall(r"\{metadata\.(\w+)\}", words[3]), "theirs-1")
    sale = {"{action}": "sale", "{value}": "12.50", "{currency}": "USD"}
    first = [sale | {"{transaction_id}": "Order 1", "{status}": status} for status in ("pending", "approved", "rejected")]
    last = sale | {"{transaction_id}": "Order 2", "{status}": "approved"}
    with conversion_tracker(server, *words) as tracker, server.api() as api, server.tracker() as own:
        message = rewrite(server, to=phone_number, body='Look #track("https://shop.example/")', metadata=metadata)
        with server.client(**{"User-Agent": PHONE}) as phone:
            assert phone.get(f"/{message['links'][0]['code']}").status_code == 302
        delivered = {"message_id": message["message_id"], "state": "DELIVERED", "status": "S12"}
        assert api.post("/api/v1/sms/status", json=delivered).status_code == 200
        for number, text in enumerate(("STOP", "START", "Thanks")):
            reply = api.post("/api/v1/sms/inbound", json={"from": phone_number, "text": text, "id": f"{recipe.stem} {number}"})
            assert reply.json()["conversion_id"] is not None
        for event in (*first, last):
            report = {name.strip("{}"): value for name, value in event.items()} | {"message_id": message["message_id"]}
            assert own.post("/api/v1/callback/action", json=report).status_code == 200
        # The URL of this network contains no status. Therefore each request counts as a sale, even if it reports a pending
        # conversion or a rejection.
        events = [*first, last] if "{status}" in words[3] else [first[1], last]
        requests = endpoint.wait(len(events))
        # Deliveries are created in the order of the event ids. When the delivery of the last event exists, the earlier ones exist
        # too.
        assert len(api.get(f"/api/v1/trackers/{tracker}/deliveries").json()["deliveries"]) == len(events)
    assert {urlsplit(request.target).path for request in requests} == {parts.path or "/"}
    template = parse_qsl(parts.query)
    expected = [
        [(name, event.get(value, "theirs-1" if "metadata" in value else value)) for name, value in template] for event in events
    ]
    assert sorted(parse_qsl(urlsplit(request.target).query, True) for request in requests) == sorted(expected)


@pytest.mark.parametrize("network", SEQUENCES)
def test_the_documented_postback_sequence_of_a_network_creates_one_conversion_with_three_revisions(
    server: Server, endpoint: Endpoint, network: str
) -> None:
    message = rewrite(server, body="Hello", campaign=network)
    url = f"{endpoint.url}/?r={{revision}}&d={{disposition}}&s={{status}}"
    with conversion_tracker(server, "trackers", "add", "1", url, "--event", "conversion", "--method", "GET"), server.api() as api:
        with server.tracker() as own:
            for revision, parameters in enumerate(SEQUENCES[network], 1):
                query = {"message_id": message["message_id"], "transaction_id": "T1", "currency": "USD", **parameters}
                response = own.get("/api/v1/track", params=query).json()
                assert response.get("revision", 1) == revision
                assert own.get("/api/v1/track", params=query).json()["duplicate"]
                totals = api.get("/api/v1/sms/stats", params={"campaign": network}).json()
                assert (totals["conversions"], totals["value"]) == (1, {"USD": "12.5"} if revision == 2 else {})
        (found,) = conversions(server, message)
        assert [one["status"] for one in found["revisions"]] == [one["status"] for one in SEQUENCES[network]]
        assert api.get("/api/v1/sms/status/" + message["message_id"]).json()["conversions"][0]["revision"] == 3
        requests = endpoint.wait(3)
    assert {parse_qs(urlsplit(request.target).query)["r"][0] for request in requests} == {"1", "2", "3"}
    assert server.command("verify")["drift"] == []


def test_fifty_concurrent_postbacks_with_two_statuses_create_one_conversion_with_two_revisions(server: Server) -> None:
    message = rewrite(server, body="Hello")

    def send(number: int) -> int:
        status = {"status": "approved", "value": "30"} if number % 2 else {"status": "pending"}
        query = {"message_id": message["message_id"], "transaction_id": "T1", "currency": "USD", **status}
        headers = {"X-Api-Token": server.first["tracker_token"]}
        return httpx.get(
            f"{server.base}/api/v1/track", params=query, headers=headers, verify=NO_TLS, trust_env=False, timeout=PATIENCE
        ).status_code

    with ThreadPoolExecutor(50) as threads:
        assert set(threads.map(send, range(50))) == {200}
    (found,) = conversions(server, message)
    assert found["revision"] == 2
    assert {one["status"] for one in found["revisions"]} == {"pending", "approved"}
    assert found["value"] == "30"
    assert server.command("verify")["drift"] == []
