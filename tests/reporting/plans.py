"""How SQLite goes about the statements that a function runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, event


def plans(connection: Connection, run: Callable[[], Any]) -> list[str]:
    """The query plan of each statement, a step a line."""
    ran: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if not statement.startswith("BEGIN"):
            ran.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    run()
    event.remove(connection, "before_cursor_execute", note)
    return [
        "\n".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters))
        for statement, parameters in ran
    ]


def scanned(plan: str, *tables: str) -> list[str]:
    """The steps that read one of these tables other than through a search in an index."""
    steps = [step for step in plan.splitlines() for table in tables if f" {table}" in f" {step}"]
    return [step for step in steps if step.startswith("SCAN ")]
