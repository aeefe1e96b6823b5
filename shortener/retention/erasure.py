"""Erasure: the personal data of a recipient, or of one message, is removed for good; what is left can still be counted.

What goes: the number, the hash that repeats are compared by (numbers are few enough to be tried out), metadata, callback, texts
and ids of a carrier's report, destinations and labels of the links, addresses and user agents of hits, metadata of conversions, the
same in the event log, what trackers answered, and the answer kept for the message's Idempotency-Key. What stays: that the message
was sent, by whom, what it cost, its states, hits and conversions with their times, so counts and a recount agree.

Links are switched off, because their destination may be personal: they answer 410. Whoever erases has the link cache forget them
before, so that no copy is left there. Events still to be delivered go out with what
is left; a callback of the message itself (Xoxzo) is given up. The erased message's id cannot be used again for another message.
What was delivered to trackers, backups and logs of others are beyond reach.

One transaction erases one message. A number is erased `MAX_MESSAGES_PER_BATCH` messages at a time; repeat an interrupted run.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, func, literal, or_, select, update

from shortener.errors import ApiError, ErrorCode
from shortener.model import DeliveryStatus
from shortener.storage.database import Database
from shortener.storage.schema import (
    applications,
    attempts,
    conversions,
    deliveries,
    events,
    events_of,
    first_clicks,
    hits,
    idempotency,
    links,
    messages,
    other_hits,
)

MAX_MESSAGES_PER_BATCH = 100
ERASED = "erased"  # `last_error` of a delivery that was given up

#: What an event may hold about a person, by name (delivery.formats.FACTS and what the makers of events add).
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


@dataclass(slots=True)
class ErasureResult:
    """Rows that personal data was removed from, by kind."""

    messages: int = 0
    links: int = 0
    hits: int = 0
    conversions: int = 0
    events: int = 0
    attempts: int = 0

    def add(self, other: ErasureResult) -> None:
        for name, rows in dataclasses.asdict(other).items():
            setattr(self, name, getattr(self, name) + rows)


async def erase(database: Database, application_id: int | None, phone: str, now: datetime) -> ErasureResult:
    """Erase every message to a number, of one application or of all. Raises ApiError INVALID_RECIPIENT, StoreUnavailable."""
    total = ErasureResult()
    while (piece := await database.write(erase_phone_number, application_id, phone, now)).messages:
        total.add(piece)
    return total


def erase_phone_number(connection: Connection, application_id: int | None, phone: str, now: datetime) -> ErasureResult:
    """Erase the `MAX_MESSAGES_PER_BATCH` oldest messages to a number. Call it until it finds none.

    Raises ApiError INVALID_RECIPIENT."""
    if not _PHONE.fullmatch(phone):
        raise ApiError(ErrorCode.INVALID_RECIPIENT)
    found = select(messages.c.id).where(messages.c.to_address == phone).order_by(messages.c.id).limit(MAX_MESSAGES_PER_BATCH)
    if application_id is not None:
        found = found.where(messages.c.application_id == application_id)
    return _erase(connection, list(connection.execute(found).scalars()), now)


def erase_message(connection: Connection, application_id: int | None, message_id: str, now: datetime) -> ErasureResult:
    """Erase one message. Raises ApiError MESSAGE_NOT_FOUND, and CONFLICT when several applications have a message of this id."""
    owners = [application_id] if application_id is not None else select(applications.c.id)
    found = select(messages.c.id).where(messages.c.application_id.in_(owners), messages.c.message_id == message_id)
    ids = list(connection.execute(found).scalars())
    if not ids:
        raise ApiError(ErrorCode.MESSAGE_NOT_FOUND)
    if len(ids) > 1:
        raise ApiError(ErrorCode.CONFLICT, "Several applications have a message with this id; name the application.")
    return _erase(connection, ids, now)


def find_codes(connection: Connection, application_id: int | None, *, phone: str = "", message_id: str = "") -> list[str]:
    """The codes of the links that erasing this number, or this message, switches off: for the link cache, to forget them first."""
    which = messages.c.to_address == phone if phone else messages.c.message_id == message_id
    found = select(links.c.code).join(messages, messages.c.id == links.c.message_id).where(which)
    owners = [application_id] if application_id is not None else select(applications.c.id)
    return list(connection.execute(found.where(messages.c.application_id.in_(owners))).scalars())


def _erase(connection: Connection, ids: list[int], now: datetime) -> ErasureResult:
    if not ids:
        return ErasureResult()

    def change(statement: Any, **values: Any) -> int:
        return connection.execute(statement.values(**values)).rowcount

    their_links = links.c.message_id.in_(ids)
    their_events = select(events.c.id).where(events_of(ids))
    their_deliveries = deliveries.c.event_id.in_(their_events)
    erased = ErasureResult(
        links=change(
            update(links).where(their_links),
            url="",
            location=None,
            label=None,
            fallback_url=None,
            disabled_at=func.coalesce(links.c.disabled_at, literal(now, links.c.disabled_at.type)),
        ),
        messages=change(
            update(messages).where(messages.c.id.in_(ids)),
            to_address="",
            content_hash="",
            callback_url=None,
            metadata=None,
            reason_description=None,
            telecom_message_id=None,
        ),
        hits=change(
            update(hits).where(hits.c.id.in_(select(first_clicks.c.hit_id).where(first_clicks.c.id.in_(ids)))),
            address="",
            user_agent="",
        )
        + change(
            update(hits).where(other_hits(), hits.c.link_id.in_(select(links.c.id).where(their_links))), address="", user_agent=""
        ),
        conversions=change(update(conversions).where(conversions.c.message_id.in_(ids)), metadata=None),
        attempts=change(
            update(attempts).where(attempts.c.delivery_id.in_(select(deliveries.c.id).where(their_deliveries))),
            answer=None,
            detail=None,
        ),
    )
    change(
        update(deliveries).where(
            their_deliveries, deliveries.c.tracker_id.is_(None), deliveries.c.status == DeliveryStatus.PENDING.value
        ),
        status=DeliveryStatus.DEAD.value,
        finished_at=now,
        lease_until=None,
        last_error=ERASED,
    )
    change(update(deliveries).where(their_deliveries), callback_url=None)
    erased.events = _scrub_events(connection, ids)
    _forget_answers(connection, ids)
    return erased


def _scrub_events(connection: Connection, ids: list[int]) -> int:
    # Locked, so that a fan-out that read the message before has written what it made of it.
    found = select(events.c.id, events.c.data, events.c.facts).where(events_of(ids)).with_for_update()
    scrubbed = [{"row": row.id, "new_data": _scrub(row.data), "new_facts": _scrub(row.facts)} for row in connection.execute(found)]
    if scrubbed:
        statement = update(events).where(events.c.id == bindparam("row"))
        connection.execute(statement.values(data=bindparam("new_data"), facts=bindparam("new_facts")), scrubbed)
    return len(scrubbed)


def _scrub(value: Any) -> Any:
    """`value` without what is personal, at any depth: bodies are rendered from facts that may be absent."""
    if isinstance(value, dict):
        return {name: _scrub(one) for name, one in value.items() if name not in PERSONAL_FIELDS}
    if isinstance(value, list):
        return [_scrub(one) for one in value]
    return value


def _forget_answers(connection: Connection, ids: list[int]) -> None:
    """The answer that a request got is kept with the time of the messages that it made."""
    made = select(messages.c.application_id, messages.c.created_at).where(messages.c.id.in_(ids)).distinct()
    same = [
        and_(idempotency.c.application_id == row.application_id, idempotency.c.created_at == row.created_at)
        for row in connection.execute(made)
    ]
    connection.execute(delete(idempotency).where(or_(*same)))
