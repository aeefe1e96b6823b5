"""Fixtures of the portal: a client that behaves like a browser, and operators who are signed in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from shortener.container import Service
from shortener.portal import operators as module
from shortener.portal.operators import Role
from tests.conftest import client_of

PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 Version/18.5 Mobile/15E148 Safari/604.1"
PASSWORD = "seven quiet harbour lamps"
#: The header by which browsers mark the forms of a page on the same host.
SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}

NewBrowser = Callable[..., Awaitable[httpx.AsyncClient]]
SignIn = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def new_browser(service: Service) -> AsyncIterator[NewBrowser]:
    """Return a function that returns a client with its own cookies. It sends the headers of a browser and follows no redirects."""
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
    """Return a function that invites an operator, accepts the invitation, and returns the browser with the session."""

    async def enter(name: str = "Ada", role: Role = Role.ADMIN, application_id: int = 0, **headers: str) -> httpx.AsyncClient:
        browser = await new_browser(**headers)
        token = await invite(service, name, role, application_id)
        await accept(browser, token)
        return browser

    return enter


async def accept(browser: httpx.AsyncClient, token: str, **fields: str) -> httpx.Response:
    """Send the form of the welcome page."""
    form = {"token": token, "password": PASSWORD, "again": PASSWORD, "time_zone": "Europe/Berlin", **fields}
    response = await browser.post("/portal/welcome", data=form)
    assert response.status_code == 303, response.text
    return response


def session_cookie(browser: httpx.AsyncClient) -> str:
    """Return the token of the session that a browser has."""
    (token,) = (value for name, value in browser.cookies.items() if "session" in name)
    return token


async def log(service: Service) -> list[Any]:
    """Return the rows of the audit log, oldest first."""
    from shortener.portal.audit import AuditFilter, list_audit

    page = await service.database.read(list_audit, AuditFilter(), 1000)
    return list(reversed(page.rows))


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
