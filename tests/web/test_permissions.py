"""Tests of all endpoints: which credential and permission each requires, and that none shows objects of other applications."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from shortener.accounts.administration import create_application
from shortener.accounts.credentials import Credentials, create_key
from shortener.accounts.settings import PERMISSIONS
from shortener.container import Service
from shortener.ids import MAX_COUNTED_ID
from shortener.web.callers import Caller
from shortener.web.endpoints import ENDPOINTS
from tests.conftest import NOON, client_of
from tests.one_service import on_one_service
from tests.receiver import Receiver
from tests.web.calls import TO, click, rewrite

# SQLite only, because permissions do not depend on the database
on_sqlite = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)

#: The permission of each endpoint. An endpoint that is missing here fails the test.
PERMISSION_OF: Mapping[str, str] = {
    endpoint: permission
    for permission, endpoints in {
        "sms.send": """
            POST /api/v1/rewrite
            POST /api/v1/rewrite/preview
            POST /api/v1/sms/send
            POST /api/v1/sms/status
            POST /api/v1/sms/inbound
            POST /api/v1/opt-outs
            POST /api/v1/sends/{message_id}/resend
            POST /api/v1/sends/{message_id}/discard
            POST /sms/messages/
            POST /sms/1/text/advanced
            POST /sms/2/text/advanced
            POST /sms/1/text/single
            POST /sms/1/text/multi
            POST /sms/2/text/single
            POST /sms/2/text/multi
            POST /sms/3/messages
            POST /sms/1/preview
            POST /scg-external-api/api/v1/messaging/message_requests
            POST /ct/1/log/end/{messageId:path}
        """,
        "sms.read": """
            GET /api/v1/sms/status/{message_id:path}
            GET /api/v1/sms/messages
            GET /api/v1/sms/messages/unified
            GET /api/v1/sms/messages/unified/export
            GET /api/v1/sms/stats
            GET /api/v1/sms/stats/daily
            GET /api/v1/sms/stats/by-action
            GET /api/v1/sms/stats/by-country
            GET /api/v1/sms/stats/by-campaign
            GET /api/v1/sms/stats/by-destination
            GET /api/v1/sms/stats/by-label
            GET /api/v1/sms/stats/by-hour
            GET /api/v1/clicks
            GET /api/v1/clicks.csv
            GET /api/v1/events
            GET /api/v1/events.csv
            GET /api/v1/events/{event_id}.csv
            GET /api/v1/events/{event_id}
            GET /api/v1/conversions
            GET /api/v1/conversions.csv
            GET /api/v1/conversions/refused
            GET /api/v1/conversions/refused.csv
            GET /api/v1/links
            GET /api/v1/links.csv
            GET /api/v1/links/{code}.csv
            GET /api/v1/links/{code}
            GET /api/v1/links/updates
            GET /api/v1/links/updates/{update_id}
            GET /api/v1/blocked-hosts
            GET /api/v1/balance
            GET /api/v1/prices
            GET /api/v1/sends
            GET /sms/messages/
            GET /sms/messages/{msgid:path}/
            GET /sms/messages/{msgid:path}
            GET /sms/1/reports
            GET /sms/2/reports
            GET /sms/3/reports
            GET /sms/1/logs
            GET /sms/2/logs
            GET /sms/3/logs
            GET /ct/1/processes/{processKey}/conversionrate
        """,
        "trackers.read": """
            GET /api/v1/trackers
            GET /api/v1/trackers/{tracker_id:int}
            GET /api/v1/trackers/{tracker_id:int}/deliveries
            GET /api/v1/deliveries
            GET /api/v1/deliveries/{delivery_id}
            GET /api/v1/application
        """,
        "trackers.write": """
            POST /api/v1/trackers
            PATCH /api/v1/trackers/{tracker_id:int}
            DELETE /api/v1/trackers/{tracker_id:int}
            POST /api/v1/trackers/{tracker_id:int}/test
            POST /api/v1/trackers/{tracker_id:int}/replay
            POST /api/v1/deliveries/replay
            POST /api/v1/deliveries/{delivery_id}/replay
            POST /api/v1/application/callback-secret
        """,
        "links.write": """
            POST /api/v1/links/update
            POST /api/v1/links/updates/{update_id}/stop
            PATCH /api/v1/links/{code}
            POST /api/v1/blocked-hosts
            DELETE /api/v1/blocked-hosts/{host}
        """,
        "privacy.erase": "POST /api/v1/erasures",
        "privacy.reveal": "GET /api/v1/opt-outs",
        "admin": """
            PATCH /api/v1/application
            GET /api/v1/keys
            POST /api/v1/keys
            GET /api/v1/keys/{api_key_id:int}
            PATCH /api/v1/keys/{api_key_id:int}
            DELETE /api/v1/keys/{api_key_id:int}
            GET /api/v1/tokens
            POST /api/v1/tokens
            POST /api/v1/tokens/rotate
            GET /api/v1/postback-keys
            POST /api/v1/postback-keys
            POST /api/v1/postback-keys/{key_id:int}/rotate
            DELETE /api/v1/postback-keys/{key_id:int}
            GET /api/v1/domains
            POST /api/v1/domains
            GET /api/v1/domains/{domain}
            PATCH /api/v1/domains/{domain}
            DELETE /api/v1/domains/{domain}
            GET /api/v1/gateways
            POST /api/v1/gateways
            GET /api/v1/gateways/{gateway_id:int}
            PATCH /api/v1/gateways/{gateway_id:int}
            DELETE /api/v1/gateways/{gateway_id:int}
            POST /api/v1/gateways/{gateway_id:int}/test
            DELETE /api/v1/opt-outs/{number}
        """,
    }.items()
    for endpoint in (line.strip() for line in endpoints.strip().splitlines())
}
#: The endpoints that require no API key.
OTHER_CALLERS: Mapping[str, Caller] = {
    **{f"{method} {path}": Caller.TRACKER for method in ("GET", "POST") for path in
       ("/api/v1/track", "/api/v1/callback/action", "/api/v1/action/track", "/action")},
    **{f"{method} /api/v1/postback/{{postback_key}}": Caller.POSTBACK_KEY for method in ("GET", "POST")},
    **{f"{method} /api/v1/gateways/reports/{{report_key}}{more}": Caller.ANYONE for method in ("GET", "POST") for more in
       ("", "/{reference}")},  # the key in the path is the credential
    **dict.fromkeys(
        ("GET /healthz", "GET /readyz", "GET /metrics", "GET /internal/domain-check", "GET /openapi.json", "GET /docs"),
        Caller.ANYONE,
    ),
}  # fmt: skip


def path_of(template: str) -> str:
    return re.sub(r"\{\w+:int\}", "999", re.sub(r"\{\w+(:path)?\}", "unknown", template))


async def call(client: httpx.AsyncClient, endpoint: str) -> int:
    """Send a request that no endpoint can execute, because its ids or its body are invalid. Return the status."""
    method, template = endpoint.split(" ")
    content = b"{not json" if method in ("POST", "PATCH") else None
    return (await client.request(method, path_of(template), content=content)).status_code


def test_the_permission_table_contains_every_endpoint_with_the_permission_that_the_endpoint_declares() -> None:
    api_keys = {f"{one.method} {one.path}": one.permission for one in ENDPOINTS if one.caller is Caller.API_KEY}
    assert api_keys == PERMISSION_OF
    others = {f"{one.method} {one.path}": one.caller for one in ENDPOINTS if one.caller is not Caller.API_KEY}
    assert others == OTHER_CALLERS


@on_sqlite
async def test_each_endpoint_requires_an_api_key_with_its_permission(service: Service, credentials: Credentials) -> None:
    async def key(permissions: list[str]) -> dict[str, str]:
        created = await service.database.write(create_key, credentials.application_id, "", permissions, NOON)
        return {"X-API-Key": created}

    only: dict[str, dict[str, str]] = {one: await key([one]) for one in PERMISSIONS}
    others: dict[str, dict[str, str]] = {one: await key([other for other in PERMISSIONS if other != one]) for one in PERMISSIONS}
    await service.directory.refresh()
    async with client_of(service) as client:
        found = {}
        for endpoint, permission in PERMISSION_OF.items():
            client.headers = httpx.Headers()
            statuses = [await call(client, endpoint)]
            for headers in ({"X-Api-Token": credentials.tracker_token}, others[permission], only[permission]):
                client.headers = httpx.Headers(headers)
                statuses.append(await call(client, endpoint))
            if statuses[:3] != [401, 401, 403] or statuses[3] in (401, 403, 405, 500, 503):
                found[endpoint] = statuses
    assert found == {}, (
        "each list: the statuses without a credential, with a tracker token, with all other permissions, with only this permission"
    )


@on_sqlite
async def test_an_api_key_with_all_permissions_cannot_report_conversions(service: Service, client: httpx.AsyncClient) -> None:
    statuses = {endpoint: await call(client, endpoint) for endpoint, caller in OTHER_CALLERS.items() if caller is not Caller.ANYONE}
    assert set(statuses.values()) == {401}


#: Valid bodies of the endpoints that change an object.
BODIES: Mapping[str, dict[str, Any]] = {
    "PATCH /api/v1/trackers/{tracker_id:int}": {"name": "stolen"},
    "PATCH /api/v1/links/{code}": {"enabled": False},
    "PATCH /api/v1/keys/{api_key_id:int}": {"name": "stolen"},
    "PATCH /api/v1/domains/{domain}": {"default": True},
    "PATCH /api/v1/gateways/{gateway_id:int}": {"enabled": False},
    "POST /api/v1/gateways/{gateway_id:int}/test": {"to": TO},
}


@on_sqlite
async def test_no_endpoint_shows_or_changes_an_object_of_another_application(
    service: Service, client: httpx.AsyncClient, receiver: Receiver
) -> None:
    tracker = (await client.post("/api/v1/trackers", json={"name": "t", "url": receiver.url(), "events": ["state"]})).json()
    gateway = (
        await client.post("/api/v1/gateways", json={"name": "g", "preset": "plain", "options": {"url": receiver.url()}})
    ).json()
    sent = await rewrite(client, "m-1", tracking={"track": "SMS", "type": "pin"}, gateway="g")
    await click(client, sent)
    await service.fanout.flush()
    changes = {"destination": "https://shop.example/a?b=1", "enabled": True}
    values = {
        "message_id": "m-1",
        "messageId": "m-1",
        "msgid": "m-1",
        "code": sent["links"][0]["code"],
        "tracker_id": tracker["tracker_id"],
        "gateway_id": gateway["gateway_id"],
        "delivery_id": (await client.get("/api/v1/deliveries")).json()["deliveries"][0]["delivery_id"],
        "event_id": (await client.get("/api/v1/events")).json()["events"][0]["event_id"],
        "update_id": (await client.post("/api/v1/links/update", json={"campaign": "c", **changes})).json()["update"]["update_id"],
        "processKey": (await client.post("/ct/1/log/end/m-1")).json()["processKey"],
        "api_key_id": (await client.post("/api/v1/keys", json={"name": "k"})).json()["key_id"],
        "key_id": (await client.post("/api/v1/postback-keys", json={"name": "p"})).json()["id"],
        "domain": (await client.post("/api/v1/domains", json={"domain": "go.brand.example"})).json()["domain"]["host"],
        "host": (await client.post("/api/v1/blocked-hosts", json={"host": "bad.example"})).json()["host"],
        "number": (await client.post("/api/v1/opt-outs", json={"phone": "+447911123456"})).json()["phone"].replace("+", "%2B"),
    }
    other = await service.database.write(create_application, "other", NOON)
    await service.directory.refresh()
    found = {}
    async with client_of(service, {"X-API-Key": other.api_key}) as stranger:
        for endpoint in (one for one in PERMISSION_OF if "{" in one):
            method, template = endpoint.split(" ")
            path = re.sub(r"\{(\w+)(:\w+)?\}", lambda name: str(values[name[1]]), template)
            stolen = (await stranger.request(method, path, json=BODIES.get(endpoint))).status_code
            own = (await client.get(path)).status_code if method == "GET" else 200
            if (stolen, own) != (404, 200):
                found[endpoint] = (stolen, own)
    assert found == {}, "status for another application, and for the application itself"
    for method, path in (("GET", "trackers"), ("GET", "keys"), ("GET", "gateways"), ("GET", "links"), ("GET", "domains")):
        assert "stolen" not in (await client.request(method, f"/api/v1/{path}")).text


@on_one_service
@pytest.mark.parametrize("number", [MAX_COUNTED_ID + 1, 10**18, 2**63, 10**30])
async def test_an_id_in_a_path_that_is_too_large_for_the_database_does_not_exist(client: httpx.AsyncClient, number: int) -> None:
    endpoints = [one for one in ENDPOINTS if ":int}" in one.path]
    assert len(endpoints) > 10
    for endpoint in endpoints:
        path = re.sub(r"{\w+:int}", str(number), endpoint.path)
        response = await client.request(endpoint.method, path, json=None if endpoint.method == "GET" else {})
        assert (response.status_code, response.json()["error_code"]) == (404, "NOT_FOUND"), (endpoint.method, path, response.text)
