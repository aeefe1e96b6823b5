"""This module computes statistics reports: totals, and figures by day, hour of day, country, campaign, destination and label. All
figures are sums of rolled-up counts.

With Basis.EVENT, each event counts at its own time: a message when it was created, a click when it was clicked. Therefore the
clicks of a day may belong to messages of the day before, and a rate of a short period may exceed 1. With Basis.SENT, each event
counts at the time when its message was created, so no rate exceeds 1.

Recent events are included, because a report also reads the count deltas that `counts.fold` has not added yet. It reads at most
MAX_PENDING_ROWS rows of them. The fan-out counts the time from sending to click a moment after the click, so a report also reads up
to MAX_PENDING_CLICKS clicks whose time is not counted yet.

In the response, `complete` is false if events are missing in the report. There are five cases: there are more rows of count
deltas than MAX_PENDING_ROWS; there are more such clicks than MAX_PENDING_CLICKS; a row is unreadable or quarantined; a background
job has not yet rolled up all counts that an older release wrote; or a background job has not yet counted all conversions for
`converted_messages`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import BigInteger, ColumnElement, Connection, Select, Text, case, cast, func, select, type_coerce

from shortener.conversions.first_conversions import read_progress
from shortener.model import record
from shortener.outbox.count_deltas import TIME_SLOT_MS
from shortener.outbox.link_sets import MAX_NAMES, OTHER
from shortener.reporting.counts import time_slots
from shortener.reporting.delta_rows import count_quarantined, read_events
from shortener.reporting.figures import Figures
from shortener.reporting.local_time import (
    FIRST_DAY,
    SLOT_SECONDS,
    constant_minutes,
    constant_offsets,
    days,
    hour_starts,
    local,
    local_time,
)
from shortener.reporting.pending_clicks import read_pending_clicks
from shortener.reporting.queries import fetch_packed
from shortener.reporting.rollup_data import EXACT, VALUE, PeriodSums
from shortener.reporting.rollups import (
    Basis,
    CohortName,
    Kind,
    Level,
    Piece,
    read_cohorts,
    read_link_sets,
    read_not_rolled_up,
    series,
    split,
    sum_periods,
)
from shortener.storage.schema import cohorts, count_groups, counts
from shortener.storage.types import from_ms
from shortener.storage.values_table import values_table

MAX_PENDING_CLICKS = 1000  # One report adds the times of at most this many clicks that the fan-out has not counted yet.
MAX_PENDING_ROWS = 1000  # The maximum number of rows of count deltas that one report adds to the rolled-up counts.
#: The maximum number of counts that one report adds itself, because an older release wrote them and they are not rolled up yet.
MAX_MISSING_ROWS = 20_000
_NEWEST_COHORTS = 10_000  # To suggest campaigns, only this number of the newest cohorts is examined.
MAX_DAYS = 366  # The maximum number of days in a daily report.


@record
class StatisticsFilter:
    """The conditions of a statistics report. The time slots (15 minutes) that contain `since` and `until` are counted
    completely."""

    application_id: int
    since: datetime
    until: datetime
    campaign: str | None = None
    source: str | None = None
    basis: Basis = Basis.EVENT

    @property
    def kind(self) -> Kind:
        """The kind of the groups that are added up to the totals of the report."""
        return Kind.APPLICATION if self.campaign is None else Kind.CAMPAIGN

    def includes(self, cohort: CohortName) -> bool:
        """Return whether the messages of a cohort count in the report."""
        return (
            cohort.application_id == self.application_id
            and self.campaign in (None, cohort.campaign)
            and self.source in (None, cohort.source)
        )

    @property
    def within(self) -> range:
        """The time slots of the statistics report."""
        return time_slots(self.since, self.until)

    def cohort_conditions(self) -> list[ColumnElement[bool]]:
        """Return the SQL conditions of the report on columns of the table `cohorts`."""
        conditions = [cohorts.c.application_id == self.application_id]
        if self.campaign is not None:
            conditions.append(cohorts.c.campaign == self.campaign)
        if self.source is not None:
            conditions.append(cohorts.c.source == self.source)
        return conditions


Group = TypeVar("Group", bound=Hashable)


@record
class StatisticsReport(Generic[Group]):
    """The figures of a statistics report by group. `complete` is true if no events are missing."""

    groups: Mapping[Group, Figures]
    complete: bool


def totals(connection: Connection, scope: StatisticsFilter) -> StatisticsReport[None]:
    """Return the totals as one group with the key None.

    Run this and each other report in one read transaction, so that counts and count deltas are consistent."""
    figures = Figures()
    for sums in _sum_groups(connection, scope, [group.id for group in _find_groups(connection, scope, scope.kind)]).values():
        figures.add_sums(sums)
    return _with_pending(connection, scope, {None: figures}, lambda event: (None,))


def by_country(connection: Connection, scope: StatisticsFilter) -> StatisticsReport[str]:
    """Return groups by the ISO 3166 code of the recipient's country ("" if unknown). Countries without counts are left out."""
    groups: dict[str, Figures] = {}
    if scope.campaign is not None and scope.basis is Basis.EVENT:
        for country, metric, value, amount in fetch_packed(connection, _cohort_sums(scope, cohorts.c.country)):
            groups.setdefault(country, Figures()).add(metric, _amount(value, amount))
        in_rollups = False
    else:
        chosen = _find_groups(connection, scope, Kind.COUNTRY if scope.campaign is None else Kind.COHORT)
        _add_groups(connection, scope, groups, {group.id: group.country for group in chosen})
        in_rollups = True
    return _with_pending(connection, scope, groups, lambda event: (event.cohort.country,), in_rollups=in_rollups)


