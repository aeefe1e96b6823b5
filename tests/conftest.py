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
from tests.receiver import receiver as receiver  # These imports make the fixtures available to the whole test suite.
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


#: `make test-fast` runs property tests with 25 generated examples; the whole suite runs them with 100. The time limits of
#: Hypothesis (0.2 s for an example, a few seconds to generate them) are off, because a busy machine needs longer now and then.
settings.register_profile("complete", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fast", settings.get_profile("complete"), max_examples=25)
settings.load_profile("complete")


def pytest_configure(config: pytest.Config) -> None:
    """Put the temporary folders of tests into memory, unless the command line or the environment sets another folder."""
    gc.disable()  # `collect_garbage_rarely` enables it again when all tests are collected
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
    """Store the exit status of the run, for tests/run_failed_again.py."""
    cache = getattr(session.config, "cache", None)
    if cache is not None and not hasattr(session.config, "workerinput"):
        cache.set(EXIT_STATUS, int(exitstatus))


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, dict[str, Any] | None, dict[str, Any] | None]:
    """Leave out the keywords of a test, which are half of the report that its process sends. Nothing reads them there."""
    data = yield
    if data is not None and "keywords" in data:
        data["keywords"] = {}
    return data


def reset_logs() -> None:
    """Configure the log lines of tests. The default of structlog needs a second of processor time for each logged exception."""
    structlog.reset_defaults()
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], renderer])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests that need PostgreSQL with `postgresql` and tests of real processes with `acceptance`. Order the tests of several
    test processes with `mix_files`.

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
    """Return the tests file by file, with some other files between every two files of the folder `acceptance`.

    The tests of `acceptance` often wait for other processes, and the other tests hardly ever wait. If both kinds run at the same
    time, all processors are therefore in use. The last quarter contains no files of `acceptance`, because these files take
    longest."""
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
        """Advance by `timedelta(**units)` and return the new time."""
        self.now += timedelta(**units)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Return the URL of the session's PostgreSQL server, which does not wait for the disk. The URL contains the name of the
    database `postgres`."""
    server = PostgresProcess(durable=False)
    try:
        yield server.url
    finally:
        run_in_a_thread(_administrator().disconnect(server.url))
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
        await prepare(postgresql.replace("/postgres?", "/template_of_tests?"))

    run_in_a_thread(create())
    return "template_of_tests"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database file that contains the schema. Tests copy it, which is faster than creating it."""
    file = tmp_path_factory.mktemp("sqlite_template") / "shortener.db"
    run_in_a_thread(prepare(f"sqlite:///{file}"))
    return file


def run_in_a_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in another thread, because the caller may already run in an event loop. Return its result."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, work).result()


class _Administrator:
    """Executes statements on PostgreSQL servers in a thread with its own event loop. It has one connection to each server.

    A new connection for each statement would cost a third of the time of a test that only creates a database."""

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
        # There is no connection yet, or a test has stopped or restarted the server.
        connection = self._connections[server] = await asyncpg.connect(server)
        await connection.execute(statement)

    async def disconnect(self, server: str) -> None:
        """Close the connection to a server, which is about to end."""
        if (connection := self._connections.pop(server, None)) is not None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(connection.close(), self._loop))


@functools.cache
def _administrator() -> _Administrator:
    return _Administrator()


async def new_postgresql_database(server: str, template: str | None) -> str:
    """Create a PostgreSQL database and return its URL. It is dropped at the end of the test's module at the latest."""
    name = f"test_{next(_numbers)}"
    # With FILE_COPY, a small database is created in half the time of the default, which writes its pages to the WAL.
    copied = f" TEMPLATE {template} STRATEGY FILE_COPY" if template else ""
    await _administrator().execute(server, f"CREATE DATABASE {name}{copied}")
    _databases.append((server, name))
    return server.replace("/postgres?", f"/{name}?")


async def drop_postgresql_databases(start: int = 0) -> None:
    """Drop the PostgreSQL databases that were created after the first `start` databases."""
    for server, name in reversed(_databases[start:]):
        with contextlib.suppress(OSError, asyncpg.CannotConnectNowError):  # A test may have stopped this server.
            await _administrator().execute(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
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
    """Return the names of the fixtures that the test function itself uses."""
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
#: The installation of which a PostgreSQL database is a copy, by the URL of the database, until a service opens it.
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
    """A SQLite installation that was started once, at NOON. Tests copy it, which is faster than a first start."""
    folder = tmp_path_factory.mktemp("sqlite_installation")
    file = shutil.copyfile(sqlite_template, folder / "shortener.db")
    return _start_once(folder, f"sqlite:///{file}")


@pytest.fixture(scope="session")
def postgresql_installation(postgresql: str, postgresql_template: str, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """An installation on PostgreSQL that was started once, at NOON. Its database is the template of the databases of services."""

    async def create() -> None:
        connection = await asyncpg.connect(postgresql)
        await connection.execute(f"CREATE DATABASE {POSTGRESQL_INSTALLATION} TEMPLATE {postgresql_template} STRATEGY FILE_COPY")
        await connection.close()

    run_in_a_thread(create())
    url = postgresql.replace("/postgres?", f"/{POSTGRESQL_INSTALLATION}?")
    return _start_once(tmp_path_factory.mktemp("postgresql_installation"), url)


@pytest.fixture
async def make_service(request: pytest.FixtureRequest, store_url: str, tmp_path: Path, clock: Clock) -> AsyncIterator[MakeService]:
    """Return a function that opens a service on the database. The background jobs of the service run only with `start=True`.

    The first service opens a copy of an installation, unless the test has already opened or changed the database or passes settings
    of a first start."""
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
        # A delivery report of an unknown message waits for the message: 0.1 s in tests, 1 s by default. A redirect always waits for
        # the database, even on a slow machine, so that a test finds its hits after the response.
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
    """A client of the whole ASGI application that sends the default application's API key."""
    async with client_of(service, {"X-API-Key": credentials.api_key}) as client:
        yield client


def client_of(service: Service, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    """Return a client of the service's ASGI application that sends `headers` with each request."""
    transport = httpx.ASGITransport(HttpApplication(service), raise_app_exceptions=True)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers=headers)
