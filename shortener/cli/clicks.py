"""The command `shortener clicks`: list hits, and classify stored hits again."""

from __future__ import annotations

import dataclasses
import sys
from datetime import datetime, tzinfo
from typing import Any

import click

from shortener.cli.command_clock import current_time
from shortener.cli.common import (
    async_command,
    command_line_audit,
    json_option,
    load_settings,
    open_store,
    print_result,
    print_table,
)
from shortener.cli.parameters import ID, OPTIONAL_APPLICATION, ApplicationCommand, period_options
from shortener.plurals import counted

#: The columns of the table of hits. `--json` prints all fields.
_COLUMNS = (
    "at",
    "verdict",
    "rule",
    "counts_as",
    "message_id",
    "campaign",
    "code",
    "device",
    "browser",
    "country",
    "click_country",
    "user_agent",
)


@click.group()
def clicks() -> None:
    """List hits with their verdicts; classify stored hits again."""


@clicks.command("list", cls=ApplicationCommand, application_help=OPTIONAL_APPLICATION)
@click.argument("application", type=ID, required=False)
@click.option("--message", "message_id", help="Only hits on the links of this message.")
@click.option("--campaign", help="Only hits on links of messages of this campaign.")
@click.option("--verdict", type=click.Choice(["human", "suspected", "ignored"]), help="Only hits with this verdict.")
@click.option("--rule", help="Only hits that this rule classified.")
@period_options(since_default="the last 30 days of the period", has_zone=True)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Maximum number of hits.")
@json_option
@async_command
async def list_all(
    application: int | None,
    message_id: str | None,
    campaign: str | None,
    verdict: str | None,
    rule: str | None,
    since: datetime | None,
    until: datetime | None,
    zone: tzinfo,
    limit: int,
    as_json: bool,
) -> None:
    """List hits, newest first, each with its verdict and rule. The period is extended to complete time slots of 15 minutes."""
    from shortener.cli.stats import find_application
    from shortener.ids import ClickIds
    from shortener.model import Verdict
    from shortener.reporting.hits import HitFilter, list_hits, serialize_hit
    from shortener.secret import open_secret
    from shortener.web.statistics import statistics_period

    settings = load_settings()
    async with open_store() as database:
        begin, end = statistics_period(since, until, zone, current_time())
        click_id = ClickIds(open_secret(settings.secret, settings.data_dir).key("click ids")).encode
        owner = await find_application(database, application)
        chosen = Verdict[verdict.upper()] if verdict else None
        filters = HitFilter(owner, begin, end, verdict=chosen, rule=rule, campaign=campaign, message=message_id)
        rows: list[dict[str, Any]] = []
        below: int | None = None
        while len(rows) < limit:
            page = await database.read(list_hits, filters, limit - len(rows), below)
            rows += [serialize_hit(row, click_id) for row in page.rows]
            below = page.next
            if below is None:
                break
    print_result(rows, as_json, lambda: print_table(rows, *_COLUMNS))


@clicks.command("reclassify")
@period_options(" of the hits", until_default="now. The newest three minutes are always left out", required=True)
@click.option(
    "--application",
    "applications",
    type=ID,
    multiple=True,
    help="Only hits of this application. The option may be repeated. Default: all.",
)
@click.option("--dry-run", is_flag=True, help="Show the changes without storing them.")
@json_option
@async_command
async def reclassify(since: datetime, until: datetime | None, applications: tuple[int, ...], dry_run: bool, as_json: bool) -> None:
    """Classify stored hits again with the current rules and the current data.

    If trackers have already received the event of a click, the click is retracted only if its application has the setting
    retract_clicks.
    """
    from shortener.accounts.directory import Directory
    from shortener.clicks.device_counts import DeviceCounter
    from shortener.clicks.verdicts.reclassify import Reclassifier
    from shortener.ids import IdGenerator
    from shortener.storage.clock import ms_clock, open_clock
    from shortener.storage.types import to_iso

    def progress(reached: datetime) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{to_iso(reached.replace(microsecond=0))}", nl=False, err=True)

    async with open_store() as database:
        directory = Directory(database)
        await directory.refresh()
        clock = await open_clock(database)
        ids = IdGenerator(database.node, ms_clock(clock))
        # `on_events` does nothing, because this command does not notify a running server. The server polls the database and finds
        # new events itself.
        devices, days = DeviceCounter(database, ids, clock), load_settings().event_retention_days
        part = Reclassifier(database, directory, ids, devices, on_events=lambda: None, event_retention_days=days)
        now = clock()
        if not dry_run:
            # The hits are classified in many transactions. The audit row is stored before the first of them, so that it exists
            # even if the command is interrupted.
            period = {"since": to_iso(since), "until": to_iso(until or now), "applications": list(applications) or "all"}
            await database.write(command_line_audit(database).add, now, "hits_reclassified", after=period)
        result = await part.run(since, until or now, now, applications=applications or None, dry_run=dry_run, progress=progress)
    if sys.stderr.isatty():
        click.echo(err=True)
    data: dict[str, Any] = {"hits": result.hits, "until": to_iso(result.until), "dry_run": dry_run}
    data |= {name: value for name, value in dataclasses.asdict(result.corrections).items() if name not in ("events", "unsettled")}
    if dry_run:
        del data["first_clicks"]  # a dry run does not look for new first clicks, so their number is unknown

    def print_text() -> None:
        done = result.corrections
        click.echo(f"{counted(result.hits, 'hit')} reclassified" + (" (dry run: nothing was changed):" if dry_run else ":"))
        click.echo(f"  {done.to_suspected:,} now suspected, {done.to_human:,} now human")
        firsts = f"{done.retracted_messages:,} of them the first click of their message"
        click.echo(f"  {counted(done.retracted, 'click')} retracted, {firsts}")
        if done.kept:
            click.echo(f"  {done.kept:,} unchanged because they were sent to trackers and retract_clicks is off")
        if not dry_run:
            click.echo(f"  {counted(done.first_clicks, 'message has', 'messages have')} a new first click")

    print_result(data, as_json, print_text)


#: `clicks rejudge` is the former name of `clicks reclassify`. It still works, but `--help` does not show it.
clicks.add_command(
    click.Command("rejudge", callback=reclassify.callback, params=reclassify.params, help=reclassify.help, hidden=True)
)
