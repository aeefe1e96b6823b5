"""Recording conversions: each once, with its event and its counts, in a transaction that many requests share.

A conversion is told apart by message, action and transaction_id; a unique index decides which of several reports is the first,
in one process or many. A repeat answers as the first did and raises nothing; a repeat with another value or currency (none is
another than some) is CONVERSION_CONFLICT. A refund is a conversion of its own, under another action or transaction_id.

A conversion may come before the click, without one, or long after the link expired. Raises StoreUnavailable when nothing was
kept; repeating a request whose answer was lost is safe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection

from shortener.conversions import queries
from shortener.conversions.parsing import ConversionReport
from shortener.conversions.queries import ConversionTarget, Key
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
    """The answer to an intake. `duplicate`: it had been recorded before."""

    conversion_id: str
    message_id: str
    duplicate: bool


@dataclass(frozen=True, slots=True)
class _Item:
    application_id: int
    intake: ConversionReport
    hit: int | None


def serialize_conversion(conversion: int) -> str:
    """The conversion_id of a row id."""
    return f"cnv_{encode(conversion)}"


class Conversions:
    def __init__(
        self, database: Database, ids: IdGenerator, click_ids: ClickIds, clock: Clock, on_events: Callable[[], None]
    ) -> None:
        self._ids = ids
        self._click_ids = click_ids
        self._clock = clock
        self._on_events = on_events
        self._group: GroupCommit[_Item, ConversionResult, int] = GroupCommit(database, self._record, after=self._committed)

    async def ingest(self, application_id: int, intake: ConversionReport) -> ConversionResult:
        """Record the conversion, or find that it was. Durable when it returns.

        Raises ApiError MESSAGE_NOT_FOUND, CONVERSION_CONFLICT, INVALID_REQUEST (message_id and click_id disagree)."""
        hit = None
        if intake.click_id is not None:
            hit = self._click_ids.decode(intake.click_id)
            if hit is None:
                raise _unknown("click_id")
        return await self._group.submit(_Item(application_id, intake, hit))

    def _committed(self, events: int) -> None:
        if events:
            self._on_events()

    # In the transaction.

    def _record(self, connection: Connection, items: Sequence[_Item]) -> tuple[list[ConversionResult | Exception], int]:
        """Return one result for each item, and the number of events."""
        targets = _find_targets(connection, items)
        received_at = to_ms(self._clock())
        firsts: dict[Key, _Item] = {}
        rows: dict[Key, tuple[Any, ...]] = {}
        for item, target in zip(items, targets, strict=True):
            if isinstance(target, ConversionTarget) and (key := _key(item, target)) not in rows:
                firsts[key] = item
                rows[key] = _row(self._ids(), item, target, received_at)
        # In order, so that two processes with the same keys cannot deadlock.
        written = queries.insert_new(connection, [rows[key] for key in sorted(rows)])
        # What stands must be read only where a key was taken.
        stored = queries.stored(connection, rows) if written < len(rows) else {}

        results: list[ConversionResult | Exception] = []
        new: list[Event] = []
        tally = CountDelta()
        for item, target in zip(items, targets, strict=True):
            if isinstance(target, ApiError):
                results.append(target)
                continue
            intake, key = item.intake, _key(item, target)
            first = firsts[key]
            mine: int = rows[key][0]
            stands = stored.get(key) or queries.StoredConversion(mine, first.intake.value, first.intake.currency)
            if first is item and stands.id == mine:
                results.append(ConversionResult(serialize_conversion(mine), target.message_id, duplicate=False))
                new.append(self._event(mine, item, target))
                _count(tally, target.cohort_id, intake)
            elif (stands.value, stands.currency) == (intake.value, intake.currency):
                results.append(ConversionResult(serialize_conversion(stands.id), target.message_id, duplicate=True))
            else:
                results.append(_conflict(serialize_conversion(stands.id)))
        events.append(connection, new, count_deltas.rows(self._ids(), tally))
        return results, len(new)

    def _event(self, conversion: int, item: _Item, target: ConversionTarget) -> Event:
        return Event(
            id=self._ids(),
            application_id=item.application_id,
            topics=Topic.CONVERSION,
            at=item.intake.at,
            message_id=target.row,
            link_id=target.link,
            hit_id=target.hit,
            conversion_id=conversion,
        )


def _row(conversion: int, item: _Item, target: ConversionTarget, received_at: int) -> tuple[Any, ...]:
    intake = item.intake
    return (
        conversion,
        item.application_id,
        target.row,
        target.hit,
        intake.action,
        intake.transaction_id,
        intake.status,
        intake.disposition,
        None if intake.value is None else format(intake.value, "f"),
        intake.currency,
        to_ms(intake.at),
        received_at,
        None if intake.metadata is None else orjson.dumps(intake.metadata).decode(),
    )


def _find_targets(connection: Connection, items: Sequence[_Item]) -> list[ConversionTarget | ApiError]:
    hits = {item.hit for item in items if item.hit is not None}
    names = {(item.application_id, item.intake.message_id) for item in items if item.intake.message_id is not None}
    by_hit = queries.by_hit(connection, hits) if hits else {}
    by_name = queries.by_message_id(connection, names) if names else {}
    return [_target_of(item, by_hit, by_name) for item in items]


def _target_of(
    item: _Item, by_hit: Mapping[int, ConversionTarget], by_name: Mapping[tuple[int, str], ConversionTarget]
) -> ConversionTarget | ApiError:
    message_id = item.intake.message_id
    clicked = None if item.hit is None else by_hit.get(item.hit)
    if clicked is not None:
        if clicked.application_id != item.application_id:
            return _unknown("click_id")
        if message_id not in (None, clicked.message_id):
            detail = Detail("click_id", "is of a click on another message than message_id")
            return ApiError(ErrorCode.INVALID_REQUEST, details=[detail])
        return clicked
    if message_id is None:
        return _unknown("click_id")
    # A click id of ours whose hit is gone (purged), or not written yet: the message_id is enough.
    return by_name.get((item.application_id, message_id)) or _unknown("message_id")


def _key(item: _Item, target: ConversionTarget) -> Key:
    return (target.row, item.intake.action, item.intake.transaction_id)


def _count(tally: CountDelta, cohort: int, intake: ConversionReport) -> None:
    """Actions are the tracker's own words, without number, so they are not counted apart, save the end of a process (`ends`).
    No currency: the metric `value:`."""
    at = to_ms(intake.at)
    tally.add(cohort, at, "conversions")
    if intake.ends_process:
        tally.add(cohort, at, "ends")
    if intake.value is not None:
        tally.add(cohort, at, f"value:{intake.currency or ''}", intake.value)


def _unknown(field: str) -> ApiError:
    return ApiError(ErrorCode.MESSAGE_NOT_FOUND, details=[Detail(field, "does not lead to a message of this application")])


def _conflict(conversion_id: str) -> ApiError:
    return ApiError(
        ErrorCode.CONVERSION_CONFLICT,
        f"This action and transaction_id were reported for the message as {conversion_id}, with another value or currency.",
    )
