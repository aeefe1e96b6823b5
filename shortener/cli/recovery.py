"""The commands `shortener backup`, `restore` and `secret adopt`. They write a backup of an installation, restore a backup, and
replace a lost secret."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shortener.cli.command_clock import current_time
from shortener.cli.common import (
    async_command,
    command_line_audit,
    confirm,
    interruptible,
    json_option,
    load_settings,
    open_store,
    print_fields,
    print_result,
    yes_option,
)
from shortener.plurals import counted

if TYPE_CHECKING:
    from shortener.clicks.hit_spool import HitSpool
    from shortener.secret import Secret
    from shortener.settings import Settings
    from shortener.storage.secret_change import LostValue

_GUIDE = "docs/guides/backup-and-restore.md"


def _print_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{done:,} of {total:,} pages\033[K", nl=False, err=True)
        if done == total:
            click.echo(err=True)


def _require_sqlite(settings: Settings, command: str) -> Path:
    from shortener.storage.open import sqlite_path

    file = sqlite_path(settings.store_url)
    if file is None:
        raise click.ClickException(f"`shortener {command}` copies a SQLite database. For PostgreSQL use pg_dump, see {_GUIDE}")
    return file


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@json_option
@async_command
async def backup(file: Path, as_json: bool) -> None:
    """Write a backup of the SQLite database and its secret to FILE. A running server continues.

    The backup is one file that only you can read (mode 0600): a SQLite database with the secret inside. Before the file gets its
    name, the command reads the file again and checks every page. An existing FILE is not replaced.
    """
    from shortener.secret import open_secret
    from shortener.storage.backup import backup as write_backup

    settings = load_settings()
    database = _require_sqlite(settings, "backup")
    async with open_store():
        secret = open_secret(settings.secret, settings.data_dir)
    with interruptible():
        info = write_backup(database, file, secret, current_time(), _print_progress)
    fields = dataclasses.asdict(info)

    def print_text() -> None:
        print_fields(fields)
        click.echo(f"The backup is complete and verified. Keep {file} secret: it contains personal data and the master secret.")

    print_result(fields, as_json, print_text)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--replace",
    is_flag=True,
    help="Rename an existing database and its secret, and put the restored database and secret in their place.",
)
@yes_option
@json_option
@async_command
async def restore(file: Path, replace: bool, yes: bool, as_json: bool) -> None:
    """Restore the backup FILE, or a plain copy of a SQLite database, into DATA_DIR. No server may run.

    The secret of the backup is written to DATA_DIR/secret, unless SECRET is set. Afterwards run `shortener verify`. If the backup
    comes from an older version, run `shortener migrate` before that.

    With --replace, an existing database and its secret are renamed. This happens only after the new database is complete and all
    its pages are checked. If the command fails or is interrupted before that, the existing files do not change.
    """
    from shortener.secret import Secret, secret_file
    from shortener.storage.backup import BackupError, inspect
    from shortener.storage.backup import restore as restore_backup
    from shortener.storage.migrations import HEAD
    from shortener.storage.sqlite import hold_ownership

    settings = load_settings()
    database = _require_sqlite(settings, "restore")
    inspect(file)  # This call raises an error if the backup is unusable. The user is then not asked to confirm.
    place = secret_file(settings.data_dir)
    is_replacing = replace and (database.exists() or place.exists())
    text = settings.secret.get_secret_value()
    with hold_ownership(database):
        if is_replacing:
            confirm(f"{database.absolute()} and its secret are renamed and replaced by {file}.", yes, is_required=True)
        replaced_at = current_time() if is_replacing else None
        secret = Secret(text) if text else None
        try:
            with interruptible():
                info, moved = restore_backup(file, database, place, secret, _print_progress, replaced_at=replaced_at)
        except BackupError as error:
            raise BackupError(f"{error}. Nothing was changed") from None
    await _record_restore(settings, info)
    fields = dataclasses.asdict(info) | {"database": str(database.absolute()), "moved": [str(one) for one in moved]}

    def print_text() -> None:
        print_fields(fields)
        if not text and not place.exists():
            click.echo("The file contains no secret. Restore the secret file, or run `shortener secret adopt`.")
        where = (
            ""
            if settings.data_dir == type(settings).model_fields["data_dir"].default
            else f"SHORTENER_DATA_DIR={shlex.quote(str(settings.data_dir))} "
        )
        steps = (["migrate"] if info.schema != HEAD else []) + ["verify", "serve"]
        click.echo("The database is restored. Next: " + ", then ".join(f"{where}shortener {step}" for step in steps))

    print_result(fields, as_json, print_text)


async def _record_restore(settings: Settings, info: Any) -> None:
    """Add a row to the audit log of the restored database. Do nothing if the database comes from a version that has no audit
    log."""
    from shortener.storage.open import open_database

    def add(connection: Any) -> None:
        if audit.can_add(connection):
            audit.add(connection, current_time(), "backup_restored", after={"schema": info.schema})

    database = await open_database(settings.store_url, owner=True, is_command=True)
    try:
        audit = command_line_audit(database)
        await database.write(add)
    finally:
        await database.close()


@click.group()
def secret() -> None:
    """Take over an installation whose secret was lost."""


@secret.command("adopt")
@yes_option
@json_option
@async_command
async def adopt_secret(yes: bool, as_json: bool) -> None:
    """Make the current secret the secret of this database. Use this only if the old secret is lost.

    The current secret is SECRET, or the content of DATA_DIR/secret; if neither exists, a new secret is created. Links continue to
    work. Values that were encrypted with the lost secret are removed and listed: signing secrets, headers and certificates of
    trackers, callback secrets, settings of gateways, second factors. A tracker or gateway that loses a value is disabled, and its
    deliveries wait until you set the value again and enable it. Click ids that destinations already received are no longer
    recognised; message ids are still recognised. Hits that wait in Redis are moved to the new secret. If Redis fails during the
    move, run the command again.
    """
    from shortener.cli.gateways import ensure_simulator
    from shortener.secret import open_secret, secret_file
    from shortener.storage import secret_change
    from shortener.storage.installation import FINGERPRINT, get, require_installation
    from shortener.storage.open import open_database

    settings = load_settings()
    await require_installation(settings)
    # This call raises StoreUnavailable while a server uses the SQLite database.
    database = await open_database(settings.store_url, owner=True, is_command=True)
    place = secret_file(settings.data_dir)
    is_new = not settings.secret.get_secret_value() and not place.exists()
    # If the command gets an error from the transaction, the transaction may be committed nevertheless. Therefore `is_written`
    # becomes True before the transaction begins.
    is_written = False
    lost: list[LostValue] = []
    try:
        new = open_secret(settings.secret, settings.data_dir, create=True)
        is_adopted = await database.read(get, FINGERPRINT) != new.fingerprint
        if is_adopted:
            lost = [value for value in await database.read(secret_change.find_lost, new) if not _is_simulator(value)]
            if not as_json:
                _print_lost(lost)
            confirm(
                f"The installation gets a new secret. {len(lost)} encrypted values are removed. Stop every other process first.",
                yes,
                is_required=True,
            )
            await _check_redis(settings, new)
            is_written = True
            lost = await _adopt(database, new)
            await ensure_simulator(database)
        hits = await _move_hits(settings, database, new)
    finally:
        if is_new and not is_written:
            place.unlink(missing_ok=True)
        await database.close()
    fields = {"adopted": is_adopted, "lost": [dataclasses.asdict(value) for value in lost], "hits_moved": hits}

    def print_text() -> None:
        if is_adopted:
            click.echo("The secret is adopted. Links continue to work.")
        else:
            click.echo("The secret already belongs to this database.")
        if hits:
            click.echo(f"{counted(hits, 'hit that waited in Redis is', 'hits that waited in Redis are')} moved.")
        for value in lost:
            click.echo(f"  {_remedy(value)}")

    print_result(fields, as_json, print_text)


async def _adopt(database: Any, new: Secret) -> list[LostValue]:
    """Make `new` the secret of the database, and add a row to the audit log. Return the removed values."""
    from shortener.storage import secret_change

    def adopt(connection: Any, audit: Any) -> list[LostValue]:
        removed = secret_change.adopt(connection, new)
        after = {"removed": [f"{value.owner} {value.id}: {value.value}" for value in removed]}
        audit.add(connection, current_time(), "secret_adopted", after=after)
        return removed

    return [value for value in await database.write(adopt, command_line_audit(database)) if not _is_simulator(value)]


@contextlib.asynccontextmanager
async def _open_spool(settings: Settings, secret: Secret) -> AsyncIterator[HitSpool]:
    """Yield the spool in Redis whose keys are derived from the secret `secret`. REDIS_URL must be set."""
    from shortener.clicks.hit_spool import HitSpool
    from shortener.container.connections import key_prefix
    from shortener.redis.client import open_redis

    redis = open_redis(settings.redis_url, timeout=1.0, connections=2)
    try:
        yield HitSpool(redis, key_prefix(secret), limit=settings.spool_limit, now_ms=lambda: 0)
    finally:
        await redis.close()


async def _check_redis(settings: Settings, new: Secret) -> None:
    """Raise ClickException if Redis is configured and does not respond. It may contain hits."""
    from shortener.redis.client import RedisUnavailable

    if settings.redis_url:
        try:
            async with _open_spool(settings, new) as spool:
                await spool.look()
        except RedisUnavailable as error:
            raise click.ClickException(f"nothing was changed: Redis, which may contain hits, is unavailable: {error}") from None


async def _move_hits(settings: Settings, database: Any, new: Secret) -> int:
    """Move the hits that wait in Redis to keys that are derived from the new secret. Return the number of moved hits.

    Until all hits are moved, the database contains the fingerprints of the former secrets. If the command is interrupted, it can
    therefore be repeated. Raise ClickException if Redis does not respond."""
    from shortener.container.connections import key_prefix, key_prefix_of
    from shortener.redis.client import RedisUnavailable
    from shortener.storage import secret_change

    former = await database.read(secret_change.former_fingerprints)
    if not settings.redis_url or not former:
        return 0
    prefixes = {key_prefix_of(fingerprint) for fingerprint in former} - {key_prefix(new)}
    try:
        async with _open_spool(settings, new) as spool:
            hits = sum([await spool.move_from(prefix) for prefix in sorted(prefixes)])
    except RedisUnavailable as error:
        raise click.ClickException(
            f"the secret is adopted, but the hits that wait in Redis are not moved, because Redis is unavailable: {error}. Run "
            "`shortener secret adopt` again when Redis responds"
        ) from None
    await database.write(secret_change.forget_former)
    return hits


def _is_simulator(value: LostValue) -> bool:
    """Return whether a lost value belongs to the built-in gateway `simulator`. `ensure_simulator` creates such a value again, so
    the operator does not have to."""
    return (value.owner, value.name) == ("gateways", "simulator")


def _print_lost(lost: list[LostValue]) -> None:
    if lost:
        click.echo("These values were encrypted with the lost secret and are removed:", err=True)
        for value in lost:
            click.echo(f"  {_owner(value)}: {value.value}", err=True)


def _remedy(value: LostValue) -> str:
    """Return a line with the command with which the operator sets a lost value again."""
    commands = {
        "trackers": f"shortener trackers update {value.id} --header 'NAME: -' --secret - --enable",
        "applications": f"shortener applications rotate-callback-secret {value.id}",
        "gateways": f"shortener gateways update {value.id} --option NAME=-, or remove and add the gateway",
        "operators": f"shortener operators reset {value.name}",
    }
    command = commands.get(value.owner, "set it again")
    return f"{_owner(value)} lost its {value.value}: {command}"


def _owner(value: LostValue) -> str:
    return f"{value.owner.removesuffix('s')} {value.id} ({value.name})"
