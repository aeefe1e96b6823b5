"""Tests of links and blocked hosts over HTTP: they can be shown, changed, disabled and listed, and each call requires a
permission."""

from typing import Any

import httpx
import pytest
from sqlalchemy import insert, update

from shortener.accounts.administration import add_domain, create_application, update_domain
from shortener.accounts.credentials import create_key
from shortener.accounts.own_hosts import OwnHosts
from shortener.accounts.settings import PERMISSIONS
from shortener.accounts.version import mark_accounts_changed
from shortener.container import Service
from shortener.portal.audit import AuditFilter, list_audit
from shortener.redis.link_cache import NoLinkCache
from shortener.retention.erasure import erase_message
from shortener.storage import schema
from tests.clicks.helpers import PHONE_HEADERS as PHONE
from tests.clicks.helpers import create_link as link
from tests.conftest import Clock, client_of
from tests.factory import AUDIT, keep_sends
from tests.one_service import on_one_service

NOON = "2026-11-20T12:00:00Z"


async def shown(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    answer = await client.get(f"/api/v1/links{path}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["link"])


async def test_a_link_is_shown_with_its_destination(client: httpx.AsyncClient) -> None:
    path = await link(client, message_id="m-1")
    assert await shown(client, path) == {
        "code": path[1:],
        "short_url": f"http://127.0.0.1:8000{path}",
        "url": "https://x.example/a?b=1&c=%20#f",
        "label": None,
        "message_id": "m-1",
        "campaign": "",
        "created_at": NOON,
        "state": "live",
        "off_by": None,
        "enabled": True,
        "disabled_at": None,
        "expires_at": "2027-02-18T12:00:00Z",
        "fallback_url": None,
        "clicks": 0,
        "clicked_at": None,
        "history": [],
    }


async def test_a_link_can_be_disabled_at_once_and_enabled_again(client: httpx.AsyncClient, clock: Clock) -> None:
    path = await link(client)
    for _ in range(2):
        told = (await client.patch(f"/api/v1/links{path}", json={"enabled": False})).json()["link"]
        assert (told["state"], told["off_by"], told["enabled"], told["disabled_at"]) == ("off", "link", False, NOON)
        answer = await client.get(path, headers=PHONE)
        assert (answer.status_code, "switched off" in answer.text) == (410, True)
        clock.forward(seconds=1)
    told = (await client.patch(f"/api/v1/links{path}", json={"enabled": True})).json()["link"]
    assert (told["state"], told["off_by"], told["disabled_at"]) == ("live", None, None)
    assert (await client.get(path, headers=PHONE)).status_code == 302


async def test_the_api_returns_a_reason_if_a_link_does_not_redirect(
    client: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    await service.database.write(add_domain, 1, "https://go.brand.example", clock())
    await service.directory.refresh()
    path = await link(client, expires_in=60)
    await client.post("/api/v1/blocked-hosts", json={"host": "*.example"})
    assert (await shown(client, path))["off_by"] == "host"
    await service.database.write(update_domain, "go.brand.example", {"disabled": True}, clock())
    await service.directory.refresh()
    assert (await shown(client, path))["off_by"] == "domain"
    await client.delete("/api/v1/blocked-hosts/*.example")
    await service.database.write(update_domain, "go.brand.example", {"disabled": False}, clock())
    await service.directory.refresh()
    clock.forward(minutes=2)
    told = await shown(client, path)
    assert (told["state"], told["off_by"]) == ("expired", None)


async def test_a_link_of_an_erased_message_cannot_be_enabled(client: httpx.AsyncClient, service: Service, clock: Clock) -> None:
    path = await link(client, message_id="m-1")
    await service.database.write(erase_message, 1, "m-1", clock(), AUDIT, keep_sends)
    answer = await client.patch(f"/api/v1/links{path}", json={"enabled": True})
    assert (answer.status_code, answer.json()["error_code"]) == (409, "CONFLICT")
    assert (await client.get(path, headers=PHONE)).status_code == 410


async def test_disabling_a_link_removes_the_link_from_the_link_cache(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[str] = []

    class Away(NoLinkCache):
        async def invalidate(self, codes: Any) -> bool:
            forgotten.extend(codes)
            return False

    path = await link(client)
    monkeypatch.setattr(service, "cache", Away())
    assert (await client.patch(f"/api/v1/links{path}", json={"enabled": False})).status_code == 200
    assert set(forgotten) == {path[1:]}
    forgotten.clear()
    assert (await client.patch("/api/v1/links/nosuchcode", json={"enabled": False})).status_code == 404
    assert forgotten == []


async def test_destination_hosts_are_blocked_listed_and_unblocked(client: httpx.AsyncClient) -> None:
    path = await link(client)
    assert (await client.post("/api/v1/blocked-hosts", json={"host": "X.Example"})).json() == {"status": True, "host": "x.example"}
    told = (await client.get("/api/v1/blocked-hosts")).json()
    assert told == {"status": True, "blocked_hosts": [{"host": "x.example", "created_at": NOON}]}
    assert (await client.get(path, headers=PHONE)).status_code == 410
    assert (await client.delete("/api/v1/blocked-hosts/x.example")).json() == {"status": True, "host": "x.example"}
    assert (await client.delete("/api/v1/blocked-hosts/x.example")).status_code == 404
    assert (await client.get(path, headers=PHONE)).status_code == 302


async def test_an_address_that_an_earlier_version_stored_in_another_spelling_is_blocked_and_unblocked(
    service: Service, client: httpx.AsyncClient, clock: Clock
) -> None:
    """In links and blocked hosts, earlier versions stored an IPv6 address as the caller wrote it, and not in its shortest form."""
    old, canonical = "2001:db8:0:0::1", "2001:db8::1"

    async def write(statement: Any) -> None:
        await service.database.write(lambda connection: connection.execute(statement))
        await service.database.write(mark_accounts_changed)
        await service.directory.refresh()

    path = await link(client)
    await write(update(schema.links).values(url=f"http://[{old}]/x"))
    assert (await client.post("/api/v1/blocked-hosts", json={"host": f"[{old}]"})).json()["host"] == canonical
    assert (await client.get(path, headers=PHONE)).status_code == 410
    assert (await client.delete(f"/api/v1/blocked-hosts/{old}")).status_code == 200
    assert (await client.get(path, headers=PHONE)).status_code == 302
    await write(insert(schema.blocked_hosts).values(application_id=1, host=old, created_at=clock()))
    assert (await client.get(path, headers=PHONE)).status_code == 410
    for spelling in (old, canonical):
        body = f'see #track("http://[{spelling}]/")'
        refused = await client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": body})
        assert "leads to a blocked host" in refused.text
    assert (await client.delete(f"/api/v1/blocked-hosts/{canonical}")).json()["host"] == canonical
    assert (await client.get("/api/v1/blocked-hosts")).json()["blocked_hosts"] == []
    assert (await client.get(path, headers=PHONE)).status_code == 302


@on_one_service
@pytest.mark.parametrize("blocked", ["192.0.2.1", "::ffff:192.0.2.1", "[0:0:0:0:0:ffff:c000:0201]", "64:ff9b::192.0.2.1"])
async def test_a_blocked_ipv4_address_is_blocked_in_every_spelling_as_an_ipv6_address(
    service: Service, client: httpx.AsyncClient, blocked: str
) -> None:
    spellings = ["192.0.2.1", "[::ffff:192.0.2.1]", "[::FFFF:c000:0201]", "[64:ff9b::c000:201]", "[0064:ff9b::192.0.2.1]"]
    paths = [await link(client, body=f'see #track("http://{host}:8080/x?y")') for host in spellings]
    other = await link(client, body='see #track("http://[::ffff:192.0.2.2]/")')
    stored = (await client.post("/api/v1/blocked-hosts", json={"host": blocked})).json()["host"]
    for host, path in zip(spellings, paths, strict=True):
        assert (await client.get(path, headers=PHONE)).status_code == 410, host
        refused = await client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": f'see #track("http://{host}/")'})
        assert "leads to a blocked host" in refused.text, host
    assert (await client.get(other, headers=PHONE)).status_code == 302
    assert (await client.delete(f"/api/v1/blocked-hosts/{stored}")).status_code == 200
    assert (await client.get(paths[1], headers=PHONE)).status_code == 302


@on_one_service
@pytest.mark.parametrize("body", [{}, {"host": ""}, {"host": "https://x.example/"}, {"host": "x" * 300}, {"host": "a\0b"}])
async def test_an_invalid_host_cannot_be_blocked(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await client.post("/api/v1/blocked-hosts", json=body)
    assert (answer.status_code, answer.json()["details"][0]["field"]) == (400, "host")


async def test_links_and_blocked_hosts_of_another_application_return_404(
    client: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    path = await link(client)
    await client.post("/api/v1/blocked-hosts", json={"host": "other.example"})
    made = await service.database.write(create_application, "other", clock())
    await service.directory.refresh()
    async with client_of(service, {"X-API-Key": made.api_key}) as other:
        assert (await other.get(f"/api/v1/links{path}")).status_code == 404
        assert (await other.patch(f"/api/v1/links{path}", json={"enabled": False})).status_code == 404
        assert (await other.get("/api/v1/blocked-hosts")).json()["blocked_hosts"] == []
        assert (await other.delete("/api/v1/blocked-hosts/other.example")).status_code == 404
    assert (await client.get(path, headers=PHONE)).status_code == 302


@on_one_service
@pytest.mark.parametrize(
    ("method", "path", "body", "permission"),
    [
        ("GET", "/api/v1/links/x", None, "sms.read"),
        ("PATCH", "/api/v1/links/x", {"enabled": False}, "links.write"),
        ("POST", "/api/v1/links/update", {"label": "x", "enabled": False}, "links.write"),
        ("POST", "/api/v1/links/updates/x/stop", None, "links.write"),
        ("GET", "/api/v1/links", None, "sms.read"),
        ("GET", "/api/v1/domains", None, "admin"),
        ("GET", "/api/v1/blocked-hosts", None, "sms.read"),
        ("POST", "/api/v1/blocked-hosts", {"host": "x.example"}, "links.write"),
        ("DELETE", "/api/v1/blocked-hosts/x.example", None, "links.write"),
        ("POST", "/api/v1/erasures", {"phone": "+14085550100"}, "privacy.erase"),
        ("GET", "/api/v1/trackers", None, "trackers.read"),
        ("POST", "/api/v1/trackers", {}, "trackers.write"),
        ("GET", "/api/v1/application", None, "trackers.read"),
        ("PATCH", "/api/v1/application", {}, "admin"),
    ],
)
async def test_each_endpoint_of_links_and_hosts_requires_its_permission(
    service: Service, clock: Clock, method: str, path: str, body: Any, permission: str
) -> None:
    others = [name for name in PERMISSIONS if name != permission]
    right = await service.database.write(create_key, 1, "right", [permission], clock())
    wrong = await service.database.write(create_key, 1, "wrong", others, clock())
    await service.directory.refresh()
    for key, refused in ((right, False), (wrong, True)):
        async with client_of(service, {"X-API-Key": key}) as client:
            assert ((await client.request(method, path, json=body)).status_code == 403) is refused


async def test_the_destination_expiry_and_fallback_of_a_link_can_be_changed(client: httpx.AsyncClient, clock: Clock) -> None:
    path = await link(client, message_id="m-1", expires_in=60)
    url = "https://new.example/{code}?m={message_id}&c={click_id}"
    told = await client.patch(f"/api/v1/links{path}", json={"url": url})
    assert (told.status_code, told.json()["link"]["url"]) == (200, url)
    location = (await client.get(path, headers=PHONE)).headers["location"]
    assert location.startswith(f"https://new.example{path}?m=m-1&c=")
    assert len(location.rpartition("=")[2]) == 19
    clock.forward(minutes=2)
    assert (await client.get(path, headers=PHONE)).status_code == 410
    await client.patch(f"/api/v1/links{path}", json={"fallback_url": "https://x.example/over"})
    assert (await client.get(path, headers=PHONE)).headers["location"] == "https://x.example/over"
    await client.patch(f"/api/v1/links{path}", json={"expires_at": "2026-12-24T00:00:00Z", "fallback_url": None})
    assert (await client.get(path, headers=PHONE)).headers["location"].startswith("https://new.example/")
    history = (await shown(client, path))["history"]
    assert [set(entry["changes"]) for entry in history] == [{"expires_at", "fallback_url"}, {"fallback_url"}, {"url"}]
    assert history[2] == {"at": NOON, "by": "key 1", "changes": {"url": {"from": "https://x.example/a?b=1&c=%20#f", "to": url}}}
    assert history[0]["changes"]["fallback_url"] == {"from": "https://x.example/over", "to": None}


async def audit_rows(service: Service) -> list[Any]:
    """Return (operator, action, object, application_id, before, after) of the rows of the audit log about links, oldest first."""
    page = await service.database.read(list_audit, AuditFilter(), 100)
    rows = [row for row in reversed(page.rows) if row.action.startswith("link")]
    return [(row.operator, row.action, row.object, row.application_id, row.before, row.after) for row in rows]


async def test_each_change_of_a_link_adds_a_row_to_the_audit_log(client: httpx.AsyncClient, service: Service) -> None:
    code = (await link(client))[1:]
    for body in ({"url": "https://new.example/a?name=Jane"}, {"enabled": False}, {"enabled": False}, {"enabled": True}):
        assert (await client.patch(f"/api/v1/links/{code}", json=body)).status_code == 200
    assert (await client.patch(f"/api/v1/links/{code}", json={"url": "x"})).status_code == 400
    assert await audit_rows(service) == [
        ("key 1", "link_changed", code, 1, {"url": "x.example"}, {"url": "new.example"}),
        ("key 1", "link_changed", code, 1, {"enabled": True}, {"enabled": False}),
        ("key 1", "link_changed", code, 1, {"enabled": False}, {"enabled": True}),
    ]


async def test_an_update_of_many_links_adds_one_row_to_the_audit_log_and_stopping_the_update_adds_another_row(
    client: httpx.AsyncClient, service: Service
) -> None:
    for _ in range(3):
        await link(client, campaign="one +14085550100")
    body = {"campaign": "one +14085550100", "expires_at": "2026-12-24T00:00:00Z"}
    update_id = (await client.post("/api/v1/links/update", json=body)).json()["update"]["update_id"]
    assert (await client.post(f"/api/v1/links/updates/{update_id}/stop")).json()["update"]["state"] == "stopped"
    await client.post(f"/api/v1/links/updates/{update_id}/stop")
    after = {"selected_campaign": "one +14…00", "expires_at": "2026-12-24T00:00:00Z"}
    assert await audit_rows(service) == [
        ("key 1", "links_changed", update_id, 1, None, after),
        ("key 1", "links_update_stopped", update_id, 1, None, None),
    ]


@pytest.mark.parametrize(
    ("destination", "audited"),
    [
        ("https://shop.example/o?email=anna@example.com", "shop.example"),
        ("tel:+14085550100", "tel"),
        ("anna@example.com", ""),
        ("https://shop.example:anna/", ""),
    ],
)
async def test_the_audit_row_of_an_update_of_many_links_contains_only_the_hosts_of_its_urls(
    client: httpx.AsyncClient, service: Service, destination: str, audited: str
) -> None:
    body = {
        "destination": destination,
        "url": "https://new.example/?email=anna@example.com",
        "fallback_url": "https://over.example/?email=anna@example.com",
    }
    assert (await client.post("/api/v1/links/update", json=body)).status_code == 202
    ((*_, after),) = await audit_rows(service)
    assert after == {"selected_url": audited, "url": "new.example", "fallback_url": "over.example"}


async def test_a_request_that_changes_nothing_adds_no_entry_to_the_history_of_a_link(client: httpx.AsyncClient) -> None:
    path = await link(client)
    now = await shown(client, path)
    same = {"url": now["url"], "expires_at": now["expires_at"], "enabled": True, "fallback_url": None}
    assert (await client.patch(f"/api/v1/links{path}", json=same)).status_code == 200
    assert (await shown(client, path))["history"] == []


@on_one_service
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": None}, "url"),
        ({"url": "javascript:alert(1)"}, "url"),
        ({"url": "http://127.0.0.1:8000/abc"}, "url"),
        ({"fallback_url": "http://127.0.0.1:8000/abc"}, "fallback_url"),
        ({"fallback_url": "http://localhost:8000/abc"}, "fallback_url"),
        ({"url": "http://[::1]:8000/abc"}, "url"),
        ({"url": "https://blocked.example/"}, "url"),
        ({"expires_at": None}, "expires_at"),
        ({"expires_at": "2066-01-01"}, "expires_at"),
        ({"expires_at": "0001-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "1999-12-31T23:59:59Z"}, "expires_at"),
        ({"expires_at": "soon"}, "expires_at"),
        ({"enabled": None}, "enabled"),
        ({"location": "x"}, "location"),
    ],
)
async def test_an_invalid_change_of_a_link_is_rejected(client: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    await client.post("/api/v1/blocked-hosts", json={"host": "blocked.example"})
    path = await link(client)
    response = await client.patch(f"/api/v1/links{path}", json=body)
    assert (response.status_code, response.json()["details"][0]["field"]) == (400, field)
    assert (await shown(client, path))["history"] == []


async def test_a_repeated_rewrite_request_gets_the_first_response_even_if_its_link_was_changed(client: httpx.AsyncClient) -> None:
    request = {"to": "+14085550100", "message_id": "m-1", "body": 'see #track("https://x.example/a")'}
    first = (await client.post("/api/v1/rewrite", json=request)).json()
    code = first["messages"][0]["links"][0]["code"]
    await client.patch(f"/api/v1/links/{code}", json={"url": "https://new.example/", "expires_at": "2026-12-24"})
    assert (await client.post("/api/v1/rewrite", json=request)).json() == first


async def test_erasure_removes_the_earlier_destinations_of_a_link(
    client: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    path = await link(client, url="https://x.example/secret", message_id="m-1")
    await client.patch(f"/api/v1/links{path}", json={"url": "https://new.example/"})
    await service.database.write(erase_message, 1, "m-1", clock(), AUDIT, keep_sends)
    response = await client.get(f"/api/v1/links{path}")
    assert "secret" not in response.text
    assert [entry["changes"] for entry in response.json()["link"]["history"]] == [{}]


async def listed(client: httpx.AsyncClient, **query: Any) -> list[str]:
    """Return the link codes of all pages of the list of links."""
    codes: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        response = await client.get("/api/v1/links", params=query | cursor)
        assert response.status_code == 200, response.text
        codes += [one["code"] for one in response.json()["links"]]
        if response.json()["next_cursor"] is None:
            return codes
        cursor = {"cursor": response.json()["next_cursor"]}


async def test_links_are_listed_in_pages_newest_message_first_with_filters(client: httpx.AsyncClient, clock: Clock) -> None:
    body = '#trackurl("https://x.example/menu","menu") #track("https://x.example/shop")'
    codes: list[str] = []
    for number in range(3):
        response = await client.post(
            "/api/v1/rewrite", json={"to": "+14085550100", "body": body, "campaign": "one" if number else "two", "expires_in": 60}
        )
        codes = [one["code"] for one in response.json()["messages"][0]["links"]] + codes
        clock.forward(seconds=10)
    for limit in (1, 2, 5, 1000):
        assert await listed(client, limit=limit) == codes
        assert await listed(client, limit=limit, label="menu") == codes[::2]
    assert await listed(client, campaign="two") == codes[4:]
    assert await listed(client, campaign="nosuch") == []
    assert await listed(client, url="https://X.example/shop") == codes[1::2]
    assert await listed(client, domain="127.0.0.1:8000", since="2026-11-20T12:00:10Z") == codes[:4]
    assert await listed(client, domain="go.brand.example") == []
    assert await listed(client, until="2026-11-20T12:00:10Z") == codes[4:]
    await client.patch(f"/api/v1/links/{codes[0]}", json={"enabled": False})
    assert await listed(client, enabled="false") == codes[:1]
    assert await listed(client, enabled="true") == codes[1:]
    clock.forward(seconds=32)  # the oldest message is 62 s old
    assert await listed(client, expired="true") == codes[4:]
    for cursor in ("x", "x-1", "0AbCdEfGh12x9Kq3vTz-1"):
        assert (await client.get("/api/v1/links", params={"cursor": cursor})).json()["error_code"] == "INVALID_CURSOR"


async def test_lists_of_links_message_statuses_and_csv_contain_the_clicks_of_each_link(
    client: httpx.AsyncClient, clock: Clock
) -> None:
    body = '#track("https://x.example/one") #trackurl("https://x.example/two","=two")'
    response = await client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": body, "message_id": "m-1"})
    one, two = (link["code"] for link in response.json()["messages"][0]["links"])
    for code in (two, one, two, two):
        await client.get(f"/{code}", headers=PHONE)
        clock.forward(seconds=1)
    await client.head(f"/{one}", headers=PHONE)
    rows = (await client.get("/api/v1/links")).json()["links"]
    assert [(row["code"], row["clicks"], row["clicked_at"]) for row in rows] == [
        (one, 1, "2026-11-20T12:00:01Z"),
        (two, 3, NOON),
    ]
    assert [row["clicks"] for row in (await client.get("/api/v1/sms/status/m-1")).json()["links"]] == [1, 3]
    csv = await client.get("/api/v1/links.csv")
    assert csv.headers["content-type"].startswith("text/csv")
    lines = csv.text.splitlines()
    assert lines[0].startswith("code,short_url,url,label")
    assert [line.split(",")[0] for line in lines[1:]] == [one, two]
    assert ",'=two," in lines[2]
    assert lines[2].split(",")[-2] == "3"
    assert (await client.get("/api/v1/links.csv", params={"bom": "true"})).content == b"\xef\xbb\xbf" + csv.content
    header, *lines = csv.text.splitlines()
    for line in lines:
        code = dict(zip(header.split(","), line.split(","), strict=False))["code"]
        assert (await client.get(f"/api/v1/links/{code}.csv")).text.splitlines() == [header, line]
    assert (await client.get("/api/v1/links/unknown.csv")).status_code == 404


async def test_a_changed_destination_may_have_a_scheme_of_the_application(client: httpx.AsyncClient, clock: Clock) -> None:
    path = await link(client, expires_in=60)
    refused = await client.patch(f"/api/v1/links{path}", json={"url": "myapp://open/5", "fallback_url": "myapp://over"})
    assert (refused.status_code, [one["field"] for one in refused.json()["details"]]) == (400, ["url", "fallback_url"])
    await client.patch("/api/v1/application", json={"extra_schemes": ["myapp"], "click_id_param": "cid"})
    path = await link(client, expires_in=60)
    changed = await client.patch(f"/api/v1/links{path}", json={"url": "myapp://open/{code}", "fallback_url": "myapp://over"})
    assert (changed.status_code, changed.json()["warnings"]) == (200, [])
    assert (await client.get(path, headers=PHONE)).headers["location"] == f"myapp://open{path}"
    clock.forward(minutes=2)
    assert (await client.get(path, headers=PHONE)).headers["location"] == "myapp://over"
    for scheme in ("javascript:alert(1)", "data:text/html,x", "other://x"):
        assert (await client.patch(f"/api/v1/links{path}", json={"url": scheme})).status_code == 400


async def test_many_links_are_changed_to_a_destination_with_an_extra_scheme(client: httpx.AsyncClient, service: Service) -> None:
    await client.patch("/api/v1/application", json={"extra_schemes": ["myapp"]})
    path = await link(client, campaign="spring")
    created = await client.post("/api/v1/links/update", json={"campaign": "spring", "url": "myapp://open/{message-id}"})
    assert created.status_code == 202, created.text
    assert [warning.partition(" ")[0] for warning in created.json()["warnings"]] == ["url"]
    while await service.link_updates.step():
        pass
    assert (await client.get(path, headers=PHONE)).headers["location"].startswith("myapp://open/")


async def test_macros_in_a_new_fallback_url_are_replaced_and_unknown_macros_cause_a_warning_or_an_error(
    client: httpx.AsyncClient, clock: Clock
) -> None:
    path = await link(client, expires_in=60, message_id="m-1", campaign="spring sale")
    fallback = "https://x.example/over?m={message_id}&c={campaign}&code={code}&click={click_id}&x={{phone}}"
    changed = await client.patch(f"/api/v1/links{path}", json={"fallback_url": fallback})
    assert changed.status_code == 200
    assert [warning for warning in changed.json()["warnings"] if "{phone_sha256}" in warning]
    again = await client.patch(f"/api/v1/links{path}", json={"fallback_url": fallback})
    assert len(again.json()["link"]["history"]) == 1, "the same change is not a second change"
    clock.forward(minutes=2)
    location = (await client.get(path, headers=PHONE)).headers["location"]
    assert location.startswith(f"https://x.example/over?m=m-1&c=spring%20sale&code={path[1:]}&click=")
    assert "click_id" not in location
    await client.patch("/api/v1/application", json={"strict_destinations": True})
    refused = await client.patch(f"/api/v1/links{path}", json={"url": "https://x.example/{{message_id}}"})
    assert (refused.status_code, refused.json()["details"][0]["field"]) == (400, "url")


async def test_a_link_whose_new_expiry_is_a_date_is_valid_for_that_whole_day(client: httpx.AsyncClient) -> None:
    path = await link(client)
    changed = await client.patch(f"/api/v1/links{path}", json={"expires_at": "2026-12-24"})
    assert changed.json()["link"]["expires_at"] == "2026-12-25T00:00:00Z"


async def test_an_expired_link_does_not_redirect_to_a_host_that_has_become_a_domain_of_an_application(
    client: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    path = await link(client, expires_in=60, fallback_url="https://later.example/{code}")
    await client.patch("/api/v1/application", json={"fallback_url": "https://later.example/over"})
    await service.database.write(add_domain, 1, "https://go.brand.example", clock())
    await service.database.write(
        update_domain,
        "go.brand.example",
        {"fallback_url": "https://later.example/{code}?c={click_id}"},
        clock(),
        own_hosts=OwnHosts(frozenset({"127.0.0.1:8000"})),
    )
    await service.directory.refresh()
    clock.forward(minutes=2)
    unknown = {**PHONE, "Host": "go.brand.example"}
    assert (await client.get(path, headers=PHONE)).headers["location"] == f"https://later.example{path}"
    assert (await client.get("/AAAAAAAAAA", headers=unknown)).headers["location"] == "https://later.example/AAAAAAAAAA?c="
    made = await service.database.write(create_application, "other", clock(), domain="https://later.example")
    assert made
    await service.directory.refresh()
    assert (await client.get(path, headers=PHONE)).status_code == 410
    assert (await client.get("/AAAAAAAAAA", headers=unknown)).status_code == 404
