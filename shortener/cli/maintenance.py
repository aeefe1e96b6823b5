"""`shortener migrate` and `doctor`."""

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
    from shortener.store.migrate import migrate as bring

    def progress(revision: str, what: str) -> None:
        click.echo(f"{revision}  {what} ...", err=True)

    before, after = await bring(load_settings().store_url, progress)
    told = f"schema {after}, nothing to do" if before == after else f"schema {before or 'none'} -> {after}"
    show({"from": before, "to": after}, as_json, lambda: click.echo(told))


@click.command()
@json_option
@runs
async def doctor(as_json: bool) -> None:
    """Check the set-up: settings, secret, store, schema; say what to mend. Exit code 1 when something is wrong."""
    from shortener.errors import StoreUnavailable
    from shortener.secret import SecretError, open_secret
    from shortener.store.migrate import SchemaMismatch, check, current_version

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
