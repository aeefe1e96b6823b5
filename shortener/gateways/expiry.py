"""This module finds pending messages that must not be attempted again: they are too old, their gateway was removed, their process
died during the attempt, or their delivery report has arrived. Each function runs in the dispatcher's transaction, changes nothing
itself, and returns at most `MAX_ROWS` changes for `SendWriter`. It leaves out the messages whose row ids are in `skipped`. Times
are milliseconds since 1970-01-01 UTC.
"""
# Tested by tests/gateways/test_dispatcher.py

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, or_, select

from shortener.gateways.finishing import SendChange, failed, reported_status, row_after, row_of_returned_claim
from shortener.gateways.queries import ClaimedSend, lease_has_ended
from shortener.ids import first_id_at
from shortener.model import SendStatus
from shortener.plurals import counted
from shortener.storage.schema import messages, sends
from shortener.storage.send_conditions import IS_PENDING, IS_UNFINISHED
from shortener.storage.types import to_ms

MAX_ROWS = 256
#: A message of a disabled application is examined again after this time.
PAUSE_MS = 60_000

_SELECT = select(
    sends.c.id,
    sends.c.application_id,
    sends.c.gateway_id,
    sends.c.text,
    sends.c.attempt,
    sends.c.base_attempt,
    sends.c.lease_until,
    sends.c.doubtful,
    sends.c.cost,
    sends.c.created_at,
    messages.c.message_id,
    messages.c.to_address,
    messages.c.from_address,
    messages.c.sender_id_alias,
    messages.c.encoding,
    messages.c.segments,
    messages.c.state,
).join(messages, messages.c.id == sends.c.id)


def expire(connection: Connection, now: int, validity: timedelta, skipped: Collection[int], ahead: timedelta) -> list[SendChange]:
    """Return changes that give up messages which were created longer ago than `validity` and have no attempt in flight. `ahead` is
    the time by which the clock has jumped ahead (storage/clock_guard.py). No message is given up because of this jump."""
    hours = validity // timedelta(hours=1)
    oldest = first_id_at(now - (validity + ahead) // timedelta(milliseconds=1))
    found = find_sends(connection, now, IS_UNFINISHED, sends.c.id < oldest, *_not_in(skipped))
    detail = f"no gateway accepted the message within {counted(hours, 'hour')} (GATEWAY_VALIDITY_HOURS)"
    return [finish_reported(one, now) or failed(one, now, "expired", detail) for one in found]


def fail_removed(connection: Connection, gateway_id: int, now: int, skipped: Collection[int]) -> list[SendChange]:
    """Return changes that give up the pending messages of a removed gateway."""
    found = find_sends(connection, now, IS_PENDING, sends.c.gateway_id == gateway_id, *_not_in(skipped))
    detail = "the gateway was removed before it accepted the message"
    return [finish_reported(one, now) or failed(one, now, "gateway_removed", detail) for one in found]


def hold_lost(connection: Connection, gateway_id: int, now: int, skipped: Collection[int]) -> list[SendChange]:
    """Return changes for those messages of a gateway for which a lease has ended without an outcome, usually because the process
    died. If the delivery report of such a message has arrived, the change finishes the message. Otherwise the change holds it."""
    found = find_sends(connection, now, IS_PENDING, sends.c.gateway_id == gateway_id, lease_has_ended(now), *_not_in(skipped))
    return [finish_reported(one, now) or SendChange(one, row_after(one, SendStatus.HELD, now, "lease_lost")) for one in found]


def finish_reported(claim: ClaimedSend, now: int) -> SendChange | None:
    """Return the change that finishes a doubtful message whose delivery report has arrived. Return None for any other message.

    The report proves that the gateway has accepted the message, so the message must not be handed on again."""
    status = reported_status(claim.state) if claim.doubtful else None
    return None if status is None else SendChange(claim, row_after(claim, status, now))


def give_back_later(claim: ClaimedSend, now: int) -> SendChange:
    """Return the change that gives back the claim of a message whose application is disabled. The claim does not count as an
    attempt. The message is due again after PAUSE_MS."""
    return SendChange(claim, row_of_returned_claim(claim, now + PAUSE_MS, "application_disabled"))


def _not_in(ids: Collection[int]) -> list[ColumnElement[bool]]:
    return [sends.c.id.not_in(sorted(ids))] if ids else []


def find_sends(
    connection: Connection, now: int, *conditions: ColumnElement[bool], waits: bool = False, leases_wait: bool = False
) -> list[ClaimedSend]:
    """Lock and return up to MAX_ROWS messages that have no attempt in flight. If `waits` is true, wait for messages that another
    transaction has locked; otherwise leave them out. If `leases_wait` is true, every leased message counts as in flight.

    In the result, `lease_until` is 0 if no process has leased the message."""
    has_no_lease = sends.c.lease_until.is_(None)
    idle = has_no_lease if leases_wait else or_(has_no_lease, lease_has_ended(now))
    statement = (
        _SELECT.where(idle, *conditions).order_by(sends.c.id).limit(MAX_ROWS).with_for_update(of=sends, skip_locked=not waits)
    )
    return [_claimed(row) for row in connection.execute(statement)]


def _claimed(row: Any) -> ClaimedSend:
    lease = 0 if row.lease_until is None else to_ms(row.lease_until)
    cost = None if row.cost is None else format(row.cost, "f")
    values = dict(row._mapping) | {"lease_until": lease, "cost": cost, "created_at": to_ms(row.created_at)}
    # A lease that has ended belongs to an attempt without an outcome, so the gateway may have accepted the message.
    return ClaimedSend(**values | {"doubtful": bool(row.doubtful or lease)})
