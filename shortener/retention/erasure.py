"""This module erases the personal data of a recipient, or of one message. Statistics do not change, with one exception: a message
that waits for its gateway then counts as failed and costs nothing. Erased data:

- of the message: the number, the content hash (somebody could try all phone numbers until the hash is equal), metadata, callback
  URL, and the texts and ids of the carrier's reports
- destinations, fallbacks, labels and the history of its links; IP addresses and user agents of its hits, including dead letters;
  metadata of its conversions
- refused reports of conversions that name the message
- the text of a message that waits for its gateway; it is not sent any more. The caller passes a function (`GiveUp`) that finishes
  such messages as FAILED and refunds their costs. A message whose attempt is running is doubtful afterwards and gets no refund,
  because the gateway may accept it
- the same data in the event log, the responses of trackers, and the stored response to the request's Idempotency-Key

Remaining data: that the message was sent, its sender and price, and its states, hits and conversions with their times. A hit keeps
the kind of device and the browser, which the statistics count, instead of the user agent. Therefore the counts, the lists and a
recount still agree.

Erasure disables the links, because their destinations may be personal. The links then return 410. The caller must first remove the
links from the link cache (`find_codes`). Pending events are delivered without the erased data. A pending callback of the message
(Xoxzo) is given up. The message_id cannot be used for another message. An erasure includes neither data that was already sent to
trackers, nor the backups and logs of others.

Data of the message may be in flight during the erasure: a click whose transaction runs, or an attempt that waits for its response.
Therefore a job erases the same messages again, a few times within the next hour (`erasure_repeats`).

These transactions parse the user agents of the hits. Await `load_expressions` (clicks/user_agents.py) before `erase_message` and
`erase_again`. `erase` itself awaits it.

One transaction erases one message. The messages to a number are erased in batches of `MAX_MESSAGES_PER_BATCH`. If an erasure was
interrupted, run it again. Each transaction that erases messages adds a row to the audit log (`_add_audit_row`), so the audit log of
an interrupted erasure contains exactly the erased messages. Repeats by the job `erasure_repeats` add no rows.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Update, and_, bindparam, case, delete, func, literal, select, text, true, update

from shortener.accounts.audit import AuditWriter
from shortener.clicks.user_agents import device_class, load_expressions
from shortener.errors import ApiError, ErrorCode
from shortener.model import DeliveryStatus, SendStatus, mutable_record
from shortener.storage.database import Database, upsert
from shortener.storage.schema import (
    applications,
    attempts,
    conversion_revisions,
    conversions,
    deliveries,
    erasure_repeats,
    events,
    events_of,
    first_clicks,
    hits,
    hits_dead_letter,
    idempotency,
    link_changes,
    links,
    messages,
    other_hits,
    refused_conversions,
    send_attempts,
    sends,
)
from shortener.storage.send_conditions import IS_UNFINISHED

MAX_MESSAGES_PER_BATCH = 100
#: The messages of an erasure are erased again after each of these numbers of seconds (retention/erasure_repeats.py).
REPEAT_AFTER_SECONDS = (5, 120, 3600)
AUDIT_ACTION = "data_erased"  # The action of the audit rows of erasures.
ERASED = "erased"  # The `last_error` of a callback or a send that was given up because its message was erased.

#: A function that gives up messages that wait for a gateway (gateways/decisions.py). It runs in the transaction of the erasure. Its
#: arguments are the connection, row ids of messages and the time. Messages that do not wait for a gateway do not change.
GiveUp = Callable[[Connection, Sequence[int], datetime], None]

MAX_WAIT_SECONDS = 3.0  # The longest time that the erasure of a number waits for transactions that began before it.
_CHECK_SECONDS = 0.02
_SNAPSHOT = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint"

#: Fields of an event that may contain personal data (delivery.formats.FACTS, and fields that the writers of events add).
PERSONAL_FIELDS = frozenset(
    {
        "to_address",
        "phone_sha256",
        "metadata",
        "url",
        "label",
        "user_agent",
        "conversion_metadata",
        "reason_description",
        "telecom_message_id",
    }
)

_PHONE = re.compile(r"\+[1-9][0-9]{6,14}")


@mutable_record
class ErasureResult:
    """The number of rows from which personal data was removed, by kind."""

    messages: int = 0
    links: int = 0
    hits: int = 0
    conversions: int = 0
    events: int = 0
    attempts: int = 0

    def add(self, other: ErasureResult) -> None:
        """Add the numbers of another erasure result."""
        for name, rows in dataclasses.asdict(other).items():
            setattr(self, name, getattr(self, name) + rows)


async def erase(
    database: Database,
    application_id: int | None,
    phone: str,
    now: datetime,
    audit: AuditWriter | None = None,
    give_up: GiveUp | None = None,
) -> ErasureResult:
    """Erase all messages to a number, in several transactions. `application_id` None means all applications. If `audit` is None,
    the audit log gets no rows. If `give_up` is None, messages that wait for a gateway are not sent, but they keep their states and
    their costs are not refunded.

    Raise ApiError INVALID_RECIPIENT, or StoreUnavailable."""
    total = ErasureResult()
    await load_expressions()
    for is_last in (False, True):
        while (batch := await database.write_later(erase_phone_number, application_id, phone, now, audit, give_up)).messages:
            total.add(batch)
        if not is_last:
            await _wait_for_running_transactions(database)  # A transaction that runs now may store another message to this number.
    return total


async def _wait_for_running_transactions(database: Database) -> None:
    """Wait until each transaction that runs now has ended, for at most MAX_WAIT_SECONDS.

    On SQLite, return at once, because SQLite runs one write transaction after the other."""
    if database.dialect == "sqlite":
        return

    def snapshot(connection: Connection) -> tuple[int, int]:
        """Return the id of the oldest running transaction, and the id of the next transaction that will begin."""
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
    """Add the audit row of a transaction that erased messages. The row contains neither the number nor the message_id."""
    audit.add(connection, now, AUDIT_ACTION, what, application_id=application_id, after=dataclasses.asdict(erased))


def erase_phone_number(
    connection: Connection,
    application_id: int | None,
    phone: str,
    now: datetime,
    audit: AuditWriter | None = None,
    give_up: GiveUp | None = None,
) -> ErasureResult:
    """Erase the `MAX_MESSAGES_PER_BATCH` oldest messages to a number. Call it until the result contains no message.

    Raise ApiError INVALID_RECIPIENT."""
    if not _PHONE.fullmatch(phone):
        raise ApiError(ErrorCode.INVALID_RECIPIENT)
    found = select(messages.c.id).where(messages.c.to_address == phone).order_by(messages.c.id).limit(MAX_MESSAGES_PER_BATCH)
    if application_id is not None:
        found = found.where(messages.c.application_id == application_id)
    erased = _erase(connection, list(connection.execute(found).scalars()), now, give_up)
    if audit is not None and erased.messages:
        _add_audit_row(connection, audit, now, application_id, "messages to a number", erased)
    return erased


def erase_message(
    connection: Connection,
    application_id: int | None,
    message_id: str,
    now: datetime,
    audit: AuditWriter | None = None,
    give_up: GiveUp | None = None,
) -> ErasureResult:
    """Erase one message. If `application_id` is None, exactly one application must have a message with this id. If `give_up` is
    None, a message that waits for a gateway is not sent, but it keeps its state and its cost is not refunded.

    Raise ApiError MESSAGE_NOT_FOUND, or CONFLICT if several applications have a message with this id."""
    ids = list(connection.scalars(select(messages.c.id).where(_selects(application_id, message_id=message_id))))
    if not ids:
        raise ApiError(ErrorCode.MESSAGE_NOT_FOUND)
    if len(ids) > 1:
        raise ApiError(ErrorCode.CONFLICT, "Several applications have a message with this id; name the application.")
    erased = _erase(connection, ids, now, give_up)
    if audit is not None:
        _add_audit_row(connection, audit, now, application_id, "one message", erased)
    return erased


def count_messages(connection: Connection, application_id: int | None, *, phone: str = "", message_id: str = "") -> dict[str, int]:
    """Return the number of messages to this phone number, or with this message id, by the name of the application."""
    counted = select(applications.c.name, func.count()).join(messages, messages.c.application_id == applications.c.id)
    counted = counted.where(_selects(application_id, phone, message_id)).group_by(applications.c.name)
    return {row[0]: row[1] for row in connection.execute(counted.order_by(applications.c.name))}


def find_codes(connection: Connection, application_id: int | None, *, phone: str = "", message_id: str = "") -> list[str]:
    """Return the codes of all links of messages to this phone number, or of this message.

    The caller removes these codes from the link cache before it erases the messages."""
    found = select(links.c.code).join(messages, messages.c.id == links.c.message_id)
    return list(connection.scalars(found.where(_selects(application_id, phone, message_id))))


def _selects(application_id: int | None, phone: str = "", message_id: str = "") -> ColumnElement[bool]:
    """Return the SQL condition for messages to a phone number, or with a message id if `phone` is empty. If `application_id` is
    None, the messages may belong to any application."""
    # If the application is not given, the list of all applications lets the database use the index by application and message id.
    owners = [application_id] if application_id is not None else select(applications.c.id)
    selected = messages.c.to_address == phone if phone else messages.c.message_id == message_id
    return and_(messages.c.application_id.in_(owners), selected)


def erase_again(connection: Connection, ids: list[int], now: datetime) -> None:
    """Erase the messages with these row ids again. Personal data of these messages may have been stored since the first erasure."""
    _scrub_messages(connection, ids, now)


def _erase(connection: Connection, ids: list[int], now: datetime, give_up: GiveUp | None) -> ErasureResult:
    if give_up is not None:
        give_up(connection, ids, now)
    erased = _scrub_messages(connection, ids, now)
    if ids:
        due_at = now + timedelta(seconds=REPEAT_AFTER_SECONDS[0])
        repeats = [{"id": row, "due_at": due_at, "repeats": 0} for row in ids]
        statement = upsert(connection, erasure_repeats)
        first = {"due_at": statement.excluded.due_at, "repeats": 0}
        connection.execute(statement.on_conflict_do_update(index_elements=[erasure_repeats.c.id], set_=first), repeats)
    return erased


def _scrub_messages(connection: Connection, ids: list[int], now: datetime) -> ErasureResult:
    """Remove the personal data of messages. Return the number of changed rows."""
    if not ids:
        return ErasureResult()
    _scrub_sends(connection, ids, now)  # First, because the dispatcher of the gateways locks `sends` before `messages`.
    of_messages = links.c.message_id.in_(ids)
    erased = ErasureResult(
        links=_scrub_links(connection, of_messages, now),
        messages=_update(
            connection,
            update(messages).where(messages.c.id.in_(ids)),
            to_address="",
            content_hash="",
            callback_url=None,
            metadata=None,
            reason_description=None,
            telecom_message_id=None,
        ),
        hits=_scrub_hits(connection, hits.c.id.in_(select(first_clicks.c.hit_id).where(first_clicks.c.id.in_(ids))))
        + _scrub_hits(connection, and_(other_hits(), hits.c.link_id.in_(select(links.c.id).where(of_messages)))),
        conversions=_scrub_conversions(connection, ids),
        attempts=_scrub_deliveries(connection, ids, now),
        events=_scrub_events(connection, ids),
    )
    codes = list(connection.scalars(select(links.c.code).where(of_messages)))
    erased.hits += _scrub_dead_letters(connection, codes)
    _delete_responses(connection, ids)
    return erased


def _update(connection: Connection, statement: Update, **values: Any) -> int:
    """Set the columns to these values. Return the number of changed rows."""
    return connection.execute(statement.values(**values)).rowcount


def _scrub_sends(connection: Connection, ids: list[int], now: datetime) -> None:
    """Remove the texts of messages for gateways, and give up the messages that wait for their gateway."""
    _update(
        connection,
        update(sends).where(sends.c.id.in_(ids)),
        text=None,
        gateway_message_id=None,
        lease_until=None,
        status=case((IS_UNFINISHED, int(SendStatus.FAILED)), else_=sends.c.status),
        # A message with a lease has an attempt in progress, so the gateway may accept it in spite of the erasure.
        doubtful=case((and_(IS_UNFINISHED, sends.c.lease_until.is_not(None)), true()), else_=sends.c.doubtful),
        finished_at=case((IS_UNFINISHED, literal(now, sends.c.finished_at.type)), else_=sends.c.finished_at),
        last_error=case((IS_UNFINISHED, ERASED), else_=sends.c.last_error),
    )
    _update(connection, update(send_attempts).where(send_attempts.c.send_id.in_(ids)), detail=None)


def _scrub_links(connection: Connection, condition: ColumnElement[bool], now: datetime) -> int:
    """Remove the destinations of links with their history, and disable the links. Return the number of links."""
    # The history of a link contains its earlier destinations, so it must be erased too.
    history = link_changes.c.link_id.in_(select(links.c.id).where(condition))
    _update(connection, update(link_changes).where(history), changes={})
    return _update(
        connection,
        update(links).where(condition),
        url="",
        location=None,
        label=None,
        fallback_url=None,
        disabled_at=func.coalesce(links.c.disabled_at, literal(now, links.c.disabled_at.type)),
    )


def _scrub_conversions(connection: Connection, ids: list[int]) -> int:
    """Remove the metadata of the conversions of messages, and delete the refused reports that name the messages. Return the number
    of conversions."""
    of_messages = conversions.c.message_id.in_(ids)
    count = _update(connection, update(conversions).where(of_messages), metadata=None, warnings=None)
    revisions = conversion_revisions.c.conversion_id.in_(select(conversions.c.id).where(of_messages))
    _update(connection, update(conversion_revisions).where(revisions), metadata=None, warnings=None)
    named = select(messages.c.application_id, messages.c.message_id).where(messages.c.id.in_(ids))
    for application_id, message_id in connection.execute(named).all():
        r = refused_conversions.c
        connection.execute(delete(refused_conversions).where(r.application_id == application_id, r.message_id == message_id))
    return count


def _scrub_deliveries(connection: Connection, ids: list[int], now: datetime) -> int:
    """Remove the responses of trackers to deliveries of messages, and give up pending callbacks. Return the number of attempts."""
    of_messages = deliveries.c.event_id.in_(select(events.c.id).where(events_of(ids)))
    of_deliveries = attempts.c.delivery_id.in_(select(deliveries.c.id).where(of_messages))
    count = _update(connection, update(attempts).where(of_deliveries), answer=None, detail=None)
    is_pending_callback = deliveries.c.tracker_id.is_(None), deliveries.c.status == DeliveryStatus.PENDING.value
    _update(
        connection,
        update(deliveries).where(of_messages, *is_pending_callback),
        status=DeliveryStatus.DEAD.value,
        finished_at=now,
        lease_until=None,
        last_error=ERASED,
    )
    _update(connection, update(deliveries).where(of_messages), callback_url=None)
    return count


def _scrub_hits(connection: Connection, condition: ColumnElement[bool]) -> int:
    """Remove the IP addresses and user agents of hits, and keep the device class of each user agent. Return the number of hits."""
    # The lock waits for another transaction that changes the verdicts or the personal data of the same hits.
    found = select(hits.c.id, hits.c.user_agent).where(condition, hits.c.user_agent != "").order_by(hits.c.id).with_for_update()
    kept = [{"row": row.id, "kept": device_class(row.user_agent)} for row in connection.execute(found)]
    if kept:
        connection.execute(update(hits).where(hits.c.id == bindparam("row")).values(device_class=bindparam("kept")), kept)
    return connection.execute(update(hits).where(condition).values(address="", user_agent="")).rowcount


def _scrub_events(connection: Connection, ids: list[int]) -> int:
    # This lock waits for a fan-out that has already read the message. The data that the fan-out writes is therefore erased too.
    found = select(events.c.id, events.c.data, events.c.facts).where(events_of(ids)).with_for_update()
    scrubbed = [{"row": row.id, "new_data": _scrub(row.data), "new_facts": _scrub(row.facts)} for row in connection.execute(found)]
    if scrubbed:
        statement = update(events).where(events.c.id == bindparam("row"))
        connection.execute(statement.values(data=bindparam("new_data"), facts=bindparam("new_facts")), scrubbed)
    return len(scrubbed)


def _scrub_dead_letters(connection: Connection, codes: list[str]) -> int:
    """Remove IP addresses and user agents from dead letters of hits (clicks/dead_letters.py). Delete unreadable dead letters."""
    dead = hits_dead_letter.c
    found = connection.execute(select(dead.id, dead.hit).where(dead.code.in_(codes))).all()
    for row_id, stored in found:
        own = dead.id == row_id
        try:
            fields: dict[str, Any] = {**json.loads(stored), "address": "", "user_agent": ""}
        except (ValueError, TypeError):  # The stored hit is cut off or is not a JSON object, so it cannot be read.
            connection.execute(delete(hits_dead_letter).where(own))
        else:
            connection.execute(update(hits_dead_letter).where(own).values(hit=json.dumps(fields)))
    return len(found)


def _scrub(value: Any) -> Any:
    """Return a JSON value without the fields in PERSONAL_FIELDS, at any depth. The bodies of events can be rendered without these
    fields."""
    if isinstance(value, dict):
        return {name: _scrub(one) for name, one in value.items() if name not in PERSONAL_FIELDS}
    if isinstance(value, list):
        return [_scrub(one) for one in value]
    return value


def _delete_responses(connection: Connection, ids: list[int]) -> None:
    """Delete the stored responses that contain these messages. They are found by time: a response has the same time as the messages
    that its request created."""
    m, stored = messages.c, idempotency.c
    erased: dict[tuple[int, datetime], set[str]] = {}
    for row in connection.execute(select(m.application_id, m.created_at, m.message_id).where(m.id.in_(ids))):
        erased.setdefault((row.application_id, row.created_at), set()).add(row.message_id)
    for (application_id, created_at), message_ids in erased.items():
        candidates = select(stored.key, stored.answer).where(
            stored.application_id == application_id, stored.created_at == created_at
        )
        keys = [
            row.key for row in connection.execute(candidates) if any(message["message_id"] in message_ids for message in row.answer)
        ]
        if keys:
            connection.execute(delete(idempotency).where(stored.application_id == application_id, stored.key.in_(keys)))
