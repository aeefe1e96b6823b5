"""Messages, links and hits straight into the tables, for tests of what comes after them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, Table, insert, select

from shortener.ids import IdMaker, encode
from shortener.log.tallies import Cohorts, Tally
from shortener.model import HitFlag, LinkFlag, State, Verdict
from shortener.store import schema
from shortener.store.database import Database
from tests.conftest import NOON


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
    ids: IdMaker,
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
    cohort = Cohorts().number(connection, {key})[key]
    row = ids()
    values: dict[str, Any] = {
        "id": row,
        "application_id": application_id,
        "cohort_id": cohort,
        "message_id": message_id,
        "request_id": f"request of {message_id}",
        "content_hash": "",
        "to_address": "+14085550100",
        "state": int(State.CREATED),
        "created_at": NOON,
        "encoding": "GSM-7",
        "segments": 1,
    }
    connection.execute(insert(schema.messages).values(values | columns))
    link_ids = tuple(ids() for _ in range(links))
    codes = tuple(encode(link) for link in link_ids)
    for position, (link, code) in enumerate(zip(link_ids, codes, strict=True)):
        connection.execute(
            insert(schema.links).values(
                id=link,
                code=code,
                message_id=row,
                application_id=application_id,
                cohort_id=cohort,
                domain_id=0,
                position=position,
                flags=int(LinkFlag.NONE),
                url=f"https://shop.example/{position}",
                expires_at=NOON + timedelta(days=90),
            )
        )
    return Message(row, message_id, cohort, link_ids, codes)


def add_hit(connection: Connection, /, ids: IdMaker, link: int, **columns: Any) -> int:
    """A person's hit at NOON; returns its id, which `ClickIds.spell` makes a click id of. The link and message do not change."""
    values: dict[str, Any] = {
        "id": ids(),
        "link_id": link,
        "at": NOON,
        "verdict": int(Verdict.HUMAN),
        "rule": "test",
        "flags": int(HitFlag.NONE),
        "address": "192.0.2.0",
        "user_agent": "Phone",
    }
    values |= columns
    connection.execute(insert(schema.hits).values(values))
    hit: int = values["id"]
    return hit


async def rows(database: Database, table: Table) -> list[Row[Any]]:
    """All rows of a table, in the order of their ids."""
    return list(await database.read(lambda connection: connection.execute(select(table).order_by(table.c.id)).all()))


async def tallied(database: Database) -> dict[str, str]:
    """What the tallies not yet folded add up to, by metric."""
    sums: dict[str, Any] = {}
    for row in await rows(database, schema.tallies):
        tally = Tally()
        tally.merge(row.data)
        for (_, _, metric), amount in tally.items():
            sums[metric] = sums.get(metric, 0) + amount
    return {metric: str(amount) for metric, amount in sums.items()}
