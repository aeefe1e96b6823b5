"""This module imports two libraries without parts that the service never uses: structlog without rich, and SQLAlchemy's asyncio
engine without the ORM. This saves about 10 MB of memory and a tenth of the start.

Both libraries import these parts unconditionally. A process that serves calls `import_without_extras` before its other imports. The
function does nothing if the libraries were imported before. rich and the ORM stay importable.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

#: The modules that structlog imports if they are installed, to print tracebacks in colours. `shortener.logs` prints plain ones.
_RICH = ("rich", "rich.pretty", "rich.console", "rich.traceback")
_ASYNCIO = "sqlalchemy.ext.asyncio"
_ENGINE = "sqlalchemy.ext.asyncio.engine"


def import_without_extras() -> None:
    """Import structlog without rich, and SQLAlchemy's asyncio engine without the ORM."""
    if "structlog" not in sys.modules:
        _import_structlog()
    if _ASYNCIO not in sys.modules:
        _import_asyncio_engine()


def _import_structlog() -> None:
    hidden = [name for name in _RICH if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # `import rich` raises ImportError
    try:
        importlib.import_module("structlog")
    finally:
        for name in hidden:
            del sys.modules[name]


class _AsyncioPackage(ModuleType):
    """The package `sqlalchemy.ext.asyncio` before its own code has run. The code runs when a program uses a name that the package
    does not have yet, such as `AsyncSession`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def _import_asyncio_engine() -> None:
    """Import `sqlalchemy.ext.asyncio.engine`, and not the package around it, which imports the ORM for its class AsyncSession.

    If a version of SQLAlchemy has no such module, leave the import of the complete package to the module that needs it."""
    spec = importlib.util.find_spec(_ASYNCIO)
    assert spec is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_ASYNCIO] = package
    try:
        engine = importlib.import_module(_ENGINE)
        for name in ("AsyncConnection", "AsyncEngine", "create_async_engine"):
            setattr(package, name, getattr(engine, name))
    except (ImportError, AttributeError):
        del sys.modules[_ASYNCIO]
        return
    package.__class__ = _AsyncioPackage
