"""Fixtures for the tests of the server.

The tests run only on SQLite, because the server uses the database through the recorder, which has tests on both engines.
"""

import shutil
from pathlib import Path

import pytest

from shortener.accounts.administration import create_application
from shortener.container import Service
from tests.conftest import Clock, MakeService


@pytest.fixture(autouse=True)
def _database_with_the_schema(tmp_path: Path, sqlite_template: Path) -> None:
    """Create the database of each test as a copy of a database with all tables. This is faster than running the migrations."""
    shutil.copyfile(sqlite_template, tmp_path / "shortener.db")


@pytest.fixture(params=["sqlite"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'shortener.db'}"


@pytest.fixture
async def service(make_service: MakeService, clock: Clock) -> Service:
    """A service on the host s.example. A second application has its own domain, go.brand.example."""
    service = await make_service(base_url="https://s.example", trusted_proxies="127.0.0.0/8")
    await service.database.write(create_application, "brand", clock(), domain="https://go.brand.example")
    await service.directory.refresh()
    return service
