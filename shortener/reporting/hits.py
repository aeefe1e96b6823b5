"""This module lists hits, newest first, in keyset pages. The list for a figure of the statistics contains exactly the hits that
the figure counts.

To fill a page, the module reads hits in the order of their ids, newest first, and examines at most MAX_SCANNED_ROWS hits. If few
of them match the filter, the page contains fewer hits than requested, or none, although there is a next page. The hits of one
message or of one link are found with indexes.
"""

# Tested by tests/web/test_lists.py

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Connection, and_, exists, func, select, union_all

from shortener.clicks.device_counts import AGENT, device_metrics
from shortener.clicks.hit_metrics import HIT_METRIC, IS_CLICK, IS_FIRST_CLICK, hit_metric
from shortener.clicks.networks import UNKNOWN_NETWORK, Networks
from shortener.clicks.user_agents import device_and_browser
from shortener.ids import first_id_at
from shortener.model import HitFlag, Verdict, record
from shortener.outbox.count_deltas import time_to_click
from shortener.reporting.counts import slot_edges
from shortener.reporting.figures import click_time_group
from shortener.reporting.link_set_names import find_link_sets
from shortener.reporting.queries import id_range
from shortener.reporting.rollups import Basis
from shortener.storage.schema import cohorts, first_clicks, hits, links, messages, other_hits
from shortener.storage.types import AnyRow, to_iso, to_ms

MAX_SCANNED_ROWS = 10_000  # The maximum number of hits that are read to fill one page.

#: The figures of the statistics whose hits can be listed.
HitMetric = Literal["clicks", "suspected_hits", "ignored_hits", "late_hits", "clicked_messages", "clicked_links"]
HIT_METRICS: tuple[HitMetric, ...] = get_args(HitMetric)


@record
class HitFilter:
    """The conditions of a list of hits. The time slots (15 minutes) that contain `since` and `until` are included completely.

    `basis` says which time must be in the period: the time of the hit or of its message. `message` is a message_id. `device` and
    `browser` are the names that the statistics use.

    `click_time` selects one of several groups of times to click, as in `Figures.clicked_within`: it contains the upper limits of
    the groups in seconds, and the index of the selected group. It is permitted only for the metric `clicked_messages`.

    SQL cannot check `device`, `browser` and `click_time`. They are checked in Python after a page was read."""

    application_id: int
    since: datetime | None = None
    until: datetime | None = None
    basis: Basis = Basis.EVENT
    metric: HitMetric | None = None
    verdict: Verdict | None = None
    rule: str | None = None
    campaign: str | None = None
    source: str | None = None
    country: str | None = None
    destination: str | None = None
    label: str | None = None
    message: str | None = None
    code: str | None = None
    device: str | None = None
    browser: str | None = None
    click_time: tuple[Sequence[int], int] | None = None


@record
class HitPage:
    """A page of hits with the columns HIT_COLUMNS. The ids of the next page are smaller than `next`. On the last page, `next` is
    None."""

    rows: Sequence[AnyRow]
    next: int | None


HIT_COLUMNS = (
    hits.c.id,
    hits.c.at,
    hits.c.verdict,
    hits.c.rule,
    hits.c.flags,
    hits.c.first_verdict,
    hits.c.first_rule,
    hits.c.address,
    hits.c.user_agent,
    AGENT.label("agent"),
    hits.c.country.label("click_country"),
    links.c.code,
    links.c.url,
    links.c.label,
    links.c.message_id.label("message_row"),
    messages.c.message_id,
    messages.c.delivered_at,
    messages.c.sent_at,
    messages.c.created_at,
    messages.c.state,
    cohorts.c.campaign,
    cohorts.c.source,
    cohorts.c.country,
)


