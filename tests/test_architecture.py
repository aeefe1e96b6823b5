"""The house: imports point one way only, and no part reaches into another's rooms upstairs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "shortener"

#: From the ground up; a module may import from its own floor and from those below. What a floor holds: packages or modules.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"model", "errors", "ids", "settings", "secret", "logs", "times", "metrics"}),
    frozenset({"store"}),
    frozenset({"log", "accounts"}),
    frozenset({"rewrite", "click", "conversion", "delivery", "report", "dlr", "erase", "purge", "jobs", "receiver"}),
    frozenset({"service"}),
    frozenset({"web", "portal"}),
    frozenset({"app"}),
    frozenset({"wire"}),
    frozenset({"cli", "__main__"}),
)

#: Imports that point upwards on purpose, each with its reason.
ALLOWED = {
    ("settings", "store"): "REDIS_URL is checked by what reads it; imported only when it is set",
    ("accounts", "rewrite"): "a fallback URL is checked like any destination: destinations.py is a leaf without I/O",
}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).with_suffix("").parts[0], path


def imports(path: Path) -> Iterator[str]:
    """The rooms of this package that a file imports from, at run time (TYPE_CHECKING blocks do not count)."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("shortener"):
            rest = node.module.split(".")[1:]
            yield from [rest[0]] if rest else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("shortener."))


def floor(room: str) -> int:
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), -1)


def test_every_room_stands_on_a_floor() -> None:
    assert {room for room, _ in modules() if floor(room) < 0} - {"__init__"} == set()


def test_imports_point_one_way_only() -> None:
    upwards = {
        f"{path.relative_to(ROOT)} imports {imported}"
        for room, path in modules()
        for imported in imports(path)
        if room != "__init__" and floor(imported) > floor(room) and (room, imported) not in ALLOWED
    }
    assert upwards == set()
