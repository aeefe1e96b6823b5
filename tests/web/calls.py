"""Functions that call the HTTP API in tests. Except for `request_rewrite`, they fail if the response is an error."""

from __future__ import annotations

from typing import Any

import httpx
from sqlalchemy import Connection, func, select

from shortener.accounts.credentials import Credentials
from shortener.container import Service
from shortener.storage import schema
from tests.conftest import client_of

TO = "+14085550100"
PHONE = {"User-Agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148 Safari/604.1"}


async def request_rewrite(client: httpx.AsyncClient, headers: dict[str, str] | None = None, **message: Any) -> httpx.Response:
    """Send a rewrite request, by default for the recipient TO. Return the response, which may be an error."""
    return await client.post("/api/v1/rewrite", json={"to": TO, **message}, headers=headers)


async def count_messages_and_links(service: Service) -> tuple[int, int]:
    """Return the numbers of stored messages and links."""

    def ask(connection: Connection) -> tuple[int, int]:
        count = [
            connection.execute(select(func.count()).select_from(table)).scalar_one() for table in (schema.messages, schema.links)
        ]
        return (count[0], count[1])

    return await service.database.read(ask)


async def rewrite(client: httpx.AsyncClient, message_id: str, **fields: Any) -> dict[str, Any]:
    """Rewrite a message with one link. Return the rewritten message from the response."""
    body = {"to": TO, "message_id": message_id, "body": 'Look #track("https://shop.example/a?b=1") now', **fields}
    response = await client.post("/api/v1/rewrite", json=body)
    assert response.status_code == 200, response.text
    message: dict[str, Any] = response.json()["messages"][0]
    return message


async def report(client: httpx.AsyncClient, message_id: str, state: str, **fields: Any) -> None:
    """Send a delivery report for a message."""
    response = await client.post("/api/v1/sms/status", json={"message_id": message_id, "state": state, **fields})
    assert response.status_code == 200, response.text


async def click(client: httpx.AsyncClient, message: dict[str, Any]) -> None:
    """Request the first short link of a message with the user agent of a phone."""
    response = await client.get("/" + message["links"][0]["code"], headers=PHONE)
    assert response.status_code == 302


async def convert(service: Service, credentials: Credentials, **parameters: Any) -> None:
    """Report a conversion with the tracker token of the application."""
    async with client_of(service, {"X-Api-Token": credentials.tracker_token}) as client:
        response = await client.get("/api/v1/track", params=parameters)
        assert response.status_code == 200, response.text
