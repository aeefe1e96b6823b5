"""This module opens the file to which a command writes its result. The file appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click


@contextlib.contextmanager
def open_output(name: str) -> Iterator[IO[bytes]]:
    """Yield a stream that writes the file `name`, or stdout if `name` is `-`. Raise ClickException if the file cannot be written.

    If the `with` block raises an exception, no file is created, and an existing file of this name does not change. If `name` is a
    device or a pipe, such as /dev/stdout, the bytes are written to it immediately."""
    if _is_stream(name):
        with click.open_file(name, "wb") as stream:
            yield stream
            stream.flush()
        return
    path = Path(name).resolve()  # replace the target of a symbolic link, not the link
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
            with contextlib.suppress(PermissionError):  # only root can change the owner of a file
                os.chown(temporary, path.stat().st_uid, path.stat().st_gid)
        os.replace(temporary, path)
    except OSError as error:
        raise click.ClickException(f"cannot write {name}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _is_stream(name: str) -> bool:
    """Return whether a name means stdout, a device or a pipe. Some of these names, such as /dev/fd/63, lead to an object that has
    no name in the file system."""
    path = Path(name)
    return name == "-" or name.startswith(("/dev/std", "/dev/fd/", "/proc/")) or (path.exists() and not path.is_file())
