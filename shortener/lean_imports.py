"""This module reduces the memory and the start time of a process. It imports large libraries without the parts that the service
never or rarely uses: structlog without rich, SQLAlchemy's asyncio engine without the ORM, uvicorn without its command line and
its supervisors, the Prometheus client without its HTTP servers, and pydantic without its plugins. This saves about 14 MB of
memory and a tenth of the start time.

Normally, an import of these libraries also imports these parts. A server process therefore calls `import_without_extras` before
its other imports. The function has no effect on a library that is already imported. A program can still import every part of the
libraries.

A server process also excludes modules from full garbage collections, because modules live as long as the process.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

#: structlog imports these modules if they are installed, to print tracebacks in colours. The service does not need them, because
#: `shortener.logs` prints plain tracebacks.
_RICH = ("rich", "rich.pretty", "rich.console", "rich.traceback")
#: Packages and modules whose own code imports parts that the service does not need. For each of them, the dictionary contains the
#: names that the service and the libraries import from it, and the module that defines each name. If the last part of the module
#: path is the name, the name is the module itself.
_PACKAGES: Mapping[str, Mapping[str, str]] = {
    # SQLAlchemy, uvicorn and starlette use these modules of the standard library only in functions that the service does not
    # call. These modules must be prepared before the libraries are imported, so they come first.
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
#: The module with which pydantic looks for plugins. It imports importlib.metadata, which imports email and zipfile (1 MB).
_PLUGINS = "pydantic.plugin._loader"
#: Whether the process has excluded the objects of its start from full garbage collections. `gc.get_freeze_count` would take
#: milliseconds, because it counts all excluded objects.
_excludes_objects = False


def import_without_extras() -> None:
    """Import structlog without rich, and prepare the packages of `_PACKAGES`. The import of a prepared package does not run its
    own code."""
    if "structlog" not in sys.modules:
        _import_structlog()
    for name in _PACKAGES:
        if name not in sys.modules:
            _prepare_package(name)


def import_pydantic_without_plugins() -> None:
    """Prevent pydantic from loading plugins and from importing the module that looks for plugins. Call this function before
    pydantic is imported.

    Do nothing if the module of the plugins is already imported. Also do nothing if the environment variable
    PYDANTIC_DISABLE_PLUGINS has another value than `__all__`."""
    # This variable makes pydantic skip its slow search for plugins, which reads the metadata of all installed packages.
    if os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__") == "__all__" and _PLUGINS not in sys.modules:
        module = ModuleType(_PLUGINS)
        module.get_plugins = tuple  # type: ignore[attr-defined]  # the function returns an empty tuple
        sys.modules[_PLUGINS] = module


def exclude_objects_of_start() -> None:
    """Exclude all objects that exist now from full garbage collections. `serve` calls this function when it has started."""
    global _excludes_objects
    _excludes_objects = True
    gc.freeze()


def exclude_imported_objects() -> None:
    """Exclude all objects that exist now from full garbage collections, if the process has excluded the objects of its start.

    Call this function in the thread that has imported modules. Otherwise the next full collection would examine all new modules and
    classes, and clicks would wait for it for 10 to 20 ms. container/full_collections.py frees excluded objects that become garbage.
    """
    if _excludes_objects:
        gc.freeze()


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
    """A package whose own code has not run yet. `_PACKAGES` states for some of its attributes the module that defines them: these
    attributes come directly from that module. The package's own code runs when a program uses another attribute, such as
    `AsyncSession`, or when the installed version of the library does not define an attribute in the stated module."""

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
