"""This module writes the result of an attempt, or of the decision to give a message up, to the database.

One transaction updates the row in `sends` and adds the row of the attempt. It also applies the report (SENT or FAILED) to the
message, which creates an event (messages/delivery_reports.py), and refunds the cost of a message that was certainly not sent. A
row is skipped if another process has claimed it after this attempt. Therefore the outcome of an attempt never replaces a newer
outcome.

`write_each` gives messages up, such as messages that are too old. A message whose changes cannot be stored or computed is left out,
so that the remaining messages are still given up.
"""
# Tested by tests/gateways/test_dispatcher.py

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import field
from decimal import Decimal

import structlog
from sqlalchemy import Connection, exc, select

from shortener.delivery.dispatch_queries import FIRST_ATTEMPTS, RETRIES
from shortener.gateways import queries
from shortener.gateways.queries import ClaimedSend, FinishedSend
from shortener.ids import IdGenerator, encode
from shortener.messages.balances import refund
from shortener.messages.delivery_reports import DeliveryReport, DeliveryReports
from shortener.model import SendStatus, State, mutable_record, record
from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import CountDelta
from shortener.storage.database import rejects_values
from shortener.storage.schema import messages, sends
from shortener.storage.types import from_ms, to_ms

log = structlog.get_logger(__name__)

MAX_DETAIL_LENGTH = 255


@record
class SendChange:
    """The changes to write for one message: the new values of its row in `sends`, the row of its attempt, and the report about the
    message."""

    claim: ClaimedSend
    row: FinishedSend
    attempt_row: tuple[object, ...] | None = None
    report: DeliveryReport | None = None


@mutable_record
class WrittenChanges:
    """The result of `SendWriter.write_each`: the rows that were written (each with its new status), the number of new events of all
    rows, and the ids of the messages whose changes cannot be written."""

    rows: list[FinishedSend] = field(default_factory=list)
    events: int = 0
    unwritable: list[int] = field(default_factory=list)

    def add(self, changes: Sequence[SendChange], statuses: dict[int, int], events: int) -> None:
        """Add the rows of changes that `SendWriter.write` has written. `statuses` and `events` are its result."""
        self.rows += [one.row._replace(status=statuses[one.row.id]) for one in changes if one.row.id in statuses]
        self.events += events


class SendWriter:
    """A writer of the results of attempts to hand messages on to gateways."""

    def __init__(self, ids: IdGenerator, reports: DeliveryReports) -> None:
        self._ids = ids
        self._reports = reports

    def write(self, connection: Connection, changes: Sequence[SendChange], now: int) -> tuple[dict[int, int], int]:
        """Write changes, as a part of the caller's transaction. `now` is in milliseconds since 1970.

        Return the new status of each changed message by its id, and the number of new events. After the commit, pass the number of
        events to `published`.

        A delivery report that has arrived takes precedence in two cases. A message that would be held becomes SENT or FAILED, as
        reported. A doubtful message that would be FAILED becomes SENT if it was reported as sent."""
        written = queries.finish(connection, [change.row for change in changes])
        recorded = [change for change in changes if change.row.id in written]
        statuses = {change.row.id: change.row.status for change in recorded}
        ended = _end_reported(connection, recorded, now)
        statuses |= ended
        queries.insert_attempts(connection, [change.attempt_row for change in recorded if change.attempt_row is not None])
        reports: dict[int, list[DeliveryReport]] = {}
        for change in recorded:
            if change.report is not None and change.row.id not in ended:
                reports.setdefault(change.claim.application_id, []).append(change.report)
        events = 0
        if reports:
            _, events = self._reports.apply(connection, sorted(reports.items()))
        refunded = [change.claim for change in recorded if change.row.refunded and change.row.id not in ended]
        self._refund(refunded, connection, now)
        return statuses, events

    def write_each(self, connection: Connection, changes: Sequence[SendChange], now: int) -> WrittenChanges:
        """Write changes like `write`. If they cannot be written together, write each change alone, and leave out the changes that
        cannot be written."""
        result = WrittenChanges()
        if not changes:
            return result
        try:
            with connection.begin_nested():
                result.add(changes, *self.write(connection, changes, now))
        except Exception as error:
            _raise_if_unavailable(error)
        else:
            return result
        for change in changes:
            try:
                with connection.begin_nested():
                    result.add([change], *self.write(connection, [change], now))
            except Exception as error:
                _raise_if_unavailable(error)
                log.exception("send_not_finished", send=encode(change.row.id))
                result.unwritable.append(change.row.id)
        return result

    def published(self, events: int) -> None:
        """Start the delivery of the events that `write` created, after the transaction was committed."""
        self._reports.committed(events)

    def _refund(self, claims: Iterable[ClaimedSend], connection: Connection, now: int) -> None:
        costs = {claim.id: (claim.application_id, Decimal(claim.cost)) for claim in claims if claim.cost is not None}
        if not costs:
            return
        delta = CountDelta()
        amounts: dict[int, Decimal] = {}
        columns = messages.c.id, messages.c.cohort_id, messages.c.link_set_id, messages.c.created_at, sends.c.deducted
        found = select(*columns).join_from(messages, sends, sends.c.id == messages.c.id).where(messages.c.id.in_(sorted(costs)))
        for row in connection.execute(found):
            application_id, cost = costs[row.id]
            delta.add(row.cohort_id, to_ms(row.created_at), count_deltas.COST, -cost, message=row.id, link_set=row.link_set_id or 0)
            if row.deducted is not False:  # nothing was deducted if the application became prepaid after the message was queued
                amounts[application_id] = amounts.get(application_id, Decimal()) + cost
        count_deltas.append(connection, self._ids(), delta)
        refund(connection, amounts, from_ms(now))


