"""GET /portal/{app}/campaigns and /portal/{app}/campaigns/{name}: the pages that list, compare and show campaigns. By default,
the figures of a period count the messages that were sent in it, with all their later clicks and conversions."""
# Tested by tests/portal/test_listing.py

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, select
from starlette.responses import Response

from shortener.errors import ApiError, ErrorCode
from shortener.model import record
from shortener.outbox.link_sets import OTHER
from shortener.portal.campaign_chart import bars_of, read_clicks, shown_days
from shortener.portal.clicks import click_times
from shortener.portal.csv_download import csv_download
from shortener.portal.formats import shares, visible
from shortener.portal.listing import campaign_query, exported_query
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.reporting.csv_lists import format_lines
from shortener.reporting.figures import Figures
from shortener.reporting.rollups import Basis
from shortener.reporting.statistics import StatisticsFilter, by_country, by_destination, by_label, campaign_page, totals
from shortener.storage.schema import cohorts
from shortener.web.paging import Cursors

NO_CAMPAIGN = "Messages without a campaign"  # The heading of the page that shows the messages without a campaign.
ROWS = 25
MAX_LINKS = 20  # The maximum number of destinations and of labels that the page of a campaign shows.
MAX_COMPARED = 4  # The maximum number of campaigns in one comparison.
_COUNTED = (
    "messages",
    "sent",
    "delivered",
    "failed",
    "clicked_messages",
    "clicks",
    "suspected_hits",
    "converted_messages",
    "conversions",
)
#: Times after sending, in seconds, with their labels. A comparison of campaigns shows how many messages were clicked within each
#: of these times.
_WITHIN = {"1 minute": 60, "10 minutes": 600, "1 hour": 3600, "6 hours": 21_600, "1 day": 86_400}
_CSV_COLUMNS = ("campaign", *_COUNTED, "delivery_rate", "click_rate", "conversion_rate", "value")


def _scope(visit: Visit, campaign: str | None = None) -> StatisticsFilter:
    """Return the filter for the statistics of a page. The pages of campaigns count by send date, unless the query selects the
    time of each event."""
    period = visit.period
    basis = period.basis if visit.get("basis") else Basis.SENT
    return StatisticsFilter(visit.application_id, period.since, period.until, campaign=campaign, basis=basis)


def _basis(visit: Visit) -> str:
    return _scope(visit).basis.name.lower()


async def campaigns(visit: Visit) -> Response:
    """List the campaigns that have messages or events in the period, newest first."""
    if visit.is_csv:
        return await _download(visit)
    cursors = Cursors(visit.service.secret, "portal campaigns")
    scope, below = _scope(visit), cursors.decode(visit.get("cursor"))
    page = await visit.service.database.read(campaign_page, scope, ROWS, below)
    chosen = visit.get_list("compare")
    compared = []
    for name in chosen[:MAX_COMPARED]:
        report = await visit.service.database.read(totals, _scope(visit, name))
        compared.append((name, report.groups.get(None, Figures())))
    return visit.render(
        "campaigns.html",
        title="Campaigns",
        campaigns=page.campaigns,
        complete=page.complete,
        next_cursor=cursors.encode(page.next),
        is_first=below is None,
        compared=compared,
        compared_rates=_rates([figures for _, figures in compared]),
        within=_WITHIN,
        clicked_within={name: _within(figures) for name, figures in compared},
        basis=_basis(visit),
        campaign_query=campaign_query,
        max_compared=MAX_COMPARED,
        chosen=len(chosen) if chosen or visit.get("choose") else None,
    )


def _rates(compared: list[Figures]) -> list[tuple[str, str, list[float | None]]]:
    """Return the rates that a comparison of campaigns shows. Each is (label, text that names the divisor of the rate, the rate of
    each campaign)."""
    of_messages = "of the messages"
    return [
        ("Delivery rate", of_messages, [figures.delivery_rate for figures in compared]),
        ("Click rate", of_messages, [figures.click_rate for figures in compared]),
        ("Conversion rate", of_messages, [figures.conversion_rate for figures in compared]),
        (
            "Converted after a click",
            "of the clicked messages",
            [steps_of(figures, figures)[-1].share for figures in compared],
        ),
    ]


def _within(figures: Figures) -> list[int]:
    """Return, for each time in _WITHIN, the number of messages that were clicked within this time after sending."""
    running = 0
    found = []
    for number in figures.clicked_within(tuple(_WITHIN.values()))[:-1]:
        running += number
        found.append(running)
    return found


async def _download(visit: Visit) -> Response:
    service, scope = visit.service, _scope(visit)
    await service.database.write(visit.audit, "list_exported", "campaigns", after=exported_query(visit))

    async def lines() -> AsyncIterator[bytes]:
        yield format_lines([_CSV_COLUMNS])
        below: int | None = None
        while True:
            page = await service.database.read(campaign_page, scope, ROWS, below)
            yield format_lines([_csv_row(name, figures) for name, figures in page.campaigns])
            if page.next is None:
                return
            below = page.next

    return await csv_download(visit, lines(), "campaigns")


