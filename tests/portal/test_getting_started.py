"""Tests of the getting-started steps on the overview page of the portal."""

from __future__ import annotations

import re

import httpx

from shortener.container import Service
from shortener.portal.try_it import CAMPAIGN
from tests.portal.conftest import NewBrowser, SignIn, click, send


async def done(browser: httpx.AsyncClient) -> str:
    """Return the number of getting-started steps that are done according to the overview."""
    page = await browser.get("/portal/1/")
    assert page.status_code == 200
    (number,) = re.findall(r"(\d) of 5 done", page.text)
    return str(number)


async def test_each_getting_started_step_is_marked_as_done_when_the_required_data_exist(
    service: Service, sign_in: SignIn, new_browser: NewBrowser
) -> None:
    browser, phone = await sign_in(), await new_browser()
    assert await done(browser) == "0"
    message = await send(service, browser, campaign=CAMPAIGN)
    assert await done(browser) == "1"
    await click(service, phone, message["links"][0]["code"])
    assert await done(browser) == "2"
    await send(service, browser)
    assert await done(browser) == "3"
    credentials = service.first_credentials
    assert credentials is not None
    tracker = {"url": "https://t.example/", "events": ["click"]}
    await browser.post("/api/v1/trackers", json=tracker, headers={"X-API-Key": credentials.api_key})
    assert await done(browser) == "4"


async def test_the_commands_of_the_getting_started_steps_contain_the_address_of_the_service(
    service: Service, sign_in: SignIn
) -> None:
    browser = await sign_in()
    page = (await browser.get("/portal/1/")).text
    assert f"curl {service.settings.base_url}/api/v1/rewrite" in page
    assert 'href="/portal/1/receiver"' in page
