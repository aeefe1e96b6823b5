"""Fixtures of the whole test suite: databases of both engines, a clock that tests control, and a service with its application.

The PostgreSQL server comes from a Python package. Each pytest process starts one server when a test first needs it, without root
and without a TCP port. Each test gets its own database, which is a copy of a template with the schema. If the memory (/dev/shm)
is large enough, the server and pytest's temporary folders are in memory. Tests of durability use the disk and a server with
fsync.

`pytest_collection_modifyitems` adds the markers of a test, which depend on its fixtures and its folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import filecmp
import functools
import gc
import inspect
import itertools
import os
import shutil
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
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
from shortener.storage.migrate import prepare
from shortener.storage.open import open_database
from tests.receiver import receiver as receiver  # These imports make fixtures of other modules available to all tests.
from tests.run_failed_again import EXIT_STATUS
from tests.servers import PostgresProcess, memory_folder
from tests.servers import certificate as certificate
from tests.servers import postgres_server as postgres_server
from tests.servers import redis_server as redis_server
from tests.speed import (
    collect_garbage_rarely,
    end_without_cleaning_up,
    exclude_old_objects,
    report_only_calls_and_failures,
    share_compiled_statements,
    share_server_properties,
)

T = TypeVar("T")

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)

#: Fixtures that start a PostgreSQL server.
POSTGRESQL_FIXTURES = {"postgresql", "postgresql_template", "postgres_server"}
#: Fixtures of tests/acceptance/conftest.py that start `shortener` processes.
PROCESS_FIXTURES = {"server", "nodes"}


#: With `make test-fast`, property tests run with 25 generated examples instead of 100. The time limits of Hypothesis (0.2 s for
#: an example, a few seconds to generate all of them) are off, because a busy machine sometimes needs longer.
settings.register_profile("complete", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fast", settings.get_profile("complete"), max_examples=25)
settings.load_profile("complete")


def pytest_configure(config: pytest.Config) -> None:
    """Put the temporary folders of tests into memory, unless the command line or the environment sets another folder."""
    gc.disable()  # `collect_garbage_rarely` enables garbage collection again when all tests are collected
    if folder := memory_folder():
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(folder))
    reset_logs()
    share_compiled_statements()
    share_server_properties()
    if hasattr(config, "workerinput"):
        end_without_cleaning_up()
        report_only_calls_and_failures(config)


def pytest_collection_finish() -> None:
    collect_garbage_rarely()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Store the exit status of the test run in pytest's cache. tests/run_failed_again.py reads it."""
    cache = getattr(session.config, "cache", None)
    if cache is not None and not hasattr(session.config, "workerinput"):
        cache.set(EXIT_STATUS, int(exitstatus))


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, dict[str, Any] | None, dict[str, Any] | None]:
    """Remove the keywords from the report that a test process sends. They are half of the report, and nothing reads them."""
    data = yield
    if data is not None and "keywords" in data:
        data["keywords"] = {}
    return data


def reset_logs() -> None:
    """Configure the log lines of tests with plain tracebacks. The default of structlog needs a second of processor time for each
    logged exception."""
    structlog.reset_defaults()
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], renderer])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the markers: `postgresql` to tests that need PostgreSQL, and `acceptance` to tests that start real processes. If
    several test processes run, order the tests with `mix_files`.

    Raise UsageError if two tests have the same node id, because pytest-xdist would run only one of them."""
    numbers = Counter(item.nodeid for item in items)
    if equal := sorted(node_id for node_id, number in numbers.items() if number > 1):
        raise pytest.UsageError(f"several tests have the same node id: {', '.join(equal)}")
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
    if hasattr(config, "workerinput"):
        items[:] = mix_files(items, acceptance)


def mix_files(items: Sequence[pytest.Item], acceptance: str) -> list[pytest.Item]:
    """Return the tests file by file. Between two files of the folder `acceptance`, there are some other files.

    The tests of `acceptance` often wait for other processes, and the other tests hardly ever wait. If both kinds run at the same
    time, no processor is idle. The last quarter of the tests contains no files of `acceptance`. These files take longest,
    and a process that started one of them last would run alone at the end."""
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(str(item.path), []).append(item)
    waiting = [file for file in files if file.startswith(acceptance)]
    others = [file for file in files if not file.startswith(acceptance)]
    between = len(others) * 3 // 4 // max(1, len(waiting))
    order = []
    for number, file in enumerate(waiting):
        order += [file, *others[number * between : (number + 1) * between]]
    order += others[len(waiting) * between :]
    return [item for file in order for item in files[file]]


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **units: float) -> datetime:
        """Move the clock forward by `timedelta(**units)`, and return the new time."""
        self.now += timedelta(**units)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Return the URL of the PostgreSQL server of this test process, with the database `postgres`. The server does not wait for
    the disk."""
    server = PostgresProcess(durable=False)
    try:
        yield server.url
    finally:
        run_in_a_thread(_administrator().disconnect(server.url))
        server.close()


