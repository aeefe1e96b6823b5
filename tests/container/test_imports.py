"""A process on SQLite without Redis imports no library of an unused feature, because each import takes memory and time."""
# This file tests shortener/container/connections.py.

from __future__ import annotations

import subprocess
import sys

import pytest

#: Libraries and modules that most processes never use, or use only after their first request of a kind.
UNUSED = (
    "aiohttp",  # until the first delivery
    "alembic",
    "argon2",
    "asyncpg",
    "babel",
    "cryptography.x509",
    "jinja2",
    "maxminddb",
    "redis",
    "rich",
    "segno",
    "shortener.portal",
    "shortener.web.rewrite",  # and the other modules with endpoints
    "shortener.web.vendors",
    "smpplib",
    "sqlalchemy.orm",
    "ua_parser",  # until the first hit is counted by device
    "yaml",
)


@pytest.mark.slow
def test_a_process_on_sqlite_without_redis_imports_no_library_that_it_does_not_use() -> None:
    script = (
        "import sys, shortener.cli.serve;"
        "shortener.cli.serve.import_without_extras();"
        "import shortener.container.build, shortener.server.application;"
        f"print([name for name in {UNUSED!r} if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
