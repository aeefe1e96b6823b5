"""`shortener messages`, `purge`, `verify` and `export`: what an operator does with what is stored."""
# Tested by tests/cli/test_commands.py

from __future__ import annotations

import dataclasses
import sys
from datetime import datetime, timedelta
from typing import IO, Any

import click

from shortener.cli.common import json_option, load_settings, open_store, runs, show, table
from shortener.times import parse_iso, to_utc


class Moment(click.ParamType[datetime]):
    """A time in UTC: 2026-11-20, or 2026-11-20T12:00:00Z."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            return to_utc(parse_iso(str(value)))
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a time such as 2026-11-20 or 2026-11-20T12:00:00Z", param, ctx)


@click.group()
def messages() -> None:
    """Messages: show one, erase a person's data."""


@messages.command("show")
@click.argument("message_id")
@click.option("--application", type=int, help="Its number, when several applications have a message of this id.")
@json_option
@runs
async def show_message(message_id: str, application: int | None, as_json: bool) -> None:
    """Show what is known of one message: state, times, links, conversions."""
    from shortener.accounts.directory import Directory
    from shortener.cli.listen import pretty
    from shortener.container import base_url_of
    from shortener.ids import ClickIds
    from shortener.reporting.status import MessageStatusReader, find_status
    from shortener.secret import open_secret

    settings = load_settings()
    secret = open_secret(settings.secret, settings.data_dir)
    async with open_store() as database:
        directory = Directory(database)
        await directory.refresh()
        candidates = [application] if application is not None else [one.id for one in directory.applications()]
        found = [status for one in candidates if (status := await database.read(find_status, one, message_id)) is not None]
    if not found:
        raise click.ClickException(f"there is no message {message_id!r}")
    if len(found) > 1:
        raise click.ClickException("several applications have a message of this id; name one with --application")
    told = MessageStatusReader(base_url_of(settings, directory), ClickIds(secret.key("click ids")).encode).serialize(found[0])

    def people() -> None:
        import orjson

        click.echo(pretty(orjson.dumps(told)))

    show(told, as_json, people)


@messages.command("erase")
@click.option("--phone", help="Erase every message to this number.")
@click.option("--message", "message_id", help="Erase one message.")
@click.option("--application", type=int, help="Only in this application; all of them when absent.")
@click.confirmation_option(prompt="Personal data is removed for good. Go on?")
@json_option
@runs
async def erase_messages(phone: str | None, message_id: str | None, application: int | None, as_json: bool) -> None:
    """Remove a person's data: number, agents, addresses, metadata. Counts stay right, the links are switched off."""
    from shortener.cli.common import open_cache
    from shortener.model import utcnow
    from shortener.retention.erasure import erase, erase_message, find_codes

    if (phone is None) == (message_id is None):
        raise click.UsageError("wants --phone or --message, one of them")
    async with open_store() as database, open_cache() as cache:
        codes = await database.read(find_codes, application, phone=phone or "", message_id=message_id or "")
        if not await cache.invalidate(codes):
            raise click.ClickException("nothing is erased: Redis is away, and may hold the destinations; try again when it is back")
        if phone is not None:
            erased = await erase(database, application, phone, utcnow())
        else:
            erased = await database.write(erase_message, application, message_id, utcnow())
    _tell_counts(dataclasses.asdict(erased), as_json, "nothing to erase")


@click.command()
@json_option
@runs
async def purge(as_json: bool) -> None:
    """Delete what is past its retention, in small batches; a running server does the same by itself."""
    from shortener.model import utcnow
    from shortener.retention.purge import PurgeResult
    from shortener.retention.purge import purge as run

    def progress(so_far: PurgeResult) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{so_far.rows:,} rows deleted", nl=False, err=True)

    async with open_store() as database:
        purged = await run(database, load_settings(), utcnow(), progress)
    if sys.stderr.isatty():
        click.echo(err=True)
    _tell_counts(dataclasses.asdict(purged), as_json, "nothing was due")


def _tell_counts(counts: dict[str, int], as_json: bool, nothing: str) -> None:
    def people() -> None:
        told = [f"{rows:,} {kind}" for kind, rows in counts.items() if rows]
        click.echo(", ".join(told) or nothing)

    show(counts, as_json, people)


@click.command()
@click.option("--since", type=Moment(), help="From when on; by default as far back as all raw data is kept.")
@click.option("--until", type=Moment(), help="Up to when; now when absent.")
@json_option
@runs
async def verify(since: datetime | None, until: datetime | None, as_json: bool) -> None:
    """Count everything again and compare with the kept counts. Exit code 1 when they differ."""
    from shortener.model import utcnow
    from shortener.reporting import counts
    from shortener.storage.types import to_iso

    settings = load_settings()
    now = utcnow()
    kept = timedelta(days=min(settings.message_retention_days, settings.hit_retention_days))
    begin = since or counts.verifiable_since(now, kept=kept, link_ttl=timedelta(days=settings.link_ttl_days))
    async with open_store() as database:
        drifts = await database.read(counts.verify, begin, until or now + timedelta(minutes=1))
    rows = [dataclasses.asdict(drift) | {"at": to_iso(drift.at)} for drift in drifts]

    def people() -> None:
        if not rows:
            click.echo(f"The counts since {begin:%Y-%m-%d %H:%M} agree with the raw data.")
            return
        table(rows, "application_id", "campaign", "source", "country", "at", "metric", "kept", "counted")

    show({"since": to_iso(begin), "drift": rows}, as_json, people)
    if rows:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("application", type=int)
@click.option("--since", type=Moment(), help="Messages from this time on.")
@click.option("--until", type=Moment(), help="Messages before this time.")
@click.option("--campaign", help="Only those of a campaign.")
@click.option("--source", type=click.Choice(["api", "campaign"]), help="Only those of a source.")
@click.option("--output", type=click.File("wb"), default="-", help="A file; stdout when absent.")
@json_option
@runs
async def export(
    application: int,
    since: datetime | None,
    until: datetime | None,
    campaign: str | None,
    source: str | None,
    output: IO[bytes],
    as_json: bool,
) -> None:
    """Write an application's messages as CSV, newest first. With --json, the number of messages goes to stderr."""
    import orjson

    from shortener.accounts.directory import Directory
    from shortener.container import base_url_of
    from shortener.reporting.export import export_csv
    from shortener.reporting.messages import MessageFilter

    written = 0

    def progress(messages: int) -> None:
        nonlocal written
        written = messages
        if sys.stderr.isatty() and not as_json:
            click.echo(f"\r{messages:,} messages", nl=False, err=True)

    wanted = MessageFilter(application, campaign=campaign, source=source, since=since, until=until)
    async with open_store() as database:
        directory = Directory(database)
        await directory.refresh()
        if directory.application(application) is None:
            raise click.ClickException(f"there is no application {application}")
        async for piece in export_csv(database, wanted, base_url_of(load_settings(), directory), progress=progress):
            output.write(piece)
    output.flush()
    if as_json:
        click.echo(orjson.dumps({"messages": written}).decode(), err=True)
    elif sys.stderr.isatty():
        click.echo(err=True)
