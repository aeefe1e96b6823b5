"""This module inserts messages, links and hits directly into the tables, for tests of the steps that follow a click."""

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

#: Tests that do not examine the audit log write their audit rows with this object. The purge never deletes these rows, because
#: their ids are so large that the rows seem to be from the future.
AUDIT = AuditWriter(Actor(name="test"), IdGenerator(0, lambda: ms_of(2**62)))


def keep_sends(connection: Connection, ids: Sequence[int], now: datetime) -> None:
    """Do nothing with messages for gateways. Erasures in tests call this function in place of the function that gives up such
    messages."""


@dataclass(frozen=True, slots=True)
class Message:
    """An inserted message: its row id, its public `message_id`, and the row id and the code of each of its links."""

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
    """Insert a message with `links` links that was created at NOON. `columns` are additional columns of the message row."""
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
    """Insert a hit with the verdict `human` at NOON, and return its id. The rows of its link and its message do not change."""
    return Rows(connection, NOON).hit(link, **{"id": ids(), **columns})


async def rows(database: Database, table: FromClause) -> list[Row[Any]]:
    """Return all rows of a table in the order of their primary keys."""
    return list(await database.read(lambda connection: connection.execute(select(table).order_by(*table.primary_key)).all()))


async def audited_rows(database: Database) -> list[Row[Any]]:
    """Return the rows of the audit log, oldest first. The row of the first start and the rows of AUDIT are left out."""
    return [row for row in await rows(database, schema.audit_log) if row.operator not in (SERVER_START.name, AUDIT.actor.name)]


async def count_delta_sums(database: Database) -> dict[str, str]:
    """Return the sum of the count deltas for each metric, without those that are already added to the counts."""
    sums: dict[str, Any] = {}
    for row in await rows(database, schema.count_deltas):
        delta = CountDelta()
        delta.merge(row.data)
        for (_, _, metric), amount in delta.items():
            sums[metric] = sums.get(metric, 0) + amount
    return {metric: str(amount) for metric, amount in sums.items()}
