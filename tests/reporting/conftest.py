"""A fixture for tests that read query plans: a SQLite database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shortener.storage.database import Database
from shortener.storage.migrate import migrate
from shortener.storage.open import open_database


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite:///{tmp_path / 'plans.db'}"
    await migrate(url)
    database = await open_database(url, owner=True)
    yield database
    await database.close()
