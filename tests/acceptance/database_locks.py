"""A fault of the database that several tests use: a lock that no write can pass."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from tests.acceptance.process import Server
from tests.servers import PATIENCE


@contextlib.contextmanager
def locked(server: Server) -> Iterator[None]:
    """Lock the database with a write transaction of another process that does not end."""
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN IMMEDIATE'); "
    program += "print('locked', flush=True); sys.stdin.read()"
    file = server.folder / "data" / "shortener.db"
    process = subprocess.Popen([sys.executable, "-c", program, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"locked\n"
    try:
        yield
    finally:
        process.communicate(timeout=PATIENCE)
