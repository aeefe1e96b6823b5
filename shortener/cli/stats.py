"""The command `shortener stats`, which prints the statistics of the API as a table."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, tzinfo
from typing import Any

import click

from shortener.cli.command_clock import current_time
from shortener.cli.common import async_command, json_option, open_store, print_fields, print_result, print_table
from shortener.cli.parameters import ID, OPTIONAL_APPLICATION, ApplicationCommand, period_options

GROUPS = ("day", "hour", "country", "campaign", "destination", "label", "action")
PAGE_CAMPAIGNS = 200  # The number of campaigns that one query reads.
_COLUMNS = (
    "messages",
    "delivered",
    "clicked_messages",
    "clicks",
    "suspected_hits",
    "converted_messages",
    "conversions",
    "value",
    "delivery_rate",
    "click_rate",
    "conversion_rate",
)


#: The columns of a table that is grouped by action. Only conversions have actions.
_ACTION_COLUMNS = ("conversions", "positive", "negative", "pending", "other", "value")


async def find_application(database: Any, application: int | None) -> int:
    """Return the id `application`, or the id of the only application if `application` is None. Raise ClickException if no
    application has this id, or if `application` is None and there is no application or more than one."""
    from shortener.accounts.directory import Directory

    directory = Directory(database)
    await directory.refresh()
    if application is not None:
        if directory.application(application) is None:
            raise click.ClickException(f"there is no application {application}")
        return application
    ids = [one.id for one in directory.applications()]
    if not ids:
        raise click.ClickException("there is no application; create one with `shortener applications create NAME`")
    if len(ids) > 1:
        raise click.ClickException("there are several applications; name one with --application")
    return ids[0]


@click.command(cls=ApplicationCommand, application_help=OPTIONAL_APPLICATION)
@click.argument("application", type=ID, required=False)
@click.option("--by", type=click.Choice(GROUPS), help="Group the figures. Default: the totals of the period.")
@period_options(since_default="the last 30 days of the period", has_zone=True)
@click.option("--campaign", help="Only messages of this campaign.")
@click.option("--source", type=click.Choice(["api", "campaign"]), help="Only messages of this source. Default: both.")
@click.option(
    "--basis",
    type=click.Choice(["event", "sent"]),
    default="event",
    show_default=True,
    help="Count each event at its own time, or at the time when its message was created.",
)
@json_option
@async_command
async def stats(
    by: str | None,
    application: int | None,
    since: datetime | None,
    until: datetime | None,
    zone: tzinfo,
    campaign: str | None,
    source: str | None,
    basis: str,
    as_json: bool,
) -> None:
    """Show the numbers of messages, clicks and conversions of a period."""
    from shortener.messages.balances import read_balance
    from shortener.reporting.rollups import Basis
    from shortener.reporting.statistics import StatisticsFilter
    from shortener.storage.types import to_iso
    from shortener.web.statistics import statistics_period
    from shortener.web.statistics_fields import action_figures, figures

    async with open_store() as database:
        begin, end = statistics_period(since, until, zone, current_time())
        owner = await find_application(database, application)
        scope = StatisticsFilter(owner, begin, end, campaign, source, Basis[basis.upper()])
        groups, complete = await database.read(_report(by, zone), scope)
        balance = await database.read(read_balance, owner)
    if by == "action":
        rows = [row for _, counted in groups for row in action_figures(counted)]
    else:
        rows = [({by: name} if by else {}) | figures(counted) for name, counted in groups]
    data: dict[str, Any] = {
        "application_id": owner,
        "since": to_iso(begin),
        "until": to_iso(end),
        "basis": basis,
        "complete": complete,
        "cost_currency": None if balance is None else balance.currency,
    }
    data |= {"by": by, "groups": rows} if by else rows[0]

    def print_text() -> None:
        shown = [_shown_row(row, data["cost_currency"]) for row in rows]
        if by:
            print_table(shown, by, *(_ACTION_COLUMNS if by == "action" else _COLUMNS))
        else:
            print_fields(
                {name: value for name, value in shown[0].items() if not isinstance(value, dict) and name != "time_to_click"}
            )
        if not complete:
            click.echo(
                "Some events are not counted yet. Either the load is high, or events from before an upgrade are being counted, or "
                "rows of the database could not be read (`shortener doctor` reports them).",
                err=True,
            )

    print_result(data, as_json, print_text)


def _shown_row(row: dict[str, Any], cost_currency: str | None) -> dict[str, Any]:
    """Return a row of figures as people read it: with currencies, percentages, and a name for messages without a campaign."""
    from shortener.portal.formats import percent

    shown: dict[str, Any] = row | row["conversions_by_disposition"]
    shown["value"] = [f"{amount} {currency or '(no currency)'}" for currency, amount in row["value"].items()]
    if "cost" in row and cost_currency is not None:
        shown["cost"] = f"{row['cost']} {cost_currency}"
    for rate in {"delivery_rate", "click_rate", "conversion_rate"} & row.keys():
        shown[rate] = None if row[rate] is None else percent(row[rate]).replace("\N{NO-BREAK SPACE}", " ")
    if "campaign" in row:
        shown["campaign"] = row["campaign"] or "(no campaign)"
    return shown


def _report(by: str | None, zone: Any) -> Callable[[Any, Any], tuple[list[tuple[Any, Any]], bool]]:
    """Return the function that computes the requested report from a connection and a filter.

    The result of that function is a (name, figures) pair for each group, and whether the figures are complete."""
    from shortener.reporting import statistics

    def run(connection: Any, scope: Any) -> tuple[list[tuple[Any, Any]], bool]:
        if by == "campaign":
            page = statistics.campaign_page(connection, scope, PAGE_CAMPAIGNS)
            campaigns, complete = list(page.campaigns), page.complete
            while page.next is not None:
                page = statistics.campaign_page(connection, scope, PAGE_CAMPAIGNS, page.next)
                campaigns += page.campaigns
                complete = complete and page.complete
            return campaigns, complete
        reports: dict[str | None, Callable[[], Any]] = {
            None: lambda: statistics.totals(connection, scope),
            "action": lambda: statistics.totals(connection, scope),
            "day": lambda: statistics.daily(connection, scope, zone),
            "hour": lambda: statistics.by_hour(connection, scope, zone),
            "country": lambda: statistics.by_country(connection, scope),
            "destination": lambda: statistics.by_destination(connection, scope),
            "label": lambda: statistics.by_label(connection, scope),
        }
        report = reports[by]()
        if by == "country":
            ordered = sorted(report.groups.items(), key=lambda group: (-group[1]["messages"], group[0]))
            return [(name or None, counted) for name, counted in ordered], report.complete
        groups = [(name.isoformat() if by == "day" else name, counted) for name, counted in report.groups.items()]
        return groups, report.complete

    return run
