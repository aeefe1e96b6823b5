"""Fixtures for two kinds of tests: a SQLite database for tests that read query plans, and fixtures for tests of messages that
gateways send.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shortener.storage.database import Database
from shortener.storage.open import open_database
from tests.gateways.conftest import make_gateway, send_messages  # noqa: F401 - fixtures for the tests of gateways


@pytest.fixture
async def sqlite(tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Database]:
    file = shutil.copyfile(sqlite_template, tmp_path / "plans.db")
    database = await open_database(f"sqlite:///{file}", owner=True)
    yield database
    await database.close()
