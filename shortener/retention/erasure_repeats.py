"""This job repeats the erasure of messages that were erased in the last hour, because personal data may be stored just after an
erasure.

On PostgreSQL, a click, a conversion or a fan-out may read a message before its erasure, and commit after the erasure. On both
engines, an attempt to deliver an event may be waiting for the response of a tracker, and a rewrite may put a link into the cache.

Therefore each erasure lists its messages in the table `erasure_repeats`. This job erases them again after each of the times in
`REPEAT_AFTER_SECONDS`: after some seconds, after the longest attempt of a delivery, and after an hour. The repeat after an hour
is necessary because the outcomes of attempts wait in memory while the database is unavailable.

Each time, the job also removes the links from the link cache, and deletes the stored responses to requests with an
Idempotency-Key that contain one of the messages. It also empties the WAL of SQLite, which still contains the erased data. The
erasure itself cannot do this: it may run in the process of a command, and only the process that serves empties the WAL.
"""

# Tested by tests/retention/test_erasure_repeats.py

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta

import orjson
from sqlalchemy import ColumnElement, Connection, Text, delete, or_, select, type_coerce, update

from shortener.clicks.user_agents import load_expressions
from shortener.redis.link_cache import LinkCache
from shortener.retention.erasure import REPEAT_AFTER_SECONDS, erase_again
from shortener.storage.database import Database
from shortener.storage.schema import erasure_repeats, idempotency, links, messages

MAX_MESSAGES_PER_RUN = 50  # The maximum number of messages that one run erases again.

_Response = tuple[int, str]  # The application_id and the Idempotency-Key of a stored response.


class ErasureRepeats:
    """The background job that erases recently erased messages again."""

    def __init__(self, database: Database, cache: LinkCache) -> None:
        self._database = database
        self._cache = cache

    async def step(self, now: datetime) -> int:
        """Erase again those messages whose next repeat is due. Return their number. Raise StoreUnavailable if the database is
        unavailable."""
        due = await self._database.read(_find_due, now)
        if not due:
            return 0
        if not await self._cache.invalidate(await self._database.read(_find_codes, due)):
            return 0  # The link cache may still contain destinations, so the next run tries these messages again.
        responses = await self._database.read(_find_responses, due)
        await load_expressions()
        await self._database.write_later(_repeat, due, responses, now)
        self._database.truncate_wal()
        return len(due)


def _find_due(connection: Connection, now: datetime) -> list[int]:
    table = erasure_repeats.c
    return list(connection.scalars(select(table.id).where(_is_due(now)).order_by(table.due_at).limit(MAX_MESSAGES_PER_RUN)))


def _is_due(now: datetime) -> ColumnElement[bool]:
    """Return an SQL condition: the erasure of a message must be repeated now. No repeat is planned for later than the longest wait
    from now. If the due time of a repeat is later, the clock was set back after the erasure, and the repeat is due now."""
    due_at = erasure_repeats.c.due_at
    return or_(due_at <= now, due_at > now + timedelta(seconds=REPEAT_AFTER_SECONDS[-1]))


def _find_codes(connection: Connection, ids: list[int]) -> list[str]:
    return list(connection.scalars(select(links.c.code).where(links.c.message_id.in_(ids))))


def _find_responses(connection: Connection, ids: list[int]) -> list[_Response]:
    """Return the stored responses that contain one of the messages. The function reads all responses since the oldest of these
    messages, which is slow, so it must not run in the thread that writes."""
    m, stored = messages.c, idempotency.c
    named = connection.execute(select(m.application_id, m.message_id, m.created_at).where(m.id.in_(ids))).all()
    by_application: dict[int, list[str]] = defaultdict(list)
    for row in named:
        by_application[row.application_id].append(row.message_id)
    found: list[_Response] = []
    for application_id, message_ids in by_application.items():
        text = type_coerce(stored.answer, Text)
        contains = [text.contains(f'"message_id":{orjson.dumps(name).decode()}', autoescape=True) for name in message_ids]
        since = min(row.created_at for row in named if row.application_id == application_id)
        statement = select(stored.key).where(stored.application_id == application_id, stored.created_at >= since, or_(*contains))
        found += [(application_id, key) for key in connection.scalars(statement)]
    return found


def _repeat(connection: Connection, due: list[int], responses: list[_Response], now: datetime) -> None:
    table, stored = erasure_repeats.c, idempotency.c
    rows = connection.execute(
        select(table.id, table.repeats).where(table.id.in_(due), _is_due(now)).order_by(table.id).with_for_update()
    ).all()
    erase_again(connection, [row.id for row in rows], now)
    for application_id, key in responses:
        connection.execute(delete(idempotency).where(stored.application_id == application_id, stored.key == key))
    for row in rows:
        done = row.repeats + 1
        if done == len(REPEAT_AFTER_SECONDS):
            connection.execute(delete(erasure_repeats).where(table.id == row.id))
        else:
            wait = timedelta(seconds=REPEAT_AFTER_SECONDS[done] - REPEAT_AFTER_SECONDS[done - 1])
            connection.execute(update(erasure_repeats).where(table.id == row.id).values(repeats=done, due_at=now + wait))
