"""This module applies an operator's decision about a message that is held or waits for a gateway. `resend` hands the message on
again, although its recipient may then get it twice. `discard` gives the message up, so that it becomes FAILED. A message whose
attempt is in flight cannot be changed. `give_up_erased` discards messages whose personal data is erased.

After a step of the clock, the lease of an attempt in flight may seem to have ended. The function `leases_wait`
(`ClockGuard.leases_wait`) then returns true, and every leased message counts as in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, select, update

from shortener.accounts.audit import AuditWriter
from shortener.delivery.dispatch_queries import RETRIES
from shortener.errors import ApiError, ErrorCode
from shortener.gateways.expiry import find_sends, finish_reported
from shortener.gateways.finishing import SendWriter, failed
from shortener.gateways.queries import ClaimedSend
from shortener.model import SendStatus
from shortener.retention.erasure import GiveUp
from shortener.retention.scrub import ERASED
from shortener.storage.clock_guard import LeasesWait
from shortener.storage.schema import messages, sends
from shortener.storage.send_conditions import IS_UNFINISHED, UNFINISHED
from shortener.storage.types import to_ms

DISCARDED = "discarded"  # The `last_error` of a message that somebody decided not to send.


def resend(
    connection: Connection, audit: AuditWriter, application_id: int, message_id: str, now: datetime, leases_wait: LeasesWait
) -> int:
    """Hand a held or waiting message on again as soon as possible, and add the audit row. Return its row id.

    Raise ApiError MESSAGE_NOT_FOUND if there is no such message. Raise ApiError CONFLICT if an attempt is in flight, or if the
    message is already sent or has failed."""
    claim = _lock_unfinished(connection, application_id, message_id, now, leases_wait)
    values = {
        "status": int(SendStatus.PENDING),
        "queue": RETRIES,
        "next_at": now,
        "lease_until": None,
        "base_attempt": sends.c.attempt,
        # `doubtful` is also true if the lease of the message has ended, because the interrupted attempt may have reached the
        # gateway.
        "doubtful": claim.doubtful,
    }
    connection.execute(update(sends).where(sends.c.id == claim.id).values(values))
    audit.add(connection, now, "send_resent", message_id, application_id=application_id, recipient=claim.to_address)
    return claim.id


def discard(
    connection: Connection,
    audit: AuditWriter,
    writer: SendWriter,
    application_id: int,
    message_id: str,
    now: datetime,
    leases_wait: LeasesWait,
) -> tuple[int, int]:
    """Give up a held or waiting message, and add the audit row. The message becomes FAILED. A doubtful message whose delivery
    report has arrived keeps the reported state.

    Return the row id of the message and the number of new events, for `SendWriter.published`. Raise the same errors as `resend`."""
    claim, at = _lock_unfinished(connection, application_id, message_id, now, leases_wait), to_ms(now)
    change = finish_reported(claim, at) or failed(claim, at, DISCARDED, "somebody decided not to send the message")
    audit.add(connection, now, "send_discarded", message_id, application_id=application_id, recipient=claim.to_address)
    _, events = writer.write(connection, [change], at)
    return claim.id, events


def give_up_erased(writer: SendWriter, leases_wait: LeasesWait) -> GiveUp:
    """Return the function that an erasure calls for its messages (retention/erasure.py). The function discards the messages that
    are held or wait for a gateway. A message whose attempt is in flight does not change, because the gateway may accept it. The
    function waits for transactions that have locked these messages, such as claims, and then reads the messages. Therefore it
    refunds no message that another transaction has just claimed, and no message twice. A message that cannot be discarded does not
    stop the erasure."""

    def give_up(connection: Connection, ids: Sequence[int], now: datetime) -> None:
        at = to_ms(now)
        claims = find_sends(connection, at, sends.c.id.in_(ids), IS_UNFINISHED, waits=True, leases_wait=leases_wait(connection))
        detail = "the message was erased before a gateway accepted it"
        writer.write_each(connection, [finish_reported(claim, at) or failed(claim, at, ERASED, detail) for claim in claims], at)

    return give_up


def _lock_unfinished(
    connection: Connection, application_id: int, message_id: str, now: datetime, leases_wait: LeasesWait
) -> ClaimedSend:
    """Lock and return a message that is held or waits for a gateway. Raise the errors of `resend`."""
    own = sends.c.application_id == application_id, messages.c.message_id == message_id
    found = find_sends(connection, to_ms(now), IS_UNFINISHED, *own, leases_wait=leases_wait(connection))
    if not found:
        raise _refusal(connection, application_id, message_id)
    return found[0]


def _refusal(connection: Connection, application_id: int, message_id: str) -> ApiError:
    found = select(sends.c.status).join_from(sends, messages, messages.c.id == sends.c.id)
    own = messages.c.application_id == application_id, messages.c.message_id == message_id
    status = connection.execute(found.where(*own)).scalar()
    if status is None:
        return ApiError(ErrorCode.MESSAGE_NOT_FOUND, "No gateway sends a message with this id.")
    if status in UNFINISHED:
        return ApiError(ErrorCode.CONFLICT, "An attempt to send the message is running; try again later.")
    return already_finished(status)


def already_finished(status: int) -> ApiError:
    """Return the error about a decision that comes too late: the message is already sent or has failed."""
    return ApiError(ErrorCode.CONFLICT, f"The message is already {SendStatus(status).api_name}.")