def _csv_row(name: str, figures: Figures) -> list[object]:
    value = " ".join(f"{amount:f} {currency}".strip() for currency, amount in figures.value.items() if amount)
    rates = figures.delivery_rate, figures.click_rate, figures.conversion_rate
    return [name, *(figures[metric] for metric in _COUNTED), *rates, value]


async def campaign(visit: Visit) -> Response:
    """Show one campaign: its figures, clicks over time, destinations and labels; the times from sending to click; the countries,
    devices and browsers of its recipients; and the share of messages that reach each step, compared with all messages.

    The chart counts each click at its own time. By send date, the clicks of most campaigns would all be on one day. The name ""
    stands for the messages without a campaign."""
    name = visit.name_in_path("name")
    scope = _scope(visit, name)

    def read(connection: Connection) -> Any:
        return (
            totals(connection, scope),
            totals(connection, _scope(visit)),
            read_clicks(connection, scope, visit.period),
            by_country(connection, scope),
            # With `merges_rest=False`, each destination stays separate. A merged group of destinations could not link to a list
            # of its rows.
            by_destination(connection, scope, merges_rest=False),
            by_label(connection, scope),
        )

    whole, everything, clicks, countries, destinations, labels = await visit.service.database.read(read)
    figures = whole.groups.get(None, Figures())
    if not any(figures.counted.values()) and not await visit.service.database.read(_exists, visit.application_id, name):
        raise ApiError(ErrorCode.NOT_FOUND, "This application has no campaign with this name.")
    return visit.render(
        "campaign.html",
        title=f"Campaign {name}" if name else NO_CAMPAIGN,
        name=name,
        heading=visible(name) if name else NO_CAMPAIGN,
        filters=campaign_query(name),
        figures=figures,
        complete=whole.complete,
        bars=bars_of(visit, clicks, name),
        shown_days=shown_days(visit, clicks),
        steps=steps_of(figures, everything.groups.get(None, Figures())),
        countries=_by_messages(countries.groups),
        destinations=_by_messages(destinations.groups)[:MAX_LINKS],
        labels=_by_messages({label: row for label, row in labels.groups.items() if label != OTHER})[:MAX_LINKS],
        devices=shares(figures.devices),
        browsers=shares(figures.browsers),
        click_times=click_times(figures),
        basis=_basis(visit),
    )


def _by_messages(groups: Mapping[str, Figures]) -> list[tuple[str, Figures]]:
    """Return groups of figures, sorted by their number of messages. The group with the most messages is first."""
    return sorted(groups.items(), key=lambda group: (-group[1]["messages"], -group[1]["clicked_messages"], group[0]))


@record
class Step:
    """One step of the way from a message to a conversion. `share` is a quotient: the campaign's messages that reached this step,
    divided by its messages that reached the previous step. `usual` is the same quotient for all messages of the application. A
    quotient whose divisor is 0 is None."""

    metric: str
    label: str
    share: float | None
    usual: float | None
    is_weakest: bool = False


_STEPS = (
    ("delivered", "Delivered, of the messages", "messages"),
    ("clicked_messages", "Clicked, of the delivered messages", "delivered"),
    ("converted_messages", "Converted, of the clicked messages", "clicked_messages"),
)
_WEAK = 0.95  # A step of a campaign is weak if its share is less than the usual share multiplied by this number.


def steps_of(figures: Figures, everything: Figures) -> list[Step]:
    """Return the steps of a campaign, compared with all messages of the application. Mark the weakest step: among the weak steps,
    the one whose share is furthest below the usual share."""
    steps = []
    for metric, label, previous in _STEPS:
        share, usual = (counted[metric] / counted[previous] if counted[previous] else None for counted in (figures, everything))
        steps.append(Step(metric, label, share, usual))
    parts = [step.share / step.usual if step.share is not None and step.usual else 1.0 for step in steps]
    weakest = min(parts)
    return [replace(step, is_weakest=part == weakest < _WEAK) for step, part in zip(steps, parts, strict=True)]


def _exists(connection: Connection, application_id: int, name: str) -> bool:
    known = select(cohorts.c.id).where(cohorts.c.application_id == application_id, cohorts.c.campaign == name).limit(1)
    return connection.scalar(known) is not None


PAGES = [
    PortalPage(
        "/portal/{app}/campaigns",
        campaigns,
        csv=True,
        all_applications=False,
        navigation=NavigationItem("Campaigns", "megaphone", 20, key="c", phone=4),
    ),
    PortalPage("/portal/{app}/campaigns/{name:path}", campaign, all_applications=False),
]
