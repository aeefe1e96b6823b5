"""Fixtures of the whole test suite: databases of both engines, a clock that tests control, and a service with its application.

The PostgreSQL server comes from a Python package. Each pytest process starts one server on first use (no root, no TCP port). Each
test gets its own database, a copy of a template that contains the schema. The session's server and pytest's temporary folders are
in memory (/dev/shm) where that is large enough; tests of durability use the disk and a server with fsync.

`pytest_collection_modifyitems` adds the markers of a test, which depend on its fixtures and its folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import filecmp
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import asyncpg
import httpx
import pytest
import structlog
from hypothesis import HealthCheck, settings

from shortener.accounts.credentials import Credentials
from shortener.container import Service, open_service
from shortener.server.application import HttpApplication
from shortener.settings import Settings
from shortener.storage.database import Database
from shortener.storage.migrate import migrate
from shortener.storage.open import open_database
from tests.receiver import receiver as receiver  # These imports make the fixtures available to the whole test suite.
from tests.run_failed_again import EXIT_STATUS
from tests.servers import PostgresProcess, memory_folder
from tests.servers import certificate as certificate
from tests.servers import postgres_server as postgres_server
from tests.servers import redis_server as redis_server
from tests.speed import collect_garbage_rarely, exclude_old_objects, share_compiled_statements

T = TypeVar("T")

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)

#: Fixtures that start a PostgreSQL server.
POSTGRESQL_FIXTURES = {"postgresql", "postgresql_template", "postgres_server"}
#: Fixtures of tests/acceptance/conftest.py that start `shortener` processes.
PROCESS_FIXTURES = {"server", "nodes"}


#: `make test-fast` runs property tests with 25 generated examples; the whole suite runs them with 100. The time limits of
#: Hypothesis (0.2 s for an example, a few seconds to generate them) are off, because a busy machine needs longer now and then.
settings.register_profile("complete", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fast", settings.get_profile("complete"), max_examples=25)
settings.load_profile("complete")


def pytest_configure(config: pytest.Config) -> None:
    """Put the temporary folders of tests into memory, unless the command line or the environment sets another folder."""
    if folder := memory_folder():
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(folder))
    reset_logs()
    share_compiled_statements()


def pytest_collection_finish() -> None:
    collect_garbage_rarely()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Store the exit status of the run, for tests/run_failed_again.py."""
    cache = getattr(session.config, "cache", None)
    if cache is not None and not hasattr(session.config, "workerinput"):
        cache.set(EXIT_STATUS, int(exitstatus))


def reset_logs() -> None:
    """Configure the log lines of tests. The default of structlog needs a second of processor time for each logged exception."""
    structlog.reset_defaults()
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], renderer])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need PostgreSQL with `postgresql` and tests of real processes with `acceptance`."""
    folder = Path(__file__).parent
    acceptance, command_line = f"{folder / 'acceptance'}{os.sep}", f"{folder / 'cli'}{os.sep}"
    for item in items:
        assert isinstance(item, pytest.Function)
        fixtures = set(item.fixturenames)
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if fixtures & POSTGRESQL_FIXTURES or any(isinstance(value, str) and value == "postgresql" for value in parameters):
            item.add_marker("postgresql")
        path = str(item.path)
        starts_processes = path.startswith(command_line) and fixtures & PROCESS_FIXTURES
        if path.startswith(acceptance) or starts_processes:
            item.add_marker("acceptance")


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **units: float) -> datetime:
        """Advance by `timedelta(**units)` and return the new time."""
        self.now += timedelta(**units)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of the session's PostgreSQL server, which does not wait for the disk. The URL names the database `postgres`."""
    server = PostgresProcess(durable=False)
    try:
        yield server.url
    finally:
        server.close()


_numbers = itertools.count()
#: Databases that `new_postgresql_database` created and that are not dropped yet: the URL of the server and the name.
_databases: list[tuple[str, str]] = []


@pytest.fixture(scope="session")
def postgresql_template(postgresql: str) -> str:
    """The name of a PostgreSQL database that contains the schema, which tests copy."""

    async def create() -> None:
        connection = await asyncpg.connect(postgresql)
        await connection.execute("CREATE DATABASE template_of_tests")
        await connection.close()
        await migrate(postgresql.replace("/postgres?", "/template_of_tests?"))

    run_in_a_thread(create())
    return "template_of_tests"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database file that contains the schema. Tests copy it, which is faster than a migration."""
    file = tmp_path_factory.mktemp("sqlite_template") / "shortener.db"
    run_in_a_thread(migrate(f"sqlite:///{file}"))
    return file


def run_in_a_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in another thread, because the caller may already run in an event loop. Return its result."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, work).result()


async def new_postgresql_database(server: str, template: str | None) -> str:
    """Create a PostgreSQL database and return its URL. It is dropped at the end of the test's module, if not before."""
    name = f"test_{next(_numbers)}"
    connection = await asyncpg.connect(server)
    # With FILE_COPY, a small database is created in half the time of the default, which writes its pages to the WAL.
    await connection.execute(f"CREATE DATABASE {name}" + (f" TEMPLATE {template} STRATEGY FILE_COPY" if template else ""))
    await connection.close()
    _databases.append((server, name))
    return server.replace("/postgres?", f"/{name}?")


