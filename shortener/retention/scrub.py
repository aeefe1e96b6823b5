"""The statements that remove the personal data of messages in all tables, in one transaction. `erasure.py` describes what an
erasure removes and what remains.

`scrub_messages` contains all of these steps. It parses the user agents of hits, so its caller first awaits `load_expressions`
(clicks/user_agents.py).
"""
# Tested by tests/retention/test_erasure.py

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Update, and_, bindparam, case, delete, func, literal, select, true, update

from shortener.clicks.user_agents import device_class
from shortener.model import DeliveryStatus, SendStatus, mutable_record
from shortener.storage.schema import (
    attempts,
    conversion_revisions,
    conversions,
    deliveries,
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

ERASED = "erased"  # The `last_error` of a callback or a send that was given up, because the message was erased.

#: Names of event fields that may contain personal data. Some of them are in delivery.formats.FACTS. The writers of events add the
#: others.
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


def scrub_messages(connection: Connection, ids: list[int], now: datetime) -> ErasureResult:
    """Remove the personal data of messages with these row ids, in all tables. Return the number of changed rows."""
    if not ids:
        return ErasureResult()
    _scrub_sends(connection, ids, now)  # `sends` is first: the dispatcher of the gateways also locks `sends` before `messages`.
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
    """Run an UPDATE statement. Return the number of changed rows."""
    return connection.execute(statement.values(**values)).rowcount


def _scrub_sends(connection: Connection, ids: list[int], now: datetime) -> None:
    """Remove the texts of messages for gateways. Give up those messages that wait for their gateway."""
    _update(
        connection,
        update(sends).where(sends.c.id.in_(ids)),
        text=None,
        gateway_message_id=None,
        lease_until=None,
        status=case((IS_UNFINISHED, int(SendStatus.FAILED)), else_=sends.c.status),
        # A message with a lease has an attempt in progress. The gateway may accept it in spite of the erasure, so it becomes
        # doubtful.
        doubtful=case((and_(IS_UNFINISHED, sends.c.lease_until.is_not(None)), true()), else_=sends.c.doubtful),
        finished_at=case((IS_UNFINISHED, literal(now, sends.c.finished_at.type)), else_=sends.c.finished_at),
        last_error=case((IS_UNFINISHED, ERASED), else_=sends.c.last_error),
    )
    _update(connection, update(send_attempts).where(send_attempts.c.send_id.in_(ids)), detail=None)


def _scrub_links(connection: Connection, condition: ColumnElement[bool], now: datetime) -> int:
    """Remove the destinations and the history of links, and disable the links. Return the number of links."""
    # the history of a link contains its earlier destinations
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
    """Remove the IP addresses and user agents of hits, and store the device class in place of each user agent. Return the number
    of hits."""
    # The lock waits until no other transaction is changing the verdicts or the personal data of these hits.
    found = select(hits.c.id, hits.c.user_agent).where(condition, hits.c.user_agent != "").order_by(hits.c.id).with_for_update()
    kept = [{"row": row.id, "kept": device_class(row.user_agent)} for row in connection.execute(found)]
    if kept:
        connection.execute(update(hits).where(hits.c.id == bindparam("row")).values(device_class=bindparam("kept")), kept)
    return connection.execute(update(hits).where(condition).values(address="", user_agent="")).rowcount


def _scrub_events(connection: Connection, ids: list[int]) -> int:
    # If a fan-out has already read the message, this lock waits for its end, so that the data that the fan-out writes is erased
    # too.
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
        except (ValueError, TypeError):  # the hit was cut off when it was stored, or it is not a JSON object
            connection.execute(delete(hits_dead_letter).where(own))
        else:
            connection.execute(update(hits_dead_letter).where(own).values(hit=json.dumps(fields)))
    return len(found)


def _scrub(value: Any) -> Any:
    """Return a JSON value without the fields in PERSONAL_FIELDS, at any depth. The event can still be rendered without these
    fields."""
    if isinstance(value, dict):
        return {name: _scrub(one) for name, one in value.items() if name not in PERSONAL_FIELDS}
    if isinstance(value, list):
        return [_scrub(one) for one in value]
    return value


def _delete_responses(connection: Connection, ids: list[int]) -> None:
    """Delete the stored responses that contain these messages. They are found by time: a response was stored at the time of the
    messages that its request created."""
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
