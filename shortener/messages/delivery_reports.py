"""Delivery reports: what the send pipeline learns of a message on its way to the handset.

A request is all or nothing: an unknown message in it, and none of its reports is kept. The messages, and what was clicked of them,
are locked in the order of their ids while they are read and written, so a click that comes at the same moment waits for its turn or
goes first: the state before it is the one that the report left, or found.

States only move forward. A report that comes late still fills in its time, if that is not known, and what is missing of the facts
of the message (telecom_message_id, mt_price, fragments_count); reports of the newest state so far also correct them. The words of
the carrier (status, reason_code, reason_description) are always those of the newest state reported: a late SENT does not put its
own in their place, and a DELIVERED does not keep those of a FAILED before it. A click does not count here: a DELIVERED that comes
after CLICKTHRU brings its words, and the state stays.

A report that brings something new raises `delivery`, and `state` when the message moved; a repeat raises nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Integer, Text, and_, bindparam, select, update

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.ids import IdGenerator
from shortener.model import State, Topic
from shortener.outbox import count_deltas, events, first_clicks
from shortener.outbox.count_deltas import CountDelta
from shortener.outbox.events import Event
from shortener.storage import schema
from shortener.storage.batcher import GroupCommit
from shortener.storage.database import Database
from shortener.storage.types import to_ms
from shortener.storage.values_table import values_table

REQUESTS = 64  # that share a transaction; each may hold BATCH_LIMIT reports
_SHOWN = 100  # details of one refusal

#: The column that each state fills with its time, and the metric that counts it.
_TIMES = {
    State.SENT: ("sent_at", "sent"),
    State.FAILED: ("failed_at", "failed"),
    State.EXPIRED: ("failed_at", "failed"),
    State.DELIVERED: ("delivered_at", "delivered"),
    State.READ: ("read_at", "read"),
}
_WORDS = ("report_status", "reason_code", "reason_description")
_FACTS = ("telecom_message_id", "mt_price", "fragments_count")


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What the pipeline says of a message. `state`: SENT to READ; `at`: when that was; `path`: where it stands in the request."""

    message_id: str
    state: State
    at: datetime
    report_status: str | None = None  # the carrier's own word, for example DELIVRD
    reason_code: str | None = None
    reason_description: str | None = None
    telecom_message_id: str | None = None
    mt_price: Decimal | None = None
    fragments_count: int | None = None
    path: str = ""


@dataclass(frozen=True, slots=True)
class DeliveryReportResult:
    """What became of a report. `state`: the message's, after it; `changed`: it brought something new."""

    message_id: str
    state: State
    changed: bool


@dataclass(slots=True)
class _ReportedMessage:
    """A message's row while its reports are read, in the order that they came in."""

    id: int
    cohort_id: int
    reported_state: State  # or the one before its click: from then on it stays
    sent_at: datetime | None
    failed_at: datetime | None
    delivered_at: datetime | None
    read_at: datetime | None
    report_status: str | None
    reason_code: str | None
    reason_description: str | None
    telecom_message_id: str | None
    mt_price: Decimal | None
    fragments_count: int | None
    is_clicked: bool = False

    @property
    def state(self) -> State:
        return State.CLICKTHRU if self.is_clicked else self.reported_state

    @property
    def reported(self) -> State:
        """The newest state that a report told of; a click is none."""
        states = (state for state, (column, _) in _TIMES.items() if getattr(self, column) is not None)
        return max(states, default=State.CREATED)

    def take(self, report: DeliveryReport) -> bool:
        """Take in what the report brings; whether that was anything."""
        reported = self.reported
        later = report.state.may_follow(reported)
        late = reported.may_follow(report.state)
        new: dict[str, Any] = {}
        for name in _WORDS:
            value = getattr(report, name)
            if later or (value is not None and not late):
                new[name] = value
        for name in _FACTS:
            value = getattr(report, name)
            if value is not None and (not late or getattr(self, name) is None):
                new[name] = value
        column, _ = _TIMES[report.state]
        if getattr(self, column) is None:
            new[column] = report.at
        if report.state.may_follow(self.state):
            new["reported_state"] = report.state
        changed = False
        for name, value in new.items():
            if getattr(self, name) != value:
                setattr(self, name, value)
                changed = True
        return changed

    def values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _COLUMNS} | {"reported_state": int(self.reported_state), "row": self.id}


