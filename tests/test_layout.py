"""Tests of the layout of the code: each module has tests, class names are unique, and no module uses private names of another
module.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import graphlib
import re
import tomllib
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import NamedTuple

import grimp
import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "shortener").rglob("*.py"))


class Source(NamedTuple):
    """The text of a module, its syntax tree, and all statements of the tree, also those inside functions and classes."""

    text: str
    tree: ast.Module
    statements: list[ast.AST]


#: The sources of all modules. The keys are their paths relative to the repository.
Sources = dict[str, Source]


@pytest.fixture(scope="module")
def sources() -> Sources:
    """The sources of all modules. Parsing takes a second, so all tests of this file share the syntax trees."""
    texts = {str(module.relative_to(ROOT)): module.read_text() for module in MODULES}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    return {path: Source(texts[path], tree, statements_of(tree)) for path, tree in trees.items()}


def statements_of(tree: ast.Module) -> list[ast.AST]:
    """Return all statements of a module, with the blocks that contain statements, such as `except`. Expressions, which are most
    nodes of a tree, are left out."""
    found: list[ast.AST] = [tree]
    for node in found:  # the loop also visits the nodes that it appends
        found += [child for block in BLOCKS for child in getattr(node, block, ()) if isinstance(child, ast.AST)]
    return found


#: The fields of syntax trees that contain statements, or blocks of statements.
BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_each_module_has_a_test_file_of_the_same_name_or_a_comment_with_the_name_of_another_test_file(sources: Sources) -> None:
    untested = set()
    for path, (text, tree, _) in sources.items():
        if path.endswith("__init__.py") and not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body):
            continue  # An __init__.py without functions and classes needs no test file.
        relative = Path(path).relative_to("shortener")
        mirror = ROOT / "tests" / relative.parent / f"test_{relative.name}"
        named = re.search(r"^# Tested by (tests/[\w/]+\.py)", text, re.MULTILINE)
        if named:
            assert (ROOT / named[1]).is_file(), f"{path} names {named[1]}, which does not exist"
        elif not mirror.is_file():
            untested.add(path)
    assert untested == set(), "add a test file, or a line '# Tested by tests/...' under the module's docstring"


def test_no_modules_import_each_other_not_even_in_functions_or_for_type_checking() -> None:
    graph = grimp.build_graph("shortener", cache_dir=None)
    graphlib.TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()


def test_no_two_classes_share_a_name(sources: Sources) -> None:
    modules: dict[str, list[str]] = defaultdict(list)
    for path, source in sources.items():
        for node in source.statements:
            if isinstance(node, ast.ClassDef):
                modules[node.name].append(path)
    assert {name: paths for name, paths in modules.items() if len(paths) > 1} == {}


def test_no_module_uses_a_name_of_another_module_that_begins_with_an_underscore(sources: Sources) -> None:
    found = []
    for path, source in sources.items():
        modules = set()  # The names of modules of this project in the file that is checked.
        for node in source.statements:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shortener"):
                for alias in node.names:
                    if is_private(alias.name):
                        found.append(f"{path}: from {node.module} import {alias.name}")
                    target = ROOT / (node.module or "").replace(".", "/") / alias.name
                    if target.is_dir() or target.with_suffix(".py").is_file():
                        modules.add(alias.asname or alias.name)
        # Only a file with such a text can contain such an attribute. The search in the text is much faster than in the tree.
        names = "|".join(map(re.escape, modules))
        if not modules or not re.search(rf"\b(?:{names})[\s()\\]*\.[\s\\]*_", source.text):
            continue
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            if node.value.id in modules and is_private(node.attr):
                found.append(f"{path}: {node.value.id}.{node.attr}")
    assert found == []


def test_no_test_module_imports_another_test_module() -> None:
    """Helpers that several test modules use belong in conftest.py, or in a module of tests/ that is not a test module."""
    found = set()
    for file in sorted((ROOT / "tests").rglob("*.py")):
        if re.search(r"^\s*(?:from|import) tests[\w.]*\.test_", file.read_text(), re.MULTILINE):
            found.add(str(file.relative_to(ROOT)))
    assert found == set()


def test_the_modules_of_the_lowest_layer_import_no_module_of_the_project() -> None:
    for name in ("errors", "host_labels", "ids", "model", "times"):
        tree = ast.parse((ROOT / "shortener" / f"{name}.py").read_text())
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [one for one in names if one.split(".")[0] == "shortener"], name


def test_a_dependency_of_the_server_is_in_the_extra_server_and_not_in_the_base_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[\[<>=~! ]", line)[0] for line in project["dependencies"]}
    assert names == {"httpx", "idna"}, "pip install sms-shortener[client] would install this: move it to the extra `server`"


@functools.cache
def requirements_of(package: str) -> list[Requirement]:
    return [Requirement(line) for line in requires(package) or ()]


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
@pytest.mark.parametrize("python", ["3.11.0", "3.11.2", "3.12.0", "3.13.0", "3.14.0"])
def test_the_lock_file_contains_every_package_that_a_supported_python_version_needs(lock: str, python: str) -> None:
    """If the lock file misses one package, pip installs nothing with --require-hashes. The missing package may be one that only
    an older Python needs."""
    target = {"python_full_version": python, "python_version": python.rpartition(".")[0]}
    lines = re.findall(r"^([A-Za-z0-9][\w.-]*)[^ ]* ?(?:; (.*?))? *\\$", (ROOT / lock).read_text(), re.MULTILINE)
    locked = {canonicalize_name(name): not marker or Marker(marker).evaluate(target) for name, marker in lines}
    missing = set()
    for name in locked:
        with contextlib.suppress(PackageNotFoundError):
            for one in requirements_of(name):
                is_needed = one.marker is not None and "extra" not in str(one.marker) and one.marker.evaluate(target)
                if locked[name] and is_needed and not locked.get(canonicalize_name(one.name)):
                    missing.add(f"{name} needs {one}")
    assert missing == set(), "run make lock"