def list_hits(connection: Connection, filters: HitFilter, limit: int, below: int | None = None) -> HitPage:
    """Return the newest `limit` hits that match the filter. If `below` is not None, return only hits whose ids are smaller than
    `below`."""
    candidates, floor = _candidates(connection, filters, below)
    statement = (
        select(*HIT_COLUMNS)
        .join_from(hits, links, links.c.id == hits.c.link_id)
        .join(messages, messages.c.id == links.c.message_id)
        .join(cohorts, cohorts.c.id == links.c.cohort_id)
        .where(hits.c.id.in_(candidates), *_conditions(connection, filters))
        .order_by(hits.c.id.desc())
        .limit(limit + 1)
    )
    rows = connection.execute(statement).all()
    if len(rows) > limit:
        rows, floor = rows[:limit], rows[limit - 1].id
    return HitPage([row for row in rows if _matches(row, filters)], floor)


def count_rules(connection: Connection, filters: HitFilter) -> dict[str, int] | None:
    """Return the number of hits that match the filter, for each rule that classified them. The rule with the most hits is first.

    Return None if not all hits can be examined, or if the filter contains conditions that SQL cannot check."""
    candidates, floor = _candidates(connection, filters, None)
    if floor is not None or filters.device is not None or filters.browser is not None or filters.click_time is not None:
        return None
    examined = select(func.count()).select_from(candidates.limit(MAX_SCANNED_ROWS + 1).subquery())
    # Only the hits of one link or one message can exceed this limit, because `_candidates` limits the number in all other cases.
    if (connection.scalar(examined) or 0) > MAX_SCANNED_ROWS:
        return None
    number = func.count()
    statement = (
        select(hits.c.rule, number)
        .join_from(hits, links, links.c.id == hits.c.link_id)
        .join(cohorts, cohorts.c.id == links.c.cohort_id)
        .where(hits.c.id.in_(candidates), *_conditions(connection, filters))
        .group_by(hits.c.rule)
        .order_by(number.desc(), hits.c.rule)
    )
    return {row[0]: row[1] for row in connection.execute(statement)}


def _candidates(connection: Connection, filters: HitFilter, below: int | None) -> tuple[Any, int | None]:
    """Return a statement that selects the ids of the hits to examine. Also return the smallest of the selected ids if the period
    has older hits that are not examined; otherwise None."""
    low, high = _id_limits(filters, below)
    if filters.message is not None or filters.code is not None:
        return _hits_of(connection, filters, low, high), None
    in_range = select(hits.c.id).where(hits.c.id >= low, hits.c.id < high).order_by(hits.c.id.desc())
    floor = connection.scalar(in_range.offset(MAX_SCANNED_ROWS - 1).limit(1))
    return select(hits.c.id).where(hits.c.id >= (low if floor is None else floor), hits.c.id < high), floor


def _matches(row: AnyRow, filters: HitFilter) -> bool:
    """Return whether a row fulfils the conditions that SQL cannot check."""
    if filters.device is not None or filters.browser is not None:
        metrics = device_metrics(row.agent, None)
        if filters.device is not None and f"device:{filters.device}" not in metrics:
            return False
        if filters.browser is not None and f"browser:{filters.browser}" not in metrics:
            return False
    if filters.click_time is not None:
        limits, group = filters.click_time
        sent_at = None if row.sent_at is None else to_ms(row.sent_at)
        metric = time_to_click(to_ms(row.at), sent_at, to_ms(row.created_at), row.state)
        return click_time_group(int(metric.partition(":")[2]), limits) == group
    return True


def serialize_hit(row: AnyRow, click_id: Callable[[int], str], networks: Networks | None = None) -> dict[str, Any]:
    """Return a row of HIT_COLUMNS in the format of the API.

    `networks` finds the country and the network of the client by its IP address."""
    network = UNKNOWN_NETWORK if networks is None else networks.find(row.address)
    device, browser = device_and_browser(row.agent) if row.agent else (None, None)
    flags = HitFlag(row.flags)
    return {
        "click_id": click_id(row.id),
        "at": to_iso(row.at),
        "verdict": Verdict(row.verdict).api_name,
        "rule": row.rule,
        "first_verdict": None if row.first_verdict is None else Verdict(row.first_verdict).api_name,
        "first_rule": row.first_rule,
        "counts_as": hit_metric(row.verdict, row.flags),
        "first_of_message": bool(flags & HitFlag.FIRST_FOR_MESSAGE),
        "first_of_link": bool(flags & HitFlag.FIRST_FOR_LINK),
        "late": bool(flags & HitFlag.LATE),
        "disabled": bool(flags & HitFlag.DISABLED),
        "message_id": row.message_id,
        "campaign": row.campaign,
        "source": row.source,
        "country": row.country or None,
        "code": row.code,
        "url": row.url,
        "label": row.label,
        "seconds_since_delivered": None if row.delivered_at is None else int((row.at - row.delivered_at).total_seconds()),
        "device": device,
        "browser": browser,
        "user_agent": row.user_agent,
        "address": row.address,
        # An older release stored no country for a hit, so `networks` finds the country now.
        "click_country": row.click_country or network.country,
        "network": network.network,
    }


