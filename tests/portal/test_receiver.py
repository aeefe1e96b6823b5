"""Tests of the page of the built-in receiver."""

from __future__ import annotations

from shortener.container import Service
from shortener.portal.operators import Role
from tests.portal.conftest import NewBrowser, SignIn, click, send


async def test_the_portal_receiver_shows_a_sample_event_and_then_requests_of_real_events_even_without_a_tracker(
    service: Service, sign_in: SignIn, new_browser: NewBrowser
) -> None:
    browser = await sign_in()
    page = (await browser.get("/portal/1/receiver")).text
    assert "No event yet" in page
    assert "webhook-signature" in page
    message = await send(service, browser, message_id="order-7")
    await click(service, await new_browser(), message["links"][0]["code"])
    for query in ("", "?format=scg"):
        page = (await browser.get("/portal/1/receiver" + query)).text
        assert "No event yet" not in page
        for text in ("POST /events HTTP/1.1", "webhook-id:", "webhook-signature:", "X-Webhook-Signature:", "order-7"):
            assert text in page
        assert "+14085550123" not in page
    fragment = (await browser.get("/portal/1/receiver", headers={"HX-Request": "true"})).text
    assert "<html" not in fragment
    assert "POST /events HTTP/1.1" in fragment
    assert (await browser.get("/portal/1/receiver?format=x")).status_code == 400


async def test_the_portal_receiver_requires_the_role_support_or_a_higher_role(sign_in: SignIn) -> None:
    viewer = await sign_in("Vera", Role.VIEWER, 1)
    assert (await viewer.get("/portal/1/receiver")).status_code == 403
    support = await sign_in("Sue", Role.SUPPORT, 1)
    assert (await support.get("/portal/1/receiver")).status_code == 200