def by_campaign(connection: Connection, scope: StatisticsFilter, campaigns: Collection[str]) -> StatisticsReport[str]:
    """Return one group for each of these campaigns ("" means messages without a campaign). Campaigns without counts are left
    out."""
    groups: dict[str, Figures] = {}
    chosen = [group for group in _find_groups(connection, scope, Kind.CAMPAIGN, campaigns) if group.campaign in campaigns]
    _add_groups(connection, scope, groups, {group.id: group.campaign for group in chosen})

    def campaign_of(event: _Pending) -> tuple[str, ...]:
        return (event.cohort.campaign,) if event.cohort.campaign in campaigns else ()

    return _with_pending(connection, scope, groups, campaign_of)


def by_destination(connection: Connection, scope: StatisticsFilter, *, merges_rest: bool = True) -> StatisticsReport[str]:
    """Return groups by destination (host and path): the MAX_NAMES destinations with the most messages, and the group OTHER for
    the rest. A message with several destinations is in the group of each of them. Its first click is only in the group of the
    clicked destination.

    If `merges_rest` is false, return all groups. The group OTHER then contains only the messages whose destination was stored as
    "other", because their campaign has too many destinations. A list with the filter `destination=other` shows exactly these
    messages."""
    return _by_name(connection, scope, Kind.DESTINATION, merges_rest=merges_rest)


def by_label(connection: Connection, scope: StatisticsFilter) -> StatisticsReport[str]:
    """Return groups by label, in the same way as `by_destination`. Links without a label are not included."""
    return _by_name(connection, scope, Kind.LABEL)


def _by_name(connection: Connection, scope: StatisticsFilter, kind: Kind, *, merges_rest: bool = True) -> StatisticsReport[str]:
    groups: dict[str, Figures] = {}
    chosen = _find_groups(connection, scope, kind)
    _add_groups(connection, scope, groups, {group.id: group.name for group in chosen})
    report = _with_pending(
        connection, scope, groups, lambda event: event.destinations if kind is Kind.DESTINATION else event.labels
    )
    if not merges_rest:
        return report
    ordered = sorted(report.groups, key=lambda name: (-report.groups[name]["messages"], name))
    shown = [name for name in ordered if name != OTHER][:MAX_NAMES]
    limited = {name: report.groups[name] for name in shown}
    for name in ordered:
        if name not in limited:
            limited.setdefault(OTHER, Figures()).merge(report.groups[name])
    return StatisticsReport(limited, report.complete)


