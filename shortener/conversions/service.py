"""Service that records each conversion once, with its event and its counts. Many requests share a transaction.

Message, action and transaction_id identify a conversion. A unique index decides which of several reports is the first, in one
process or in many. A repeat returns the result of the first report and raises no event. A repeat with another value or currency
(also with one instead of none) is a CONVERSION_CONFLICT. A refund is a separate conversion, with another action or transaction_id.

A conversion may arrive before the click, without a click, or long after the link expired. If StoreUnavailable is raised, nothing
was stored. A caller may safely repeat a request if it lost the response.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import orjson
from sqlalchemy import Connection

from shortener.conversions import queries
from shortener.conversions.parsing import ConversionReport
from shortener.conversions.queries import ConversionKey, ConversionTarget
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.ids import ClickIds, IdGenerator, encode
from shortener.model import Clock, Topic
from shortener.outbox import count_deltas, events
from shortener.outbox.count_deltas import CountDelta
from shortener.outbox.events import Event
from shortener.storage.batcher import GroupCommit
from shortener.storage.database import Database
from shortener.storage.types import to_ms


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """The result of a report. `duplicate` is true if the conversion was already recorded."""

    conversion_id: str
    message_id: str
    duplicate: bool


@dataclass(frozen=True, slots=True)
class _Submission:
    """A report to record, with the hit (row id) that its click_id contains."""

    application_id: int
    report: ConversionReport
    hit_id: int | None


def encode_conversion_id(conversion: int) -> str:
    """Return the public conversion_id of a row id, such as `cnv_0Kq3...`."""
    return f"cnv_{encode(conversion)}"


class Conversions:
    """Records conversions. `on_events` is called after each commit that wrote events."""

    def __init__(
        self, database: Database, ids: IdGenerator, click_ids: ClickIds, clock: Clock, on_events: Callable[[], None]
    ) -> None:
        self._ids = ids
        self._click_ids = click_ids
        self._clock = clock
        self._on_events = on_events
        self._group: GroupCommit[_Submission, ConversionResult, int] = GroupCommit(database, self._record, after=self._committed)

    async def ingest(self, application_id: int, report: ConversionReport) -> ConversionResult:
        """Record a conversion unless it is already recorded. Return after the commit.

        Raise ApiError MESSAGE_NOT_FOUND, CONVERSION_CONFLICT or INVALID_REQUEST (message_id and click_id do not match), or
        StoreUnavailable."""
        hit_id = None
        if report.click_id is not None:
            hit_id = self._click_ids.decode(report.click_id)
            if hit_id is None:
                raise _unknown_target("click_id")
        return await self._group.submit(_Submission(application_id, report, hit_id))

    def _committed(self, events: int) -> None:
        if events:
            self._on_events()

    # Runs in the transaction.

    def _record(self, connection: Connection, items: Sequence[_Submission]) -> tuple[list[ConversionResult | Exception], int]:
        """Return one result for each item, and the number of events."""
        targets = _find_targets(connection, items)
        received_at = to_ms(self._clock())
        firsts: dict[ConversionKey, _Submission] = {}
        rows: dict[ConversionKey, tuple[Any, ...]] = {}
        for item, target in zip(items, targets, strict=True):
            if isinstance(target, ConversionTarget) and (key := _key(item, target)) not in rows:
                firsts[key] = item
                rows[key] = _row(self._ids(), item, target, received_at)
        # Sorted, so that two processes that insert the same keys cannot deadlock.
        inserted = queries.insert_new_conversions(connection, [rows[key] for key in sorted(rows)])
        # Existing conversions are read only if the insert skipped a row.
        stored = queries.find_conversions(connection, rows) if inserted < len(rows) else {}

        results: list[ConversionResult | Exception] = []
        new_events: list[Event] = []
        counted = CountDelta()
        for item, target in zip(items, targets, strict=True):
            if isinstance(target, ApiError):
                results.append(target)
                continue
            report, key = item.report, _key(item, target)
            first = firsts[key]
            new_id: int = rows[key][0]
            existing = stored.get(key) or queries.StoredConversion(new_id, first.report.value, first.report.currency)
            if first is item and existing.id == new_id:
                results.append(ConversionResult(encode_conversion_id(new_id), target.message_id, duplicate=False))
                new_events.append(self._event(new_id, item, target))
                _count(counted, target, report)
            elif (existing.value, existing.currency) == (report.value, report.currency):
                results.append(ConversionResult(encode_conversion_id(existing.id), target.message_id, duplicate=True))
            else:
                results.append(_conflict(encode_conversion_id(existing.id)))
        events.append(connection, new_events, count_deltas.rows(self._ids(), counted))
        return results, len(new_events)

    def _event(self, conversion_id: int, item: _Submission, target: ConversionTarget) -> Event:
        return Event(
            id=self._ids(),
            application_id=item.application_id,
            topics=Topic.CONVERSION,
            at=item.report.at,
            message_id=target.row_id,
            link_id=target.link_id,
            hit_id=target.hit_id,
            conversion_id=conversion_id,
        )


def _row(conversion_id: int, item: _Submission, target: ConversionTarget, received_at: int) -> tuple[Any, ...]:
    report = item.report
    return (
        conversion_id,
        item.application_id,
        target.row_id,
        target.hit_id,
        report.action,
        report.transaction_id,
        report.status,
        report.disposition,
        None if report.value is None else format(report.value, "f"),
        report.currency,
        to_ms(report.at),
        received_at,
        None if report.metadata is None else orjson.dumps(report.metadata).decode(),
    )


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
    if target is not None:
        if target.application_id != item.application_id:
            return _unknown_target("click_id")
        if message_id not in (None, target.message_id):
            detail = Detail("click_id", "belongs to a click on another message than message_id")
            return ApiError(ErrorCode.INVALID_REQUEST, details=[detail])
        return target
    if message_id is None:
        return _unknown_target("click_id")
    # The hit of a valid click id may be purged or not written yet. Then the message_id is sufficient.
    return by_message_id.get((item.application_id, message_id)) or _unknown_target("message_id")


def _key(item: _Submission, target: ConversionTarget) -> ConversionKey:
    return (target.row_id, item.report.action, item.report.transaction_id)


def _count(counted: CountDelta, target: ConversionTarget, report: ConversionReport) -> None:
    """Add a conversion to the counts: `conversions`, `ends`, and `value:` with the currency (empty if there is none).

    Actions have no counts of their own, because a tracker may use any number of them. Only the end of a process has (`ends`)."""
    amounts: dict[str, int | Decimal] = {"conversions": 1}
    if report.ends_process:
        amounts["ends"] = 1
    if report.value is not None:
        amounts[f"value:{report.currency or ''}"] = report.value
    for metric, amount in amounts.items():
        counted.add(target.cohort_id, to_ms(report.at), metric, amount, message=target.row_id, link_set=target.link_set or 0)


def _unknown_target(field: str) -> ApiError:
    return ApiError(ErrorCode.MESSAGE_NOT_FOUND, details=[Detail(field, "does not belong to a message of this application")])


def _conflict(conversion_id: str) -> ApiError:
    return ApiError(
        ErrorCode.CONVERSION_CONFLICT,
        f"This action and transaction_id were reported for the message as {conversion_id}, with another value or currency.",
    )
