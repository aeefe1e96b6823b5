"""Tests of concurrent updates of one application: each update changes only the fields in its request."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

PATH = "/api/v1/application"
ROUNDS = 12


async def patch(client: httpx.AsyncClient, **changes: Any) -> None:
    response = await client.patch(PATH, json=changes)
    assert response.status_code == 200, response.text


async def test_concurrent_updates_of_different_application_fields_are_all_stored(client: httpx.AsyncClient) -> None:
    """In every round, there is one request for each field, and all requests are sent at the same time."""
    await patch(client, conversion_url="http://127.0.0.1:9/0", conversion_fields=["phone"])
    fields = [["phone"], ["value"], ["phone", "value"]]
    for number in range(1, ROUNDS + 1):
        expected: dict[str, Any] = {
            "conversion_url": f"http://127.0.0.1:9/{number}",
            "conversion_fields": fields[number % 3],
            "click_id_param": f"click{number}",
            "link_ttl_days": number,
            "min_seconds_after_sent": float(number),
            "max_recipients_per_address_minute": number,
        }
        await asyncio.gather(*(patch(client, **{name: value}) for name, value in expected.items()))
        stored = (await client.get(PATH)).json()
        assert {name: stored[name] for name in expected} == expected, f"round {number}"


async def test_an_unknown_macro_in_the_fallback_url_of_an_application_is_a_warning(client: httpx.AsyncClient) -> None:
    for url, warning in (
        ("https://fb.example/?m={message_id}&c={campaign}&p={phone_sha256}&k={code}&i={click_id}", None),
        ("https://fb.example/?m={phone}", "fallback_url contains {phone}, which is not a placeholder; write {phone_sha256}"),
    ):
        response = await client.patch("/api/v1/application", json={"fallback_url": url})
        assert (response.status_code, response.json()["fallback_url"]) == (200, url)
        assert response.json()["warnings"] == ([] if warning is None else [warning])


async def test_the_application_setting_conversion_fields_is_rejected_without_conversion_url(client: httpx.AsyncClient) -> None:
    response = await client.patch(PATH, json={"conversion_fields": ["phone"], "link_ttl_days": 7})
    assert (response.status_code, response.json()["details"][0]["field"]) == (400, "conversion_fields")
    assert (await client.get(PATH)).json()["link_ttl_days"] is None, "nothing of the request is stored"
    await patch(client, conversion_url="http://127.0.0.1:9/1", conversion_fields=["phone"])
    await patch(client, conversion_fields=None)
    assert (await client.get(PATH)).json()["conversion_fields"] is None
