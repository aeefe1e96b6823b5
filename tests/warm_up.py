"""The warm-up of the fork server (fork_server.py): work that each `shortener` process would otherwise repeat at its start.

The fork server imports all modules of the service. Then it runs one service, with its background jobs and its first requests, on
a SQLite database in a temporary folder. The children of the fork server inherit the compiled statements, the compiled regular
expressions and the models of requests. They inherit nothing else of that service: its thread, files, connections and event loop
have ended, and the caches of the package `shortener` are emptied. tests/test_fork_server.py checks this.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib
import os
import pkgutil
import tempfile
from pathlib import Path
from typing import Any

from tests.speed import compile_statements_for, share_compiled_statements

#: Libraries that some modules of the service import only when they need them.
LIBRARIES = (
    "aiohttp",
    "aiosqlite",
    "alembic.command",
    "asyncpg",
    "cryptography.fernet",
    "httpx",
    "redis.asyncio",
    "uvicorn",
    "uvloop",
)


def warm_up() -> None:
    """Import all modules of the service, and fill the caches of the libraries. Raise AssertionError if the service fails."""
    share_compiled_statements()
    import_modules()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run_a_service(Path(folder)))
    compile_for_postgresql()
    for cached in gc.get_objects():
        if isinstance(cached, functools._lru_cache_wrapper) and cached.__module__.startswith("shortener."):
            cached.cache_clear()


def import_modules() -> None:
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"  # shortener/cli/__init__.py also does this before it imports pydantic
    from shortener.lean_imports import import_without_extras

    import_without_extras()
    import shortener
    from shortener.web import routes

    for module in pkgutil.walk_packages(shortener.__path__, "shortener."):
        # Only Alembic imports the modules of migrations.
        if not module.name.startswith("shortener.storage.migrations.") and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for library in LIBRARIES:
        importlib.import_module(library)
    routes._prepare(list(routes.MODULES))


async def run_a_service(folder: Path) -> None:
    """Run a service until each of its background jobs has run. Rewrite one message, click its link and report a conversion."""
    import httpx

    from shortener.container import open_service
    from shortener.portal.operators import invite_first
    from shortener.server.application import HttpApplication
    from shortener.settings import Settings
    from shortener.storage.migrate import current_version

    settings = Settings(data_dir=folder, database_url=f"sqlite:///{folder}/shortener.db", report_wait=0.1)
    service = await open_service(settings)
    service.start()
    await service.database.write(invite_first, service.clock())
    credentials = service.first_credentials
    assert credentials is not None
    transport = httpx.ASGITransport(HttpApplication(service))
    headers = {"User-Agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X)", "X-API-Key": credentials.api_key}
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers=headers) as client:

        async def call(method: str, path: str, **content: Any) -> Any:
            response = await client.request(method, path, **content)
            assert response.is_success or response.is_redirect, response.text
            return response.json() if "json" in response.headers.get("content-type", "") else None

        await call("GET", "/readyz")
        body = {"to": ["+14085550100"], "body": 'see #track("https://x.example/")'}
        rewritten = await call("POST", "/api/v1/rewrite", json=body)
        (message,) = rewritten["messages"]
        await call("GET", f"/{message['links'][0]['code']}")
        report = {"message_id": message["message_id"], "transaction_id": "1", "value": "1.50", "currency": "USD"}
        await call("GET", "/api/v1/track", params=report, headers={"X-Api-Token": credentials.tracker_token})
        while any(job.runs == 0 for job in service.jobs.table.values()):
            await asyncio.sleep(0.01)
        for path in ("sms/status/" + message["message_id"], "sms/stats", "clicks", "events"):
            await call("GET", f"/api/v1/{path}")
        await call("GET", "/metrics")
    await service.close()
    await current_version(settings.store_url)


def compile_for_postgresql() -> None:
    """The service has run these statements on SQLite. Compile them for PostgreSQL, too. This needs no server."""
    from shortener.storage.postgres import async_engine

    compile_statements_for(async_engine("postgresql://").dialect)
