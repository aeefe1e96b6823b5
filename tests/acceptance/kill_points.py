"""Kill points: a server process kills itself with SIGKILL in a chosen transaction, before or after the commit.

A process that starts with the variables of `environment` calls `install` first. `arm` writes the name of a transaction to the
file `armed` of a folder. In this transaction, the process kills itself.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import fork_server

#: The points in a transaction at which a process can kill itself: after its first statement that writes, after all its
#: statements, and after its commit.
POINTS = ("first write", "before commit", "after commit")
_ARMED = "KILL_POINT_ARMED"
_WRITING = re.compile(r"\s*(?:WITH\b.*\b)?(?:INSERT|UPDATE|DELETE)\b", re.DOTALL)


def environment(folder: Path) -> dict[str, str]:
    """Return environment variables for a process. It kills itself at the kill point that `arm` selects in the same folder."""
    folder.mkdir(exist_ok=True)
    code = "from tests.acceptance import kill_points\nkill_points.install()\n"
    return fork_server.executed_first(code, folder) | {_ARMED: str(folder / "armed")}


def arm(folder: Path, transaction: str, point: str) -> None:
    """Select a kill point. The process kills itself at `point` of its next transaction that writes and has the name `transaction`
    (see `name_of`)."""
    assert point in POINTS
    (folder / "new").write_text(f"{transaction}:{point}")
    (folder / "new").rename(folder / "armed")


def name_of(transact: Any) -> str:
    """Return the name of a transaction: the name of its function. For a batch, this is the function that writes the items."""
    function = getattr(transact, "func", transact)
    handler = getattr(getattr(function, "__self__", None), "_handler", None)
    apply = getattr(handler, "_apply", None) or getattr(handler, "apply", None) or function
    return str(getattr(apply, "__qualname__", apply))


def install() -> None:
    """Replace `write` and `write_later` of both database engines. The new methods can kill this process."""
    from shortener.storage.postgres import PostgresDatabase
    from shortener.storage.sqlite import SqliteDatabase

    for engine in (SqliteDatabase, PostgresDatabase):
        engine.write = _killing(engine.write)  # type: ignore[method-assign]
        engine.write_later = _killing(engine.write_later)  # type: ignore[method-assign]


def _killing(write: Callable[..., Any]) -> Callable[..., Any]:
    armed = Path(os.environ[_ARMED])

    def point_of(transact: Any) -> str:
        try:
            name, _, point = armed.read_text().partition(":")
        except FileNotFoundError:
            return ""
        return point if name == name_of(transact) else ""

    def die() -> None:
        armed.unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)

    async def killing_write(self: Any, transact: Any, *args: Any, **kwargs: Any) -> Any:
        point = point_of(transact)
        if not point:
            return await write(self, transact, *args, **kwargs)
        writes = 0

        def count(statement: str) -> None:
            nonlocal writes
            if _WRITING.match(statement):
                if point == "first write" and writes:
                    die()
                writes += 1

        def counted(connection: Any, *more: Any, **named: Any) -> Any:
            with _statements(connection, count):
                result = transact(connection, *more, **named)
            if writes and point != "after commit":
                die()
            return result

        result = await write(self, counted, *args, **kwargs)
        if writes:
            die()
        return result

    return killing_write


class _statements:
    """Inside the context, call `count` with each SQL statement of a connection."""

    def __init__(self, connection: Any, count: Callable[[str], None]) -> None:
        self._connection, self._count = connection, count

    def __enter__(self) -> None:
        from sqlalchemy import event

        if self._connection.dialect.name == "sqlite":
            self._connection.connection.driver_connection.set_trace_callback(self._count)
        else:
            event.listen(self._connection, "before_cursor_execute", self._before)

    def __exit__(self, *exc_info: object) -> None:
        from sqlalchemy import event

        if self._connection.dialect.name == "sqlite":
            self._connection.connection.driver_connection.set_trace_callback(None)
        else:
            event.remove(self._connection, "before_cursor_execute", self._before)

    def _before(self, connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        self._count(statement)
