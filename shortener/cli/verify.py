"""The command `shortener verify`: it counts all rows again, and compares the results with the stored counts of the statistics."""
# Tested by tests/cli/test_commands.py

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

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
from shortener.cli.parameters import period_options
from shortener.plurals import counted

if TYPE_CHECKING:
    from shortener.reporting.count_check import CountDifference
    from shortener.reporting.rollup_check import RollupDifference
    from shortener.storage.references import Orphan

MAX_SHOWN_DRIFTS = 100  # The maximum number of differences that the command prints as text.


class _Repaired(NamedTuple):
    """What `--repair` has changed: the number of rolled-up counts that it corrected, and the number of messages that it recorded
    as converted."""

    counts: int = 0
    converted: int = 0


class _Findings(NamedTuple):
    """What the check has found.

    `drifts` are the differences as JSON objects. `missing` is the number of messages that have conversions but are not recorded
    as converted. `first` is the time at which the first application was created."""

    drifts: list[dict[str, Any]]
    damage: list[str]
    orphans: Sequence[Orphan]
    missing: int
    first: datetime | None

    @property
    def are_errors(self) -> bool:
        return bool(self.drifts or self.damage or self.orphans or self.missing)


@click.command()
@period_options(since_default="the oldest time for which all raw data is stored")
@click.option("--repair", is_flag=True, help="Correct the stored counts before the check. Required once after an upgrade from 0.1.")
@json_option
@async_command
async def verify(since: datetime | None, until: datetime | None, repair: bool, as_json: bool) -> None:
    """Recount all statistics from the raw data and report differences. The exit code is 1 if a count differs.

    The command also checks three other things. No page and no index of a SQLite database may be damaged. Each row may refer only
    to rows that exist. Each message with conversions must be recorded as converted; --repair records messages that are not.

    Older versions did not store counts by time of sending, by destination and by label; --repair creates them.
    """
    from shortener.reporting import count_check
    from shortener.storage.types import to_iso

    settings = load_settings()
    retention = timedelta(days=min(settings.message_retention_days, settings.hit_retention_days))
    repaired = _Repaired()
    async with open_store() as database:
        now = current_time()
        begin = since or count_check.verifiable_since(now, kept=retention, link_ttl=timedelta(days=settings.link_ttl_days))
        end = until or now + timedelta(minutes=1)
        damage = await _find_damage(database)
        if repair:
            repaired = await _repair(database, begin, end, now)
        found = await _check(database, begin, end, damage)
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)

    def print_text() -> None:
        if repair:
            click.echo(f"{repaired.counts:,} rolled-up counts corrected.")
        if repaired.converted:
            words = "message with conversions was", "messages with conversions were"
            click.echo(f"{counted(repaired.converted, *words)} not recorded as converted before.")
        _print_findings(found, since, begin)

    result = {
        "since": to_iso(begin),
        "repaired": repaired.counts,
        "newly_converted": repaired.converted,
        "drift": found.drifts,
        "damage": found.damage,
        "orphans": [orphan._asdict() for orphan in found.orphans],
        "missing_first_conversions": found.missing,
    }
    print_result(result, as_json, print_text)
    if found.are_errors:
        raise click.exceptions.Exit(1)


def _progress(stage: str, steps: int = 0) -> None:
    """On a terminal, show on stderr the present stage of the check and the number of its finished steps."""
    if sys.stderr.isatty():
        click.echo(f"\r{stage} ..." + (f" {counted(steps, 'step')}" if steps else "") + "\033[K", nl=False, err=True)


async def _find_damage(database: Any) -> list[str]:
    from shortener.storage.integrity import find_damage

    _progress("Checking the database for damage")
    damage: list[str] = await database.read(partial(find_damage, thorough=True))
    return damage


async def _repair(database: Any, begin: datetime, end: datetime, now: datetime) -> _Repaired:
    """Record converted messages that are not recorded, and correct the stored counts of the period. Each transaction adds an
    audit row."""
    from shortener.conversions.first_conversions import FirstConversions
    from shortener.ids import IdGenerator
    from shortener.reporting.first_conversion_check import find_counted_without_row
    from shortener.reporting.rollup_repair import RowsQuarantined, repair_rollups

    _progress("Counting converted messages")
    add_audit_row = partial(_add_audit_row, command_line_audit(database), begin, end, now)
    try:
        job = FirstConversions(database, IdGenerator(database.node), current_time)
        without_row = await database.read(find_counted_without_row, begin, end)
        converted = await job.count_all(add_audit_row, without_row)
        return _Repaired(await repair_rollups(database, begin, end, add_audit_row), converted)
    except RowsQuarantined as error:
        raise click.ClickException(str(error)) from None


async def _check(database: Any, begin: datetime, end: datetime, damage: list[str]) -> _Findings:
    """Check the stored counts of the period, the references between rows and the recorded conversions. The findings also
    contain `damage`, the lines about damaged pages and indexes that the caller has found."""
    from sqlalchemy import func, select

    from shortener.reporting import count_check
    from shortener.reporting.first_conversion_check import count_missing
    from shortener.reporting.rollup_check import verify_rollups
    from shortener.storage.references import find_orphans
    from shortener.storage.schema import applications

    drifts = await database.read(count_check.verify, begin, end, partial(_progress, "Counting again"))
    rolled_up = await database.read(verify_rollups, begin, end, partial(_progress, "Comparing the rolled-up counts"))
    missing = await database.read(count_missing)
    first = await database.read(lambda connection: connection.scalar(select(func.min(applications.c.created_at))))
    _progress("Looking for rows that refer to missing rows")
    return _Findings(_serialize(drifts, rolled_up), damage, await find_orphans(database), missing, first)


def _serialize(drifts: Sequence[CountDifference], rolled_up: Sequence[RollupDifference]) -> list[dict[str, Any]]:
    """Return the differences of the cohort counts and of the rolled-up counts as JSON objects. Both kinds have the same
    fields."""
    from shortener.storage.types import to_iso

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
    return rows


def _print_findings(found: _Findings, since: datetime | None, begin: datetime) -> None:
    """Print what the check has found. `since` is the value of the option --since, and `begin` is the start of the checked
    period."""
    for line in found.damage:
        click.echo(f"The database is damaged: {line}")
    if found.missing:
        words = "message with conversions is", "messages with conversions are"
        click.echo(f"{counted(found.missing, *words)} not recorded as converted (table first_conversions). Use --repair.")
    for orphan in found.orphans:
        click.echo(f"The row {orphan.id} refers to a row that does not exist: {orphan.reference}")
    if not found.drifts:
        is_younger = since is None and found.first is not None and found.first >= begin
        period = "" if is_younger else f" since {begin:%Y-%m-%d %H:%M} UTC"
        rest = " Raw data of earlier counts may be deleted already." if since is None and not is_younger else ""
        click.echo(f"The counts{period} agree with the raw data.{rest}")
        return
    shown = found.drifts[:MAX_SHOWN_DRIFTS]
    print_table(shown, "application_id", "campaign", "source", "country", "at", "metric", "kept", "counted", "counts")
    if len(found.drifts) > len(shown):
        click.echo(f"{len(found.drifts) - len(shown):,} more differences are not shown; --json contains all of them.")


def _add_audit_row(audit: Any, since: datetime, until: datetime, now: datetime, connection: Any, corrected: int) -> None:
    """Add the audit row of `verify --repair` for a period. `corrected` is the number of rolled-up counts that were corrected, or
    the number of messages that were recorded as converted."""
    from shortener.storage.types import to_iso

    audit.add(connection, now, "counts_repaired", after={"since": to_iso(since), "until": to_iso(until), "corrected": corrected})
