"""Tests that a process on SQLite without Redis imports no library of an unused feature, because each import takes memory and
time.
"""
# This file tests shortener/container/connections.py and shortener/cli/serve.py.

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Libraries and modules that most processes never use, or do not use before the first request of some kind.
UNUSED = (
    "aiohttp",  # imported at the first delivery
    "alembic",
    "argon2",
    "asyncpg",
    "crawleruseragents",
    "difflib",
    "email.parser",  # http.client imports it
    "html",
    "jinja2",
    "logging.handlers",  # logging.config imports it
    "maxminddb",
    "redis",
    "rich",
    "segno",
    "shortener.portal.router",
    "shortener.web.rewrite",  # an example of the modules with endpoints
    "shortener.web.vendors",
    "smpplib",
    "sqlalchemy.orm",
    "ua_parser",  # imported when the first hit is counted by device and browser
    "urllib.request",
    "xml.sax",
    "yaml",
    "zipfile",  # importlib.metadata imports it
)


#: A script that runs `serve`. When the server is ready, it prints which modules of UNUSED are imported.
_SERVE = f"""
import os, sys
from shortener import cli
from shortener.lean_imports import import_pydantic_without_plugins
import_pydantic_without_plugins()  # as cli.main does before it imports the module of the command
from shortener.cli import serve
def finish(open_files):
    print([name for name in {UNUSED!r} if name in sys.modules], flush=True)
    os._exit(0)
serve._log_start = finish
sys.argv = ["shortener", "serve", "--port", "0", "--json"]
cli.main()
"""


@pytest.mark.slow
def test_a_server_on_sqlite_without_redis_imports_no_library_that_it_does_not_use(tmp_path: Path) -> None:
    environment = os.environ | {"SHORTENER_DATA_DIR": str(tmp_path)}
    for _ in range(2):  # the first start also creates the tables
        done = subprocess.run([sys.executable, "-c", _SERVE], capture_output=True, text=True, check=False, env=environment)
        assert done.stdout.splitlines()[1:] == ["[]"], done.stderr
