"""This module erases the personal data of a recipient, or of one message. Statistics do not change, with one exception: a message
that waits for its gateway then counts as failed and costs nothing. Erased data:

- of the message: the number, the content hash (somebody could try all phone numbers until the hash is equal), metadata, callback
  URL, and the texts and ids of the carrier's reports
- destinations, fallbacks, labels and the history of its links; IP addresses and user agents of its hits, including dead letters;
  metadata of its conversions
- refused reports of conversions that name the message
- the text of a message that waits for its gateway; it is not sent any more. The caller passes a function (`GiveUp`) that finishes
  such messages as FAILED and refunds their costs. A message whose attempt is running becomes doubtful and gets no refund, because
  the gateway may accept it
- the same data in the event log, the responses of trackers, and the stored response to the request's Idempotency-Key

Remaining data: that the message was sent, its sender and price, and its states, hits and conversions with their times. In place
of the user agent, a hit keeps the kind of device and the browser, which the statistics count. Therefore the counts, the lists and
a recount still agree.

The API, the portal and the command line call only one function of this module to erase data: `erase_data`, which performs all
steps.

Erasure disables the links, because their destinations may be personal. The links then return 410. Pending events are delivered
without the erased data. A pending callback of the message (Xoxzo) is given up. The message_id cannot be used for another message.
An erasure includes neither data that was already sent to trackers, nor the backups and logs of others.

Data of the message may be in flight during the erasure: a click whose transaction runs, or an attempt that waits for its
response. Therefore a job erases the same messages again, a few times within the next hour (`erasure_repeats`).

An erasure parses the user agents of the hits in its transactions. Therefore await `load_expressions` (clicks/user_agents.py)
before `erase_message` and `erase_again`. `erase_data` and `erase` themselves await it.

One transaction erases one message, or a batch of up to `MAX_MESSAGES_PER_BATCH` messages to a number. If an erasure was
interrupted, run it again. Each transaction that erases messages adds a row to the audit log (`_add_audit_row`), so the audit log
of an interrupted erasure contains exactly the erased messages. Repeats by the job `erasure_repeats` add no rows.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, Connection, and_, func, select, text

from shortener.accounts.audit import AuditWriter
from shortener.clicks.user_agents import load_expressions
from shortener.errors import RETRY_AFTER_SECONDS, ApiError, ErrorCode
from shortener.model import record
from shortener.retention.scrub import ErasureResult, scrub_messages
from shortener.storage.database import Database, upsert
from shortener.storage.schema import applications, erasure_repeats, links, messages

if TYPE_CHECKING:
    from shortener.redis.link_cache import LinkCache

MAX_MESSAGES_PER_BATCH = 100
#: The messages of an erasure are erased again this many seconds after it (retention/erasure_repeats.py).
REPEAT_AFTER_SECONDS = (5, 120, 3600)
AUDIT_ACTION = "data_erased"  # The name of the action in the audit log for an erasure.

#: A function that discards messages which are held or wait for a gateway, so that they are not sent (see `give_up_erased` in
#: gateways/decisions.py). Such a message becomes FAILED, or gets the state of a delivery report that has already arrived. Other
#: messages do not change, and neither do messages whose attempt is in flight. The function runs in the transaction of the erasure.
#: Its arguments are the connection, the row ids of messages, and the time.
GiveUp = Callable[[Connection, Sequence[int], datetime], None]

MAX_WAIT_SECONDS = 3.0  # The erasure of a number waits at most this many seconds for transactions that began before it.
_CHECK_SECONDS = 0.02
_SNAPSHOT = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
_PHONE = re.compile(r"\+[1-9][0-9]{6,14}")


class LinksStillCached(ApiError):
    """Raised if the link cache may still contain the destinations of links, which may be personal data. Nothing was erased."""

    def __init__(self) -> None:
        text = "Nothing was erased because the link cache (Redis) is unavailable."
        super().__init__(ErrorCode.UNAVAILABLE, text, retry_after=RETRY_AFTER_SECONDS)


@record
class Subject:
    """The person whose data is erased, identified by a phone number in E.164 or by a message_id. The unused field is empty."""

    phone: str = ""
    message_id: str = ""


async def erase_data(
    database: Database,
    cache: LinkCache,
    application_id: int | None,
    subject: Subject,
    now: datetime,
    audit: AuditWriter,
    give_up: GiveUp,
) -> ErasureResult:
    """Erase the data of a person. `application_id` may be None. For a number, this means all applications. For a message, it
    means the only application that has a message with this id.

    1. Remove the links from the link cache.
    2. In each transaction, finish the messages that wait for a gateway (`give_up`), remove the personal data, list the messages
       for `erasure_repeats`, and add a row to the audit log.

    Raise ApiError with the code INVALID_RECIPIENT, MESSAGE_NOT_FOUND or CONFLICT. Raise LinksStillCached if the links could not
    be removed from the link cache. Raise StoreUnavailable if the database is unavailable."""
    if not await cache.invalidate(await database.read(find_codes, application_id, subject)):
        raise LinksStillCached
    if subject.phone:
        return await erase(database, application_id, subject.phone, now, audit, give_up)
    await load_expressions()
    return await database.write(erase_message, application_id, subject.message_id, now, audit, give_up)


async def erase(
    database: Database,
    application_id: int | None,
    phone: str,
    now: datetime,
    audit: AuditWriter,
    give_up: GiveUp,
) -> ErasureResult:
    """Erase all messages to a number, in several transactions. `application_id` None means all applications.

    Raise ApiError INVALID_RECIPIENT, or StoreUnavailable."""
    total = ErasureResult()
    await load_expressions()
    for is_last in (False, True):
        while (batch := await database.write_later(erase_phone_number, application_id, phone, now, audit, give_up)).messages:
            total.add(batch)
        if not is_last:
            # a transaction that is running may store another message to this number
            await _wait_for_running_transactions(database)
    return total


async def _wait_for_running_transactions(database: Database) -> None:
    """Wait until all transactions that are running now have ended, for at most MAX_WAIT_SECONDS.

    On SQLite, return at once, because SQLite runs one write transaction after the other."""
    if database.dialect == "sqlite":
        return

    def snapshot(connection: Connection) -> tuple[int, int]:
        """Return (id of the oldest running transaction, id that the next new transaction will get)."""
        row = connection.execute(text(_SNAPSHOT)).one()
        return row[0], row[1]

    _, end = await database.read(snapshot)
    for _ in range(round(MAX_WAIT_SECONDS / _CHECK_SECONDS)):
        oldest, _ = await database.read(snapshot)
        if oldest >= end:
            return
        await asyncio.sleep(_CHECK_SECONDS)


def _add_audit_row(
    connection: Connection, audit: AuditWriter, now: datetime, application_id: int | None, what: str, erased: ErasureResult
) -> None:
    """Add the audit row for a transaction that erased messages. The row contains neither the number nor the message_id."""
    audit.add(connection, now, AUDIT_ACTION, what, application_id=application_id, after=dataclasses.asdict(erased))


def erase_phone_number(
    connection: Connection,
    application_id: int | None,
    phone: str,
    now: datetime,
    audit: AuditWriter,
    give_up: GiveUp,
) -> ErasureResult:
    """Erase the oldest messages to a number, at most `MAX_MESSAGES_PER_BATCH`. Call this again until the result contains no
    message.

    Raise ApiError INVALID_RECIPIENT."""
    if not _PHONE.fullmatch(phone):
        raise ApiError(ErrorCode.INVALID_RECIPIENT)
    found = select(messages.c.id).where(messages.c.to_address == phone).order_by(messages.c.id).limit(MAX_MESSAGES_PER_BATCH)
    if application_id is not None:
        found = found.where(messages.c.application_id == application_id)
    erased = _erase(connection, list(connection.execute(found).scalars()), now, give_up)
    if erased.messages:
        _add_audit_row(connection, audit, now, application_id, "messages to a number", erased)
    return erased


def erase_message(
    connection: Connection,
    application_id: int | None,
    message_id: str,
    now: datetime,
    audit: AuditWriter,
    give_up: GiveUp,
) -> ErasureResult:
    """Erase one message. If `application_id` is None, exactly one application must have a message with this id.

    Raise ApiError with the code MESSAGE_NOT_FOUND if there is no such message, or CONFLICT if several applications have a message
    with this id."""
    ids = list(connection.scalars(select(messages.c.id).where(_selects(application_id, Subject(message_id=message_id)))))
    if not ids:
        raise ApiError(ErrorCode.MESSAGE_NOT_FOUND)
    if len(ids) > 1:
        raise ApiError(ErrorCode.CONFLICT, "Several applications have a message with this id; name the application.")
    erased = _erase(connection, ids, now, give_up)
    _add_audit_row(connection, audit, now, application_id, "one message", erased)
    return erased


def count_messages(connection: Connection, application_id: int | None, subject: Subject) -> dict[str, int]:
    """Return the number of messages whose data `erase_data` would erase, by the name of the application."""
    counted = select(applications.c.name, func.count()).join(messages, messages.c.application_id == applications.c.id)
    counted = counted.where(_selects(application_id, subject)).group_by(applications.c.name)
    return {row[0]: row[1] for row in connection.execute(counted.order_by(applications.c.name))}


def find_codes(connection: Connection, application_id: int | None, subject: Subject) -> list[str]:
    """Return the codes of all links whose messages `erase_data` would erase."""
    found = select(links.c.code).join(messages, messages.c.id == links.c.message_id)
    return list(connection.scalars(found.where(_selects(application_id, subject))))


def _selects(application_id: int | None, subject: Subject) -> ColumnElement[bool]:
    """Return the SQL condition for the messages of a person. If `application_id` is None, the messages may belong to any
    application."""
    # If no application is given, the list of all applications lets the database use the index on application and message id.
    owners = [application_id] if application_id is not None else select(applications.c.id)
    selected = messages.c.to_address == subject.phone if subject.phone else messages.c.message_id == subject.message_id
    return and_(messages.c.application_id.in_(owners), selected)


def erase_again(connection: Connection, ids: list[int], now: datetime) -> None:
    """Erase the messages with these row ids again. Personal data of these messages may have been stored since the first erasure."""
    scrub_messages(connection, ids, now)


def _erase(connection: Connection, ids: list[int], now: datetime, give_up: GiveUp) -> ErasureResult:
    give_up(connection, ids, now)
    erased = scrub_messages(connection, ids, now)
    if ids:
        due_at = now + timedelta(seconds=REPEAT_AFTER_SECONDS[0])
        repeats = [{"id": row, "due_at": due_at, "repeats": 0} for row in ids]
        statement = upsert(connection, erasure_repeats)
        first = {"due_at": statement.excluded.due_at, "repeats": 0}
        connection.execute(statement.on_conflict_do_update(index_elements=[erasure_repeats.c.id], set_=first), repeats)
    return erased
