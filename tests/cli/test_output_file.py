"""Tests of the files that commands write."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import click
import pytest

from shortener.cli.output_file import open_output
from shortener.errors import StoreUnavailable
from tests.cli.shell import InProcessShell, create_installation
from tests.servers import PATIENCE


def test_an_output_file_gets_its_name_when_it_is_complete_and_keeps_the_mode_of_the_file_that_it_replaces(tmp_path: Path) -> None:
    file, link = tmp_path / "new.csv", tmp_path / "link.csv"
    with open_output(str(file)) as output:
        output.write(b"one")
        assert not file.exists()
    assert file.read_bytes() == b"one"
    file.chmod(0o640)
    link.symlink_to(file)
    with open_output(str(link)) as output:
        output.write(b"two")
        assert file.read_bytes() == b"one"
    assert file.read_bytes() == b"two"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"new.csv", "link.csv"}


def write_a_part(file: Path, failure: type[BaseException]) -> None:
    with open_output(str(file)) as output:
        output.write(b"a part")
        raise failure


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_an_output_file_that_is_not_completed_leaves_no_part_and_keeps_an_older_file(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    old.write_bytes(b"yesterday")
    for file in (old, new):
        with pytest.raises(failure):
            write_a_part(file, failure)
    assert old.read_bytes() == b"yesterday"
    assert list(tmp_path.iterdir()) == [old]


def test_a_pipe_gets_the_output_and_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    with open_output(str(pipe)) as output:
        output.write(b"one")
    reader.join(PATIENCE)
    assert read == [b"one"]
    assert pipe.is_fifo()


def test_the_descriptor_of_a_pipe_gets_the_output() -> None:
    """For `--output >(gzip)`, a shell passes a name such as /dev/fd/63. If another command reads the output, /dev/stdout is also
    a pipe."""
    reader, writer = os.pipe()
    try:
        with open_output(f"/dev/fd/{writer}") as output:
            output.write(b"one")
        assert os.read(reader, 10) == b"one"
    finally:
        os.close(reader)
        os.close(writer)


def test_an_output_file_in_a_folder_that_does_not_exist_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    name = str(tmp_path / "nowhere" / "new.csv")
    with pytest.raises(click.ClickException, match="nowhere"), open_output(name):
        pass


def test_an_export_that_fails_keeps_the_file_of_the_export_before_it(
    tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_installation(tmp_path / "data", sqlite_template)
    shell, folder = InProcessShell(tmp_path / "data"), tmp_path / "exports"
    folder.mkdir()
    words = ("export", "1", "--output", str(folder / "messages.csv"))
    assert "no application" in shell(*words, code=1).stderr
    assert list(folder.iterdir()) == []
    shell("applications", "create", "Brand")
    shell(*words)
    before = (folder / "messages.csv").read_bytes()
    assert before.startswith(b"message_id,")

    async def fail(*_: object, **__: object) -> AsyncIterator[bytes]:
        yield b"a part"
        raise StoreUnavailable("the disk failed")

    monkeypatch.setattr("shortener.reporting.export.export_csv", fail)
    assert "the disk failed" in shell(*words, code=1).stderr
    assert [path.read_bytes() for path in folder.iterdir()] == [before]
