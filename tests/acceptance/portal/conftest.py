"""Fixtures of the browser tests: a demo installation that a real process serves, a browser, and operators who are signed in."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shortener.cli.demo_traffic import fill_installation
from tests.acceptance.portal.browser import Chromium, accept_invitation, chromium
from tests.acceptance.portal.shots import start
from tests.acceptance.process import Server

#: Tests of this folder are skipped without the browser of the distribution.
needs_browser = pytest.mark.skipif(
    not (shutil.which("chromium") or shutil.which("chromium-browser")),
    reason="CHROMIUM IS MISSING: no page of the portal is tested in a browser. Install it: apt-get install chromium",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(needs_browser)


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server process with three weeks of demo traffic in application 1. Tests must not change its data."""
    folder = tmp_path_factory.mktemp("portal")
    with ThreadPoolExecutor(1) as executor:  # The library of the browser runs an event loop in this separate thread.
        executor.submit(lambda: asyncio.run(fill_installation(folder, messages=120))).result()
    server = start(folder)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def admin(browser: Chromium, demo_server: Server) -> Any:
    """The cookies of an admin."""
    return accept_invitation(browser, demo_server, "Ada")


@pytest.fixture(scope="module")
def viewer(browser: Chromium, demo_server: Server) -> Any:
    """The cookies of a viewer of application 1."""
    return accept_invitation(browser, demo_server, "Vera", "viewer", 1)
