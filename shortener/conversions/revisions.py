"""This module decides how a report changes a conversion that is already stored. It changes objects in memory only.

A later report of the same conversion is a repeat, an update or a conflict:

- A repeat contains only values that are already stored. A report that equals an *earlier* revision is also a repeat if it arrives
  within REPEAT_WINDOW after the latest change, unless it has a newer timestamp. The report may have been sent before the latest
  change, so the result has a warning (docs/decisions/0018).
- An update contains a status, disposition, value or currency that differs from the stored one. A field that is absent from the
  report keeps its value.
- A conflict is a second, different value without a transaction_id. The values may belong to two sales, so the report is rejected.
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

#: For this time after the latest change, a report that equals an earlier revision counts as a repeat. The network may have sent the
#: report before the change, or may have sent it again because it did not receive the response.
REPEAT_WINDOW = timedelta(minutes=1)
#: The maximum number of revisions of one conversion, so that a sender in a loop does not fill the database.
MAX_REVISIONS = 1000


@mutable_record
class ConversionState:
    """A conversion in memory, to which the reports of a batch are applied.

    `earlier` are the revisions before the latest revision, oldest first. The first `stored_revisions` of them are in the
    database."""

    id: int
    target: ConversionTarget
    hit_id: int | None
    at: datetime
    counted_as: str | None
    latest: StoredRevision
    earlier: list[StoredRevision] = field(default_factory=list)
    stored_revisions: int = 0


def existing_state(stored: StoredConversion, target: ConversionTarget, earlier: list[StoredRevision]) -> ConversionState:
    """Return the state of a stored conversion. `earlier` are its stored revisions before the latest revision, oldest first."""
    return ConversionState(stored.id, target, stored.hit_id, stored.at, stored.counted_as, stored.latest, earlier, len(earlier))


def first_revision(report: ConversionReport, target: ConversionTarget, now: datetime) -> StoredRevision:
    """Return the revision that the first report of a conversion creates at the time `now`."""
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
    """Return the metadata of a report. If its click_id does not identify a click on the message, add the click_id to the metadata.

    Metadata may be personal data, so no metadata is stored for a message that was erased."""
    if target.is_erased:
        return None
    if report.click_id is None or target.hit_id is not None:
        return report.metadata
    return {**(report.metadata or {}), "click_id": report.click_id}


class TriedUpdate(NamedTuple):
    """A revision that a transaction has tried to store at the time `received_at`."""

    conversion: int
    revision: int
    received_at: datetime


def stored_by(state: ConversionState, report: ConversionReport, tried: Collection[TriedUpdate]) -> int | None:
    """Return the number of the revision that this report has stored in an earlier transaction whose commit seemed to fail. Return
    None if the report has stored no revision. `tried` contains the revisions that such transactions have tried to store."""
    stored = [*state.earlier, state.latest][: state.stored_revisions + 1]
    for one in stored:
        # The values are compared too: if the earlier transaction was rolled back, another report may have stored a revision with
        # the same number and time.
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


#: The warnings for reports that change nothing although their values differ from the values of the latest revision.
EFFECT_WARNINGS = {
    Effect.REPEAT_OF_EARLIER: "the report was not applied: it equals an earlier revision and arrived within "
    f"{REPEAT_WINDOW // timedelta(seconds=1)} seconds after a change, so it may have been sent before that change; "
    "send a timestamp, or send the report again later",
    Effect.TOO_MANY_REVISIONS: f"the report was not applied: the conversion has {MAX_REVISIONS} revisions",
}


def apply_report(state: ConversionState, report: ConversionReport, target: ConversionTarget, now: datetime) -> Effect:
    """Apply a report to a conversion at the time `now`, and return its effect. Only an UPDATE changes the state."""
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
