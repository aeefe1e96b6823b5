"""The rows of conversions and of their revisions, in the order of the columns in the statements of `queries.py`."""
# Tested by tests/conversions/test_service.py and tests/conversions/test_service_updates.py

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson

from shortener.conversions.parsing import ConversionReport
from shortener.conversions.queries import ConversionKey
from shortener.conversions.revisions import ConversionState
from shortener.ids import IdGenerator
from shortener.storage.types import to_ms


def new(state: ConversionState, application_id: int, report: ConversionReport, key: ConversionKey) -> tuple[Any, ...]:
    """Return the row of a new conversion, for `queries.insert_new_conversions`. `report` is the report that creates the
    conversion."""
    latest = state.latest
    _, action, transaction_id = key
    return (
        state.id,
        application_id,
        state.target.row_id,
        state.hit_id,
        action,
        transaction_id,
        latest.status,
        latest.disposition,
        money_text(latest.value),
        latest.currency,
        to_ms(latest.at),
        to_ms(latest.received_at),
        _json(latest.metadata),
        None if report.action == action else report.action,
        None if report.transaction_id == transaction_id else report.transaction_id,
        _json(latest.warnings),
        state.counted_as,
    )


def updated(state: ConversionState) -> tuple[object, ...]:
    """Return the row of a changed conversion, for `queries.update_conversions`."""
    latest = state.latest
    return (
        state.id,
        state.hit_id,
        latest.status,
        latest.disposition,
        money_text(latest.value),
        latest.currency,
        _json(latest.metadata),
        _json(latest.warnings),
        latest.revision,
        to_ms(latest.received_at),
        to_ms(latest.at),
        state.counted_as,
    )


def new_revisions(state: ConversionState, ids: IdGenerator) -> list[tuple[Any, ...]]:
    """Return one row for each earlier revision that is not stored yet, for `queries.insert_revisions`. Each row has a new id."""
    return [
        (
            ids(),
            state.id,
            one.revision,
            one.status,
            one.disposition,
            money_text(one.value),
            one.currency,
            to_ms(one.at),
            to_ms(one.received_at),
            _json(one.metadata),
            _json(one.warnings),
        )
        for one in state.earlier[state.stored_revisions :]
    ]


def money_text(value: Decimal | None) -> str | None:
    """Return an amount as text with all its digits and without an exponent."""
    return None if value is None else format(value, "f")


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()