def _raise_if_unavailable(error: Exception) -> None:
    """Raise the error if its cause is the database, and not a value of a message."""
    if isinstance(error, OSError | exc.TimeoutError) or (isinstance(error, exc.DBAPIError) and not rejects_values(error)):
        raise error


def _end_reported(connection: Connection, recorded: Sequence[SendChange], now: int) -> dict[int, int]:
    """Give the reported status to messages that this transaction has held or given up, if a delivery report arrived during the
    attempt and proves that the gateway has accepted the message. Return these statuses by row id.

    The rows in `sends` are locked, so the transaction of a later report finds the message held and ends the hold."""
    unsent = [change.row for change in recorded if change.row.status in (SendStatus.HELD, SendStatus.FAILED)]
    if not unsent:
        return {}
    columns = sends.c.id, sends.c.doubtful, messages.c.state
    found = select(*columns).join(messages, messages.c.id == sends.c.id).where(sends.c.id.in_([row.id for row in unsent]))
    stored = {row.id: row for row in connection.execute(found)}
    rows = []
    for row in unsent:
        status = reported_status(stored[row.id].state) if row.id in stored else None
        if row.status == SendStatus.FAILED and not (status is SendStatus.SENT and stored[row.id].doubtful):
            continue
        if status is not None:
            ended = row._replace(status=int(status), finished_at=now, last_error=None, refunded=False)
            rows.append(ended._replace(claimed_attempt=row.attempt, claimed_lease=0))
    queries.finish(connection, rows)
    return {row.id: row.status for row in rows}


def reported_status(state: int) -> SendStatus | None:
    """Return the final status of a doubtful message whose reported state is `state`. Return None if no report has arrived.

    A report proves that the gateway has accepted the message."""
    if state == State.CREATED:
        return None
    return SendStatus.FAILED if state in (State.FAILED, State.EXPIRED) else SendStatus.SENT


def row_after(claim: ClaimedSend, status: SendStatus, now: int, error: str | None = None) -> FinishedSend:
    """Return the new values of a message whose status becomes `status` at the time `now`. The claim counts as an attempt.

    With the status PENDING, the message is due at once."""
    return FinishedSend(
        id=claim.id,
        claimed_attempt=claim.attempt,
        claimed_lease=claim.lease_until,
        status=int(status),
        attempt=claim.attempt,
        base_attempt=claim.base_attempt,
        part=RETRIES,
        next_at=now,
        doubtful=claim.doubtful,
        finished_at=now if status in (SendStatus.SENT, SendStatus.FAILED) else None,
        gateway_message_id=None,
        last_status=None,
        last_error=error,
    )


def row_of_returned_claim(claim: ClaimedSend, next_at: int, error: str | None) -> FinishedSend:
    """Return the new values of a message whose claim is given back. The claim does not count as an attempt. The message is claimed
    again at the time `next_at`."""
    part = RETRIES if claim.attempt > 1 else FIRST_ATTEMPTS
    return row_after(claim, SendStatus.PENDING, next_at, error)._replace(attempt=claim.attempt - 1, part=part)


def failed(claim: ClaimedSend, now: int, reason: str, detail: str) -> SendChange:
    """Return the change that gives a message up. Its cost is refunded unless the gateway may have accepted the message.

    `reason` is the short name of the reason, and `detail` is an explanation as text. If no process has leased the message,
    `claim.lease_until` is 0."""
    row = row_after(claim, SendStatus.FAILED, now, reason)
    row = row._replace(refunded=claim.cost is not None and not claim.doubtful)
    return SendChange(claim, row, None, failure_report(claim, now, reason, detail))


def failure_report(claim: ClaimedSend, now: int, code: str, detail: str) -> DeliveryReport:
    """Return the report that a message could not be sent."""
    return DeliveryReport(
        claim.message_id,
        State.FAILED,
        from_ms(now),
        reason_code=code[:64] or None,
        reason_description=detail[:MAX_DETAIL_LENGTH] or None,
    )