def daily(connection: Connection, scope: StatisticsFilter, zone: tzinfo) -> StatisticsReport[date]:
    """Return one group of figures for each day of the period in the time zone `zone`, in order. The first and the last day may be
    incomplete."""
    groups: dict[date, Figures] = {day: Figures() for day, _ in days(scope.since, scope.within, zone)}
    for number, sums in _sum_local_time(connection, scope, zone, 86400, None).items():
        groups[FIRST_DAY + timedelta(days=number)].add_sums(sums)
    return _with_pending(connection, scope, groups, lambda event: (local(event.slot, zone).date(),))


def hourly(connection: Connection, scope: StatisticsFilter, zone: tzinfo) -> StatisticsReport[datetime]:
    """Return one group of figures for each hour of the period, in order. The key of a group is the UTC time at which the hour
    begins.

    Hours begin with minute 0 in the time zone `zone`, whose UTC offset may contain half an hour. If the offset changes by half an
    hour, an hour also begins at the change. Hours without counts are left out."""
    start_of_hour = hour_starts(scope.within, zone)
    groups: dict[datetime, Figures] = {}
    for part, minutes in constant_minutes(scope.within, zone):
        within_part = replace(scope, since=from_ms(part.start * TIME_SLOT_MS), until=from_ms(part.stop * TIME_SLOT_MS))
        shifted = timezone(timedelta(seconds=minutes))
        for number, sums in sorted(_sum_local_time(connection, within_part, shifted, 3600, None).items()):
            slot = max((number * 3600 - minutes) // SLOT_SECONDS, part.start)
            groups.setdefault(start_of_hour(slot), Figures()).add_sums(sums)
    return _with_pending(connection, scope, groups, lambda event: (start_of_hour(event.slot),))


def by_hour(connection: Connection, scope: StatisticsFilter, zone: tzinfo) -> StatisticsReport[int]:
    """Return one group of figures for each hour of the day, 0 to 23, in the time zone `zone`."""
    groups = {hour: Figures() for hour in range(24)}
    for hour, sums in _sum_local_time(connection, scope, zone, 3600, 24).items():
        groups[hour].add_sums(sums)
    return _with_pending(connection, scope, groups, lambda event: (local(event.slot, zone).hour,))


def list_campaigns(connection: Connection, application_id: int, limit: int, below: int | None = None) -> list[tuple[int, str]]:
    """Return the number and the name of campaigns, newest first. If `below` is not None, return only campaigns whose numbers are
    smaller than `below`.

    The number of a campaign is the id of its first cohort."""
    number = func.min(cohorts.c.id)
    statement = select(number, cohorts.c.campaign).where(cohorts.c.application_id == application_id).group_by(cohorts.c.campaign)
    if below is not None:
        statement = statement.having(number < below)
    return [(row[0], row[1]) for row in connection.execute(statement.order_by(number.desc()).limit(limit))]


def find_newest_campaigns(connection: Connection, applications: Collection[int], limit: int) -> list[str]:
    """Return the names of the newest campaigns of these applications, newest first. To be fast, the query examines only the
    _NEWEST_COHORTS newest cohorts of the installation."""
    c = cohorts.c
    oldest = select(func.coalesce(func.max(c.id), 0) - _NEWEST_COHORTS).scalar_subquery()
    latest = func.max(c.id)
    statement = select(c.campaign).where(c.id > oldest, c.application_id.in_(list(applications)), c.campaign != "")
    return list(connection.scalars(statement.group_by(c.campaign).order_by(latest.desc()).limit(limit)))


class CampaignPage(NamedTuple):
    """A page of campaigns with their counts, newest first. `numbers` contains the numbers of these campaigns (see
    `list_campaigns`). The numbers of the next page are smaller than `next`. On the last page, `next` is None."""

    campaigns: list[tuple[str, Figures]]
    numbers: list[int]
    next: int | None
    complete: bool


def campaign_page(connection: Connection, scope: StatisticsFilter, limit: int, below: int | None = None) -> CampaignPage:
    """Return the next `limit` campaigns that have counts in the period."""
    found: list[tuple[str, Figures]] = []
    numbers: list[int] = []
    complete = True
    while True:
        listed = list_campaigns(connection, scope.application_id, limit + 1, below)
        chosen = [name for _, name in listed[:limit] if scope.campaign in (None, name)]
        report = by_campaign(connection, scope, chosen)
        complete = complete and report.complete
        for number, name in listed[:limit]:
            below = number
            if name in report.groups and any(report.groups[name].counted.values()):
                found.append((name, report.groups[name]))
                numbers.append(number)
                if len(found) == limit:
                    return CampaignPage(found, numbers, number if listed[-1][0] != number else None, complete)
        if len(listed) <= limit:
            return CampaignPage(found, numbers, None, complete)


def _sum_local_time(
    connection: Connection, scope: StatisticsFilter, zone: tzinfo, seconds: int, modulo: int | None
) -> dict[int, PeriodSums]:
    """Return the sums by local time. The key is the number of the local hour if `seconds` is 3,600, and the number of the local
    day if it is 86,400.

    If `modulo` is not None, the key is this number modulo `modulo`: with 3,600 and 24, it is the hour of the day."""
    sums: dict[int, PeriodSums] = {}
    groups = [group.id for group in _find_groups(connection, scope, scope.kind)]
    if not groups:
        return sums
    for within, offset in constant_offsets(scope.within, zone):
        longest = next(level for level in reversed(Level) if (level is not Level.DAY or seconds == 86400) and _fits(level, offset))
        for piece in split(within, longest):
            length = piece.level.slots * SLOT_SECONDS
            _sum_piece(connection, scope, sums, groups, piece, local_time(length, offset, seconds, modulo))
    return sums


def _fits(level: Level, offset: int) -> bool:
    return offset % (level.slots * SLOT_SECONDS) == 0


class _Group(NamedTuple):
    """A group of rolled-up counts: a row of the table `count_groups`."""

    id: int
    campaign: str
    country: str
    name: str


def _find_groups(
    connection: Connection, scope: StatisticsFilter, kind: Kind, campaigns: Collection[str] | None = None
) -> list[_Group]:
    c = count_groups.c
    statement = select(c.id, c.campaign, c.country, c.name).where(c.application_id == scope.application_id, c.kind == str(kind))
    if scope.campaign is not None:
        statement = statement.where(c.campaign == scope.campaign)
    if campaigns is not None:
        chosen = values_table(connection, [(campaign,) for campaign in campaigns], name=Text)
        statement = statement.where(c.campaign.in_(select(chosen.c.name)))
    if scope.source is not None:
        statement = statement.where(c.source == scope.source)
    return [_Group(*row) for row in fetch_packed(connection, statement)]


def _add_groups(connection: Connection, scope: StatisticsFilter, figures: dict[str, Figures], names: Mapping[int, str]) -> None:
    """Add the sums of rolled-up counts to `figures`. `names` contains the key in `figures` of each group, by group id."""
    for group, sums in _sum_groups(connection, scope, names).items():
        figures.setdefault(names[group], Figures()).add_sums(sums)


def _sum_groups(connection: Connection, scope: StatisticsFilter, groups: Collection[int]) -> dict[int, PeriodSums]:
    """Return the sums of the rolled-up counts for the period of the report, by group id."""
    sums: dict[int, PeriodSums] = {}
    if groups:
        for piece in split(scope.within):
            _sum_piece(connection, scope, sums, groups, piece, lambda group, period: group)
    return sums


def _sum_piece(
    connection: Connection,
    scope: StatisticsFilter,
    sums: dict[int, PeriodSums],
    groups: Collection[int],
    piece: Piece,
    key_of: Callable[[int, int], int],
) -> None:
    """Add the rolled-up counts of a piece, whose periods have the same length, to `sums`."""
    sum_periods(connection, sums, list(groups), series(scope.basis, piece.level), piece.start, piece.stop, key_of)


_is_value = counts.c.metric.startswith(VALUE)


def _cohort_sums(scope: StatisticsFilter, *group: ColumnElement[Any]) -> Select[Any]:
    """Return a statement that adds up the counts of all cohorts of the report. It selects (group, metric, NULL, sum).

    Amounts of money must be added exactly, by the caller. For them, the statement selects (group, metric, amount, number of
    counts with this amount)."""
    value = case((_is_value, type_coerce(counts.c.amount, Text)))
    amount = case((_is_value, 1), else_=cast(type_coerce(counts.c.amount, Text), BigInteger))
    by = [*group, counts.c.metric, value]
    within = scope.within
    return (
        select(*by, func.sum(amount))
        .join_from(counts, cohorts, cohorts.c.id == counts.c.cohort_id)
        .where(*scope.cohort_conditions(), counts.c.quarter >= within.start, counts.c.quarter < within.stop)
        .group_by(*by)
    )


def _amount(value: str | None, amount: int) -> Decimal:
    return Decimal(amount) if value is None else EXACT.multiply(Decimal(value), Decimal(amount))


class _Pending(NamedTuple):
    """A counted event that the rolled-up counts do not contain yet. `slot` is the time slot at which it counts."""

    cohort: CohortName
    slot: int
    destinations: tuple[str, ...]
    labels: tuple[str, ...]


def _with_pending(
    connection: Connection,
    scope: StatisticsFilter,
    groups: dict[Group, Figures],
    groups_of: Callable[[_Pending], tuple[Group, ...]],
    *,
    in_rollups: bool = True,
) -> StatisticsReport[Group]:
    """Add the amounts that are not rolled up yet to `groups`, and return the report. `groups_of` returns the groups in which an
    event counts.

    `in_rollups` says from where `groups` was read: true for the rolled-up counts, false for the table `counts`."""
    ids, amounts, is_readable = read_events(connection, MAX_PENDING_ROWS + 1)
    complete = len(ids) <= MAX_PENDING_ROWS and is_readable
    complete = complete and not count_quarantined(connection) and not read_progress(connection).is_behind
    within = scope.within
    clicks, is_all = read_pending_clicks(connection, scope.application_id, MAX_PENDING_CLICKS)
    complete = complete and is_all
    for key, number in clicks.items():
        amounts[key] = amounts.get(key, Decimal()) + number
    if in_rollups and scope.basis is Basis.EVENT:
        missing, is_all = read_not_rolled_up(connection, within, MAX_MISSING_ROWS)
        complete = complete and is_all
        for key, amount in missing.items():
            amounts[key] = EXACT.add(amounts[key], amount) if key in amounts else amount
    pending = {
        key: (slot, amount)
        for key, amount in amounts.items()
        if (slot := key.slot if scope.basis is Basis.EVENT else key.sent) is not None and slot in within
    }
    if not pending:
        return StatisticsReport(groups, complete)
    names = read_cohorts(connection, {key.cohort for key in pending})
    link_sets = read_link_sets(connection, {key.link_set for key in pending})
    for key, (slot, amount) in pending.items():
        cohort = names.get(key.cohort)
        if cohort is None or not scope.includes(cohort):
            continue
        links = link_sets.get(key.link_set, [])
        destinations = tuple({destination for destination, _ in links})
        labels = tuple({label for _, label in links if label is not None})
        for group in groups_of(_Pending(cohort, slot, destinations, labels)):
            groups.setdefault(group, Figures()).add(key.metric, amount)
    return StatisticsReport(groups, complete)
