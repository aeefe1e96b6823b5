"""`shortener clicks`."""

from __future__ import annotations

import dataclasses
import sys
from datetime import datetime
from typing import Any

import click

from shortener.cli.common import async_command, json_option, open_store, print_result
from shortener.cli.parameters import ID, TIME


@click.group()
def clicks() -> None:
    """Classify stored hits again."""


@clicks.command("reclassify")
@click.option("--since", type=TIME, required=True, help="Reclassify hits from this time on (UTC).")
@click.option(
    "--until",
    type=TIME,
    help="Reclassify hits before this time (UTC). Default: now. The newest three minutes are always left out.",
)
@click.option(
    "--application",
    "applications",
    type=ID,
    multiple=True,
    help="Only hits of this application. The option may be repeated. Default: all.",
)
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@json_option
@async_command
async def reclassify(since: datetime, until: datetime | None, applications: tuple[int, ...], dry_run: bool, as_json: bool) -> None:
    """Classify stored hits again, with the current rules and the data that is known now.

    A click that was sent to trackers is retracted only if its application has retract_clicks on.
    """
    from shortener.accounts.directory import Directory
    from shortener.clicks.device_counts import DeviceCounter
    from shortener.clicks.verdicts.reclassify import Reclassifier
    from shortener.ids import IdGenerator
    from shortener.model import utcnow
    from shortener.storage.types import to_iso

    def progress(reached: datetime) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{to_iso(reached.replace(microsecond=0))}", nl=False, err=True)

    async with open_store() as database:
        directory = Directory(database)
        await directory.refresh()
        ids = IdGenerator(database.node)
        # A running server finds new events by itself, so nothing must be notified.
        part = Reclassifier(database, directory, ids, DeviceCounter(database, ids), on_events=lambda: None)
        now = utcnow()
        result = await part.run(since, until or now, now, applications=applications or None, dry_run=dry_run, progress=progress)
    if sys.stderr.isatty():
        click.echo(err=True)
    data: dict[str, Any] = {"hits": result.hits, "until": to_iso(result.until), "dry_run": dry_run}
    data |= {name: value for name, value in dataclasses.asdict(result.corrections).items() if name not in ("events", "unsettled")}
    if dry_run:
        del data["first_clicks"]  # a dry run assigns no first clicks

    def print_text() -> None:
        done = result.corrections
        click.echo(f"{result.hits:,} hits reclassified" + (" (dry run: nothing was changed):" if dry_run else ":"))
        click.echo(f"  {done.to_suspected:,} now suspected, {done.to_human:,} now human")
        click.echo(f"  {done.retracted:,} clicks retracted, {done.retracted_messages:,} of them the first click of their message")
        if done.kept:
            click.echo(f"  {done.kept:,} unchanged because they were sent to trackers and retract_clicks is off")
        if not dry_run:
            click.echo(f"  {done.first_clicks:,} messages have a new first click")

    print_result(data, as_json, print_text)


#: The command's former name.
clicks.add_command(
    click.Command("rejudge", callback=reclassify.callback, params=reclassify.params, help=reclassify.help, hidden=True)
)
