from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shortener.container import open_service
from shortener.secret import Secret, open_secret, secret_file
from shortener.settings import Settings
from shortener.storage.backup import BackupError, backup, inspect, restore
from shortener.storage.installation import FINGERPRINT
from tests.clicks.helpers import create_codes
from tests.conftest import client_of
from tests.servers import PATIENCE

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
OTHER = Secret("0123456789abcdefghijklmnopqrstuv")


def ignore(done: int, total: int) -> None:
    """Ignore the progress of a backup."""


def query(file: Path, statement: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        return connection.execute(statement).fetchall()


def damage(file: Path, table: str) -> None:
    """Overwrite the first page of a table with random bytes."""
    ((page_size,),) = query(file, "PRAGMA page_size")
    ((root,),) = query(file, f"SELECT rootpage FROM sqlite_master WHERE name = '{table}'")
    assert isinstance(page_size, int)
    assert isinstance(root, int)
    with file.open("r+b") as opened:
        opened.seek((root - 1) * page_size)
        opened.write(os.urandom(page_size))


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """The folder of an installation with one link. No server is running."""
    service = await open_service(Settings(data_dir=tmp_path / "data"))
    service.recorder.start()
    await create_codes(service)
    await service.close(grace=1)
    return tmp_path / "data"


def installation_secret(folder: Path) -> Secret:
    return open_secret(Settings(data_dir=folder).secret, folder)


async def test_a_backup_of_a_running_service_is_one_private_file_and_a_restored_copy_serves_its_links(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    service = await open_service(settings)
    service.recorder.start()
    (code,) = await create_codes(service)
    database = tmp_path / "data" / "shortener.db"
    assert database.with_name("shortener.db-wal").stat().st_size > 0, "the last commits are only in the WAL"
    file = tmp_path / "backup"
    info = backup(database, file, service.secret, NOW, ignore)
    assert (info.applications, info.messages, info.links, info.has_secret) == (1, 1, 1, True)
    assert info.created_at == "2026-11-28T12:00:00Z"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    await create_codes(service)  # The service continues to write after the backup.
    await service.close(grace=1)

    restored = tmp_path / "restored"
    restore(file, restored / "shortener.db", restored / "secret", None, ignore)
    assert sorted(path.name for path in restored.iterdir()) == ["secret", "shortener.db"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in restored.iterdir()} == {0o600}
    assert (restored / "secret").read_bytes() == (tmp_path / "data" / "secret").read_bytes()
    assert b"backup_secret" not in (restored / "shortener.db").read_bytes()
    assert service.secret.text.encode() not in (restored / "shortener.db").read_bytes()
    again = await open_service(Settings(data_dir=restored))
    again.recorder.start()
    async with client_of(again) as client:
        assert (await client.get(f"/{code}")).status_code == 302
    await again.close(grace=1)


def test_a_backup_is_a_consistent_snapshot_while_another_connection_writes_all_the_time(folder: Path, tmp_path: Path) -> None:
    """Each transaction of the writer inserts two rows. Therefore a consistent snapshot contains an even number of rows."""
    database, begun, stop = folder / "shortener.db", threading.Event(), threading.Event()

    def write() -> None:
        with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection:
            number = 0
            while not stop.is_set():
                with connection:
                    for _ in range(2):
                        number += 1
                        connection.execute("INSERT INTO installation VALUES (?, ?)", (f"row{number}", "x" * 4000))
                begun.set()

    steps: list[int] = []
    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert begun.wait(PATIENCE)
        for attempt in range(5):
            file = tmp_path / f"backup{attempt}"
            backup(database, file, installation_secret(folder), NOW, lambda done, total: steps.append(done))
            ((rows,),) = query(file, "SELECT count(*) FROM installation WHERE name LIKE 'row%'")
            assert isinstance(rows, int)
            assert rows > 0
            assert rows % 2 == 0
    finally:
        stop.set()
        writer.join()
    assert len(steps) >= 5


def test_a_backup_never_replaces_an_existing_file_and_a_failed_backup_creates_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, secret = folder / "shortener.db", installation_secret(folder)
    (tmp_path / "old").write_text("precious")
    with pytest.raises(BackupError, match="already exists"):
        backup(database, tmp_path / "old", secret, NOW, ignore)
    assert (tmp_path / "old").read_text() == "precious"
    with pytest.raises(BackupError, match="cannot write"):
        backup(database, tmp_path / "no folder" / "new", secret, NOW, ignore)
    with pytest.raises(BackupError, match="does not belong to this database"):
        backup(database, tmp_path / "new", OTHER, NOW, ignore)

    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shortener.storage.backup._flush", fail)
    with pytest.raises(BackupError, match="No space left"):
        backup(database, tmp_path / "new", secret, NOW, ignore)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "old"]


def test_a_damaged_database_is_detected_and_no_backup_is_written(folder: Path, tmp_path: Path) -> None:
    database = folder / "shortener.db"
    query(database, "PRAGMA wal_checkpoint(TRUNCATE)")
    damage(database, "events")
    expected = f"{re.escape(str(database))} is damaged: .*No backup was written. Run `shortener doctor` to check the database$"
    with pytest.raises(BackupError, match=f"^{expected}"):
        backup(database, tmp_path / "new", installation_secret(folder), NOW, ignore)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("pages", [None, 2, 3, 60, -1])
def test_the_error_for_a_damaged_backup_names_the_backup_and_says_what_to_do(
    folder: Path, tmp_path: Path, pages: int | None
) -> None:
    file, target = tmp_path / "backup", tmp_path / "new" / "shortener.db"
    backup(folder / "shortener.db", file, installation_secret(folder), NOW, ignore)
    size = file.stat().st_size
    if pages is None:
        damage(file, "events")
    else:
        left = pages * 4096 if pages > 0 else size + pages * 4096
        os.truncate(file, left)
    with pytest.raises(BackupError) as raised:
        restore(file, target, target.with_name("secret"), None, ignore)
    text = str(raised.value)
    assert text.startswith(f"{file} is damaged: ")
    assert text.endswith("The file was not changed. Copy it again from the place where you keep it, or restore another backup")
    assert ("bytes, so the rest is missing" in text) == (pages is not None)
    if pages is not None:
        assert f"{left:,} of {size:,} bytes" in text
    assert file.exists()
    assert not target.exists()


def test_a_restore_rejects_an_existing_database_other_files_and_backups_of_newer_versions(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    backup(folder / "shortener.db", file, installation_secret(folder), NOW, ignore)
    target = tmp_path / "new" / "shortener.db"
    with pytest.raises(BackupError, match="already exists"):
        restore(file, folder / "shortener.db", secret_file(folder), None, ignore)
    (tmp_path / "text").write_text("no database " * 1000)
    query(tmp_path / "empty", "CREATE TABLE other (x)")
    for name in ("text", "empty"):
        with pytest.raises(BackupError, match="is not a database of this service"):
            restore(tmp_path / name, target, target.with_name("secret"), None, ignore)
    with pytest.raises(BackupError, match="there is no file"):
        restore(tmp_path / "missing", target, target.with_name("secret"), None, ignore)
    query(file, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(BackupError, match="Use a newer version"):
        restore(file, target, target.with_name("secret"), None, ignore)
    assert not target.exists()
    assert not target.with_name("secret").exists()


def test_a_restore_rejects_a_wrong_secret_and_accepts_the_secret_of_the_backup(folder: Path, tmp_path: Path) -> None:
    file, secret = tmp_path / "backup", installation_secret(folder)
    backup(folder / "shortener.db", file, secret, NOW, ignore)
    one, two = tmp_path / "one", tmp_path / "two"
    with pytest.raises(BackupError, match="SHORTENER_SECRET is not the secret of this backup"):
        restore(file, one / "shortener.db", one / "secret", OTHER, ignore)
    assert not (one / "shortener.db").exists()
    restore(file, one / "shortener.db", one / "secret", secret, ignore)
    assert not (one / "secret").exists(), "the setting SECRET contains it"
    two.mkdir()
    (two / "secret").write_text(OTHER.text)
    with pytest.raises(BackupError, match="move the file away"):
        restore(file, two / "shortener.db", two / "secret", None, ignore)
    (two / "secret").write_text(secret.text)
    restore(file, two / "shortener.db", two / "secret", None, ignore)


def test_a_plain_copy_of_a_database_can_be_restored_without_a_secret(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    query(folder / "shortener.db", f"VACUUM INTO '{copy}'")
    assert not inspect(copy).has_secret
    new = tmp_path / "new"
    info, moved = restore(copy, new / "shortener.db", new / "secret", None, ignore)
    assert (info.links, info.created_at, moved) == (1, None, [])
    assert not (new / "secret").exists()
    ((name,),) = query(new / "shortener.db", f"SELECT name FROM installation WHERE name = '{FINGERPRINT}'")
    assert name == FINGERPRINT


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of each file in a folder. The keys are the names of the files."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_restore_can_rename_the_files_of_an_installation_and_its_database_is_complete_at_their_place(
    folder: Path, tmp_path: Path
) -> None:
    database, file = folder / "shortener.db", tmp_path / "backup"
    backup(database, file, installation_secret(folder), NOW, ignore)
    database.write_bytes(b"a damaged database")
    database.with_name("shortener.db-wal").write_bytes(b"its log")
    database.with_name("shortener.db-shm").write_bytes(b"the index of its log")
    before = contents(folder)
    _, moved = restore(file, database, secret_file(folder), None, ignore, replaced_at=NOW)
    names = {"shortener.db": "", "shortener.db-wal": "-wal", "shortener.db-shm": "-shm", "secret": ""}
    renamed = {name: f"{name.removesuffix(suffix)}.replaced-20261128T120000Z{suffix}" for name, suffix in names.items()}
    assert {path.name for path in moved} == set(renamed.values())
    assert {renamed.get(name, name): content for name, content in before.items()}.items() <= contents(folder).items()
    assert not database.with_name("shortener.db-wal").exists()
    assert query(database, "SELECT count(*) FROM links") == [(1,)]
    assert (folder / "secret").read_bytes() == before["secret"]


@pytest.mark.parametrize("failure", ["another secret", "damaged page", "interrupted copy", "full disk"])
def test_a_restore_that_fails_changes_no_file_of_the_installation_that_it_would_replace(
    failure: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, file = folder / "shortener.db", tmp_path / "backup"
    backup(database, file, installation_secret(folder), NOW, ignore)
    query(database, "INSERT INTO installation VALUES ('later', 'than the backup')")
    setting, progress = None, ignore

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    def fail(path: Path, value: str) -> None:
        raise OSError(28, "No space left on device")

    if failure == "another secret":
        setting = OTHER
    elif failure == "damaged page":
        damage(file, "events")
    elif failure == "interrupted copy":
        progress = interrupt
    else:
        monkeypatch.setattr("shortener.storage.backup.write_secret", fail)  # this is the last step, after the files were renamed
    before = contents(folder)
    with pytest.raises((BackupError, KeyboardInterrupt)):
        restore(file, database, secret_file(folder), setting, progress, replaced_at=NOW)
    assert contents(folder) == before


def test_a_restore_into_an_empty_folder_writes_the_secret_first_and_removes_it_if_it_fails(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, target = tmp_path / "backup", tmp_path / "empty" / "shortener.db"
    backup(folder / "shortener.db", file, installation_secret(folder), NOW, ignore)
    seen = []

    def fail(temporary: Path, database: Path) -> None:
        seen.append(secret_file(target.parent).exists())
        raise BackupError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("shortener.storage.backup._put_in_place", fail)
        with pytest.raises(BackupError):
            restore(file, target, secret_file(target.parent), None, ignore)
    assert seen == [True], "a process that is killed here can restore the backup again"
    assert not secret_file(target.parent).exists()
    restore(file, target, secret_file(target.parent), None, ignore)
    assert query(target, "SELECT count(*) FROM links") == [(1,)]
