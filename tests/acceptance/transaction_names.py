"""The names of the functions that the service runs as transactions, read from its source.

A function runs as a transaction if the code passes it to `write` or `write_later` of a database, to `GroupCommit`, or if it is the
method `apply` of a class whose objects a `Batcher` calls. The names are those that `kill_points.name_of` returns.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_WRITING_METHODS = ("write", "write_later")


@dataclass
class _Scope:
    """A module, class or function. `prefix` precedes the qualified names of the functions in it. `names` contains the qualified
    names of its functions and of functions that it imports. `types` contains the classes of its parameters and variables."""

    prefix: str
    parent: _Scope | None = None
    class_name: str = ""
    names: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)

    def find(self, name: str, attribute: str) -> str | None:
        """Return an entry of `names` or `types` of the closest scope that has it. The names in a class are not visible inside its
        methods."""
        scope: _Scope | None = self
        while scope is not None:
            found: Mapping[str, str] = getattr(scope, attribute)
            if name in found and not (scope.class_name and scope is not self):
                return found[name]
            scope = scope.parent
        return None

    @property
    def own_class(self) -> str:
        """The name of the class in whose methods the scope is, or ""."""
        scope: _Scope | None = self
        while scope is not None:
            if scope.class_name:
                return scope.class_name
            scope = scope.parent
        return ""


def opened_transactions(files: Iterable[Path]) -> set[str]:
    """Return the `__qualname__` of each function that the modules in `files` run as a transaction."""
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
    """Yield the nodes below a node, and not those below functions and classes in it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _statements(child)


def _transaction_of(call: ast.Call, scope: _Scope) -> Iterator[str]:
    """Yield the qualified name of the function that a call runs as a transaction."""
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
            # a method of a local object, or a function of an imported module
            made = scope.find(variable, "types")
            yield f"{made}.{name}" if made is not None else name


def _last_name(node: ast.AST) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""
