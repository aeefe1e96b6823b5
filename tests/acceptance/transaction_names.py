"""This module reads the source of the service, and returns the names of the functions that the service runs as transactions.

A function runs as a transaction in three cases: the code passes it to `write` or `write_later` of a database; the code passes it
to `GroupCommit`; or it is the method `apply` of a class whose objects handle the batches of a `Batcher`. The names are those that
`kill_points.name_of` returns.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_WRITING_METHODS = ("write", "write_later")


@dataclass
class _Scope:
    """The scope of a module, class or function in the source.

    `prefix` is the first part of the qualified names of the functions in the scope. `names` contains the qualified names of these
    functions and of imported functions. `types` contains the classes of parameters and variables."""

    prefix: str
    parent: _Scope | None = None
    class_name: str = ""
    names: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)

    def find(self, name: str, attribute: str) -> str | None:
        """Return the entry of `names` or `types` (`attribute`) for a name, from the innermost scope that has it. The names of a
        class are skipped for its methods, as Python does."""
        scope: _Scope | None = self
        while scope is not None:
            found: Mapping[str, str] = getattr(scope, attribute)
            if name in found and not (scope.class_name and scope is not self):
                return found[name]
            scope = scope.parent
        return None

    @property
    def own_class(self) -> str:
        """The name of the class that contains the scope, or ""."""
        scope: _Scope | None = self
        while scope is not None:
            if scope.class_name:
                return scope.class_name
            scope = scope.parent
        return ""


def opened_transactions(files: Iterable[Path]) -> set[str]:
    """Return the `__qualname__` of each function that the modules `files` run as a transaction."""
    found: set[str] = set()
    for file in files:
        found |= {name for name in _opened(ast.parse(file.read_text()), _Scope("")) if name}
    return found


def _opened(node: ast.AST, scope: _Scope) -> Iterator[str]:
    for inner in _statements(node):
        match inner:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                scope.names[inner.name] = scope.prefix + inner.name
            case ast.ImportFrom():
                scope.names |= {alias.asname or alias.name: alias.name for alias in inner.names}
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id=made))):
                scope.types[name] = made
    for inner in _statements(node):
        match inner:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                inside = _Scope(f"{scope.prefix}{inner.name}.<locals>.", scope)
                for argument in inner.args.args + inner.args.kwonlyargs:
                    if isinstance(argument.annotation, ast.Name):
                        inside.types[argument.arg] = argument.annotation.id
                yield from _opened(inner, inside)
            case ast.ClassDef():
                yield from _opened(inner, _Scope(f"{scope.prefix}{inner.name}.", scope, scope.prefix + inner.name))
            case ast.Call():
                yield from _transaction_of(inner, scope)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below a node of a syntax tree, but not the nodes inside inner functions and classes."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _statements(child)


def _transaction_of(call: ast.Call, scope: _Scope) -> Iterator[str]:
    """If a call runs a function as a transaction, yield the qualified name of this function."""
    match call:
        case ast.Call(func=ast.Attribute(value=receiver, attr=method), args=[function, *_]) if method in _WRITING_METHODS:
            if not _last_name(receiver).removeprefix("_").endswith("database"):
                return
        case ast.Call(func=ast.Name(id="GroupCommit"), args=[_, function, *_]):
            pass
        case ast.Call(func=ast.Name(id="Batcher"), args=[_, ast.Name(id="self"), *_]):
            yield f"{scope.own_class}.apply"
            return
        case _:
            return
    match function:
        case ast.Call(func=ast.Name(id="partial"), args=[ast.expr() as function, *_]):
            pass
    match function:
        case ast.Name(id=name):
            yield scope.find(name, "names") or ""
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            yield f"{scope.own_class}.{name}"
        case ast.Attribute(value=ast.Name(id=variable), attr=name):
            # The function is a method of a local object, or belongs to an imported module.
            made = scope.find(variable, "types")
            yield f"{made}.{name}" if made is not None else name


def _last_name(node: ast.AST) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""
