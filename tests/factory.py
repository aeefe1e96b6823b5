"""Insert messages, links and hits directly into the tables, for tests of the steps that follow a click."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, FromClause, Row, select

from shortener.accounts.audit import SERVER_START, Actor, AuditWriter
from shortener.ids import IdGenerator, encode, ms_of
from shortener.outbox.count_deltas import Cohorts, CountDelta
from shortener.storage import schema
from shortener.storage.database import Database
from tests.conftest import NOON
from tests.rows import Rows

#: A writer of audit rows for tests that change something and do not examine the audit log. The purge never deletes these rows,
#: because their ids are so large that they seem to be from the future.
AUDIT = AuditWriter(Actor(name="test"), IdGenerator(0, lambda: ms_of(2**62)))


def keep_sends(connection: Connection, ids: Sequence[int], now: datetime) -> None:
    """Give up no message, in erasures of tests that do not examine messages for gateways."""


@dataclass(frozen=True, slots=True)
class Message:
    """An inserted message: its row id, its public `message_id`, and the row ids and codes of its links."""

    row: int
    message_id: str
    cohort_id: int
    links: tuple[int, ...]
    codes: tuple[str, ...]


def add_message(
    connection: Connection,
    /,
    ids: IdGenerator,
    message_id: str = "m-1",
    *,
    application_id: int = 1,
    links: int = 1,
    campaign: str = "",
    source: str = "api",
    country: str = "US",
    process_id: int = 0,
    **columns: Any,
) -> Message:
    """Insert a message created at NOON with `links` links. `columns` are further columns of the message row."""
    key = (application_id, campaign, source, country, process_id)
    cohort = Cohorts().get_ids(connection, {key})[key]
    owned: dict[str, Any] = {"application_id": application_id, "cohort_id": cohort}
    inserter = Rows(connection)
    row = inserter.message(NOON, id=ids(), message_id=message_id, request_id=f"request of {message_id}", **owned, **columns)
    link_ids = tuple(ids() for _ in range(links))
    codes = tuple(encode(link) for link in link_ids)
    for position, (link, code) in enumerate(zip(link_ids, codes, strict=True)):
        inserter.link(row, id=link, code=code, position=position, url=f"https://shop.example/{position}", **owned)
    return Message(row, message_id, cohort, link_ids, codes)


def add_hit(connection: Connection, /, ids: IdGenerator, link: int, **columns: Any) -> int:
    """Insert a human hit at NOON and return its id. The rows of the link and of the message do not change."""
    return Rows(connection, NOON).hit(link, **{"id": ids(), **columns})


async def rows(database: Database, table: FromClause) -> list[Row[Any]]:
    """Return all rows of a table in the order of their primary keys."""
    return list(await database.read(lambda connection: connection.execute(select(table).order_by(*table.primary_key)).all()))


async def audited_rows(database: Database) -> list[Row[Any]]:
    """Return the rows of the audit log, oldest first, without the row of the first start and the rows of AUDIT."""
    return [row for row in await rows(database, schema.audit_log) if row.operator not in (SERVER_START.name, AUDIT.actor.name)]


async def count_delta_sums(database: Database) -> dict[str, str]:
    """Return the sums of the count deltas that are not merged into the counts yet, by metric."""
    sums: dict[str, Any] = {}
    for row in await rows(database, schema.count_deltas):
        delta = CountDelta()
        delta.merge(row.data)
        for (_, _, metric), amount in delta.items():
            sums[metric] = sums.get(metric, 0) + amount
    return {metric: str(amount) for metric, amount in sums.items()}