HIT_CSV_COLUMNS = (
    "click_id",
    "at",
    "verdict",
    "rule",
    "first_verdict",
    "first_rule",
    "counts_as",
    "first_of_message",
    "first_of_link",
    "late",
    "disabled",
    "message_id",
    "campaign",
    "source",
    "country",
    "code",
    "url",
    "label",
    "seconds_since_delivered",
    "device",
    "browser",
    "user_agent",
    "address",
    "click_country",
    "network",
)


def _id_limits(filters: HitFilter, below: int | None) -> tuple[int, int]:
    begin, end = slot_edges(filters.since, filters.until)
    # With Basis.SENT, the period limits the time of the message. A hit is never earlier than its message, but can be much later.
    # The period therefore gives only a lower limit for the id of the hit.
    low, high = id_range(begin, None if filters.basis is Basis.SENT else end)
    return low, high if below is None else min(below, high)


def _hits_of(connection: Connection, filters: HitFilter, low: int, high: int) -> Any:
    """Return a statement that selects the ids of the hits of one message or of one link."""
    owned = [links.c.application_id == filters.application_id]
    if filters.code is not None:
        owned.append(links.c.code == filters.code)
    if filters.message is not None:
        row = connection.scalar(
            select(messages.c.id).where(
                messages.c.application_id == filters.application_id, messages.c.message_id == filters.message
            )
        )
        owned.append(links.c.message_id == (-1 if row is None else row))
    found = connection.execute(select(links.c.id, links.c.message_id).where(*owned)).all()
    first = select(first_clicks.c.hit_id).where(first_clicks.c.id.in_([link.message_id for link in found]))
    others = select(hits.c.id).where(other_hits(), hits.c.link_id.in_([link.id for link in found]))
    both = union_all(first, others).subquery()
    of_links = hits.c.link_id.in_([link.id for link in found])
    return select(hits.c.id).where(hits.c.id.in_(select(both.c[0])), of_links, hits.c.id >= low, hits.c.id < high)


def _conditions(connection: Connection, filters: HitFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [links.c.application_id == filters.application_id]
    begin, end = slot_edges(filters.since, filters.until)
    if filters.basis is Basis.EVENT:
        conditions += [] if begin is None else [hits.c.at >= begin]
        conditions += [] if end is None else [hits.c.at < end]
    else:
        conditions += [] if begin is None else [and_(links.c.message_id + 0 >= first_id_at(to_ms(begin)))]
        conditions += [] if end is None else [and_(links.c.message_id + 0 < first_id_at(to_ms(end)))]
    conditions += _metric_conditions(filters.metric)
    for column, value in (
        (hits.c.verdict, filters.verdict),
        (hits.c.rule, filters.rule),
        (cohorts.c.campaign, filters.campaign),
        (cohorts.c.source, filters.source),
        (cohorts.c.country, filters.country),
    ):
        if value is not None:
            conditions.append(column == value)
    if filters.destination is not None or filters.label is not None:
        conditions.append(links.c.link_set_id.in_(find_link_sets(connection, filters)))
    return conditions


def _metric_conditions(metric: HitMetric | None) -> list[ColumnElement[bool]]:
    if metric is None:
        return []
    if metric == "clicked_messages":
        return [exists().where(first_clicks.c.id == links.c.message_id, first_clicks.c.hit_id == hits.c.id)]
    if metric == "clicked_links":
        return [and_(IS_FIRST_CLICK, IS_CLICK, links.c.link_set_id.is_not(None))]
    return [HIT_METRIC.in_([metric])]
