from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import text, update

from shortener.accounts.administration import add_domain
from shortener.accounts.version import mark_accounts_changed
from shortener.container import Service
from shortener.errors import StoreUnavailable
from shortener.storage import schema
from shortener.storage.migrations import HEAD
from shortener.web import health
from tests.conftest import MakeService, client_of
from tests.servers import PATIENCE, RedisProcess

PERSON = {"User-Agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 Version/18.5 Safari/604.1"}


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extend the time limit of the health checks, because the database is slow on a busy machine."""
    monkeypatch.setattr(health, "CHECK_TIMEOUT_SECONDS", PATIENCE)


async def ready(service: Service) -> tuple[int, dict[str, Any]]:
    async with client_of(service) as client:
        answer = await client.get("/readyz")
    return answer.status_code, answer.json()


async def numbers(client: httpx.AsyncClient) -> dict[str, float]:
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {name: float(value) for name, value in re.findall(r"^([^#\s]\S*(?: \S+=\S+)*) (\S+)$", answer.text, re.MULTILINE)}


async def test_a_running_process_is_alive_and_ready(service: Service) -> None:
    service.start(web=False, deliver=False)
    async with client_of(service) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
    checks = {"process": "ok", "database": "ok", "writes": "ok", "schema": "ok", "redis": "none", "jobs": "ok"}
    assert await ready(service) == (200, {"status": "ready", "checks": checks})


async def test_a_process_that_has_not_started_is_alive_but_not_ready(service: Service) -> None:
    status, told = await ready(service)
    assert status == 503
    assert told["checks"] == {
        "process": "failed",
        "database": "ok",
        "writes": "ok",
        "schema": "ok",
        "redis": "none",
        "jobs": "failed",
    }
    async with client_of(service) as client:
        assert (await client.get("/healthz")).status_code == 200


async def test_readyz_responds_with_503_from_the_start_of_a_shutdown(service: Service) -> None:
    service.start(web=False, deliver=False)
    service.begin_stop(2)
    status, told = await ready(service)
    assert status == 503
    assert told["checks"]["process"] == "failed"
    async with client_of(service) as client:
        assert (await client.get("/healthz")).status_code == 200


class Away:
    """A database that raises an error at each read, or never responds."""

    def __init__(self, refuses: bool) -> None:
        self._refuses = refuses

    async def read(self, query: Callable[..., Any]) -> Any:
        if self._refuses:
            raise StoreUnavailable("password authentication failed for user admin")
        await asyncio.Event().wait()


@pytest.mark.parametrize("refuses", [True, False])
async def test_readyz_reports_an_unavailable_database_without_its_error_text(
    service: Service, refuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.start(web=False, deliver=False)
    monkeypatch.setattr(health, "CHECK_TIMEOUT_SECONDS", 0.01)
    monkeypatch.setattr(service, "database", Away(refuses))
    status, told = await ready(service)
    assert status == 503
    assert told["checks"] == {
        "process": "ok",
        "database": "failed",
        "writes": "failed",
        "schema": "failed",
        "redis": "none",
        "jobs": "ok",
    }
    async with client_of(service) as client:
        assert (await client.get("/healthz")).status_code == 200
    monkeypatch.undo()


async def test_a_node_without_its_database_stays_ready_while_redis_responds(
    make_service: MakeService, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await make_service(redis_url=redis_server.url)
    monkeypatch.setattr(service.redis, "_timeout", PATIENCE)
    service.start(web=False, deliver=False)
    checks = {"process": "ok", "database": "ok", "writes": "ok", "schema": "ok", "redis": "ok", "jobs": "ok"}
    assert await ready(service) == (200, {"status": "ready", "checks": checks})
    with monkeypatch.context() as patch:
        patch.setattr(service, "database", Away(refuses=True))
        assert await ready(service) == (
            200,
            {"status": "ready", "checks": checks | {"database": "failed", "writes": "failed", "schema": "failed"}},
        )
        redis_server.kill()
        assert (await ready(service))[0] == 503
    assert await ready(service) == (200, {"status": "ready", "checks": checks | {"redis": "failed"}})


@pytest.mark.parametrize(("version", "state"), [("0000", "failed"), (HEAD, "ok"), ("9999", "ok")])
async def test_a_node_is_not_ready_with_an_older_database_schema_but_is_ready_with_a_newer_schema(
    service: Service, version: str, state: str
) -> None:
    service.start(web=False, deliver=False)
    await service.database.write(lambda c: c.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": version}))
    status, told = await ready(service)
    assert status == (200 if state == "ok" else 503)
    assert told["checks"]["schema"] == state


async def test_the_metrics_contain_the_number_of_redirects(client: httpx.AsyncClient) -> None:
    message = {"to": "+14085550100", "body": 'See #track("https://shop.example/")'}
    code = (await client.post("/api/v1/rewrite", json=message)).json()["messages"][0]["links"][0]["code"]
    for _ in range(3):
        assert (await client.get(f"/{code}", headers=PERSON)).status_code == 302
    await client.head(f"/{code}", headers=PERSON)
    await client.get("/unknown0", headers=PERSON)
    told = await numbers(client)
    assert told['shortener_redirects_total{status="302"}'] == 4
    assert told['shortener_redirects_total{status="404"}'] == 1
    assert told['shortener_hits_total{rule="browser",verdict="human"}'] == 3
    assert sum(value for name, value in told.items() if name.startswith("shortener_hits_total")) == 4
    assert told["shortener_hits_recorded_total"] == 4
    assert told["shortener_hits_unknown_total"] == 1
    assert told["shortener_first_clicks_total"] == 1
    assert told["shortener_hits_unrecorded"] == 0
    assert told["shortener_hit_batches_total"] >= 1


async def test_the_metrics_contain_every_background_job_and_need_no_database(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.database.write(mark_accounts_changed)  # After this write, the WAL of SQLite is not empty.
    async with client_of(service) as client:
        monkeypatch.setattr(service, "database", None)
        told = await numbers(client)
        monkeypatch.undo()
    for name in service.jobs.table:
        assert told[f'shortener_job_runs_total{{job="{name}"}}'] == 0
    assert told['shortener_purged_rows_total{kind="messages"}'] == 0
    assert told["process_resident_memory_bytes"] > 0
    assert (told.get("shortener_database_wal_bytes", 0) > 0) == (service.database.dialect == "sqlite")


async def test_the_metrics_are_in_openmetrics_format_if_the_scraper_accepts_it(client: httpx.AsyncClient) -> None:
    answer = await client.get("/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


async def test_the_domain_check_returns_200_only_for_domains_of_the_installation(service: Service) -> None:
    now = service.clock()
    application = service.directory.applications()[0].id
    await service.database.write(add_domain, application, "https://go.brand.example", now)
    await service.directory.refresh()

    async def known(domain: str, host: str = "node1:8000") -> int:
        async with client_of(service) as client:
            answer = await client.get("/internal/domain-check", params={"domain": domain}, headers={"Host": host})
        return answer.status_code

    assert await known("go.brand.example") == 200
    assert await known("GO.brand.example.") == 200
    assert await known("127.0.0.1") == 200, "short links may use the host of BASE_URL"
    assert await known("brand.example") == 404
    assert await known("") == 404
    assert await known("go.brand.example", host="go.brand.example") == 404, (
        "the check does not exist on the domain of an application"
    )
    await service.database.write(lambda c: c.execute(update(schema.domains).values(disabled_at=now)))
    await service.database.write(mark_accounts_changed)
    await service.directory.refresh()
    assert await known("go.brand.example") == 404
