"""Tests of a database that is lost, is damaged, or does not accept writes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from shortener.container import Service, open_service
from shortener.errors import StoreUnavailable
from shortener.settings import Settings
from shortener.storage.integrity import DatabaseLost, find_damage, try_write
from shortener.storage.open import open_database
from shortener.web import health
from tests.clicks.helpers import create_codes, make_hit
from tests.conftest import MakeService, client_of
from tests.servers import PATIENCE


async def readiness(service: Service) -> tuple[int, dict[str, str]]:
    async with client_of(service) as client:
        response = await client.get("/readyz")
    return response.status_code, response.json()["checks"]


def only_sqlite(service: Service) -> Path:
    if service.database.dialect != "sqlite":
        pytest.skip("PostgreSQL has no file that this service opens")
    return Path(service.settings.store_url.removeprefix("sqlite:///"))


async def test_readyz_reports_failing_database_writes_until_a_write_succeeds_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CHECK_TIMEOUT_SECONDS", PATIENCE)
    service.start(web=False, deliver=False)
    assert (await readiness(service))[1]["writes"] == "ok"
    await service.database.write(lambda c: c.execute(text("ALTER TABLE installation RENAME TO away")))
    with pytest.raises(StoreUnavailable):
        await service.database.write(try_write, service.now_ms())
    for _ in range(2):
        status, checks = await readiness(service)
        assert (status, checks["database"], checks["writes"]) == (503, "ok", "failed")
    await service.database.write(lambda c: c.execute(text("ALTER TABLE away RENAME TO installation")))
    assert await readiness(service) == (200, {**(await readiness(service))[1], "writes": "ok"})
    assert not service.database.has_failed_writes


async def test_readyz_reports_hits_that_the_database_does_not_store(make_service: MakeService) -> None:
    service = await make_service(hit_deadline=0.5)
    service.start(web=False, deliver=False)
    (code,) = await create_codes(service)
    await service.database.write(lambda c: c.execute(text("ALTER TABLE hits RENAME TO hits_away")))
    assert (await service.recorder.record(make_hit(service, code))).location
    status, checks = await readiness(service)
    assert (status, checks["database"], checks["writes"]) == (503, "ok", "failed")
    await service.database.write(lambda c: c.execute(text("ALTER TABLE hits_away RENAME TO hits")))
    await service.recorder.flush()
    assert (await readiness(service))[0] == 200


@pytest.mark.parametrize("change", ["deleted", "replaced"])
async def test_writes_and_readyz_fail_while_another_file_replaces_the_sqlite_file(
    service: Service, change: str, tmp_path: Path
) -> None:
    file = only_sqlite(service)
    service.start(web=False, deliver=False)
    away = tmp_path / "away.db"
    os.rename(file, away)
    if change == "replaced":
        shutil.copyfile(away, file)
    with pytest.raises(StoreUnavailable, match="deleted or replaced"):
        await service.database.write(lambda c: c.execute(text("SELECT 1")))
    status, checks = await readiness(service)
    assert (status, checks["writes"]) == (503, "failed")
    os.replace(away, file)
    assert (await readiness(service))[0] == 200, "the file is back"
    assert (await service.database.write(lambda c: c.execute(text("SELECT 1")).scalar_one())) == 1


async def test_a_service_with_a_secret_and_no_database_does_not_start(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    await (await open_service(settings)).close(grace=1)
    for name in ("shortener.db", "shortener.db-wal", "shortener.db-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(tmp_path / name)
    with pytest.raises(DatabaseLost, match="Restore it"):
        await open_service(settings)
    assert not (tmp_path / "shortener.db").exists(), "no empty database is created"
    (tmp_path / "secret").unlink()
    await (await open_service(settings)).close(grace=1)


async def test_a_first_start_that_was_killed_before_the_secret_was_created_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*arguments: Any) -> Any:
        raise asyncio.CancelledError

    settings = Settings(data_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("shortener.container.build.open_installation_secret", die)
        with pytest.raises(asyncio.CancelledError):
            await open_service(settings)
    await (await open_service(settings)).close(grace=1)


async def test_a_damaged_page_of_the_sqlite_file_is_reported(make_service: MakeService) -> None:
    service = await make_service()
    file = only_sqlite(service)
    for _ in range(50):
        await create_codes(service)
    assert await service.database.read(lambda c: find_damage(c, thorough=True)) == []
    copied = file.with_name("damaged.db")
    with sqlite3.connect(file) as source:
        source.execute(f"VACUUM INTO '{copied}'")
    source.close()
    content = bytearray(copied.read_bytes())
    with sqlite3.connect(copied) as damaged:
        root = damaged.execute("SELECT rootpage FROM sqlite_master WHERE name = 'messages'").fetchone()[0]
        size = damaged.execute("PRAGMA page_size").fetchone()[0]
    damaged.close()
    content[(root - 1) * size + 8 : root * size] = bytes(size - 8)
    copied.write_bytes(content)
    database = await open_database(f"sqlite:///{copied}", owner=False)
    try:
        for thorough in (True, False):
            assert await database.read(partial(find_damage, thorough=thorough))
    finally:
        await database.close()
