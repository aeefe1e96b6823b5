"""Messages, links and hits of a service straight into its tables, for tests of what comes after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, FromClause, Row, select

from shortener.ids import IdGenerator, encode
from shortener.outbox.count_deltas import Cohorts, CountDelta
from shortener.storage import schema
from shortener.storage.database import Database
from tests.conftest import NOON
from tests.rows import Rows


@dataclass(frozen=True, slots=True)
class Message:
    """Row ids, and what the outside knows: `message_id`, `codes`."""

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
    """A message of NOON with so many links; `columns` are others of its row."""
    key = (application_id, campaign, source, country, process_id)
    cohort = Cohorts().get_ids(connection, {key})[key]
    owned: dict[str, Any] = {"application_id": application_id, "cohort_id": cohort}
    put = Rows(connection)
    row = put.message(NOON, id=ids(), message_id=message_id, request_id=f"request of {message_id}", **owned, **columns)
    link_ids = tuple(ids() for _ in range(links))
    codes = tuple(encode(link) for link in link_ids)
    for position, (link, code) in enumerate(zip(link_ids, codes, strict=True)):
        put.link(row, id=link, code=code, position=position, url=f"https://shop.example/{position}", **owned)
    return Message(row, message_id, cohort, link_ids, codes)


def add_hit(connection: Connection, /, ids: IdGenerator, link: int, **columns: Any) -> int:
    """A person's hit at NOON; returns its id, which `ClickIds.spell` makes a click id of. The link and message do not change."""
    return Rows(connection, NOON).hit(link, **{"id": ids(), **columns})


async def rows(database: Database, table: FromClause) -> list[Row[Any]]:
    """All rows of a table, in the order of their ids."""
    return list(await database.read(lambda connection: connection.execute(select(table).order_by(table.c.id)).all()))


async def tallied(database: Database) -> dict[str, str]:
    """What the tallies not yet folded add up to, by metric."""
    sums: dict[str, Any] = {}
    for row in await rows(database, schema.count_deltas):
        tally = CountDelta()
        tally.merge(row.data)
        for (_, _, metric), amount in tally.items():
            sums[metric] = sums.get(metric, 0) + amount
    return {metric: str(amount) for metric, amount in sums.items()}
