"""This module imports libraries without parts that the service does not use or rarely uses: structlog without rich, SQLAlchemy's
asyncio engine without the ORM, uvicorn without its command line and its supervisors, the Prometheus client without its HTTP
servers, and pydantic without its plugins. This saves about 14 MB of memory and a tenth of the start.

These libraries import these parts unconditionally. A process that serves calls `import_without_extras` before its other imports.
The function does nothing if the libraries were imported before. A program can still import all parts of the libraries.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

#: The modules that structlog imports if they are installed, to print tracebacks in colours. `shortener.logs` prints plain
#: tracebacks.
_RICH = ("rich", "rich.pretty", "rich.console", "rich.traceback")
#: Packages whose own code imports parts that the service does not need. For each package: the names that the service and the
#: libraries use, and the module that contains each name. If the path of the module ends with the name, the name is the module
#: itself.
_PACKAGES: Mapping[str, Mapping[str, str]] = {
    # Modules of the standard library: SQLAlchemy, uvicorn and starlette use them in functions that the service does not call. They
    # come first, because they must be prepared before these libraries are imported.
    "importlib.metadata": {},
    "logging.config": {},
    "http.client": {},
    "sqlalchemy.ext.asyncio": {
        "exc": "sqlalchemy.ext.asyncio.exc",
        "AsyncConnection": "sqlalchemy.ext.asyncio.engine",
        "AsyncEngine": "sqlalchemy.ext.asyncio.engine",
        "create_async_engine": "sqlalchemy.ext.asyncio.engine",
    },
    "uvicorn": {"Config": "uvicorn.config", "Server": "uvicorn.server"},
    "prometheus_client": {},
}
#: The module of pydantic that finds plugins. It imports importlib.metadata, which imports email and zipfile (1 MB).
_PLUGINS = "pydantic.plugin._loader"


def import_without_extras() -> None:
    """Import structlog without rich. Prepare the packages of `_PACKAGES`, so that an import does not run their own code."""
    if "structlog" not in sys.modules:
        _import_structlog()
    for name in _PACKAGES:
        if name not in sys.modules:
            _prepare_package(name)


def import_pydantic_without_plugins() -> None:
    """Prepare pydantic, so that models have no plugins and importing pydantic does not import the module that finds plugins. Do
    nothing if the environment variable PYDANTIC_DISABLE_PLUGINS is set, or if the module is already imported. Call this function
    before pydantic is imported."""
    # With this variable, pydantic does not search the metadata of all installed packages for plugins, which is slow.
    if os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__") == "__all__" and _PLUGINS not in sys.modules:
        module = ModuleType(_PLUGINS)
        module.get_plugins = tuple  # type: ignore[attr-defined]  # the function returns an empty tuple
        sys.modules[_PLUGINS] = module


def _import_structlog() -> None:
    hidden = [name for name in _RICH if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # `import rich` raises ImportError
    try:
        importlib.import_module("structlog")
    finally:
        for name in hidden:
            del sys.modules[name]


class _Package(ModuleType):
    """A package before its own code has run. The code runs when a program uses a name that is not in `_PACKAGES`, such as
    `AsyncSession`. It also runs if another version of the library has the name in another module."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        module = _PACKAGES[self.__name__].get(name)
        if module is not None:
            try:
                found = importlib.import_module(module)
                return found if module.endswith(f".{name}") else getattr(found, name)
            except (ImportError, AttributeError):
                pass
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def _prepare_package(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    package = importlib.util.module_from_spec(spec)
    package.__class__ = _Package
    sys.modules[name] = package
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(importlib.import_module(parent), child, package)
