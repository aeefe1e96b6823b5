"""Fixtures of the browser tests: a demo installation with a real server process, a browser, and operators who are signed in."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shortener.cli.demo_traffic import fill_installation
from shortener.ids import DELIVERY_IDS
from tests.acceptance.portal.browser import Chromium, accept_invitation, browser_path, chromium
from tests.acceptance.portal.shots import start
from tests.acceptance.process import Server

#: Without Chromium, the tests of this folder are skipped.
needs_browser = pytest.mark.skipif(
    browser_path() is None,
    reason="CHROMIUM IS MISSING: no page of the portal is tested in a browser. Install it: apt-get install chromium-headless-shell",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = f"{Path(__file__).parent}{os.sep}"
    for item in items:
        if str(item.path).startswith(folder):
            item.add_marker(needs_browser)


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server process whose application 1 has three weeks of demo traffic. Tests must not change its data."""
    folder = tmp_path_factory.mktemp("portal") / "data"
    shutil.copytree(_demo_installation(tmp_path_factory), folder)
    server = start(folder)
    yield server
    server.kill()


def _demo_installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an installation with demo traffic. If several test processes run, the first one creates it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "demo_installation"
    with open(shared / "demo_installation.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = tmp_path_factory.mktemp("demo_installation")
            # Use another thread, because the library that controls the browser runs an event loop in this thread.
            with ThreadPoolExecutor(1) as executor:
                executor.submit(lambda: asyncio.run(fill_installation(unfinished, messages=120))).result()
            _add_replay(unfinished)
            _add_domain(unfinished)
            _add_failing_gateway(unfinished)
            unfinished.rename(folder)
    return folder


def _add_replay(folder: Path) -> None:
    """Add a replay with the id 1. It is stopped, because a running replay would change the data."""
    values = "1, 1, 3, 'stopped', 'operator', 'Ada', 'Ada', 12, 5, 9, 1790000000000, 1790000060000"
    columns = "id, application_id, tracker_id, state, stop_reason, started_by, stopped_by, total, replayed, cursor, created_at"
    with contextlib.closing(sqlite3.connect(folder / "shortener.db")) as database, database:
        database.execute(f"INSERT INTO replays ({columns}, finished_at) VALUES ({values})")


def _add_domain(folder: Path) -> None:
    """Add a domain to application 1. The existing links keep their host."""
    values = "1, 1, 'go.brand.example', 'https://go.brand.example', 1790000000000"
    with contextlib.closing(sqlite3.connect(folder / "shortener.db")) as database, database:
        database.execute(f"INSERT INTO domains (id, application_id, host, base_url, created_at) VALUES ({values})")


def _add_failing_gateway(folder: Path) -> None:
    """Open the circuit breaker of the gateway for an hour, and make the newest of its messages a held message."""
    now = round(time.time() * 1000)
    with contextlib.closing(sqlite3.connect(folder / "shortener.db")) as database, database:
        (held, gateway) = database.execute("SELECT id, gateway_id FROM sends ORDER BY id DESC LIMIT 1").fetchone()
        opened = "failures_in_row = 12, opened_at = ?, open_until = ?"
        database.execute(f"UPDATE gateways SET {opened} WHERE id = ?", (now - 600_000, now + 3_600_000, gateway))
        # Remove the effect of a delivery report. Otherwise the service would finish the held message.
        database.execute("UPDATE messages SET state = 0 WHERE id = ?", (held,))
        values = "status = 3, doubtful = 1, last_error = 'timeout', finished_at = NULL"
        database.execute(f"UPDATE sends SET {values} WHERE id = ?", (held,))


@pytest.fixture(scope="session")
def demo_ids(demo_server: Server) -> dict[str, str]:
    """The code of a link and the id of a delivery in the demo installation. They are different in each test run."""
    with contextlib.closing(sqlite3.connect(demo_server.folder / "shortener.db")) as database:
        (code,) = database.execute("SELECT links.code FROM links JOIN hits ON hits.link_id = links.id LIMIT 1").fetchone()
        (delivery,) = database.execute("SELECT delivery_id FROM attempts LIMIT 1").fetchone()
    return {"code": code, "delivery": DELIVERY_IDS.encode(delivery)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def admin(browser: Chromium, demo_server: Server) -> Any:
    """The cookies of an admin who is signed in."""
    return accept_invitation(browser, demo_server, "Ada")


@pytest.fixture(scope="module")
def viewer(browser: Chromium, demo_server: Server) -> Any:
    """The cookies of a viewer of application 1 who is signed in."""
    return accept_invitation(browser, demo_server, "Vera", "viewer", 1)
