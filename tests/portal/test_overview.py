"""Tests of the overview, with the traffic of a demo installation."""

from __future__ import annotations

import re
from pathlib import Path

from shortener.cli.demo_traffic import DemoClock, fill
from shortener.container import Service, open_service
from shortener.portal.operators import Role
from shortener.settings import Settings
from tests.conftest import NOON, client_of
from tests.portal.conftest import SAME_ORIGIN, SignIn, accept, invite


async def test_the_overview_of_an_empty_application_is_shown(sign_in: SignIn) -> None:
    browser = await sign_in()
    response = await browser.get("/portal/1/")
    assert response.status_code == 200
    figures = dict(re.findall(r'data-figure="(\w+)" data-value="(\d+)"', response.text))
    assert figures["messages"] == "0"


async def test_the_overview_has_the_figures_of_the_demo_traffic(tmp_path: Path) -> None:
    clock = DemoClock(NOON)
    service: Service = await open_service(Settings(data_dir=tmp_path), clock=clock)
    try:
        service.recorder.start()
        credentials = service.first_credentials
        assert credentials is not None
        await fill(service, clock, credentials.api_key, credentials.tracker_token, messages=40)
        async with client_of(service, SAME_ORIGIN) as browser:
            await accept(browser, await invite(service, "Ada", Role.VIEWER, 1))
            response = await browser.get("/portal/1/")
            figures = re.findall(r'data-figure="(\w+)" data-value="(\d+)" href="([^"]+)"', response.text)
            first = {name: int(value) for name, value, _ in reversed(figures)}
            stats = await browser.get(
                "/api/v1/sms/stats", params={"tz": "Europe/Berlin"}, headers={"X-API-Key": credentials.api_key}
            )
            for name in ("messages", "delivered", "clicked_messages", "clicks"):
                assert first[name] == stats.json()[name] > 0, name
    finally:
        await service.close(grace=1)
