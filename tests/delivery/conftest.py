"""Fixtures that create trackers, messages, clicks and events for the tests of deliveries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import pytest
from sqlalchemy import Connection, insert

from shortener.container import Service
from shortener.delivery.guard import Guard
from shortener.delivery.sender import Sender
from shortener.delivery.trackers import NewTracker, TrackerChanges
from shortener.ids import IdGenerator
from shortener.model import HitFlag, Topic
from shortener.outbox import events
from shortener.outbox.events import Event
from shortener.storage import schema
from tests.delivery.sending import NOW
from tests.factory import AUDIT, Message, add_hit, add_message

#: A function that creates a tracker of the default application and returns the id of the tracker.
MakeTracker = Callable[..., Awaitable[int]]


@pytest.fixture
def make_tracker(service: Service) -> MakeTracker:
    async def make(url: str, *topics: str, **more: Any) -> int:
        values: dict[str, Any] = {"format": "json", "signed": False, **more}
        new = NewTracker(url=url, events=topics or ("click",), **values)
        return (await service.trackers.create(AUDIT, 1, new)).tracker.id

    return make


def changes(**values: Any) -> TrackerChanges:
    result: Any = values
    return cast(TrackerChanges, result)


FIRST_FLAGS, FIRST_TOPICS = HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE, Topic.STATE | Topic.CLICK


def write_click(
    connection: Connection,
    /,
    ids: IdGenerator,
    message: Message,
    flags: HitFlag,
    topics: Topic,
    at: datetime,
    link: int = 0,
    **columns: Any,
) -> int:
    """Write a click on a link of the message, in the same way as the service, and return the id of the hit."""
    row = message.links[link]
    hit = add_hit(connection, ids, row, at=at, flags=int(flags), **columns)
    is_first = bool(topics & Topic.STATE)
    if is_first:
        clicked = {"id": message.row, "at": at, "hit_id": hit, "links": 1 << link}
        connection.execute(insert(schema.first_clicks).values(clicked))
    events.append(connection, [Event(hit if is_first else ids(), 1, topics, at, message.row, row, hit)])
    return hit


@dataclass
class Story:
    """A helper that writes messages and clicks to the database in the same way as the service."""

    service: Service
    count: int = 0

    async def message(self, **columns: Any) -> Message:
        self.count += 1
        return await self.service.database.write(add_message, self.service.ids, f"m-{self.count}", **columns)

    async def first_click(self, message: Message | None = None, at: datetime | None = None) -> Message:
        """Write the first click of a message to the database. Create a message if none is given. Return the message."""
        message = message or await self.message()
        await self.click(message, FIRST_FLAGS, FIRST_TOPICS, at)
        return message

    async def click(
        self,
        message: Message,
        flags: HitFlag = HitFlag.NONE,
        topics: Topic = Topic.CLICK,
        at: datetime | None = None,
        link: int = 0,
        **columns: Any,
    ) -> int:
        """Write a click on a link of the message to the database and return the id of the hit."""
        at = at or self.service.clock()
        return await self.service.database.write(write_click, self.service.ids, message, flags, topics, at, link, **columns)


@pytest.fixture
def story(service: Service) -> Story:
    return Story(service)


@pytest.fixture
def story_of() -> Callable[[Service], Story]:
    return Story


@pytest.fixture
def postgresql_only(store_url: str) -> None:
    if store_url.startswith("sqlite"):
        pytest.skip("this test runs several processes; SQLite allows only one")


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    async with Sender(Guard(allow_private=True), user_agent="test", limit=64, clock=lambda: NOW) as sender:
        yield sender
