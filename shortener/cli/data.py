"""The commands `shortener purge`, `verify` and `export`, which process all stored data."""
# Tested by tests/cli/test_commands.py

from __future__ import annotations

import dataclasses
import sys
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import click
import orjson

from shortener.cli.common import (
    async_command,
    command_line_audit,
    confirm,
    json_option,
    load_settings,
    open_store,
    print_result,
    print_table,
    reveal_option,
)
from shortener.cli.output_file import open_output
from shortener.cli.parameters import ID, OPTIONAL_APPLICATION, ApplicationCommand, period_options
from shortener.plurals import counted

if TYPE_CHECKING:
    from shortener.reporting.export import ExportRows
    from shortener.reporting.messages import MessageFilter

EXPORT_PAGE_ROWS = 200

MAX_SHOWN_DRIFTS = 100  # The maximum number of differences that `verify` shows as a table.


def print_counts(counts: dict[str, int], as_json: bool, text_without_rows: str) -> None:
    """Print the number of rows of each kind, or `text_without_rows` if all numbers are 0."""

    def print_text() -> None:
        parts = [f"{rows:,} {kind}" for kind, rows in counts.items() if rows]
        click.echo(", ".join(parts) or text_without_rows)

    print_result(counts, as_json, print_text)


@click.command()
@click.option("--trust-clock", is_flag=True, help="Do not ask if the clock moved far ahead.")
@json_option
@async_command
async def purge(trust_clock: bool, as_json: bool) -> None:
    """Delete data that is older than its retention period, in small batches. A running server also does this regularly. If the
    clock moved far ahead since the latest purge, the clock may be wrong, so the command asks for confirmation.
    """
    from shortener.retention.purge import PurgeResult
    from shortener.retention.purge import purge as run
    from shortener.storage.clock import open_clock
    from shortener.storage.clock_guard import find_step, read_uptime

    def progress(so_far: PurgeResult) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{counted(so_far.rows, 'row')} deleted", nl=False, err=True)

    async with open_store() as database:
        clock = await open_clock(database)
        step = await database.read(find_step, clock(), read_uptime())
        if step is not None:
            what = f"The clock moved ahead by {step.text}. If it is wrong, this deletes too much."
            confirm(what, trust_clock)
        # The purge has many transactions, so the audit row is stored before the first of them.
        await database.write(command_line_audit(database).add, clock(), "purge_started")
        purged = await run(database, load_settings(), clock(), progress)
    if sys.stderr.isatty():
        click.echo(err=True)
    print_counts(dataclasses.asdict(purged), as_json, "there is nothing to delete")


@click.command()
@period_options(since_default="the oldest time for which all raw data is stored")
@click.option("--repair", is_flag=True, help="Correct the stored counts before the check. Required once after an upgrade from 0.1.")
@json_option
@async_command
async def verify(since: datetime | None, until: datetime | None, repair: bool, as_json: bool) -> None:
    """Recount all statistics from the raw data and report differences. The exit code is 1 if a count differs.

    The command also checks that no page and no index of an SQLite database is damaged, that each row refers only to rows that
    exist, and that each message with conversions is recorded as converted. --repair records the messages that are not.

    Older versions did not store counts by time of sending, by destination and by label; --repair creates them.
    """
    from sqlalchemy import func, select

    from shortener.conversions.first_conversions import FirstConversions
    from shortener.ids import IdGenerator
    from shortener.model import utcnow
    from shortener.reporting import count_check
    from shortener.reporting.first_conversion_check import count_missing, find_counted_without_row
    from shortener.reporting.rollup_check import verify_rollups
    from shortener.reporting.rollup_repair import RowsQuarantined, repair_rollups
    from shortener.storage import schema
    from shortener.storage.integrity import find_damage
    from shortener.storage.references import find_orphans
    from shortener.storage.types import to_iso

    def progress(stage: str, steps: int = 0) -> None:
        """If stderr is a terminal, show the present stage of the check, and how many steps of this stage are finished."""
        if sys.stderr.isatty():
            click.echo(f"\r{stage} ..." + (f" {counted(steps, 'step')}" if steps else "") + "\033[K", nl=False, err=True)

    settings = load_settings()
    now = utcnow()
    retention = timedelta(days=min(settings.message_retention_days, settings.hit_retention_days))
    begin = since or count_check.verifiable_since(now, kept=retention, link_ttl=timedelta(days=settings.link_ttl_days))
    async with open_store() as database:
        progress("Checking the database for damage")
        damage = await database.read(partial(find_damage, thorough=True))
        end = until or now + timedelta(minutes=1)
        try:
            audit_repair = partial(_add_audit_row, command_line_audit(database), begin, end, now)
            converted = 0
            if repair:
                progress("Counting converted messages")
                job = FirstConversions(database, IdGenerator(database.node), utcnow)
                without_row = await database.read(find_counted_without_row, begin, end)
                converted = await job.count_all(audit_repair, without_row)
            repaired = await repair_rollups(database, begin, end, audit_repair) if repair else 0
        except RowsQuarantined as error:
            raise click.ClickException(str(error)) from None
        drifts = await database.read(count_check.verify, begin, end, partial(progress, "Counting again"))
        rolled_up = await database.read(verify_rollups, begin, end, partial(progress, "Comparing the rolled-up counts"))
        missing = await database.read(count_missing)
        first = await database.read(lambda c: c.scalar(select(func.min(schema.applications.c.created_at))))
        progress("Looking for rows that refer to missing rows")
        orphans = await find_orphans(database)
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)
    rows = [dataclasses.asdict(drift) | {"at": to_iso(drift.at), "counts": "counts"} for drift in drifts]
    for drift in rolled_up:
        group = drift.group
        rows.append(
            {
                "application_id": group.application_id,
                "campaign": group.campaign,
                "source": group.source,
                "country": group.country,
                "at": to_iso(drift.at),
                "metric": drift.metric,
                "kept": drift.kept,
                "counted": drift.counted,
                "counts": f"{group.kind} {group.name}".rstrip() + f" by {drift.level.name.lower()}, {drift.basis.name.lower()}",
            }
        )

    def print_text() -> None:
        if repair:
            click.echo(f"{repaired:,} rolled-up counts corrected.")
        if converted:
            words = "message with conversions was", "messages with conversions were"
            click.echo(f"{counted(converted, *words)} not recorded as converted before.")
        for line in damage:
            click.echo(f"The database is damaged: {line}")
        if missing:
            words = "message with conversions is", "messages with conversions are"
            click.echo(f"{counted(missing, *words)} not recorded as converted (table first_conversions). Use --repair.")
        for orphan in orphans:
            click.echo(f"The row {orphan.id} refers to a row that does not exist: {orphan.reference}")
        if not rows:
            is_younger = since is None and first is not None and first >= begin
            period = "" if is_younger else f" since {begin:%Y-%m-%d %H:%M} UTC"
            rest = " Raw data of earlier counts may be deleted already." if since is None and not is_younger else ""
            click.echo(f"The counts{period} agree with the raw data.{rest}")
            return
        shown = rows[:MAX_SHOWN_DRIFTS]
        print_table(shown, "application_id", "campaign", "source", "country", "at", "metric", "kept", "counted", "counts")
        if len(rows) > len(shown):
            click.echo(f"{len(rows) - len(shown):,} more differences are not shown; --json contains all of them.")

    result = {"since": to_iso(begin), "repaired": repaired, "newly_converted": converted, "drift": rows, "damage": damage}
    result |= {"orphans": [orphan._asdict() for orphan in orphans], "missing_first_conversions": missing}
    print_result(result, as_json, print_text)
    if rows or damage or orphans or missing:
        raise click.exceptions.Exit(1)


