"""Tests of the imports of structlog and SQLAlchemy without rich and without the ORM. Each runs in a new process."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_serving_process_imports_neither_rich_nor_the_orm_and_both_stay_importable() -> None:
    script = """
import sys
from shortener.lean_imports import import_without_extras
import_without_extras()
import structlog, shortener.storage.sqlite, shortener.logs
assert not {"rich", "sqlalchemy.orm"} & sys.modules.keys()
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from shortener.storage import sqlite
assert AsyncEngine is sqlite.AsyncEngine
assert AsyncSession(create_async_engine("sqlite+aiosqlite://")).bind
import rich.console, rich.traceback
import_without_extras()
print("done")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("done", "")


@pytest.mark.slow
def test_if_sqlalchemy_has_no_module_of_the_asyncio_engine_the_complete_package_is_imported() -> None:
    script = """
import sys
from shortener import lean_imports
lean_imports._ENGINE = "sqlalchemy.ext.asyncio.moved"
lean_imports.import_without_extras()
assert "sqlalchemy.ext.asyncio" not in sys.modules
import shortener.storage.sqlite
from sqlalchemy.ext.asyncio import AsyncSession
print("done")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("done", "")
