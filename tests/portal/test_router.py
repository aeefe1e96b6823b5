"""Tests of the rules for every page: its host, its headers, the origin of its forms, the required role, and a template without
scripts."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path

import pytest

from shortener.accounts import administration
from shortener.container import Service
from shortener.errors import StoreUnavailable
from shortener.portal.operators import Role
from shortener.portal.pages import MODULES, all_pages
from shortener.portal.rendering import environment
from shortener.portal.router import Portal, load_portal
from shortener.portal.security import CONTENT_SECURITY_POLICY
from tests.conftest import Clock, MakeService, client_of
from tests.one_service import on_one_service
from tests.portal.conftest import SAME_ORIGIN, NewBrowser, SignIn

PATIENCE_SECONDS = 30  # maximum time to load the portal on a busy machine
TEMPLATES = Path(__file__).parents[2] / "shortener" / "portal" / "templates"


async def test_every_portal_response_has_the_security_headers(new_browser: NewBrowser) -> None:
    browser = await new_browser()
    for path in ("/portal/signin", "/portal/", "/portal/unknown", "/portal/1/"):
        response = await browser.get(path)
        assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert response.headers["referrer-policy"] == "same-origin"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "strict-transport-security" not in response.headers  # the installation has no https


@on_one_service
@pytest.mark.parametrize(
    "path",
    [
        "search?q=a%00b",
        "admin/audit?operator=a%00b&action=%00",
        *(f"1/{page}?campaign=a%00b" for page in ("", "messages", "clicks", "conversions", "links", "campaigns")),
        *(f"1/{page}?source=a%00b&country=%00" for page in ("", "messages", "clicks", "conversions")),
        "1/clicks?code=a%00b&message=%00&destination=%00&label=%00",
        "1/conversions?message=a%00b&status=%00&action=%00&transaction=%00",
        "1/conversions/refused?reason=a%00b",
        "1/links?url=a%00b&label=%00",
        "1/campaigns?compare=a%00b",
    ],
)
async def test_the_character_nul_in_a_filter_or_in_the_search_of_the_portal_finds_nothing(sign_in: SignIn, path: str) -> None:
    browser = await sign_in()
    response = await browser.get(f"/portal/{path}")
    assert response.status_code == 200, response.text
    assert "\0" not in response.text


async def test_portal_responses_have_a_content_security_policy_and_pages_are_not_cached(sign_in: SignIn) -> None:
    browser = await sign_in()
    page = await browser.get("/portal/1/")
    (style,) = re.findall(r'rel="stylesheet" href="([^"]+)"', page.text)
    responses = [
        page,
        await browser.get("/portal/1/clicks.csv"),
        await browser.get(style),
        await browser.post("/portal/1/try", data={}),
    ]
    for response in responses:
        assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY  # ASVS 3.4.3
        assert response.headers["x-content-type-options"] == "nosniff"  # ASVS 3.4.4
        assert response.headers["cross-origin-opener-policy"] == "same-origin"
    assert [one.headers["cache-control"] == "no-store" for one in responses] == [True, True, False, True]


async def test_every_portal_page_of_an_operator_has_the_button_to_sign_out(sign_in: SignIn) -> None:
    browser = await sign_in()
    for path in ("/portal/1/", "/portal/me", "/portal/admin/system", "/portal/1/messages/nothing"):
        assert 'action="/portal/signout"' in (await browser.get(path)).text, path  # ASVS 7.4.4


async def test_a_portal_form_that_is_too_large_or_has_another_content_type_is_rejected(sign_in: SignIn) -> None:
    browser = await sign_in()
    assert (await browser.post("/portal/1/try", data={"x": "y" * 300_000})).status_code == 413
    assert (await browser.post("/portal/1/try", content="&".join(f"a{n}=1" for n in range(300)))).status_code in (400, 415)
    assert (await browser.post("/portal/1/try", json={})).status_code == 415


async def test_the_portal_does_not_exist_on_the_domain_of_an_application(service: Service) -> None:
    now = service.clock()
    await service.database.write(administration.add_domain, 1, "https://go.brand.example", now)
    await service.directory.refresh()
    async with client_of(service) as client:
        for path in ("/portal", "/portal/", "/portal/signin"):
            response = await client.get(path, headers={"Host": "go.brand.example"})
            assert response.status_code == 404
            assert "content-security-policy" not in response.headers


async def test_the_setting_portal_off_removes_the_portal(make_service: MakeService) -> None:
    service = await make_service(portal=False)
    async with client_of(service) as client:
        assert (await client.get("/portal/signin")).status_code == 404


async def test_the_setting_portal_url_serves_the_portal_on_this_host_only(make_service: MakeService) -> None:
    service = await make_service(portal_url="https://portal.example", base_url="https://go.example")
    async with client_of(service) as client:
        found = await client.get("/portal/signin", headers={"Host": "portal.example"})
        assert found.status_code == 200
        assert found.headers["strict-transport-security"].startswith("max-age=")
        for host in ("go.example", "localhost", "127.0.0.1"):
            assert (await client.get("/portal/signin", headers={"Host": host})).status_code == 404


@on_one_service
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {},
    ],
)
async def test_a_portal_form_sent_from_another_site_is_rejected_before_it_is_parsed(
    service: Service, headers: dict[str, str]
) -> None:
    async with client_of(service, headers) as client:
        response = await client.post("/portal/signin", data={"name": "Ada", "password": "x"})
        assert response.status_code == 403


@pytest.mark.parametrize("headers", [SAME_ORIGIN, {"Origin": "http://127.0.0.1:8000"}])
async def test_a_form_sent_from_the_portal_itself_is_accepted(service: Service, headers: dict[str, str]) -> None:
    async with client_of(service, headers) as client:
        response = await client.post("/portal/signin", data={"name": "Ada", "password": "x"})
        assert response.status_code == 422


async def test_a_request_without_a_session_is_redirected_to_the_sign_in_page_with_the_address_to_return_to(
    new_browser: NewBrowser,
) -> None:
    browser = await new_browser()
    response = await browser.get("/portal/1/?period=7d")
    assert response.status_code == 303
    assert response.headers["location"] == "/portal/signin?next=%2Fportal%2F1%2F%3Fperiod%3D7d"


async def test_the_portal_page_of_an_application_without_a_role_of_the_operator_returns_404(
    service: Service, sign_in: SignIn
) -> None:
    other = await service.database.write(administration.create_application, "other", service.clock(), secret=service.secret)
    await service.directory.refresh()
    viewer = await sign_in("Vera", Role.VIEWER, 1)
    assert (await viewer.get("/portal/1/")).status_code == 200
    for path in (f"/portal/{other.application_id}/", "/portal/99/", "/portal/all/", "/portal/x/"):
        assert (await viewer.get(path)).status_code == 404
    admin = await sign_in("Ada")
    assert (await admin.get("/portal/all/")).status_code == 200
    assert (await admin.get(f"/portal/{other.application_id}/")).status_code == 200


async def test_an_invalid_query_of_a_portal_page_gets_an_error_page_with_the_error_code(sign_in: SignIn) -> None:
    browser = await sign_in()
    for query in ("period=sometimes", "tz=Mars", "basis=luck", "since=yesterday", "since=2026-02-01&until=2026-01-01"):
        response = await browser.get(f"/portal/1/?{query}")
        assert response.status_code == 400
        assert "INVALID_REQUEST" in response.text
        assert "must be" in response.text
        assert "names each field" not in response.text, "the text for callers of the API"


async def test_the_error_page_of_an_outage_says_when_to_try_again(
    service: Service, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*arguments: object) -> None:
        raise StoreUnavailable("the disk is full")

    browser = await sign_in()
    monkeypatch.setattr(type(service.database), "read", fail)
    response = await browser.get("/portal/1/")
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert "Try again in 2\N{NO-BREAK SPACE}s." in response.text
    assert "Retry-After" not in response.text


def test_portal_templates_contain_no_scripts_no_styles_and_no_attributes_that_run_code() -> None:
    for template in TEMPLATES.rglob("*.html"):
        text = template.read_text()
        assert not re.search(r"\sstyle=|<style|hx-on|\bjs:|\son[a-z]+=|javascript:", text), template
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text)), template
        assert "|safe" not in text.replace(" ", ""), template


def test_no_two_portal_pages_have_the_same_path() -> None:
    paths = [page.path for page in all_pages()]
    assert len(paths) == len(set(paths))
    assert list(MODULES) == sorted(MODULES)
    assert all(path == "/portal" or path.startswith("/portal/") for path in paths)


def test_each_entry_of_the_portal_navigation_has_an_icon_of_its_own() -> None:
    icons = [page.navigation.icon for page in all_pages() if page.navigation is not None]
    assert len(icons) == len(set(icons)), sorted(icons)


async def test_a_portal_path_with_letters_outside_of_latin_1_causes_no_error_in_an_htmx_request(new_browser: NewBrowser) -> None:
    browser = await new_browser()
    response = await browser.get("/portal/%D9%A2", headers={"HX-Request": "true"})
    assert response.status_code in (204, 404)


async def test_the_error_page_of_a_wrong_period_has_plain_words_and_links_that_lead_out_of_the_error(sign_in: SignIn) -> None:
    browser = await sign_in()
    page = await browser.get("/portal/1/clicks?period=custom&since=2026-05-01T00:00&until=2026-04-01T00:00&metric=clicks")
    assert page.status_code == 400
    assert "This period is not valid" in page.text
    assert "<strong>Until</strong> must be later than From" in page.text
    assert '<a class="button main" href="/portal/1/clicks?metric=clicks">Show the last 28 days</a>' in page.text
    assert 'href="/portal/1/campaigns"' in page.text, "the navigation does not keep the wrong period"
    assert "2026-05-01" not in page.text


async def test_the_error_page_leads_back_to_the_portal_page_from_which_the_operator_came(sign_in: SignIn) -> None:
    browser = await sign_in()
    origin = str(browser.base_url).rstrip("/")
    here = "/portal/1/links/unknown"
    for referer, back in (
        (f"{origin}/portal/1/clicks?metric=clicks&period=7d", "/portal/1/clicks?metric=clicks&amp;period=7d"),
        (f"{origin}{here}", None),
        (f"{origin}/portal/signin?next=/portal/1/", None),
        (f"{origin}/portal/../8kVnq2LmRd", None),
        (f"{origin}/docs", None),
        ("https://evil.example/portal/1/clicks", None),
        ("http://[/portal/1/clicks", None),
        ("", None),
    ):
        page = await browser.get(here, headers={"Referer": referer})
        assert page.status_code == 404
        found = re.findall(r'<a class="button" href="([^"]+)">Back to the previous page</a>', page.text)
        assert found == ([] if back is None else [back]), referer
        assert '<a class="button main" href="/portal/1/links">Links</a>' in page.text
    form = {"action": "nonsense"}
    page = await browser.post("/portal/1/keys", data=form, headers={"Referer": f"{origin}/portal/1/keys"})
    assert page.status_code == 400
    assert '<a class="button main" href="/portal/1/keys">Back to the previous page</a>' in page.text


async def test_the_error_page_of_an_unknown_application_leads_to_the_applications_of_the_operator(sign_in: SignIn) -> None:
    for path in ("/portal/999/", "/portal/999/links/unknown"):
        page = await (await sign_in()).get(path)
        assert page.status_code == 404
        assert '<a class="button main" href="/portal/admin/applications">Applications</a>' in page.text
        page = await (await sign_in("Mia", Role.MANAGER, 1)).get(path)
        assert '<a class="button main" href="/portal/1/">default</a>' in page.text
        assert "/portal/admin/applications" not in page.text


async def test_a_confirmation_page_is_shown_even_if_the_referer_is_no_valid_url(sign_in: SignIn, clock: Clock) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    clock.forward(minutes=11)
    form = {"action": "create", "name": "x", "permissions": "sms.send"}
    page = await browser.post("/portal/1/keys", data=form, headers={"Referer": "http://[/portal/1/keys"})
    assert page.status_code == 403
    assert "Confirm your password" in page.text


async def test_the_list_of_keyboard_shortcuts_is_on_each_page_unless_the_operator_has_switched_them_off(sign_in: SignIn) -> None:
    browser = await sign_in()
    assert "<kbd>g</kbd> <kbd>d</kbd></dt><dd>Deliveries</dd>" in (await browser.get("/portal/1/")).text
    assert (await browser.post("/portal/me/preferences", data={"theme": "system"})).status_code == 303
    assert '<dialog class="card" id="shortcuts"' not in (await browser.get("/portal/1/")).text


async def test_clicks_do_not_wait_while_the_first_page_of_a_process_loads_the_portal(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, may_continue = threading.Event(), threading.Event()
    loads = 0

    def load(service: Service) -> Portal:
        nonlocal loads
        loads += 1
        loading.set()
        assert may_continue.wait(PATIENCE_SECONDS)
        return load_portal(service)

    monkeypatch.setattr("shortener.portal.router.load_portal", load)
    async with client_of(service) as client:
        pages = [asyncio.create_task(client.get("/portal/signin")) for _ in range(2)]
        assert await asyncio.to_thread(loading.wait, PATIENCE_SECONDS)
        assert (await client.get("/0123456789")).status_code == 404
        assert not any(page.done() for page in pages)
        may_continue.set()
        assert [(await page).status_code for page in pages] == [200, 200]
    assert loads == 1


def test_all_templates_are_compiled_before_the_first_page_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    templates = environment()
    monkeypatch.setattr(templates, "compile", lambda *arguments: pytest.fail("a template was compiled later"))
    names = [file.name for file in TEMPLATES.glob("*.html")]
    assert names
    for name in names:
        templates.get_template(name)