def _add_audit_row(audit: Any, since: datetime, until: datetime, now: datetime, connection: Any, corrected: int) -> None:
    """Add the audit row of `verify --repair` for a period. `corrected` is the number of corrected rolled-up counts, or the number
    of messages that were recorded as converted."""
    from shortener.storage.types import to_iso

    audit.add(connection, now, "counts_repaired", after={"since": to_iso(since), "until": to_iso(until), "corrected": corrected})


@click.command(cls=ApplicationCommand, application_help=OPTIONAL_APPLICATION)
@click.argument("application", type=ID, required=False)
@period_options(" in which the messages were created")
@click.option("--campaign", help="Only messages of this campaign.")
@click.option("--source", type=click.Choice(["api", "campaign"]), help="Only messages of this source. Default: both.")
@click.option(
    "--rows",
    type=click.Choice(["messages", "links"]),
    default="messages",
    help="Content of each CSV line: a message (default) or a link.",
)
@click.option("--bom", is_flag=True, help="Only for CSV: begin with a byte order mark, so that Excel reads the file as UTF-8.")
@reveal_option
@click.option(
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True),
    default="-",
    help="File to write. An existing file is replaced when the export is complete. Default: stdout.",
)
@click.option("--json", "as_json", is_flag=True, help="Write a JSON array with one object per message instead of CSV.")
@async_command
async def export(
    application: int | None,
    since: datetime | None,
    until: datetime | None,
    campaign: str | None,
    source: str | None,
    rows: ExportRows,
    bom: bool,
    reveal: bool,
    output: str,
    as_json: bool,
) -> None:
    """Export the messages of an application, newest first, as CSV or JSON."""
    from shortener.accounts.directory import Directory, base_url_of
    from shortener.cli.stats import find_application
    from shortener.reporting.export import export_csv
    from shortener.reporting.messages import MessageFilter

    def progress(messages: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{counted(messages, 'message')}", nl=False, err=True)

    async with open_store() as database:
        owner = await find_application(database, application)
        filters = MessageFilter(owner, campaign=campaign, source=source, since=since, until=until)
        directory = Directory(database)
        await directory.refresh()
        if as_json:
            chunks = _export_json(database, filters, reveal)
        else:
            chunks = export_csv(
                database, filters, base_url_of(load_settings(), directory), rows=rows, bom=bom, reveal=reveal, progress=progress
            )
        with open_output(output) as file:
            async for chunk in chunks:
                file.write(chunk)
    if sys.stderr.isatty():
        click.echo(err=True)


async def _export_json(database: Any, filters: MessageFilter, reveal: bool) -> AsyncIterator[bytes]:
    """Yield a JSON array of messages, one line per message, in constant memory."""
    from shortener.reporting.messages import list_messages, serialize_message

    separator, below = b"[\n", None
    while True:
        page = await database.read(list_messages, filters, EXPORT_PAGE_ROWS, below)
        for row in page.rows:
            yield separator + orjson.dumps(serialize_message(row, reveal=reveal))
            separator = b",\n"
        below = page.next
        if below is None:
            break
    yield b"[]\n" if separator == b"[\n" else b"\n]\n"
