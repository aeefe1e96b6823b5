"""The commands `shortener migrate` and `copy`: upgrade the schema, and copy a database."""
# Tested by tests/cli/test_commands.py

from __future__ import annotations

import asyncio

import click

from shortener.cli.common import async_command, json_option, load_settings, print_result
from shortener.cli.database_errors import name_database
from shortener.cli.secret_input import has_password, secret_options
from shortener.plurals import counted


@click.command()
@click.option(
    "--wait",
    type=click.FloatRange(0, 3600),
    default=0,
    show_default=True,
    help="Number of seconds to wait until the database responds, for example while its container starts. On PostgreSQL, each "
    "migration also waits as long, but at least 60 seconds, for tables that other transactions use. Then the command fails.",
)
@json_option
@async_command
async def migrate(wait: float, as_json: bool) -> None:
    """Create the database schema, or upgrade it to this version. A downgrade is not possible."""
    import sys

    from shortener.storage.integrity import require_database
    from shortener.storage.migrate import LOCK_WAIT_SECONDS, MigrationStep
    from shortener.storage.migrate import migrate as run_migrations
    from shortener.storage.open import sqlite_path

    is_terminal, is_new, printed_at = sys.stderr.isatty(), False, 0.0

    def progress(step: MigrationStep) -> None:
        """Print the progress: one line per step on a terminal, and one line every ten seconds in a log. For a new database, print
        nothing about a step unless it takes ten seconds, because all its steps are quick."""
        nonlocal printed_at
        if not is_terminal and step.seconds and not step.done and step.seconds - printed_at < 10:
            return
        if is_new and step.seconds < 10:
            return
        printed_at = step.seconds
        state = f"done in {step.seconds:.1f} s" if step.done else f"... {step.seconds:.0f} s" if step.seconds else "..."
        line = f"{step.revision}  {step.description} {state}" + (f", {step.detail}" if step.detail else "")
        click.echo(f"\r{line}\033[K" if is_terminal else line, nl=step.done or not is_terminal, err=True)

    settings = load_settings()
    require_database(sqlite_path(settings.store_url), settings.data_dir)
    with name_database(settings):
        is_new = await _wait_for_database(settings.store_url, wait) is None
        before, after = await run_migrations(settings.store_url, progress, max(wait, LOCK_WAIT_SECONDS))
    summary = f"schema {after}, nothing to do" if before == after else f"schema {before or 'none'} -> {after}"
    print_result({"from": before, "to": after}, as_json, lambda: click.echo(summary))


async def _wait_for_database(url: str, seconds: float) -> str | None:
    """Wait until the database responds, and return its schema revision; None if the database is empty. Raise StoreUnavailable if it
    does not respond within `seconds`."""
    from shortener.errors import StoreUnavailable
    from shortener.storage.migrate import current_version

    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        try:
            return await current_version(url)
        except StoreUnavailable:
            if loop.time() >= deadline:
                raise
        await asyncio.sleep(min(1.0, max(deadline - loop.time(), 0.0)))


@click.command()
@secret_options(
    "from",
    "source",
    "URL of the database to copy: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE. No server may use it during the copy",
    required=True,
    is_secret=has_password,
)
@secret_options(
    "to",
    "target",
    "URL of the target database, which must be empty or contain an interrupted copy",
    required=True,
    is_secret=has_password,
)
@json_option
@async_command
async def copy(source: str, target: str, as_json: bool) -> None:
    """Copy an installation to another database. A second run continues an interrupted copy.

    Servers that use the copied database need the same SECRET.
    """
    import sys

    from shortener.storage.copy import CopyError, Progress
    from shortener.storage.copy import copy as copy_database
    from shortener.storage.migrate import check, current_version, prepare
    from shortener.storage.open import open_database, sqlite_path

    for url in (source, target):
        if not url.startswith(("sqlite:///", "postgresql://", "postgres://")):
            raise click.UsageError(f"{url.partition(':')[0]!r}: must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE")
    if source == target:
        raise click.UsageError("--from and --to must be different databases")

    if (file := sqlite_path(source)) is not None and not file.exists():
        raise click.ClickException(f"there is no database {file.absolute()}: correct --from")

    def progress(now: Progress) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{now.table:16}{now.doing:10}{now.done:,} of {counted(now.total, 'row')}\033[K", nl=False, err=True)

    check(await current_version(source))
    # Open the source before the tables of the target are created. If a server uses the source, the command fails here, and the
    # target stays empty. A target with tables but without copied rows would look like a new installation to a server.
    source_database = await open_database(source, owner=True, is_command=True)
    try:
        await prepare(target)
        target_database = await open_database(target, owner=True, is_command=True)
        try:
            rows = await copy_database(source_database, target_database, progress)
        except CopyError as error:
            raise click.ClickException(str(error)) from None
        finally:
            await target_database.close()
    finally:
        await source_database.close()
    if sys.stderr.isatty():
        click.echo(err=True)
    summary = f"{counted(sum(rows.values()), 'row')} copied and compared. Serve the copy with the same SECRET."
    print_result(rows, as_json, lambda: click.echo(summary))
