"""This module makes a backup of a SQLite database while a server uses it, and restores such a backup.

A backup is one file: a complete SQLite database. Its table `installation` also contains the secret of the installation and the
time of the backup. The backup is a snapshot of one moment, because the copy runs in a read transaction, which does not see later
writes. The server continues to work. The file gets its final name only when it is complete, verified and written to disk. Only
its owner can read it.

`restore` accepts a backup, and also a plain copy of a database, such as a file that Litestream has restored. It removes the
secret from the database and writes it to the secret file. If it replaces an installation, it first completes and verifies the new
database, and then renames the old files.

`backup` and `restore` block the calling thread. If they fail, also because of KeyboardInterrupt, no file with the target name was
created or changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from shortener.model import record
from shortener.secret import Secret, SecretError, write_secret
from shortener.storage.installation import FINGERPRINT
from shortener.storage.migrations import HEAD
from shortener.storage.types import to_iso

PAGES_PER_STEP = 4096  # The number of pages that are copied between two reports of the progress.
BUSY_TIMEOUT_SECONDS = 10.0
#: The names of the rows in the table `installation` that exist only in a backup.
_SECRET, _CREATED_AT = "backup_secret", "backup_created_at"

#: A function whose arguments are the number of copied pages and the number of all pages.
BackupProgress = Callable[[int, int], None]


class BackupError(Exception):
    """Raised if a backup or a restore fails, or if its result is damaged. The text states the reason and what to do."""


class _DamagedError(BackupError):
    """Raised if SQLite finds that a file is damaged. The text states the reason. It does not name the file, which may be a
    temporary copy."""


@record
class BackupInfo:
    """A description of a backup. If the file is a plain copy of a database, `created_at` is None and `has_secret` is false."""

    file: str
    bytes: int
    schema: str
    created_at: str | None
    has_secret: bool
    applications: int
    messages: int
    links: int
    hits: int


def backup(database: Path, target: Path, secret: Secret, now: datetime, progress: BackupProgress) -> BackupInfo:
    """Write a backup of the SQLite file `database` to the file `target`, and verify it. Return a description of its content.
    Raise BackupError if this fails."""
    if target.exists():
        raise BackupError(f"{target} already exists. Choose another name, or remove the file first")
    remedy = "No backup was written. Run `shortener doctor` to check the database"
    with _explained(database, remedy), _new_file(target) as temporary:
        _copy(database, temporary, progress)
        with _opened(temporary) as connection:
            values = [(_SECRET, secret.text), (_CREATED_AT, to_iso(now))]
            connection.executemany("INSERT OR REPLACE INTO installation (name, value) VALUES (?, ?)", values)
        info = _inspect(temporary)
        with _opened(temporary) as connection:
            if _value(connection, FINGERPRINT) not in (None, secret.fingerprint):
                raise BackupError("the secret does not belong to this database. Set SHORTENER_SECRET to its secret")
        _check_pages(temporary)
        _flush(temporary)
        _put_in_place(temporary, target)
    return dataclasses.replace(info, file=str(target))


def restore(
    source: Path,
    database: Path,
    secret_file: Path,
    secret: Secret | None,
    progress: BackupProgress,
    *,
    replaced_at: datetime | None = None,
) -> tuple[BackupInfo, list[Path]]:
    """Restore the backup `source` to the SQLite file `database`, and verify it. Return a description of its content, and the new
    paths of the files that were renamed. Raise BackupError if this fails.

    If `replaced_at` is None, `database` must not exist. Otherwise an existing database and the secret file are renamed. The new
    names contain the time `replaced_at`. No process may use the existing database during the restore.

    `secret` is the setting SECRET. If it is set, it must be equal to the secret in the backup. If it is None, the secret of the
    backup is written to `secret_file`. If that file is not renamed and already contains this secret, it does not change."""
    is_replacing = replaced_at is not None
    if database.exists() and not is_replacing:
        raise BackupError(f"{database} already exists. Move it away first, or use --replace")
    if not source.is_file():
        raise BackupError(f"there is no file {source}")
    info = inspect(source)
    database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _explained(source, _OTHER_BACKUP), _new_file(database) as temporary:
        _copy(source, temporary, progress)
        with _opened(temporary) as connection:
            stored, fingerprint = _value(connection, _SECRET), _value(connection, FINGERPRINT)
            connection.execute("PRAGMA secure_delete=ON")
            connection.execute("DELETE FROM installation WHERE name IN (?, ?)", (_SECRET, _CREATED_AT))
        _check_pages(temporary)
        _flush(temporary)
        is_complete = _check_secret(fingerprint, None if is_replacing else secret_file, secret)
        ending = replaced_at.strftime("replaced-%Y%m%dT%H%M%SZ") if replaced_at is not None else ""
        moved = _install(temporary, database, secret_file, None if is_complete else stored, ending)
    return info, moved


def inspect(file: Path) -> BackupInfo:
    """Return a description of a backup or of a plain copy of a database. Raise BackupError if this release cannot use the
    file."""
    if not file.exists():
        raise BackupError(f"{file} does not exist")
    with _explained(file, _OTHER_BACKUP):
        return _inspect(file)


def _inspect(file: Path) -> BackupInfo:
    with _opened(file, "ro") as connection:
        schema = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        if schema is None or schema[0] > HEAD:
            found = schema[0] if schema else "none"
            raise BackupError(
                f"{file} has the schema {found}, which this version, of schema {HEAD}, does not know. Use a newer version"
            )
        counts = [connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in _COUNTED]
        return BackupInfo(
            str(file),
            file.stat().st_size,
            schema[0],
            _value(connection, _CREATED_AT),
            _value(connection, _SECRET) is not None,
            *counts,
        )


_COUNTED = ("applications", "messages", "links", "hits")
#: What an operator must do if a backup is damaged.
_OTHER_BACKUP = "The file was not changed. Copy it again from the place where you keep it, or restore another backup"


def _check_secret(fingerprint: str | None, secret_file: Path | None, setting: Secret | None) -> bool:
    """Return whether a secret is configured, by the setting SECRET or by a secret file. Raise BackupError if it is not the secret
    of the backup."""
    existing = setting
    try:
        if existing is None and secret_file is not None and secret_file.exists():
            existing = Secret(secret_file.read_text().strip())
    except (OSError, SecretError, UnicodeDecodeError) as error:
        raise BackupError(f"{secret_file}: {error}") from None
    if existing is not None and fingerprint not in (None, existing.fingerprint):
        place = "SHORTENER_SECRET" if setting is not None else str(secret_file)
        remedy = "unset it" if setting is not None else "move the file away"
        raise BackupError(f"{place} is not the secret of this backup. To use the secret of the backup, {remedy}")
    return existing is not None


def _install(temporary: Path, database: Path, secret_file: Path, secret: str | None, ending: str) -> list[Path]:
    """Give the restored database its final name. Write `secret`, if it is not None, to the secret file. If `ending` is not empty,
    first rename the existing files: append `ending` to their names. Return their new paths.

    If a step fails, undo the steps before it. The present secret file is renamed last, because `serve` creates no new
    installation while a secret file exists without a database. If no files are replaced, the secret is written first, so that a
    restore that was killed can be repeated."""
    moved: list[Path] = []
    with contextlib.ExitStack() as undo:

        def move(file: Path, name: str) -> None:
            if ending and file.exists():
                new = file.with_name(name)
                os.rename(file, new)
                undo.callback(os.replace, new, file)
                moved.append(new)

        def put_secret() -> None:
            if secret is not None:
                secret_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                write_secret(secret_file, secret)
                undo.callback(secret_file.unlink)

        if not ending:
            put_secret()  # Write the secret first. If the process is killed after this step, the restore can be repeated.
        for suffix in ("-wal", "-shm", ""):
            move(database.with_name(database.name + suffix), f"{database.name}.{ending}{suffix}")
        _put_in_place(temporary, database)
        undo.callback(database.unlink)
        if ending:
            move(secret_file, f"{secret_file.name}.{ending}")
            put_secret()
        undo.pop_all()
    return moved


def _copy(source: Path, target: Path, progress: BackupProgress) -> None:
    """Copy a snapshot of the database `source` to the empty file `target`. The copy has no WAL, so it is one file."""
    with _opened(source, "ro") as reader, _opened(target) as writer:
        # Keep the snapshot with a read transaction. Without it, SQLite would start the copy again after each commit of the
        # server.
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_master").fetchone()

        def report(status: int, remaining: int, total: int) -> None:
            progress(total - remaining, total)

        reader.backup(writer, pages=PAGES_PER_STEP, progress=report)
        reader.execute("ROLLBACK")
        writer.execute("PRAGMA journal_mode=DELETE")


def _check_pages(file: Path) -> None:
    """Raise BackupError if SQLite finds a damaged page or index in the file. This reads the whole file."""
    with _opened(file, "ro") as connection:
        found = [row[0] for row in connection.execute("PRAGMA integrity_check(5)")]
    if found != ["ok"]:
        raise _DamagedError("; ".join(found))


@contextlib.contextmanager
def _explained(file: Path, remedy: str) -> Iterator[None]:
    """If the `with` block finds a damaged file, raise BackupError with the name of `file` and `remedy`. The damaged file may be a
    temporary copy of `file`."""
    try:
        yield
    except _DamagedError as error:
        raise BackupError(f"{file} is damaged: {error}{_missing_bytes(file)}. {remedy}") from None


def _missing_bytes(file: Path) -> str:
    """Return a text that states how many bytes of a SQLite file exist, or "" if none are missing."""
    with open(file, "rb") as opened:
        header = opened.read(100)
    # In the header of a SQLite file, the size of a page is at byte 16 (1 means 65,536), and the number of pages is at byte 28.
    page_bytes, pages = int.from_bytes(header[16:18]), int.from_bytes(header[28:32])
    size, expected = file.stat().st_size, (65_536 if page_bytes == 1 else page_bytes) * pages
    return f" (it has {size:,} of {expected:,} bytes, so the rest is missing)" if size < expected else ""


@contextlib.contextmanager
def _opened(file: Path, mode: str = "rw") -> Iterator[sqlite3.Connection]:
    """Open an existing SQLite file, and commit when the context ends. Convert the errors of SQLite: raise _DamagedError for a
    damaged file, and BackupError for any other error."""
    connection: sqlite3.Connection | None = None
    try:
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode={mode}", uri=True, timeout=BUSY_TIMEOUT_SECONDS)
        yield connection
        connection.commit()
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_CORRUPT"):
            raise _DamagedError(str(error)) from None
        reason = "is not a database of this service" if "no such table" in str(error) or "not a database" in str(error) else error
        raise BackupError(f"{file}: {reason}") from None
    finally:
        if connection is not None:
            connection.close()


def _value(connection: sqlite3.Connection, name: str) -> str | None:
    row = connection.execute("SELECT value FROM installation WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


@contextlib.contextmanager
def _new_file(target: Path) -> Iterator[Path]:
    """Yield the path of a new empty file in the folder of `target`. Only its owner can read the file. At the end of the context,
    remove the file under this path, and the journal files that SQLite has created beside it."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield temporary
    except OSError as error:
        raise BackupError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)


def _put_in_place(temporary: Path, target: Path) -> None:
    """Give the temporary file its final name. Raise BackupError if another process has created a file with this name."""
    try:
        os.link(temporary, target)  # A hard link never replaces an existing file. A rename would replace it.
    except FileExistsError:
        raise BackupError(f"{target} was created by another process in the meantime. Choose another name") from None
    except OSError:  # The file system has no hard links.
        os.rename(temporary, target)
    _flush(target.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
