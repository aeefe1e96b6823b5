"""`shortener migrate`, `copy` and `doctor`."""
# Tested by tests/cli/test_commands.py

from __future__ import annotations

import sqlite3
from typing import Any

import click

from shortener.cli.common import json_option, load_settings, runs, show


@click.command()
@json_option
@runs
async def migrate(as_json: bool) -> None:
    """Bring the database's schema to this version; forward only."""
    import sys

    from shortener.storage.migrate import MigrationStep
    from shortener.storage.migrate import migrate as bring

    live, told_at = sys.stderr.isatty(), 0.0

    def progress(step: MigrationStep) -> None:
        """On a terminal one line a step, always of now; in a log a line when it begins, every ten seconds and when it is done."""
        nonlocal told_at
        if not live and step.seconds and not step.done and step.seconds - told_at < 10:
            return
        told_at = step.seconds
        state = f"done in {step.seconds:.1f} s" if step.done else f"... {step.seconds:.0f} s" if step.seconds else "..."
        line = f"{step.revision}  {step.description} {state}" + (f", {step.detail}" if step.detail else "")
        click.echo(f"\r{line}\033[K" if live else line, nl=step.done or not live, err=True)

    before, after = await bring(load_settings().store_url, progress)
    told = f"schema {after}, nothing to do" if before == after else f"schema {before or 'none'} -> {after}"
    show({"from": before, "to": after}, as_json, lambda: click.echo(told))


@click.command()
@click.option("--from", "source", required=True, help="sqlite:///FILE or postgresql://..., which nobody serves meanwhile.")
@click.option(
    "--to", "target", required=True, help="The same; a database of its own, empty or from an earlier run of this command."
)
@json_option
@runs
async def copy(source: str, target: str, as_json: bool) -> None:
    """Move an installation to another database; goes on where it was cut off. Serve the copy with the same SECRET."""
    import sys

    from shortener.storage.copy import CopyError, Progress
    from shortener.storage.copy import copy as move
    from shortener.storage.migrate import check, current_version, prepare
    from shortener.storage.open import open_database

    for url in (source, target):
        if not url.startswith(("sqlite:///", "postgresql://", "postgres://")):
            raise click.UsageError(f"{url.partition(':')[0]}: wants sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE")
    if source == target:
        raise click.UsageError("--from and --to are the same database")

    def progress(now: Progress) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{now.table:16}{now.doing:10}{now.done:,} of {now.total:,} rows\033[K", nl=False, err=True)

    check(await current_version(source))
    await prepare(target)
    here = await open_database(source, owner=True)
    try:
        there = await open_database(target, owner=True)
        try:
            rows = await move(here, there, progress)
        except CopyError as error:
            raise click.ClickException(str(error)) from None
        finally:
            await there.close()
    finally:
        await here.close()
    if sys.stderr.isatty():
        click.echo(err=True)
    told = f"{sum(rows.values()):,} rows copied and compared. Serve them with the same SECRET."
    show(rows, as_json, lambda: click.echo(told))


@click.command()
@json_option
@runs
async def doctor(as_json: bool) -> None:
    """Check the set-up: settings, secret, store, schema; say what to mend. Exit code 1 when something is wrong."""
    from shortener.errors import StoreUnavailable
    from shortener.secret import SecretError, open_secret
    from shortener.storage.migrate import SchemaMismatch, check, current_version

    settings = load_settings()
    findings: list[dict[str, Any]] = []

    def found(name: str, level: str, text: str) -> None:
        findings.append({"check": name, "level": level, "text": text})

    try:
        open_secret(settings.secret, settings.data_dir)
        mode = (settings.data_dir / "secret").stat().st_mode & 0o777 if not settings.secret else 0o600
        if mode & 0o077:
            found("secret", "warning", f"{settings.data_dir / 'secret'} has mode {mode:o}; chmod 600 it")
        else:
            found("secret", "ok", "kept, readable by its owner only")
    except SecretError as error:
        found("secret", "error", str(error))
    try:
        version = await current_version(settings.store_url)
        check(version)
        found("schema", "ok", f"at {version}")
    except StoreUnavailable as error:
        found("store", "error", f"cannot be reached: {error}")
    except SchemaMismatch as error:
        found("schema", "error", str(error))
    if not settings.is_postgresql and sqlite3.sqlite_version_info < (3, 51, 3):
        found(
            "sqlite",
            "warning",
            f"SQLite {sqlite3.sqlite_version}: versions before 3.51.3 can corrupt a WAL when two connections checkpoint at once. "
            "This service checkpoints from one connection only; do not open the file with another writing program.",
        )
    if settings.base_url.startswith("http://") and not settings.base_url.startswith(("http://127.", "http://localhost")):
        found("base_url", "warning", "short links are http://: phones warn, and each click costs a redirect more; use https://")
    if settings.allow_private_targets:
        found("allow_private_targets", "warning", "trackers may reach private addresses: right for development only")

    def people() -> None:
        for finding in findings:
            click.echo(f"{finding['level']:8}{finding['check']:24}{finding['text']}")

    show(findings, as_json, people)
    if any(finding["level"] == "error" for finding in findings):
        raise click.exceptions.Exit(1)
