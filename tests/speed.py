"""Settings of a test process that save processor time and change nothing that a test examines.

A test process opens about a thousand databases and services, one after the other. Without these settings, it would spend a third
of its time on repeated work: SQLAlchemy would compile each statement again for each database, the garbage collector would examine
all modules and all tests again and again, and each new connection to PostgreSQL would read the properties of the server again.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Connection, Dialect, Engine, event
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

#: All compiled statements. The key is the class of the dialect and SQLAlchemy's cache key.
_statements: dict[tuple[Any, ...], Any] = {}
MAX_STATEMENTS = 3000


class StatementCache:
    """A cache of compiled statements that all engines of one dialect share. SQLAlchemy itself has one cache for each engine.

    The caches can be shared, because the service opens all engines of one dialect with the same options."""

    def __init__(self, dialect: type) -> None:
        self._dialect = dialect

    def get(self, key: tuple[Any, ...]) -> Any:
        # The first part of the key is left out, because it differs between engines.
        return _statements.get((self._dialect, *key[1:]))

    def __setitem__(self, key: tuple[Any, ...], compiled: Any) -> None:
        if len(_statements) >= MAX_STATEMENTS:
            _statements.clear()
        _statements[(self._dialect, *key[1:])] = compiled


def share_compiled_statements() -> None:
    """Let all connections of the test process use one cache of compiled statements."""

    @event.listens_for(Engine, "engine_connect")
    def use_the_cache(connection: Connection) -> None:
        connection.execution_options(compiled_cache=StatementCache(type(connection.dialect)))


def compile_statements_for(dialect: Dialect) -> None:
    """Compile all statements of the cache for another dialect, too. Statements with ON CONFLICT are left out, because this clause
    belongs to one dialect."""
    for (_, key, columns, *options, many), compiled in list(_statements.items()):
        statement = compiled.statement
        if getattr(statement, "_post_values_clause", None) is None:
            again = statement.compile(
                dialect=dialect, cache_key=compiled.cache_key, column_keys=list(columns), for_executemany=many
            )
            _statements[(type(dialect), key, columns, *options, many)] = again


#: The types that PostgreSQL itself defines have ids below this number. These ids are the same in every database and every
#: version.
FIRST_OTHER_TYPE = 10_000


def share_server_properties() -> None:
    """Read the properties of PostgreSQL servers once for each test process, and not for each connection.

    There are two kinds of properties: types that asyncpg does not know, such as arrays of integers (a query of 10 ms), and
    properties that SQLAlchemy reads at the first connection of an engine, such as the version (four queries)."""
    types: dict[tuple[int, ...], Any] = {}
    read_types = asyncpg.Connection._introspect_types

    async def introspect_types(self: asyncpg.Connection, ids: Sequence[int], timeout: float | None) -> Any:
        key = tuple(sorted(ids))
        if key[-1] >= FIRST_OTHER_TYPE:
            return await read_types(self, ids, timeout)
        if key not in types:
            types[key] = await read_types(self, ids, timeout)
        return types[key]

    properties: dict[str, Any] = {}
    read_properties: Any = PGDialect_asyncpg.initialize

    def initialize(self: Any, connection: Any) -> None:
        if not properties:
            before = dict(self.__dict__)
            read_properties(self, connection)
            properties.update({name: value for name, value in self.__dict__.items() if before.get(name) != value})
            properties.pop("_type_memos", None)  # other engines must not get this value, because it is a cache of one engine
        self.__dict__.update(properties)

    asyncpg.Connection._introspect_types = introspect_types
    setattr(PGDialect_asyncpg, "initialize", initialize)  # noqa: B010 - mypy permits no assignment to a method


def collect_garbage_rarely() -> None:
    """Enable garbage collection, which was disabled while tests were collected. Exclude all objects that exist now, and collect
    rarely.

    Most objects of a test are freed before a collection could examine them. With a threshold of 10,000 objects instead of
    100,000, a test run needs a twentieth more processor time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    gc.enable()


#: If more old objects than this exist, they are excluded from garbage collection. A full collection examines this number in about
#: 10 ms.
MAX_OLD_OBJECTS = 50_000


def exclude_old_objects() -> None:
    """If there are many old objects, collect garbage, and exclude the remaining objects from garbage collection.

    These objects are caches and the reports of tests. The background jobs of each service start full collections, and each of
    them would examine all these objects."""
    if len(gc.get_objects(generation=2)) > MAX_OLD_OBJECTS:
        gc.collect()
        gc.freeze()


def end_without_cleaning_up() -> None:
    """Let a test process of pytest-xdist exit without freeing its objects one by one, which takes up to a second."""

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # the controller has already received the results

    atexit.register(end)  # Python calls this function last, because it was registered first.


class OnlyCallsAndFailures:
    """Sends the reports of a test process of pytest-xdist. It leaves out each setup and each teardown that passed."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._worker.pytest_runtest_logreport(report)


def report_only_calls_and_failures(config: pytest.Config) -> None:
    """Let a test process send one report instead of three for each test that passes.

    With `--durations`, pytest then lists the setup and the teardown of a test only if they fail. To see their durations, run the
    tests in one process (`-n 0`)."""
    (worker,) = [plugin for plugin in config.pluginmanager.get_plugins() if type(plugin).__name__ == "WorkerInteractor"]
    config.hook.pytest_runtest_logreport._remove_plugin(worker)
    if config.get_verbosity() < 1:  # only with --verbose does the controller print the name of a test when it starts
        config.hook.pytest_runtest_logstart._remove_plugin(worker)
    config.pluginmanager.register(OnlyCallsAndFailures(worker))
