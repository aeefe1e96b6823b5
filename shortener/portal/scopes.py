"""This module returns the statistics that a page shows. They are the same reports as in the API, for one application or summed
over all applications of the operator. Page handlers do not query figures themselves. `report_of` runs a report of
`shortener.reporting.statistics` for each application, in one read transaction, and adds the figures. The figures of
`/portal/all/` therefore equal the sums of the figures on the pages of the applications.
"""
# Tested by tests/portal/test_overview.py

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection

from shortener.portal.page import Visit
from shortener.reporting.figures import Figures
from shortener.reporting.statistics import StatisticsFilter, StatisticsReport

Key = TypeVar("Key", bound=Hashable)


def scopes_of(visit: Visit, since: datetime | None = None, until: datetime | None = None) -> list[StatisticsFilter]:
    """Return the filters of the statistics, one for each application of a page. Each contains the period and the filters in the
    query of the page."""
    period = visit.period
    return [
        StatisticsFilter(
            application.id,
            since or period.since,
            until or period.until,
            campaign=visit.get("campaign"),
            source=visit.get("source"),
            basis=period.basis,
        )
        for application in visit.applications
    ]


async def report_of(
    visit: Visit,
    report: Callable[..., StatisticsReport[Key]],
    *arguments: Any,
    scopes: Sequence[StatisticsFilter] | None = None,
) -> StatisticsReport[Key]:
    """Run a report, such as `statistics.totals`, for each application of a page, and return the sum. `arguments` are the
    arguments of the report after its filter."""
    chosen = scopes_of(visit) if scopes is None else scopes
    return await visit.service.database.read(_sum, report, chosen, arguments)


def _sum(
    connection: Connection, report: Callable[..., StatisticsReport[Any]], scopes: Sequence[StatisticsFilter], arguments: Any
) -> StatisticsReport[Any]:
    if len(scopes) == 1:
        return report(connection, scopes[0], *arguments)
    groups: dict[Any, Figures] = {}
    complete = True
    for scope in scopes:
        part = report(connection, scope, *arguments)
        complete = complete and part.complete
        for key, figures in part.groups.items():
            groups.setdefault(key, Figures()).merge(figures)
    return StatisticsReport(groups, complete)