_COLUMNS = tuple(
    field.name for field in fields(_ReportedMessage) if field.name not in ("id", "cohort_id", "reported_state", "is_clicked")
)
_save = (
    update(schema.messages)
    .where(schema.messages.c.id == bindparam("row"))
    .values({name: bindparam(name) for name in _COLUMNS} | {"state": bindparam("reported_state")})
)

_Request = tuple[int, Sequence[DeliveryReport]]  # application, its reports


class DeliveryReports:
    def __init__(self, database: Database, ids: IdGenerator, on_events: Callable[[], None]) -> None:
        self._ids = ids
        self._on_events = on_events
        self._group: GroupCommit[_Request, list[DeliveryReportResult], int] = GroupCommit(
            database, self._take, max_items=REQUESTS, after=self._committed
        )

    async def record(self, application_id: int, reports: Sequence[DeliveryReport]) -> list[DeliveryReportResult]:
        """Keep the reports, all of them or none; one answer for each, in their order. Durable when it returns.

        Several for one message are taken in their order. Raises ApiError MESSAGE_NOT_FOUND naming each unknown message,
        StoreUnavailable."""
        return await self._group.submit((application_id, reports))

    def _committed(self, events: int) -> None:
        if events:
            self._on_events()

    # In the transaction.

    def _take(
        self, connection: Connection, requests: Sequence[_Request]
    ) -> tuple[list[list[DeliveryReportResult] | Exception], int]:
        """Return one result for each request, and the number of events."""
        messages = _lock(connection, {(application, report.message_id) for application, reports in requests for report in reports})
        results: list[list[DeliveryReportResult] | Exception] = []
        changed: dict[int, _ReportedMessage] = {}
        told: list[Event] = []
        tally = CountDelta()
        for application, reports in requests:
            unknown = [report for report in reports if (application, report.message_id) not in messages]
            if unknown:
                results.append(_unknown(unknown))
                continue
            taken = []
            for report in reports:
                message = messages[application, report.message_id]
                before = message.state
                column, metric = _TIMES[report.state]
                first = getattr(message, column) is None
                new = message.take(report)
                if new:
                    changed[message.id] = message
                    told.append(self._event(application, message, report, before))
                if first:
                    tally.add(message.cohort_id, to_ms(report.at), metric)
                taken.append(DeliveryReportResult(report.message_id, message.state, new))
            results.append(taken)
        if changed:
            connection.execute(_save, [changed[row].values() for row in sorted(changed)])
        events.append(connection, told, count_deltas.rows(self._ids(), tally))
        first_clicks.release(connection, [message.id for message in messages.values()])
        return results, len(told)

    def _event(self, application: int, message: _ReportedMessage, report: DeliveryReport, before: State) -> Event:
        topics = Topic.DELIVERY
        data = {
            "state": report.state.name,
            "status": report.report_status,
            "reason_code": report.reason_code,
            "reason_description": report.reason_description,
        }
        if message.state is not before:
            topics |= Topic.STATE
            data |= {"previous_state": before.name, "new_state": message.state.name}
        return Event(self._ids(), application, topics, report.at, message_id=message.id, data=data)


def _lock(connection: Connection, ids: set[tuple[int, str]]) -> dict[tuple[int, str], _ReportedMessage]:
    """The messages by (application, message_id), theirs alone to this transaction until it ends."""
    m = schema.messages.c
    wanted = values_table(connection, ids, application_id=Integer, message_id=Text)
    statement = (
        select(m.application_id, m.message_id, m.id, m.cohort_id, m.state, *(m[name] for name in _COLUMNS))
        .join_from(wanted, schema.messages, and_(m.application_id == wanted.c.application_id, m.message_id == wanted.c.message_id))
        .order_by(m.id)
        .with_for_update(of=schema.messages)
    )
    rows = connection.execute(statement).all()
    clicks = first_clicks.lock(connection, [row.id for row in rows])
    found = {}
    for application, message_id, row, cohort, state, *rest in rows:
        found[application, message_id] = message = _ReportedMessage(row, cohort, State(state), *rest)
        message.is_clicked = clicks[row].at is not None
    return found


def _unknown(reports: Sequence[DeliveryReport]) -> ApiError:
    details = [Detail(f"{report.path}.message_id".lstrip("."), "is of no message of this application") for report in reports]
    return ApiError(ErrorCode.MESSAGE_NOT_FOUND, details=details[:_SHOWN])
