"""The commands `shortener purge` and `shortener export`."""
# Tested by tests/cli/test_commands.py

from __future__ import annotations

import dataclasses
import sys
from collections.abc import AsyncIterator
from datetime import datetime
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
    reveal_option,
)
from shortener.cli.output_file import open_output
from shortener.cli.parameters import ID, OPTIONAL_APPLICATION, ApplicationCommand, period_options
from shortener.plurals import counted

if TYPE_CHECKING:
    from shortener.reporting.export import ExportRows
    from shortener.reporting.messages import MessageFilter

EXPORT_PAGE_ROWS = 200


def print_counts(counts: dict[str, int], as_json: bool, text_without_rows: str) -> None:
    """Print the number of rows of each kind, or `text_without_rows` if all numbers are 0."""

    def print_text() -> None:
        parts = [f"{rows:,} {kind}" for kind, rows in counts.items() if rows]
        click.echo(", ".join(parts) or text_without_rows)

    print_result(counts, as_json, print_text)


@click.command()
@click.option("--trust-clock", is_flag=True, help="Purge without a question, even if the clock moved far ahead.")
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
        # The purge runs in many transactions. The audit row is stored before the first of them, so that it exists even if the
        # purge is interrupted.
        await database.write(command_line_audit(database).add, clock(), "purge_started")
        purged = await run(database, load_settings(), clock(), progress)
    if sys.stderr.isatty():
        click.echo(err=True)
    print_counts(dataclasses.asdict(purged), as_json, "there is nothing to delete")


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
