"""A process on SQLite without Redis imports no library of an unused feature, because each import takes memory and time."""
# This file tests shortener/container/connections.py.

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_process_on_sqlite_without_redis_imports_no_library_that_it_does_not_use() -> None:
    unused = ("alembic", "argon2", "asyncpg", "babel", "jinja2", "maxminddb", "redis", "segno", "smpplib")
    script = (
        "import sys, shortener.container.build, shortener.server.application, shortener.cli.serve;"
        f"print([name for name in {unused!r} if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
