"""Fixtures of the portal tests: clients that behave like browsers, and operators who are signed in."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher

from shortener.accounts.credentials import Credentials
from shortener.cli.demo_traffic import DemoClock, fill, start_of_traffic
from shortener.container import Service, open_service
from shortener.portal import operators as module
from shortener.portal.operators import Role
from shortener.settings import Settings
from tests.conftest import NOON, client_of, run_in_a_thread
from tests.factory import audited_rows
from tests.gateways.conftest import make_gateway, send_messages  # noqa: F401 - fixtures for the tests of gateways

PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 Version/18.5 Mobile/15E148 Safari/604.1"
PASSWORD = "seven quiet harbour lamps"
#: Browsers send this header with a form if the page of the form is on the same host.
SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}

NewBrowser = Callable[..., Awaitable[httpx.AsyncClient]]
SignIn = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
def fast_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash passwords with the lowest cost, so that the tests are fast. tests/portal/test_me.py checks the real parameters."""
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr("shortener.portal.passwords._hasher", lambda: hasher)


@pytest.fixture
async def new_browser(service: Service, fast_passwords: None) -> AsyncIterator[NewBrowser]:
    """Return a function that creates a browser: a client with its own cookies, which sends the headers of a browser and follows
    no redirects."""
    async with AsyncExitStack() as stack:

        async def open_browser(**headers: str) -> httpx.AsyncClient:
            return await stack.enter_async_context(client_of(service, {**SAME_ORIGIN, **headers}))

        yield open_browser


async def invite(service: Service, name: str, role: Role = Role.ADMIN, application_id: int = 0) -> str:
    """Invite an operator and return the token of the invitation."""
    created = await service.database.write(module.invite, name, role, application_id, service.clock())
    token: str = created.token
    return token


@pytest.fixture
def sign_in(service: Service, new_browser: NewBrowser) -> SignIn:
    """Return a function that invites an operator, accepts the invitation, and returns the browser of the operator, who is signed
    in.

    If the function was called with the same arguments before, it returns the same browser, so that cases on one service can share
    it."""
    browsers: dict[tuple[object, ...], httpx.AsyncClient] = {}

    async def enter(name: str = "Ada", role: Role = Role.ADMIN, application_id: int = 0, **headers: str) -> httpx.AsyncClient:
        key = (name, role, application_id, *headers.items())
        if key not in browsers:
            browser = await new_browser(**headers)
            await accept(browser, await invite(service, name, role, application_id))
            browsers[key] = browser
        return browsers[key]

    return enter


async def accept(browser: httpx.AsyncClient, token: str, **fields: str) -> httpx.Response:
    """Send the form of the welcome page."""
    form = {"token": token, "password": PASSWORD, "again": PASSWORD, "time_zone": "Europe/Berlin", **fields}
    response = await browser.post("/portal/welcome", data=form)
    assert response.status_code == 303, response.text
    return response


def session_cookie(browser: httpx.AsyncClient) -> str:
    """Return the session token from the cookies of a browser."""
    (token,) = (value for name, value in browser.cookies.items() if "session" in name)
    return token


@dataclass(frozen=True)
class DemoInstallation:
    """The folder of an installation with demo traffic, and the credentials of its application."""

    folder: Path
    credentials: Credentials

    async def open_copy(self, folder: Path) -> Service:
        """Copy the installation into a folder, and open the copy with the clock at NOON and a running recorder."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        service = await open_service(Settings(data_dir=folder), clock=DemoClock(NOON))
        service.recorder.start()
        return service


@pytest.fixture(scope="session")
def demo_installation(tmp_path_factory: pytest.TempPathFactory) -> DemoInstallation:
    """An installation with the demo traffic of three weeks that ended at NOON. Tests open copies of it."""
    folder = tmp_path_factory.mktemp("demo")

    async def create() -> Credentials:
        clock = DemoClock(start_of_traffic(NOON))
        service = await open_service(Settings(data_dir=folder), clock=clock)
        service.recorder.start()
        clock.now = NOON
        credentials = service.first_credentials
        assert credentials is not None
        await fill(service, clock, credentials.api_key, credentials.tracker_token, messages=60)
        await service.close(grace=1)
        return credentials

    return DemoInstallation(folder, run_in_a_thread(create()))


async def log(service: Service) -> list[Any]:
    """Return the rows of the audit log, oldest first, without the row that the first start of the installation adds."""
    return await audited_rows(service.database)


async def send(service: Service, browser: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    """Rewrite a message through the API and return its response."""
    credentials = service.first_credentials
    assert credentials is not None
    body = {"to": "+14085550123", "body": 'Offer: #track("https://shop.example/a?b=1")', **fields}
    response = await browser.post("/api/v1/rewrite", json=body, headers={"X-API-Key": credentials.api_key})
    assert response.status_code == 200, response.text
    message: dict[str, Any] = response.json()["messages"][0]
    return message


async def click(service: Service, browser: httpx.AsyncClient, code: str, agent: str = PHONE) -> None:
    response = await browser.get(f"/{code}", headers={"User-Agent": agent})
    assert response.status_code == 302
