"""This module records each conversion once, with its event, counts and revisions. One transaction stores many reports.

A conversion is identified by its message, action and transaction_id. Upper and lower case of action and transaction_id make no
difference. If several reports of one conversion arrive at the same time, even in different processes, a unique index decides
which of them is the first. `revisions.py` decides whether a later report of the same conversion is a repeat, an update or a
conflict:

- The sender of a repeat gets the result of the first report, and no event is created.
- For an update, the previous revision is stored, the counts are corrected, and an event is created.
- A conflict is rejected.

A conversion may arrive before the click, without a click, or long after the link expired. If StoreUnavailable is raised, nothing
was stored. If its subclass CommitUncertain is raised, the conversion may be stored. A caller that did not receive the response
may safely repeat the request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from shortener.conversions import first_conversions, queries, rows, status_words
from shortener.conversions.first_conversions import ConvertedMessage
from shortener.conversions.parsing import ConversionReport
from shortener.conversions.queries import ConversionKey, ConversionTarget, CountedActions, StoredRevision
from shortener.conversions.revisions import (
    EFFECT_WARNINGS,
    ConversionState,
    Effect,
    TriedUpdate,
    apply_report,
    existing_state,
    first_revision,
    stored_by,
)
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.ids import CONVERSION_IDS, ClickIds, IdGenerator
from shortener.metrics import Metrics
from shortener.model import Clock, Topic, mutable_record, record
from shortener.outbox import count_deltas, events
from shortener.outbox.count_deltas import CountDelta
from shortener.outbox.events import Event
from shortener.storage.database import Database
from shortener.storage.group_commit import GroupCommit
from shortener.storage.types import from_ms, to_ms
from shortener.tracing import Tracer

#: The name under which actions are counted together if the application already has MAX_COUNTED_ACTIONS actions with counts of
#: their own.
OTHER_ACTIONS = "(other)"


@record
class ConversionResult:
    """The result of a conversion report. `duplicate` is true if the report was a repeat, and `updated` if it changed a stored
    conversion. `unapplied` is the reason why a report had no effect although it differs from the latest revision, or None."""

    conversion_id: str
    message_id: str
    duplicate: bool
    updated: bool = False
    revision: int = 1
    warnings: tuple[str, ...] = ()
    unapplied: str | None = None


@record
class _Submission:
    """A conversion report to store. `hit_id` is the row id of the hit that the click_id of the report identifies.

    The report may be stored already, by a transaction whose commit seemed to fail. `tried_ids` are the row ids with which such
    transactions tried to insert the conversion, and `tried_updates` are the revisions that they tried to store."""

    application_id: int
    report: ConversionReport
    hit_id: int | None
    tried_ids: list[int] = field(default_factory=list)
    tried_updates: list[TriedUpdate] = field(default_factory=list)


@mutable_record
class _BatchChanges:
    """What the reports of a transaction change: the new events, the counts, and the conversions with a new revision (by row
    id)."""

    events: list[Event] = field(default_factory=list)
    delta: CountDelta = field(default_factory=CountDelta)
    updated: dict[int, ConversionState] = field(default_factory=dict)


#: A function of (application id, case-folded action, revision) that returns the category and the action under which the revision
#: is counted.
_CountedAs = Callable[[int, str, StoredRevision], str]


class Conversions:
    """A recorder of conversions and their events. `on_events` is called after each commit that stored an event."""

    def __init__(
        self, database: Database, ids: IdGenerator, click_ids: ClickIds, clock: Clock, on_events: Callable[[], None]
    ) -> None:
        self._ids = ids
        self._click_ids = click_ids
        self._clock = clock
        self._on_events = on_events
        self._actions = CountedActions()
        self._group: GroupCommit[_Submission, ConversionResult, int] = GroupCommit(
            database, self._record, apply_again=self._record, after=self._committed
        )
        self.reports = {"new": 0, "updated": 0, "duplicate": 0}
        self.with_warnings = 0
        self.tracer: Tracer | None = None  # None if messages are not traced

    def register_metrics(self, metrics: Metrics) -> None:
        """Register the metrics that count accepted conversion reports."""
        metrics.counter(
            "shortener_conversion_reports",
            "Reports of conversions that were accepted, by result: new, updated or duplicate.",
            lambda: {(result,): count for result, count in self.reports.items()},
            "result",
        )
        metrics.counter(
            "shortener_conversion_reports_with_warnings",
            "Accepted reports of conversions in which a part could not be parsed.",
            lambda: self.with_warnings,
        )

    async def ingest(self, application_id: int, report: ConversionReport) -> ConversionResult:
        """Store a conversion. If it is already stored, apply the report to it. Return after the commit.

        Raise ApiError with the code MESSAGE_NOT_FOUND, CONVERSION_CONFLICT or INVALID_REQUEST (message_id and click_id do not
        match). Raise StoreUnavailable if the database is unavailable."""
        hit_id = None
        if report.click_id is not None:
            hit_id = self._click_ids.decode(report.click_id)
            if hit_id is None and report.message_id is None:
                raise _unknown_target("click_id")
        started = time.time_ns() if self.tracer is not None else 0
        result = await self._group.submit(_Submission(application_id, report, hit_id))
        if self.tracer is not None:
            self.tracer.record(
                "conversion",
                application_id,
                result.message_id,
                started,
                time.time_ns(),
                action=report.action_key,
                duplicate=result.duplicate,
                revision=result.revision,
            )
        self.reports["updated" if result.updated else "duplicate" if result.duplicate else "new"] += 1
        self.with_warnings += bool(result.warnings)
        return result

    def _committed(self, events: int) -> None:
        if events:
            self._on_events()

    # `GroupCommit` calls the following method in a transaction.

    def _record(self, connection: Connection, items: Sequence[_Submission]) -> tuple[list[ConversionResult | Exception], int]:
        """Store the reports in the database. Return one result for each report, and the number of new events."""
        targets = _find_targets(connection, items)
        now = self._clock()
        keys = _keys_of(connection, items, targets)
        actions = {(item.application_id, item.report.action_key) for item, key in zip(items, keys, strict=True) if key is not None}
        counted_actions = self._actions.select(connection, actions)

        def counted_as(application_id: int, action: str, revision: StoredRevision) -> str:
            shown = action if (application_id, action) in counted_actions else OTHER_ACTIONS
            return f"{status_words.category_of(revision.status, revision.disposition)}:{shown}"

        states, firsts = self._insert_new(connection, items, targets, keys, counted_as, now)
        results: list[ConversionResult | Exception] = []
        changes = _BatchChanges()
        for index, (item, target, key) in enumerate(zip(items, targets, keys, strict=True)):
            if key is None or isinstance(target, ApiError):
                assert isinstance(target, ApiError)
                results.append(target)
            elif firsts.get(key) == index:
                results.append(self._count_new(states[key], item, target, changes))
            else:
                results.append(self._apply_again(states[key], item, target, counted_as, now, changes))
        first_conversions.count_converted(connection, changes.delta, [_converted(states[key].target) for key in firsts])
        if changes.updated:
            in_order = [changes.updated[conversion] for conversion in sorted(changes.updated)]
            queries.insert_revisions(connection, [row for state in in_order for row in rows.new_revisions(state, self._ids)])
            queries.update_conversions(connection, [rows.updated(state) for state in in_order])
        events.append(connection, changes.events, count_deltas.rows(self._ids(), changes.delta))
        return results, len(changes.events)

    def _insert_new(
        self,
        connection: Connection,
        items: Sequence[_Submission],
        targets: Sequence[ConversionTarget | ApiError],
        keys: Sequence[ConversionKey | None],
        counted_as: _CountedAs,
        now: datetime,
    ) -> tuple[dict[ConversionKey, ConversionState], dict[ConversionKey, int]]:
        """Insert the conversions that are not stored yet. Return the state of each conversion. Also return, for each new
        conversion, the index in `items` of the report that creates it."""
        states: dict[ConversionKey, ConversionState] = {}
        firsts: dict[ConversionKey, int] = {}
        new_rows: dict[ConversionKey, tuple[Any, ...]] = {}
        for index, (item, target, key) in enumerate(zip(items, targets, keys, strict=True)):
            if key is not None and isinstance(target, ConversionTarget) and key not in states:
                first = first_revision(item.report, target, now)
                counted = counted_as(item.application_id, item.report.action_key, first)
                states[key] = ConversionState(self._ids(), target, target.hit_id, item.report.at, counted, first)
                item.tried_ids.append(states[key].id)
                firsts[key] = index
                new_rows[key] = rows.new(states[key], item.application_id, item.report, key)
        # The rows are sorted, because two processes that insert the same keys in different orders could deadlock.
        if queries.insert_new_conversions(connection, [new_rows[key] for key in sorted(new_rows)]) < len(new_rows):
            # The insert skips the rows of conversions that were stored before. These conversions are loaded.
            self._load_existing(connection, states, firsts)
        return states, firsts

    def _count_new(
        self, state: ConversionState, item: _Submission, target: ConversionTarget, changes: _BatchChanges
    ) -> ConversionResult:
        """Add the event and the counts of a new conversion. Return the result of its report."""
        changes.events.append(self._event(state, item, target, None))
        _count(changes.delta, state, item.report.ends_process)
        return _stored(state, target, item.report, 1)

    def _apply_again(
        self,
        state: ConversionState,
        item: _Submission,
        target: ConversionTarget,
        counted_as: _CountedAs,
        now: datetime,
        changes: _BatchChanges,
    ) -> ConversionResult | ApiError:
        """Apply a report of a conversion that already exists: another report has created it, in this batch or earlier. Return the
        result of the report."""
        report = item.report
        own_revision = 1 if state.id in item.tried_ids else stored_by(state, report, item.tried_updates)
        if own_revision is not None:
            return _stored(state, target, report, own_revision)
        effect = apply_report(state, report, target, now)
        if effect is Effect.CONFLICT:
            return _conflict(CONVERSION_IDS.encode(state.id))
        if effect is Effect.UPDATE:
            before = state.earlier[-1]
            _count(changes.delta, state, report.ends_process, before, sign=-1)
            state.counted_as = counted_as(item.application_id, report.action_key, state.latest)
            _count(changes.delta, state, report.ends_process)
            changes.updated[state.id] = state
            changes.events.append(self._event(state, item, target, before))
            item.tried_updates.append(TriedUpdate(state.id, state.latest.revision, from_ms(to_ms(now))))
            return _stored(state, target, report, state.latest.revision)
        unapplied = EFFECT_WARNINGS.get(effect)
        return ConversionResult(
            CONVERSION_IDS.encode(state.id),
            target.message_id,
            duplicate=True,
            revision=state.latest.revision,
            warnings=report.warnings if unapplied is None else (*report.warnings, unapplied),
            unapplied=unapplied,
        )

    def _load_existing(
        self, connection: Connection, states: dict[ConversionKey, ConversionState], firsts: dict[ConversionKey, int]
    ) -> None:
        """Load those conversions that were stored before this transaction into `states`, and remove their keys from `firsts`."""
        stored = queries.lock_conversions(connection, states)
        existing = {key: found for key, found in stored.items() if found.id != states[key].id}
        revised = [found.id for found in existing.values() if found.latest.revision > 1]
        earlier = queries.find_revisions(connection, revised)
        for key, found in existing.items():
            states[key] = existing_state(found, states[key].target, earlier.get(found.id, []))
            del firsts[key]

    def _event(self, state: ConversionState, item: _Submission, target: ConversionTarget, before: StoredRevision | None) -> Event:
        """Return the event for the latest revision of a conversion.

        The event contains a copy of the values of the conversion, because they may change before the deliveries are created."""
        latest = state.latest
        return Event(
            id=self._ids(),
            application_id=item.application_id,
            topics=Topic.CONVERSION,
            at=latest.at,
            message_id=target.row_id,
            link_id=target.link_id,
            hit_id=target.hit_id,
            conversion_id=state.id,
            data={
                "revision": latest.revision,
                "previous_status": before and before.status,
                "previous_value": None if before is None else rows.money_text(before.value),
                "conversion_status": latest.status,
                "disposition": latest.disposition,
                "value": rows.money_text(latest.value),
                "currency": latest.currency,
            },
        )


def _stored(state: ConversionState, target: ConversionTarget, report: ConversionReport, revision: int) -> ConversionResult:
    """Return the result of a report that has created a revision of a conversion."""
    return ConversionResult(
        CONVERSION_IDS.encode(state.id),
        target.message_id,
        duplicate=False,
        updated=revision > 1,
        revision=revision,
        warnings=report.warnings,
    )


def _keys_of(
    connection: Connection, items: Sequence[_Submission], targets: Sequence[ConversionTarget | ApiError]
) -> list[ConversionKey | None]:
    """Return the key of the conversion of each report; None if the message is unknown.

    A key contains action and transaction_id in lower case. Only keys that a release before 0.3 stored may contain capitals."""
    folded: list[ConversionKey | None] = []
    exact: list[ConversionKey | None] = []
    for item, target in zip(items, targets, strict=True):
        report = item.report
        if isinstance(target, ConversionTarget):
            folded.append((target.row_id, report.action_key, report.transaction_key))
            exact.append((target.row_id, report.action, report.transaction_id))
        else:
            folded.append(None)
            exact.append(None)
    differing = {one for key, one in zip(folded, exact, strict=True) if one is not None and one != key}
    if not differing:
        return folded
    stored = queries.find_keys(connection, sorted(differing))
    renamed = {key: one for key, one in zip(folded, exact, strict=True) if one in stored}
    return [renamed.get(key, key) for key in folded]


def _find_targets(connection: Connection, items: Sequence[_Submission]) -> list[ConversionTarget | ApiError]:
    hits = {item.hit_id for item in items if item.hit_id is not None}
    message_ids = {(item.application_id, item.report.message_id) for item in items if item.report.message_id is not None}
    by_hit = queries.find_targets_by_hit(connection, hits) if hits else {}
    by_message_id = queries.find_targets_by_message_id(connection, message_ids) if message_ids else {}
    return [_target_of(item, by_hit, by_message_id) for item in items]


def _target_of(
    item: _Submission, by_hit: Mapping[int, ConversionTarget], by_message_id: Mapping[tuple[int, str], ConversionTarget]
) -> ConversionTarget | ApiError:
    message_id = item.report.message_id
    target = None if item.hit_id is None else by_hit.get(item.hit_id)
    if target is not None and target.application_id == item.application_id:
        if message_id not in (None, target.message_id):
            if (item.application_id, message_id) not in by_message_id:
                return _unknown_target("message_id")
            detail = Detail("click_id", "belongs to a click on another message than message_id")
            return ApiError(ErrorCode.INVALID_REQUEST, details=[detail])
        return target
    if message_id is None:
        return _unknown_target("click_id")
    # The click_id may belong to another system, or to a hit that was purged or is not stored yet. The message is then found by
    # the message_id alone.
    return by_message_id.get((item.application_id, message_id)) or _unknown_target("message_id")


def _count(
    delta: CountDelta, state: ConversionState, ends_process: bool, revision: StoredRevision | None = None, *, sign: int = 1
) -> None:
    """Add a revision to the counts of conversions (`sign` 1), or subtract it (`sign` -1). docs/reference/conversions.md describes
    the metrics:

    - `conversions`: the number of conversions
    - `conversions:{category}:{action}`: the same by category and action
    - `ends`: the number of conversion processes that ended
    - `value:{currency}`: the sum of the values of all conversions that are neither negative nor pending. A value without a
      currency is counted under an empty currency.
    - `value:{currency}:{category}:{action}`: the sum of the values of all conversions, by category and action"""
    revision = revision or state.latest
    target, counted_as = state.target, state.counted_as
    cohort, slot, sent = target.cohort_id, to_ms(state.at) // count_deltas.TIME_SLOT_MS, count_deltas.sent_slot(target.row_id)
    link_set = target.link_set or 0
    if sign > 0 and revision.revision == 1:  # a later revision does not change the number of conversions
        delta.add_slots(cohort, slot, "conversions", sent, link_set)
        if ends_process:
            delta.add_slots(cohort, slot, "ends", sent, link_set)
    if counted_as is not None:
        delta.add_slots(cohort, slot, f"conversions:{counted_as}", sent, link_set, sign)
    if revision.value is not None:
        value = revision.value if sign > 0 else -revision.value
        currency = revision.currency or ""
        if status_words.is_revenue(counted_as):
            delta.add_slots(cohort, slot, f"value:{currency}", sent, link_set, value)
        if counted_as is not None:
            delta.add_slots(cohort, slot, f"value:{currency}:{counted_as}", sent, link_set, value)


def _converted(target: ConversionTarget) -> ConvertedMessage:
    return ConvertedMessage(target.row_id, target.cohort_id, target.link_set or 0)


def _unknown_target(field: str) -> ApiError:
    return ApiError(ErrorCode.MESSAGE_NOT_FOUND, details=[Detail(field, "does not belong to a message of this application")])


def _conflict(conversion_id: str) -> ApiError:
    return ApiError(
        ErrorCode.CONVERSION_CONFLICT,
        f"This action was reported for the message as {conversion_id}, with another value. Send a transaction_id with each report:"
        f" the same transaction_id to change a conversion, another transaction_id for a separate conversion.",
        details=[Detail("transaction_id", "is required to report a second value for the same message and action")],
    )
