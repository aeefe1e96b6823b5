"""Fixtures for the tests of gateways: a function that creates a gateway, and a function that queues messages for a gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import Row, update

from shortener.container import Service
from shortener.gateways.gateway import NewGateway, StoredGateway
from shortener.messages.rewrite_item import RewriteItem
from shortener.storage import schema
from tests.factory import AUDIT, rows

MakeGateway = Callable[..., Awaitable[StoredGateway]]
SendMessages = Callable[..., Awaitable[list[dict[str, Any]]]]

BODY = '{"to":"{phone}","text":"{text}","reference":"{reference}"}'


@pytest.fixture
def make_gateway(service: Service) -> MakeGateway:
    """Create a gateway of the default application, or of the application `owner`, and select it for the default application."""

    async def make(url: str = "", name: str = "test", **values: Any) -> StoredGateway:
        settings, owner = values.pop("settings", {}), values.pop("owner", 1)
        if url:
            settings = {
                "url": url,
                "body": BODY,
                "id_path": "$.id",
                "error_path": "$.error",
                "error_code_path": "$.code",
            } | settings
        values.setdefault("kind", "http" if url else "simulator")
        new = NewGateway(name=name, settings=settings, **values)
        gateway = await service.gateways.create(AUDIT, owner, new)
        statement = update(schema.applications).where(schema.applications.c.id == 1).values(gateway_id=gateway.id)
        await service.database.write(lambda connection: connection.execute(statement).rowcount)
        await service.directory.refresh()
        return gateway

    return make


@pytest.fixture
def send_messages(service: Service) -> SendMessages:
    """Queue messages of the default application, or of `application_id`, for its gateway. Return the result for each message."""

    async def send(count: int = 1, text: str = "hello", application_id: int = 1, **fields: Any) -> list[dict[str, Any]]:
        application = service.directory.application(application_id)
        assert application is not None
        to = tuple(f"+1408555{number:04}" for number in range(count))
        return await service.rewriter.rewrite(application, [RewriteItem(to, text, gateway="", **fields)])

    return send


async def stored_sends(service: Service) -> list[Row[Any]]:
    """Return the rows of the table `sends`, oldest first."""
    return sorted(await rows(service.database, schema.sends), key=lambda row: row.id)


async def stored_send(service: Service) -> Row[Any]:
    """Return the only row of the table `sends`."""
    (row,) = await stored_sends(service)
    return row


async def stored_message(service: Service, message_id: str) -> Row[Any]:
    """Return the row of a message."""
    return next(row for row in await rows(service.database, schema.messages) if row.message_id == message_id)
