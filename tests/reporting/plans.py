"""Helpers that return the query plan of each statement that a function runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, event


def plans(connection: Connection, run: Callable[[], Any]) -> list[str]:
    """Call `run` and return SQLite's query plan of each statement that it executed, one step per line."""
    statements: list[str] = []
    # SQLite reports also the statements that bypass SQLAlchemy (shortener/storage/raw_sql.py), with the values of the parameters.
    _trace(connection, statements.append)
    run()
    _trace(connection, None)
    return [
        "\n".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}"))
        for statement in statements
        if not statement.startswith(("BEGIN", "--"))
    ]


def _trace(connection: Connection, callback: Callable[[str], Any] | None) -> None:
    """Make SQLite call `callback` with each statement; None: with none. Reads use aiosqlite, whose methods are coroutines."""
    if connection.dialect.is_async:
        connection.connection.run_async(lambda driver: driver.set_trace_callback(callback))
    else:
        driver: Any = connection.connection.driver_connection
        driver.set_trace_callback(callback)


def plans_of_postgresql(connection: Connection, run: Callable[[], Any]) -> list[str]:
    """Call `run` and return PostgreSQL's query plan of each statement that it executed, one step per line."""
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


def scanned(plan: str, *tables: str) -> list[str]:
    """Return the steps of a query plan that read one of `tables` completely, without a search in an index."""
    steps = [step for step in plan.splitlines() for table in tables if f" {table}" in f" {step}"]
    return [step for step in steps if step.startswith("SCAN ")]
