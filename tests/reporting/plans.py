"""Helpers that return the query plan of each statement that a function runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, event


def plans(connection: Connection, run: Callable[[], Any]) -> list[str]:
    """Call `run` and return SQLite's query plan of each statement that it executed, one step per line."""
    return [
        "\n".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters))
        for statement, parameters in _statements(connection, run)
    ]


def plans_of_postgresql(connection: Connection, run: Callable[[], Any]) -> list[str]:
    """Call `run` and return PostgreSQL's query plan of each statement that it executed, one step per line."""
    return [
        "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters))
        for statement, parameters in _statements(connection, run)
    ]


def _statements(connection: Connection, run: Callable[[], Any]) -> list[tuple[str, Any]]:
    """Call `run` and return the statements that it executed, with their parameters."""
    statements: list[tuple[str, Any]] = []

    def record(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if not statement.startswith("BEGIN"):
            statements.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", record)
    run()
    event.remove(connection, "before_cursor_execute", record)
    return statements


def scanned(plan: str, *tables: str) -> list[str]:
    """Return the steps of a query plan that read one of `tables` completely, without a search in an index."""
    steps = [step for step in plan.splitlines() for table in tables if f" {table}" in f" {step}"]
    return [step for step in steps if step.startswith("SCAN ")]
