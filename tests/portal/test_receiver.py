"""Tests of the page of the built-in receiver."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import standardwebhooks

from shortener.container import Service
from shortener.delivery.formats import FORMATS
from shortener.portal.operators import Role
from tests.conftest import Clock
from tests.portal.conftest import NewBrowser, SignIn, click, send

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "verify-signatures.md"


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


def _requests(page: str) -> list[tuple[dict[str, str], bytes]]:
    """Return the headers and the body of each request on the page. Check that its text, its copy buttons and its download links
    contain the same."""
    found = []
    for card in page.split('<pre class="request"><code><strong>')[1:]:
        shown = html.unescape(re.findall(r"<span data-body>(.*?)</span></code></pre>", card, re.DOTALL)[0])
        lines, body = [html.unescape(text) for text in re.findall(r'data-copy="(.*?)"', card, re.DOTALL)][:2]
        links = [unquote(html.unescape(href).partition(",")[2]) for href in re.findall(r'href="(data:[^"]*)"', card)]
        assert links == [lines, body]
        assert shown == body
        headers = dict(line.split(": ", 1) for line in lines.splitlines())
        assert headers["Content-Length"] == str(len(body.encode()))
        assert all(f"{value}\n" in html.unescape(card) for value in headers.values())
        found.append(({name.lower(): value for name, value in headers.items()}, body.encode()))
    return found


@pytest.mark.parametrize("format", FORMATS)
async def test_the_requests_of_the_portal_receiver_pass_the_code_of_the_signature_guide_and_the_standard_webhooks_library(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, clock: Clock, format: str
) -> None:
    clock.now = datetime.now(UTC) - timedelta(minutes=20)
    code = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)[0]
    guide: dict[str, Any] = {}
    exec(code, guide)
    browser = await sign_in()
    message = await send(service, browser, campaign='Grüße <"&\u2028>', metadata={"note": "a\r\nb  c%2F"})
    await click(service, await new_browser(), message["links"][0]["code"])
    clock.now = datetime.now(UTC)  # the code of the guide and the library compare the timestamp with the system clock
    page = (await browser.get(f"/portal/1/receiver?format={format}")).text
    secret = re.findall(r"whsec_[A-Za-z0-9+/=]+", html.unescape(page))[0]
    requests = _requests(page)
    assert len(requests) >= 2
    for headers, body in requests:
        assert guide["verify_standard"](secret, headers, body)
        assert guide["verify_telecom"](secret, headers, body)
        standardwebhooks.Webhook(secret).verify(body, headers)
        assert not guide["verify_standard"](secret, headers, body + b" ")


async def test_the_invented_request_of_the_portal_receiver_has_a_valid_signature(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    clock.now = datetime.now(UTC)
    page = (await (await sign_in()).get("/portal/1/receiver")).text
    ((headers, body),) = _requests(page)
    standardwebhooks.Webhook(re.findall(r"whsec_[A-Za-z0-9+/=]+", html.unescape(page))[0]).verify(body, headers)
