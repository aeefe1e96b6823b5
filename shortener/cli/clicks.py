"""`shortener clicks`."""

from __future__ import annotations

import dataclasses
import sys
from datetime import datetime
from typing import Any

import click

from shortener.cli.common import json_option, open_store, runs, show
from shortener.cli.data import Moment


@click.group()
def clicks() -> None:
    """Clicks: judge them again."""


@clicks.command("rejudge")
@click.option("--since", type=Moment(), required=True, help="From this time on (UTC).")
@click.option("--until", type=Moment(), help="Before this time (UTC); the newest three minutes are always left for later.")
@click.option("--application", "applications", type=int, multiple=True, help="Of this application only; several times.")
@click.option("--dry-run", is_flag=True, help="Tell what would change, and keep nothing of it.")
@json_option
@runs
async def reclassifier(
    since: datetime, until: datetime | None, applications: tuple[int, ...], dry_run: bool, as_json: bool
) -> None:
    """Judge stored hits again, by today's rules and all that is known now.

    Clicks that were told are taken back only where the application has retract_clicks on.
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
        # A server that is running finds the events by itself.
        part = Reclassifier(database, directory, ids, DeviceCounter(database, ids), on_events=lambda: None)
        now = utcnow()
        run = await part.run(since, until or now, now, applications=applications or None, dry_run=dry_run, progress=progress)
    if sys.stderr.isatty():
        click.echo(err=True)
    data: dict[str, Any] = {"hits": run.hits, "until": to_iso(run.until), "dry_run": dry_run}
    data |= {name: value for name, value in dataclasses.asdict(run.done).items() if name not in ("events", "unsettled")}
    if dry_run:
        del data["first_clicks"]  # known only when the changes stand

    def people() -> None:
        done = run.done
        click.echo(f"{run.hits:,} hits judged again" + (", nothing is changed:" if dry_run else ":"))
        click.echo(f"  {done.to_suspected:,} no longer people's, {done.to_human:,} people's after all")
        click.echo(f"  {done.retracted:,} clicks taken back, {done.retracted_messages:,} of them the first of their message")
        if done.kept:
            click.echo(f"  {done.kept:,} left as they were told: retract_clicks is off")
        if not dry_run:
            click.echo(f"  {done.first_clicks:,} messages got another first click")

    show(data, as_json, people)