_numbers = itertools.count()
#: The databases that `new_postgresql_database` created and that still exist: the URL of the server and the name of the database.
_databases: list[tuple[str, str]] = []


@pytest.fixture(scope="session")
def postgresql_template(postgresql: str) -> str:
    """The name of a PostgreSQL database with the schema. Tests copy this database."""

    async def create() -> None:
        connection = await asyncpg.connect(postgresql)
        await connection.execute("CREATE DATABASE template_of_tests")
        await connection.close()
        await prepare(postgresql.replace("/postgres?", "/template_of_tests?"))

    run_in_a_thread(create())
    return "template_of_tests"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database file with the schema. A test copies it, because copying is faster than creating the tables."""
    file = tmp_path_factory.mktemp("sqlite_template") / "shortener.db"
    run_in_a_thread(prepare(f"sqlite:///{file}"))
    return file


def run_in_a_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in another thread and return its result. The caller may already run in an event loop, which cannot run
    it."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, work).result()


class _Administrator:
    """Executes statements on PostgreSQL servers, in a thread with its own event loop. It keeps one connection to each server.

    If each statement opened a new connection, a test that only creates a database would take a third more time."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._connections: dict[str, asyncpg.Connection] = {}
        threading.Thread(target=self._loop.run_forever, name="postgresql-administrator", daemon=True).start()

    async def execute(self, server: str, statement: str) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._execute(server, statement), self._loop))

    async def _execute(self, server: str, statement: str) -> None:
        connection = self._connections.pop(server, None)
        if connection is not None and not connection.is_closed():
            with contextlib.suppress(OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError):
                await connection.execute(statement)
                self._connections[server] = connection
                return
        # No usable connection: this is the first statement on the server, or a test has stopped or restarted the server.
        connection = self._connections[server] = await asyncpg.connect(server)
        await connection.execute(statement)

    async def disconnect(self, server: str) -> None:
        """Close the connection to a server before the server ends."""
        if (connection := self._connections.pop(server, None)) is not None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(connection.close(), self._loop))


@functools.cache
def _administrator() -> _Administrator:
    return _Administrator()


async def new_postgresql_database(server: str, template: str | None) -> str:
    """Create a PostgreSQL database and return its URL. The database is dropped no later than at the end of the test module."""
    name = f"test_{next(_numbers)}"
    # FILE_COPY creates a small database in half the time. The default strategy writes all its pages to the WAL.
    copied = f" TEMPLATE {template} STRATEGY FILE_COPY" if template else ""
    await _administrator().execute(server, f"CREATE DATABASE {name}{copied}")
    _databases.append((server, name))
    return server.replace("/postgres?", f"/{name}?")


