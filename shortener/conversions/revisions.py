"""This module decides how a report changes a conversion that is already stored. It changes objects in memory only.

A later report of the same conversion is a repeat, an update or a conflict:

- A repeat contains only values that are already stored. It may also equal an *earlier* revision, if it arrives within REPEAT_WINDOW
  after the latest change and has no timestamp that is later than all revisions. Such a report may have been sent before the latest
  change, so the result has a warning (docs/decisions/0018).
- An update contains a status, disposition, value or currency that differs from the stored one. A field that is absent from the
  report keeps its stored value.
- A conflict is a second, different value without a transaction_id. The two values may belong to two sales, so the report is
  rejected.
"""
# Tested by tests/conversions/test_service_updates.py

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from shortener.conversions import status_words
from shortener.conversions.parsing import ConversionReport
from shortener.conversions.queries import ConversionTarget, StoredConversion, StoredRevision
from shortener.model import mutable_record

#: For this time after the latest change, a report that equals an earlier revision counts as a repeat: the network may have sent it
#: before the change, or again because a response did not arrive.
REPEAT_WINDOW = timedelta(minutes=1)
#: The maximum number of revisions of one conversion. Without it, a sender in a loop could fill the database.
MAX_REVISIONS = 1000


@mutable_record
class ConversionState:
    """The state of a conversion in memory. The reports of a batch are applied to it.

    `earlier` are all revisions except the latest one, oldest first. The first `stored_revisions` of them are in the database."""

    id: int
    target: ConversionTarget
    hit_id: int | None
    at: datetime
    counted_as: str | None
    latest: StoredRevision
    earlier: list[StoredRevision] = field(default_factory=list)
    stored_revisions: int = 0


def existing_state(stored: StoredConversion, target: ConversionTarget, earlier: list[StoredRevision]) -> ConversionState:
    """Return the state of a stored conversion. `earlier` are its stored revisions except the latest one, oldest first."""
    return ConversionState(stored.id, target, stored.hit_id, stored.at, stored.counted_as, stored.latest, earlier, len(earlier))


def first_revision(report: ConversionReport, target: ConversionTarget, now: datetime) -> StoredRevision:
    """Return the first revision of a conversion, which `report` creates at the time `now`."""
    return StoredRevision(
        1,
        report.status,
        report.disposition or status_words.derive_disposition(report.status),
        report.value,
        report.currency,
        report.at,
        now,
        _metadata(report, target),
        None if target.is_erased else report.warnings or None,
    )


def _metadata(report: ConversionReport, target: ConversionTarget) -> Mapping[str, Any] | None:
    """Return the metadata of a report, or None. If its click_id does not identify a click on the message, the metadata contains
    the click_id.

    Metadata may be personal data, so a report on an erased message has none."""
    if target.is_erased:
        return None
    if report.click_id is None or target.hit_id is not None:
        return report.metadata
    return {**(report.metadata or {}), "click_id": report.click_id}


class TriedUpdate(NamedTuple):
    """A revision that a transaction has tried to store. `received_at` is the time at which its report arrived."""

    conversion: int
    revision: int
    received_at: datetime


def stored_by(state: ConversionState, report: ConversionReport, tried: Collection[TriedUpdate]) -> int | None:
    """A transaction whose commit seemed to fail may have stored this report. Return the number of the revision that such a
    transaction has stored, or None. `tried` contains the revisions that such transactions have tried to store."""
    stored = [*state.earlier, state.latest][: state.stored_revisions + 1]
    for one in stored:
        # The values must also be the same: if the earlier transaction was rolled back, another report may have stored a revision
        # with the same number and time.
        if TriedUpdate(state.id, one.revision, one.received_at) in tried and _is_same(_merge(one, report), one):
            return one.revision
    return None


class Effect(enum.Enum):
    """The effect of a report on a conversion that exists already."""

    UPDATE = "update"
    REPEAT = "repeat"
    REPEAT_OF_EARLIER = "repeat of an earlier revision"
    TOO_MANY_REVISIONS = "too many revisions"
    CONFLICT = "conflict"


#: The warnings for reports that were accepted without effect, although their values differ from the latest revision.
EFFECT_WARNINGS = {
    Effect.REPEAT_OF_EARLIER: "the report was not applied: it equals an earlier revision and arrived within "
    f"{REPEAT_WINDOW // timedelta(seconds=1)} seconds after a change, so it may have been sent before that change; "
    "send a timestamp, or send the report again later",
    Effect.TOO_MANY_REVISIONS: f"the report was not applied: the conversion has {MAX_REVISIONS} revisions",
}


def apply_report(state: ConversionState, report: ConversionReport, target: ConversionTarget, now: datetime) -> Effect:
    """Apply a report to a conversion at the time `now`, and return the effect. The state changes only if the effect is UPDATE."""
    latest = state.latest
    changed = _merge(latest, report)
    if _is_same(changed, latest):
        return Effect.REPEAT
    if not report.transaction_id and _is_other_value(latest, report):
        return Effect.CONFLICT
    is_late_repeat = any(_is_same(_merge(one, report), one) for one in state.earlier)
    is_newer = report.has_timestamp and all(report.at > one.at for one in (latest, *state.earlier))
    if is_late_repeat and not is_newer and now - latest.received_at <= REPEAT_WINDOW:
        return Effect.REPEAT_OF_EARLIER
    if latest.revision >= MAX_REVISIONS:
        return Effect.TOO_MANY_REVISIONS
    state.earlier.append(latest)
    state.latest = changed._replace(
        revision=latest.revision + 1,
        at=report.at,
        received_at=now,
        metadata=_metadata(report, target) or latest.metadata,
        warnings=None if target.is_erased else report.warnings or None,
    )
    state.hit_id = state.hit_id if state.hit_id is not None else target.hit_id
    return Effect.UPDATE


def _merge(revision: StoredRevision, report: ConversionReport) -> StoredRevision:
    """Return a copy of a revision in which the fields of the report replace the stored fields."""
    disposition = report.disposition or status_words.derive_disposition(report.status)
    if disposition is None and status_words.classify(report.status) != "pending":
        disposition = revision.disposition
    return revision._replace(
        status=report.status or revision.status,
        disposition=disposition,
        value=revision.value if report.value is None else report.value,
        currency=report.currency or revision.currency,
    )


def _is_same(one: StoredRevision, other: StoredRevision) -> bool:
    return (
        (one.status or "").casefold() == (other.status or "").casefold()
        and one.disposition == other.disposition
        and one.value == other.value
        and one.currency == other.currency
    )


def _is_other_value(latest: StoredRevision, report: ConversionReport) -> bool:
    """Return whether the stored revision and the report both have a value, and the values or their currencies differ."""
    if latest.value is None or report.value is None:
        return False
    return latest.value != report.value or (None not in (latest.currency, report.currency) and latest.currency != report.currency)
