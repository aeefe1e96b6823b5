"""Tests of the modules that a server process imports. Each test runs in a new process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from shortener.container import open_service
from shortener.settings import Settings
from shortener.web.routes import MODULES
from tests.cli.shell import create_installation

ROOT = Path(__file__).parents[1]


def printed_by(script: str, *arguments: str) -> str:
    """Return what a script prints in a new process. Fail if the script fails or prints warnings."""
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.mark.slow
def test_a_serving_process_imports_neither_rich_nor_the_orm_and_both_stay_importable() -> None:
    script = """
import sys
from shortener.lean_imports import import_without_extras
import_without_extras()
import structlog, shortener.storage.sqlite, shortener.logs
assert not {"rich", "sqlalchemy.orm"} & sys.modules.keys()
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from shortener.storage import sqlite
assert AsyncEngine is sqlite.AsyncEngine
assert AsyncSession(create_async_engine("sqlite+aiosqlite://")).bind
import rich.console, rich.traceback
import_without_extras()
print("done")
"""
    assert printed_by(script) == "done"


@pytest.mark.slow
def test_if_sqlalchemy_has_no_module_of_the_asyncio_engine_the_complete_package_is_imported() -> None:
    script = """
import sys
from shortener import lean_imports
moved = {name: "sqlalchemy.ext.asyncio.moved" for name in ("AsyncConnection", "AsyncEngine", "create_async_engine")}
lean_imports._PACKAGES = {"sqlalchemy.ext.asyncio": moved}
lean_imports.import_without_extras()
import shortener.storage.sqlite
from sqlalchemy.ext.asyncio import AsyncSession
print("done")
"""
    assert printed_by(script) == "done"


@pytest.mark.slow
async def test_a_serving_process_on_sqlite_imports_only_what_it_needs_before_its_first_response(
    tmp_path: Path, sqlite_template: Path
) -> None:
    create_installation(tmp_path, sqlite_template)
    # make the first start here, because it imports more modules than a later start
    await (await open_service(Settings(data_dir=tmp_path))).close(grace=1)
    script = """
import asyncio, sys
from shortener.lean_imports import import_without_extras
import shortener.cli.serve
import_without_extras()
import uvicorn
from shortener.container import open_service
from shortener.server.application import HttpApplication
from shortener.server.http_protocol import ServerConfig
from shortener.settings import Settings
uvicorn.Server(ServerConfig(print))
unneeded = {
    "aiohttp", "alembic", "asyncpg", "cryptography", "jinja2", "multiprocessing", "phonenumbers", "prometheus_client.exposition",
    "redis", "rich", "shortener.messages.rewriter", "shortener.messages.url_detection", "shortener.reporting.status",
    "sqlalchemy.dialects.postgresql", "sqlalchemy.orm", "uvicorn.main",
}

async def get_unknown_code():
    service = await open_service(Settings(data_dir=sys.argv[1]))
    service.recorder.start()
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "scheme": "http", "path": "/nosuchcode", "raw_path": b"/nosuchcode"}
    scope |= {"query_string": b"", "headers": [(b"host", b"127.0.0.1:8000")]}
    scope |= {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000)}
    await HttpApplication(service)(scope, receive, send)
    print(sent[0]["status"], *sorted(unneeded & sys.modules.keys()))
    await service.close(grace=1)

asyncio.run(get_unknown_code())
"""
    assert printed_by(script, str(tmp_path)) == "404"


@pytest.mark.slow
def test_modules_of_the_standard_library_are_imported_when_they_are_used() -> None:
    script = """
import sys
from shortener.lean_imports import import_without_extras
import_without_extras()
import structlog, shortener.storage.sqlite, uvicorn, starlette.exceptions
late = {"email.parser", "logging.handlers", "zipfile"}
assert not late & sys.modules.keys()
import http.client, importlib.metadata, logging.config
from importlib.metadata import version
logging.config.dictConfig({"version": 1})
print(version("pydantic") > "2", http.client.responses[404], starlette.exceptions.HTTPException(410).detail)
assert late <= sys.modules.keys()
"""
    assert printed_by(script) == "True Not Found Gone"


@pytest.mark.slow
def test_pydantic_finds_no_plugins_unless_the_environment_requests_them() -> None:
    script = """
import os, sys
from shortener.lean_imports import import_pydantic_without_plugins
import_pydantic_without_plugins()
from pydantic import BaseModel
class Model(BaseModel):
    number: int
print(Model(number="1").number, "importlib.metadata" in sys.modules)
"""
    assert printed_by(script) == "1 False"
    assert printed_by("import os\nos.environ['PYDANTIC_DISABLE_PLUGINS'] = 'one'\n" + script) == "1 True"


@pytest.mark.slow
def test_all_parts_of_uvicorn_and_the_prometheus_client_stay_importable() -> None:
    script = """
from shortener.lean_imports import import_without_extras
import_without_extras()
import uvicorn
assert uvicorn.Server is __import__("uvicorn.server").server.Server
from uvicorn import Config, run
from prometheus_client import Counter, generate_latest
from shortener.metrics import Metrics
Counter("a_counter", "A counter.").inc()
assert b"a_counter_total 1.0" in generate_latest()
assert Metrics().text("")[0]
print(uvicorn.__version__ > "0", callable(uvicorn.main))
"""
    assert printed_by(script) == "True True"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "module"), [("rewriter", "shortener.messages.rewriter"), ("status_reader", "shortener.reporting.status")]
)
def test_a_module_with_endpoints_imports_the_parts_of_the_service_that_are_built_on_demand(part: str, module: str) -> None:
    """These modules are imported in a thread. They must also import these parts of the service, because otherwise the first
    request would import a part on the event loop."""
    users = [
        f"shortener.web.{name}"
        for name in MODULES
        if re.search(rf"service\.{part}\b", (ROOT / "shortener" / "web" / f"{name.replace('.', '/')}.py").read_text())
    ]
    assert len(users) >= 2
    users += ["shortener.portal.pages", *(["shortener.web.rewrite_call", "shortener.web.rewrite_errors"] * (part == "rewriter"))]
    script = """
import importlib, os, sys
import shortener.container, shortener.web.endpoint
for name in sys.argv[2:]:
    if os.fork() == 0:
        getattr(importlib.import_module(name), "all_pages", list)()  # imports the modules of all pages
        os._exit(sys.argv[1] in sys.modules)
    if os.waitstatus_to_exitcode(os.wait()[1]) == 0:
        print(name)
"""
    assert printed_by(script, module, *users) == ""