async def drop_postgresql_databases(start: int = 0) -> None:
    """Drop the PostgreSQL databases that were created after the first `start` databases."""
    for server, name in reversed(_databases[start:]):
        with contextlib.suppress(OSError, asyncpg.CannotConnectNowError):  # The error means that a test has stopped this server.
            await _administrator().execute(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    del _databases[start:]


@pytest.fixture(scope="module", autouse=True)
def _end_of_the_module() -> Iterator[None]:
    """At the end of a test module, drop the PostgreSQL databases that its tests have left, and collect garbage."""
    yield
    if _databases:
        run_in_a_thread(drop_postgresql_databases())
    exclude_old_objects()


@pytest.fixture(params=["sqlite", "postgresql"])
async def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a database with the schema. A test with this fixture runs twice: with SQLite and with PostgreSQL."""
    if request.param == "sqlite":
        file = tmp_path / "shortener.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), file)
        yield f"sqlite:///{file}"
        return
    server = request.getfixturevalue("postgresql")
    before = len(_databases)
    only_opens_services = "make_service" in request.fixturenames and not {"store_url", "database"} & _arguments(request)
    if only_opens_services:
        installation: Installation = request.getfixturevalue("postgresql_installation")
        url = await new_postgresql_database(server, POSTGRESQL_INSTALLATION)
        _installations[url] = installation
    else:
        url = await new_postgresql_database(server, request.getfixturevalue("postgresql_template"))
    yield url
    await drop_postgresql_databases(before)


def _arguments(request: pytest.FixtureRequest) -> set[str]:
    """Return the names of the fixtures that the test function has as arguments."""
    return set(inspect.signature(request.function).parameters)


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
#: The name of the PostgreSQL database of `postgresql_installation`.
POSTGRESQL_INSTALLATION = "installation_of_tests"
#: For the URL of each PostgreSQL database that is an unused copy of an installation: this installation. An entry is removed when a
#: service opens the database.
_installations: dict[str, Installation] = {}


def _start_once(folder: Path, url: str) -> Installation:
    """Start the service for the first time, at NOON, on a database that has the schema. Return the new installation."""

    async def start() -> Credentials:
        service = await open_service(Settings(data_dir=folder, database_url=url), clock=Clock())
        await service.close(grace=1)
        assert service.first_credentials is not None
        return service.first_credentials

    return Installation(folder, run_in_a_thread(start()))


@pytest.fixture(scope="session")
def sqlite_installation(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """A SQLite installation after its first start, at the time NOON. Tests copy it, which is faster than a first start."""
    folder = tmp_path_factory.mktemp("sqlite_installation")
    file = shutil.copyfile(sqlite_template, folder / "shortener.db")
    return _start_once(folder, f"sqlite:///{file}")


@pytest.fixture(scope="session")
def postgresql_installation(postgresql: str, postgresql_template: str, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """A PostgreSQL installation after its first start, at the time NOON. The databases of services are copies of its database."""

    async def create() -> None:
        connection = await asyncpg.connect(postgresql)
        await connection.execute(f"CREATE DATABASE {POSTGRESQL_INSTALLATION} TEMPLATE {postgresql_template} STRATEGY FILE_COPY")
        await connection.close()

    run_in_a_thread(create())
    url = postgresql.replace("/postgres?", f"/{POSTGRESQL_INSTALLATION}?")
    return _start_once(tmp_path_factory.mktemp("postgresql_installation"), url)


@pytest.fixture
async def make_service(request: pytest.FixtureRequest, store_url: str, tmp_path: Path, clock: Clock) -> AsyncIterator[MakeService]:
    """Return a function that opens a service on the database. Its background jobs run only with `start=True`.

    The first service opens a copy of an installation. It makes a real first start instead if the test has already opened or
    changed the database, or if the test passes a setting of FIRST_START_SETTINGS."""
    opened: list[Service] = []

    def copy_installation(settings: dict[str, Any]) -> Credentials | None:
        if (copied := _installations.pop(store_url, None)) is not None:
            assert not settings.keys() & FIRST_START_SETTINGS, "a test of a first start must have the argument store_url"
            shutil.copyfile(copied.folder / "secret", tmp_path / "secret")
            (tmp_path / "secret").chmod(0o600)
            return copied.credentials
        if not store_url.startswith("sqlite:"):
            return None
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
        # A delivery report for an unknown message waits for the message only 0.1 s, instead of 1 s by default. A redirect waits
        # for the database even on a slow machine, so that a test finds its hits after the response.
        waits = {"report_wait": 0.1, "hit_deadline": 60}
        values = {"data_dir": tmp_path, "database_url": store_url, "allow_private_targets": True, **waits, **settings}
        credentials = copy_installation(settings)
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
    """A client that calls the whole ASGI application with the API key of the default application."""
    async with client_of(service, {"X-API-Key": credentials.api_key}) as client:
        yield client


def client_of(service: Service, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    """Return a client that calls the ASGI application of the service and sends `headers` with each request."""
    transport = httpx.ASGITransport(HttpApplication(service), raise_app_exceptions=True)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers=headers)