async def drop_postgresql_databases(start: int = 0) -> None:
    """Drop the PostgreSQL databases that were created after the first `start` databases."""
    for server, name in reversed(_databases[start:]):
        with contextlib.suppress(OSError, asyncpg.CannotConnectNowError):  # A test may have stopped this server.
            connection = await asyncpg.connect(server)
            await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            await connection.close()
    del _databases[start:]


@pytest.fixture(scope="module", autouse=True)
def _end_of_the_module() -> Iterator[None]:
    """Drop the PostgreSQL databases that the tests of a module created and did not drop, and collect garbage."""
    yield
    if _databases:
        run_in_a_thread(drop_postgresql_databases())
    exclude_old_objects()


@pytest.fixture(params=["sqlite", "postgresql"])
async def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a database with the schema. Each test runs once with SQLite and once with PostgreSQL."""
    if request.param == "sqlite":
        file = tmp_path / "shortener.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), file)
        yield f"sqlite:///{file}"
        return
    server = request.getfixturevalue("postgresql")
    before = len(_databases)
    yield await new_postgresql_database(server, request.getfixturevalue("postgresql_template"))
    await drop_postgresql_databases(before)


@pytest.fixture
async def database(store_url: str) -> AsyncIterator[Database]:
    database = await open_database(store_url, owner=True)
    yield database
    await database.close()


MakeService = Callable[..., Awaitable[Service]]


class Installation(NamedTuple):
    """The files of an installation after its first start, and the credentials of its default application."""

    folder: Path
    credentials: Credentials


#: The settings that change what the first start of an installation creates.
FIRST_START_SETTINGS = {"data_dir", "database_url", "secret", "initial_api_key", "initial_tracker_token"}


@pytest.fixture(scope="session")
def sqlite_installation(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """A SQLite installation that was started once, at NOON. Tests copy it, which is faster than a first start."""
    folder = tmp_path_factory.mktemp("sqlite_installation")
    file = shutil.copyfile(sqlite_template, folder / "shortener.db")

    async def start() -> Credentials:
        service = await open_service(Settings(data_dir=folder, database_url=f"sqlite:///{file}"), clock=Clock())
        await service.close(grace=1)
        assert service.first_credentials is not None
        return service.first_credentials

    return Installation(folder, run_in_a_thread(start()))


@pytest.fixture
async def make_service(request: pytest.FixtureRequest, store_url: str, tmp_path: Path, clock: Clock) -> AsyncIterator[MakeService]:
    """Return a function that opens a service on the database. The background jobs of the service run only with `start=True`.

    The first service on a SQLite database opens a copy of `sqlite_installation`, unless the test has already opened or changed the
    files or passes other settings of a first start."""
    opened: list[Service] = []

    def copy_installation(settings: dict[str, Any]) -> Credentials | None:
        database = tmp_path / "shortener.db"
        is_unused = not opened and {file.name for file in tmp_path.iterdir()} <= {database.name}
        if not is_unused or clock.now != NOON or settings.keys() & FIRST_START_SETTINGS:
            return None
        template: Path = request.getfixturevalue("sqlite_template")
        if not database.exists() or not filecmp.cmp(template, database, shallow=False):
            return None
        installation: Installation = request.getfixturevalue("sqlite_installation")
        shutil.copytree(installation.folder, tmp_path, dirs_exist_ok=True)
        return installation.credentials

    async def make(*, start: bool = False, **settings: Any) -> Service:
        values = {"data_dir": tmp_path, "database_url": store_url, "allow_private_targets": True, **settings}
        credentials = copy_installation(settings) if store_url.startswith("sqlite:") else None
        service = await open_service(Settings(**values), clock=clock)
        service.first_credentials = service.first_credentials or credentials
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
    """The credentials of the default application, which the first start of the service creates."""
    assert service.first_credentials is not None
    return service.first_credentials


@pytest.fixture
async def client(service: Service, credentials: Credentials) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the whole ASGI application that sends the default application's API key."""
    async with client_of(service, {"X-API-Key": credentials.api_key}) as client:
        yield client


def client_of(service: Service, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    """Return a client of the service's ASGI application that sends `headers` with each request."""
    transport = httpx.ASGITransport(HttpApplication(service), raise_app_exceptions=True)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers=headers)
