"""Helpers that return the query plans of all statements that a function runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, event


def plans(connection: Connection, run: Callable[[], Any]) -> list[str]:
    """Call `run`. Return the query plan of each statement that it executed, as the database reports it, one step per line."""
    found = _plans_of_sqlite(connection, run) if connection.dialect.name == "sqlite" else _plans_of_postgresql(connection, run)
    assert found, "the function runs no statement"
    return found


def _plans_of_sqlite(connection: Connection, run: Callable[[], Any]) -> list[str]:
    statements: list[str] = []
    # Trace SQLite itself, because some statements bypass SQLAlchemy (shortener/storage/raw_sql.py). SQLite reports them with the
    # values of their parameters.
    _trace(connection, statements.append)
    run()
    _trace(connection, None)
    return [
        "\n".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}"))
        for statement in statements
        if not statement.startswith(("BEGIN", "--"))
    ]


def _trace(connection: Connection, callback: Callable[[str], Any] | None) -> None:
    """Make SQLite call `callback` with each statement, or no function if `callback` is None. The connection of a read belongs to
    aiosqlite, whose methods are coroutines."""
    if connection.dialect.is_async:
        connection.connection.run_async(lambda driver: driver.set_trace_callback(callback))
    else:
        driver: Any = connection.connection.driver_connection
        driver.set_trace_callback(callback)


def _plans_of_postgresql(connection: Connection, run: Callable[[], Any]) -> list[str]:
    statements: list[tuple[str, Any]] = []

    def record(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if not statement.startswith("BEGIN"):
            statements.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", record)
    run()
    event.remove(connection, "before_cursor_execute", record)
    return [
        "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters))
        for statement, parameters in statements
    ]


def scanned(plan: str, *small: str) -> list[str]:
    """Return the steps of a query plan of SQLite that read a whole table or a whole index, without a search.

    SQLite prints the alias of a table, if there is one. Steps that read a table function, a subquery or one of the `small` tables
    are left out."""
    steps = plan.splitlines()
    subqueries = {step.split()[1] for step in steps if step.startswith(("MATERIALIZE ", "CO-ROUTINE "))}
    scans = [step for step in steps if step.startswith("SCAN ") and step.split()[1] not in {*small, *subqueries}]
    return [step for step in scans if not step.endswith((" CONSTANT ROW", " VALUES CLAUSE")) and " VIRTUAL TABLE " not in step]
