"""Delivery reports: the send pipeline reports whether a message was sent, delivered or read.

The reports of a request are independent: a report of an unknown message does not affect the other reports. The transaction locks
the messages and their first clicks. A concurrent click is therefore stored completely before or after the reports, and the event
of the click contains the correct previous state. The messages are locked in the order of their ids, which prevents deadlocks.

A report can arrive before the rewrite of its message is stored. Reports of unknown messages therefore wait a short time
(REPORT_WAIT) and are tried again. At most MAX_WAITING requests wait at a time; the reports of further requests are not tried again.

The state of a message only moves forward:

- A late report is a report of an earlier state. It stores the time of that state if none is stored, and adds missing facts
  (telecom_message_id, mt_price, fragments_count). A report of the newest reported state also corrects these facts.
- The carrier's texts (status, reason_code, reason_description) are stored from the newest report that contains such texts. A
  report without texts does not change the stored texts, but a newer state after FAILED or EXPIRED removes the reason of the
  failure. A late report does not replace the stored texts.
- A report without a state (ENROUTE, UNKNOWN) stores its texts only while the message has neither failed nor been
  delivered. It does not change the state of the message.
- A click sets the state CLICKTHRU. A report of DELIVERED after CLICKTHRU stores its texts, and the state stays CLICKTHRU.

A report that changes the message creates a `delivery` event, which is also a `state` event if the state changed. A repeated
report creates no event. If the connection to the database ends during COMMIT, the reports are applied again, but only if the
first event of the interrupted transaction is not stored. Without this check, two reports that correct each other would create
their events twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import field, fields, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Integer, Text, and_, bindparam, select, update

from shortener.clicks.verdicts import early_hits
from shortener.ids import IdGenerator
from shortener.messages.report_wait import ReportWait
from shortener.model import State, Topic, mutable_record, record
from shortener.outbox import count_deltas, events, first_clicks
from shortener.outbox.count_deltas import CountDelta
from shortener.outbox.events import Event
from shortener.storage import schema
from shortener.storage.batcher import MAX_ROWS
from shortener.storage.database import Database
from shortener.storage.group_commit import GroupCommit
from shortener.storage.types import to_ms
from shortener.storage.values_table import values_table

MAX_REQUESTS_PER_TRANSACTION = 64  # the maximum number of requests in one transaction; each may contain BATCH_LIMIT reports
MAX_WAITING = 64  # the maximum number of requests that wait for unknown messages at the same time

#: For each reported state: the column that stores its time, and the metric that counts the messages with this state.
_TIME_COLUMNS = {
    State.SENT: ("sent_at", "sent"),
    State.FAILED: ("failed_at", "failed"),
    State.EXPIRED: ("failed_at", "failed"),
    State.DELIVERED: ("delivered_at", "delivered"),
    State.READ: ("read_at", "read"),
}
_CARRIER_TEXTS = ("report_status", "reason_code", "reason_description")
_FACTS = ("telecom_message_id", "mt_price", "fragments_count")


@record
class DeliveryReport:
    """A delivery report about one message, which reached `state` at the time `at`. If `state` is None, the state does not
    change."""

    message_id: str
    state: State | None
    at: datetime
    report_status: str | None = None  # the carrier's name of the state, for example DELIVRD
    reason_code: str | None = None
    reason_description: str | None = None
    telecom_message_id: str | None = None
    mt_price: Decimal | None = None
    fragments_count: int | None = None


@record
class DeliveryReportResult:
    """The result of one delivery report: the new state of the message, and whether the report changed the message."""

    message_id: str
    state: State
    changed: bool


@mutable_record
class _ReportedMessage:
    """A copy in memory of the stored values of a message. `apply` changes the copy; the caller stores it."""

    id: int
    cohort_id: int
    reported_state: State  # the newest state from delivery reports, which a click does not change
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
    link_set: int = 0
    is_erased: bool = False  # The personal data of the message was erased.

    @property
    def state(self) -> State:
        return State.CLICKTHRU if self.is_clicked else self.reported_state

    @property
    def newest_report(self) -> State:
        """The newest state that a delivery report set. A click does not change it."""
        states = (state for state, (column, _) in _TIME_COLUMNS.items() if getattr(self, column) is not None)
        return max(states, default=State.CREATED)

    def apply(self, report: DeliveryReport) -> bool:
        """Apply a delivery report. Return whether it changed the message."""
        if self.is_erased:
            report = replace(report, reason_description=None, telecom_message_id=None)
        newest = self.newest_report
        is_newer = report.state is not None and report.state.may_follow(newest)
        is_late = newest.may_follow(report.state or State.SENT)
        new: dict[str, Any] = {}
        texts = {name: getattr(report, name) for name in _CARRIER_TEXTS}
        if all(text is None for text in texts.values()):
            if is_newer and newest in (State.FAILED, State.EXPIRED):
                new |= texts
        elif is_newer:
            new |= texts
        elif not is_late:
            new |= {name: text for name, text in texts.items() if text is not None}
        for name in _FACTS:
            value = getattr(report, name)
            if value is not None and (not is_late or getattr(self, name) is None):
                new[name] = value
        if report.state is not None:
            column, _ = _TIME_COLUMNS[report.state]
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
    one.name
    for one in fields(_ReportedMessage)
    if one.name not in ("id", "cohort_id", "reported_state", "is_clicked", "link_set", "is_erased")
)
_update_message = (
    update(schema.messages)
    .where(schema.messages.c.id == bindparam("row"))
    .values({name: bindparam(name) for name in _COLUMNS} | {"state": bindparam("reported_state")})
)

_Request = tuple[int, Sequence[DeliveryReport]]  # the application id, and the reports of its request
_Results = list[DeliveryReportResult | None]  # the result of each report of a request; None: its message is unknown


@mutable_record
class _WaitingRequest:
    """A request that waits for its transaction.

    `attempts` contains, for each transaction that has applied the request, the id of its first event and the results. If a COMMIT
    with an unknown outcome has succeeded, one of these first events is stored."""

    request: _Request
    attempts: list[tuple[int, _Results]] = field(default_factory=list)

    def committed_results(self, stored_events: Collection[int]) -> _Results | None:
        """Return the results of the transaction that was committed. This is the transaction whose first event is in
        `stored_events`. Return None if no transaction was committed."""
        return next((results for event_id, results in self.attempts if event_id in stored_events), None)


class DeliveryReports:
    """A recorder of delivery reports. `on_events` is called after each commit that stored an event.

    Reports of unknown messages wait at most `wait` seconds for their messages."""

    def __init__(self, database: Database, ids: IdGenerator, on_events: Callable[[], None], *, wait: float = 0) -> None:
        self._ids = ids
        self._on_events = on_events
        self._wait = ReportWait(wait, MAX_WAITING)
        # The maximum number of reports of one request in a transaction; None: no maximum. There is a maximum on SQLite, because
        # clicks wait until the transaction ends.
        self._max_reports = MAX_ROWS if database.dialect == "sqlite" else None
        self._group: GroupCommit[_WaitingRequest, _Results, int] = GroupCommit(
            database,
            self._apply_group,
            apply_again=self._apply_group,
            max_items=MAX_REQUESTS_PER_TRANSACTION,
            after=self.committed,
            is_bulk=True,
            rows_of=lambda waiting: len(waiting.request[1]),
        )

    async def record(self, application_id: int, reports: Sequence[DeliveryReport]) -> list[DeliveryReportResult | None]:
        """Store delivery reports. After the commit, return one result per report in request order; None for an unknown message.

        Several reports of one message are applied in request order. Raise StoreUnavailable if the database is not available. Some
        reports may be stored even then. The caller may safely repeat the request."""

        async def store_again(unknown: Sequence[int]) -> list[DeliveryReportResult | None]:
            return await self._store(application_id, [reports[index] for index in unknown])

        return await self._wait.retry_unknown(await self._store(application_id, reports), store_again)

    async def _store(self, application_id: int, reports: Sequence[DeliveryReport]) -> list[DeliveryReportResult | None]:
        """Store delivery reports. On SQLite, many reports are stored in several transactions. The transactions run one after the
        other, so that several reports of one message are applied in request order."""
        size = self._max_reports or max(len(reports), 1)
        results: list[DeliveryReportResult | None] = []
        for start in range(0, len(reports), size):
            results += await self._group.submit(_WaitingRequest((application_id, reports[start : start + size])))
        return results

    def committed(self, events: int) -> None:
        """Start the delivery of the events that `apply` created. Call this after the commit, with the number of events that `apply`
        returned."""
        if events:
            self._on_events()

    def _apply_group(self, connection: Connection, waiting: Sequence[_WaitingRequest]) -> tuple[list[_Results | Exception], int]:
        """Do the same as `apply`, but skip the requests that an earlier transaction has already stored."""
        found = _find_stored(connection, waiting)
        stored = [one.committed_results(found) for one in waiting]
        missing = [one for one, results in zip(waiting, stored, strict=True) if results is None]
        applied, new_events = self._apply(connection, [one.request for one in missing]) if missing else ([], [])
        for one, own in zip(missing, applied, strict=True):
            if new_events and not isinstance(own, Exception):
                one.attempts.append((new_events[0].id, own))
        following = iter(applied)
        return [results if results is not None else next(following) for results in stored], len(new_events) + len(found)

    def apply(self, connection: Connection, requests: Sequence[_Request]) -> tuple[list[_Results | Exception], int]:
        """Store the delivery reports of several requests in the caller's transaction.

        Return two values: for each request, a list with the result of each report (None for an unknown message), and the number
        of new events. After the commit, the caller must call `committed`."""
        results, new_events = self._apply(connection, requests)
        return results, len(new_events)

    def _apply(self, connection: Connection, requests: Sequence[_Request]) -> tuple[list[_Results | Exception], list[Event]]:
        messages = _lock(connection, _message_ids(requests))
        results: list[_Results | Exception] = []
        changed: dict[int, _ReportedMessage] = {}
        new_events: list[Event] = []
        counted = CountDelta()
        reported: set[int] = set()  # the row ids of the messages whose state has changed
        for application, reports in requests:
            applied: _Results = []
            for report in reports:
                message = messages.get((application, report.message_id))
                if message is None:
                    applied.append(None)
                    continue
                before = message.state
                column, metric = _TIME_COLUMNS[report.state] if report.state is not None else (None, "")
                is_first = column is not None and getattr(message, column) is None
                is_changed = message.apply(report)
                if is_changed:
                    changed[message.id] = message
                    new_events.append(self._event(application, message, report, before))
                if is_first:
                    reported.add(message.id)
                    counted.add(message.cohort_id, to_ms(report.at), metric, message=message.id, link_set=message.link_set)
                applied.append(DeliveryReportResult(report.message_id, message.state, is_changed))
            results.append(applied)
        if reported:
            early_hits.mark_reported(connection, reported)
        if changed:
            connection.execute(_update_message, [changed[row].values() for row in sorted(changed)])
        events.append(connection, new_events, count_deltas.rows(self._ids(), counted))
        first_clicks.release(connection, [message.id for message in messages.values()])
        return results, new_events

    def _event(self, application: int, message: _ReportedMessage, report: DeliveryReport, before: State) -> Event:
        topics = Topic.DELIVERY
        data = {
            "state": (report.state if report.state is not None else message.state).name,
            "status": report.report_status,
            "reason_code": report.reason_code,
            "reason_description": None if message.is_erased else report.reason_description,
        }
        if message.state is not before:
            topics |= Topic.STATE
            data |= {"previous_state": before.name, "new_state": message.state.name}
        return Event(self._ids(), application, topics, report.at, message_id=message.id, data=data)


def _find_stored(connection: Connection, waiting: Sequence[_WaitingRequest]) -> set[int]:
    """Find the transactions that have applied the requests and were committed. Return the ids of their first events."""
    attempted = {event_id for one in waiting for event_id, _ in one.attempts}
    if not attempted:
        return set()
    # An earlier transaction may still be running. When this transaction has locked the messages, the earlier one has ended, and its
    # events are visible.
    messages = _lock(connection, _message_ids([one.request for one in waiting]))
    first_clicks.release(connection, [message.id for message in messages.values()])
    e = schema.events.c
    return set(connection.scalars(select(e.id).where(e.id.in_(attempted))))


def _message_ids(requests: Sequence[_Request]) -> set[tuple[int, str]]:
    """Return the ids of the reported messages, without ids that contain NUL. No stored id contains NUL, and PostgreSQL rejects a
    query with this character."""
    ids = {(application, report.message_id) for application, reports in requests for report in reports}
    return {one for one in ids if "\x00" not in one[1]}


def _lock(connection: Connection, ids: set[tuple[int, str]]) -> dict[tuple[int, str], _ReportedMessage]:
    """Lock messages and their first clicks until the transaction ends. Return the messages by (application_id, message_id)."""
    m = schema.messages.c
    requested = values_table(connection, ids, application_id=Integer, message_id=Text)
    statement = (
        select(
            m.application_id, m.message_id, m.link_set_id, m.to_address, m.id, m.cohort_id, m.state, *(m[name] for name in _COLUMNS)
        )
        .join_from(
            requested, schema.messages, and_(m.application_id == requested.c.application_id, m.message_id == requested.c.message_id)
        )
        .order_by(m.id)
        .with_for_update(of=schema.messages)
    )
    rows = connection.execute(statement).all()
    clicks = first_clicks.lock(connection, [row.id for row in rows])
    messages = {}
    for application, message_id, link_set, to_address, row, cohort, state, *columns in rows:
        messages[application, message_id] = message = _ReportedMessage(row, cohort, State(state), *columns)
        message.link_set = link_set or 0
        message.is_erased = not to_address
        message.is_clicked = clicks[row].at is not None
    return messages
