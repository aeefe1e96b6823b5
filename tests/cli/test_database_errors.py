"""Tests that the error of an unavailable database names the database and says what to check."""

from __future__ import annotations

from pathlib import Path

import pytest

from shortener.cli import main
from shortener.cli.database_errors import describe, name_database, user_name
from shortener.errors import StoreUnavailable
from shortener.settings import Settings
from tests.cli.shell import InProcessShell, Shell


def described(error: str, **settings: object) -> str:
    with pytest.raises(StoreUnavailable) as caught, name_database(Settings(**settings)):
        raise StoreUnavailable(error)
    return describe(caught.value)


@pytest.mark.parametrize("error", ["attempt to write a readonly database", "unable to open database file"])
def test_a_database_file_that_cannot_be_written_names_its_folder_and_the_user_of_the_command(tmp_path: Path, error: str) -> None:
    assert (
        described(error, data_dir=tmp_path) == f"{error}. It is in {tmp_path}. The user {user_name()} must be able to write to it"
    )


def test_another_error_of_sqlite_names_only_the_place_of_the_database(tmp_path: Path) -> None:
    assert described("database or disk is full", data_dir=tmp_path) == f"database or disk is full. It is in {tmp_path}"
    url = f"sqlite:///{tmp_path}/other.db"
    assert described("disk I/O error", database_url=url) == f"disk I/O error. It is in {tmp_path}/other.db"


def test_a_refused_connection_names_the_postgresql_database_and_not_the_password(tmp_path: Path) -> None:
    shell = InProcessShell(tmp_path, SHORTENER_DATABASE_URL="postgresql://me:hunter22@127.0.0.1:1/links")
    for words in (("keys", "list"), ("migrate",), ("send", "1", "+14085550100", "x")):
        stderr = shell(*words, code=1).stderr
        assert "It is the PostgreSQL database links on 127.0.0.1:1 (setting DATABASE_URL)" in stderr, words
        assert "hunter22" not in stderr


@pytest.mark.acceptance  # starts a process
def test_a_data_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    stderr = Shell(tmp_path / "data")("serve", "--port", "0", code=1).stderr
    assert f"It is in {tmp_path}/data (docs/reference/errors.md)" in stderr


def test_a_file_of_another_user_is_an_error_that_names_the_user_and_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(**options: object) -> None:
        raise PermissionError(13, "Permission denied", "/data/shortener.db")

    monkeypatch.setattr("shortener.cli.cli", read)
    monkeypatch.setattr("os.umask", lambda mask: mask)
    monkeypatch.delenv("SHORTENER_LOG_LEVEL", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    remedy = f"The command runs as the user {user_name()}; run it as the user of the service"
    assert capsys.readouterr().err == f"Error: permission denied: /data/shortener.db. {remedy}\n"
