"""Trackers, deliveries and the settings of the application over HTTP."""

import asyncio
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect, Request

from shortener.accounts.credentials import create_key
from shortener.container import Service
from shortener.delivery import sample_delivery
from shortener.delivery.sample_delivery import MAX_TESTS_PER_APPLICATION
from shortener.web.endpoint import until_disconnected
from tests.conftest import NOON, Clock, client_of
from tests.delivery.conftest import Story
from tests.one_service import on_one_service
from tests.receiver import Receiver, Reply

PATH = "/api/v1/trackers"


def flat(answer: httpx.Response) -> dict[str, Any]:
    """Return the fields of a JSON response without the field `status`."""
    told: dict[str, Any] = answer.json()
    assert told.pop("status") is True
    return told


@pytest.fixture
def story(service: Service) -> Story:
    return Story(service)


async def make(client: httpx.AsyncClient, url: str, **more: Any) -> dict[str, Any]:
    answer = await client.post(PATH, json={"url": url, "events": ["click"], "format": "scg", **more})
    assert answer.status_code == 201, answer.text
    tracker: dict[str, Any] = flat(answer)
    return tracker


async def deliver(service: Service) -> None:
    await service.fanout.flush()
    await service.dispatcher.flush()


async def test_a_tracker_is_created_changed_and_deleted(client: httpx.AsyncClient) -> None:
    made = await make(client, "https://t.example/?p={phone}", name="mine", headers={"Authorization": "x"})
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert made.pop("warnings") == []
    assert made == {
        "tracker_id": made["tracker_id"],
        "role": "tracker",
        "name": "mine",
        "enabled": True,
        "disabled_reason": None,
        "url": "https://t.example/?p={phone}",
        "events": ["click"],
        "conversion_actions": None,
        "conversion_dispositions": None,
        "method": "POST",
        "format": "scg",
        "fields": None,
        "headers_set": True,
        "client_certificate_set": False,
        "secret_set": True,
        "previous_secret_until": None,
        "success": {"statuses": "2xx", "body_contains": None},
        "max_attempts": 10,
        "timeout": 5.0,
        "concurrency": 16,
        "max_per_second": None,
        "schedule": [5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0],
        "with_suspected": False,
        "created_at": "2026-11-20T12:00:00Z",
        "updated_at": "2026-11-20T12:00:00Z",
    }
    path = f"{PATH}/{made['tracker_id']}"
    assert (await client.get(PATH)).json() == {"status": True, "trackers": [made]}
    shown = flat(await client.get(path))
    assert shown.pop("health") == {
        "breaker": "closed",
        "open_until": None,
        "failures_in_row": 0,
        "rate": None,
        "last_success_at": None,
        "last_failure_at": None,
        "pending": 0,
        "dead": 0,
        "waiting_since": None,
    }
    assert shown == made
    changed = flat(await client.patch(path, json={"enabled": False, "secret": "a new secret of 24 bytes", "secret_overlap": 60}))
    assert len(changed.pop("warnings")) == 1
    assert changed == made | {
        "enabled": False,
        "disabled_reason": "switched off",
        "previous_secret_until": "2026-11-20T12:01:00Z",
        "secret": None,
    }
    assert (await client.delete(path)).json() == {"status": True}
    for method in ("GET", "PATCH", "DELETE"):
        answer = await client.request(method, path, json={} if method == "PATCH" else None)
        assert (answer.status_code, answer.json()["error_code"]) == (404, "NOT_FOUND")
    assert (await client.get(f"{PATH}/{1 << 70}")).status_code == 404
    assert (await client.get(f"{PATH}/x")).status_code == 404


async def test_an_invalid_tracker_is_rejected_with_the_name_of_the_field_and_nothing_is_stored(client: httpx.AsyncClient) -> None:
    for given, code, field in (
        ({"url": "https://t.example/{{phone}}", "events": ["click"]}, "UNKNOWN_PLACEHOLDER", "url"),
        ({"url": "https://{phone}/", "events": ["click"]}, "INVALID_TRACKER_URL", "url"),
        ({"url": "http://169.254.169.254/", "events": ["click"]}, "FORBIDDEN_TARGET", "url"),
        ({"url": "https://t.example/", "events": ["nonsense"]}, "INVALID_REQUEST", "events.0"),
        ({"url": "https://t.example/", "events": ["click"], "fields": ["nonsense"]}, "INVALID_REQUEST", "fields"),
        ({"events": ["click"]}, "INVALID_REQUEST", "url"),
        ({"url": "https://t.example/", "events": ["click"], "evnts": 1}, "INVALID_REQUEST", "evnts"),
    ):
        answer = await client.post(PATH, json=given)
        body = answer.json()
        assert (answer.status_code, body["error_code"], body["details"][0]["field"]) == (400, code, field)
    assert (await client.get(PATH)).json()["trackers"] == []


async def test_the_filter_of_a_tracker_for_conversions_is_set_changed_and_removed(client: httpx.AsyncClient) -> None:
    def fields(answer: httpx.Response) -> tuple[Any, Any, Any]:
        assert answer.status_code in (200, 201), answer.text
        body = answer.json()
        return body["conversion_actions"], body["conversion_dispositions"], body["warnings"]

    new = {"url": "https://t.example/", "events": ["conversion"], "secret": None}
    answer = await client.post(
        PATH, json=new | {"conversion_actions": [" Sale ", "sale", "Éa b"], "conversion_dispositions": ["none", "positive", "none"]}
    )
    assert fields(answer) == (["Sale", "Éa b"], ["none", "positive"], [])
    path = f"{PATH}/{answer.json()['tracker_id']}"
    assert fields(await client.patch(path, json={"name": "new"})) == (["Sale", "Éa b"], ["none", "positive"], [])
    assert fields(await client.patch(path, json={"conversion_actions": None})) == (None, ["none", "positive"], [])
    assert fields(await client.patch(path, json={"conversion_dispositions": []})) == (None, None, [])
    assert fields(await client.patch(path, json={"conversion_actions": [], "conversion_dispositions": None})) == (None, None, [])
    actions = [f"action {number}" for number in range(50)]
    assert fields(await client.patch(path, json={"conversion_actions": actions})) == (actions, None, [])
    (*_, (warning,)) = fields(await client.patch(path, json={"events": ["click"]}))
    assert warning == "conversion_actions and conversion_dispositions have no effect: events does not contain conversion"
    shown = (await client.get(path)).json()
    assert (shown["conversion_actions"], shown["conversion_dispositions"]) == (actions, None)
    assert fields(await client.post(PATH, json=new | {"conversion_actions": [], "conversion_dispositions": []})) == (None, None, [])


@on_one_service
@pytest.mark.parametrize(
    ("values", "field", "reason"),
    [
        ({"conversion_actions": ["sale", " "]}, "conversion_actions", "must not contain an empty action"),
        ({"conversion_actions": ["x" * 65]}, "conversion_actions", f"'{'x' * 20}…' must have at most 64 characters"),
        ({"conversion_actions": ["a\x00b"]}, "conversion_actions", "'a\\x00b' must not contain control characters"),
        ({"conversion_actions": [str(number) for number in range(51)]}, "conversion_actions", "50"),
        ({"conversion_actions": "sale"}, "conversion_actions", "list"),
        ({"conversion_actions": [7]}, "conversion_actions.0", ""),
        ({"conversion_dispositions": ["positiv"]}, "conversion_dispositions.0", "'positive', 'negative' or 'none'"),
        ({"conversion_dispositions": "positive"}, "conversion_dispositions", "list"),
    ],
)
async def test_an_invalid_filter_for_conversions_is_rejected_with_its_field_and_reason(
    client: httpx.AsyncClient, values: dict[str, Any], field: str, reason: str
) -> None:
    made = await make(client, "https://t.example/", events=["conversion"], conversion_actions=["lead"])
    path = f"{PATH}/{made['tracker_id']}"
    for answer in (
        await client.post(PATH, json={"url": "https://t.example/", "events": ["conversion"], **values}),
        await client.patch(path, json=values),
    ):
        body = answer.json()
        assert (answer.status_code, body["error_code"], body["details"][0]["field"]) == (400, "INVALID_REQUEST", field)
        assert reason in body["details"][0]["reason"]
    assert (await client.get(path)).json()["conversion_actions"] == ["lead"]


async def test_tracker_endpoints_reject_an_api_key_that_has_only_permissions_for_messages(service: Service) -> None:
    key = await service.database.write(create_key, 1, "reader", ("sms.read", "sms.send"), NOON)
    await service.directory.refresh()
    async with client_of(service, {"X-API-Key": key}) as client:
        for method, path in (
            ("GET", PATH),
            ("POST", PATH),
            ("GET", f"{PATH}/1"),
            ("PATCH", f"{PATH}/1"),
            ("DELETE", f"{PATH}/1"),
            ("POST", f"{PATH}/1/test"),
            ("GET", f"{PATH}/1/deliveries"),
            ("POST", f"{PATH}/1/replay"),
            ("GET", "/api/v1/deliveries"),
            ("GET", "/api/v1/deliveries/00000000001"),
            ("POST", "/api/v1/deliveries/00000000001/replay"),
            ("GET", "/api/v1/application"),
            ("PATCH", "/api/v1/application"),
        ):
            assert (await client.request(method, path)).status_code == 403, (method, path)
    async with client_of(service) as stranger:
        assert (await stranger.get(PATH)).status_code == 401


async def test_deliveries_are_listed_shown_and_replayed(
    service: Service, client: httpx.AsyncClient, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = 500
    tracker = await make(client, receiver.url("/hook"), max_attempts=1)
    path = f"{PATH}/{tracker['tracker_id']}"
    for _ in range(3):
        await story.first_click()
    await deliver(service)
    page = (await client.get(f"{path}/deliveries", params={"limit": 2})).json()
    assert [delivery["message_id"] for delivery in page["deliveries"]] == ["m-3", "m-2"]
    rest = (await client.get(f"{path}/deliveries", params={"limit": 2, "cursor": page["next_cursor"]})).json()
    assert ([delivery["message_id"] for delivery in rest["deliveries"]], rest["next_cursor"]) == (["m-1"], None)
    (last,) = rest["deliveries"]
    assert last == {
        "delivery_id": last["delivery_id"],
        "tracker_id": tracker["tracker_id"],
        "callback_url": None,
        "event_id": receiver.requests[0].headers["webhook-id"],
        "event": "click",
        "message_id": "m-1",
        "status": "dead",
        "attempt": 1,
        "next_at": None,
        "created_at": "2026-11-20T12:00:00Z",
        "finished_at": "2026-11-20T12:00:00Z",
        "last_status": 500,
        "last_error": "other_status",
    }
    shown = (await client.get(f"/api/v1/deliveries/{last['delivery_id']}")).json()["delivery"]
    (attempt,) = shown.pop("attempts")
    assert shown == last
    assert attempt.pop("milliseconds") >= 0
    assert attempt == {
        "attempt": 1,
        "at": "2026-11-20T12:00:00Z",
        "status": 500,
        "error": "other_status",
        "detail": None,
        "answer": "OK",
    }
    health = flat(await client.get(path))["health"]
    assert (health["dead"], health["pending"], health["failures_in_row"]) == (3, 0, 3)
    assert health["last_failure_at"] == "2026-11-20T12:00:00Z"

    receiver.default_reply = 200
    replayed = (await client.post(f"/api/v1/deliveries/{last['delivery_id']}/replay")).json()["delivery"]
    assert (replayed["status"], replayed["next_at"]) == ("pending", "2026-11-20T12:00:00Z")
    again = await client.post(f"/api/v1/deliveries/{last['delivery_id']}/replay")
    assert (again.status_code, again.json()["error_code"]) == (409, "CONFLICT")
    assert (await client.post(f"{path}/replay")).json() == {"status": True, "replayed": 2, "more": False}
    clock.forward(seconds=1)
    await deliver(service)
    assert len(receiver.requests) == 6
    statuses = [one["status"] for one in (await client.get("/api/v1/deliveries")).json()["deliveries"]]
    assert statuses == ["delivered"] * 3
    for wrong in ("nonsense", "0" * 19):
        answer = await client.get(f"{path}/deliveries", params={"cursor": wrong})
        assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_CURSOR")
    for path in ("/api/v1/deliveries/nonsense", "/api/v1/deliveries/00000000001"):
        assert (await client.get(path)).status_code == 404


async def test_deliveries_are_filtered_by_status_and_time(
    service: Service, client: httpx.AsyncClient, story: Story, receiver: Receiver, clock: Clock
) -> None:
    tracker = await make(client, receiver.url())
    await story.first_click()
    await deliver(service)
    clock.forward(days=1)
    await story.first_click()
    await service.fanout.flush()
    await client.patch(f"{PATH}/{tracker['tracker_id']}", json={"enabled": False})
    await deliver(service)

    async def found(**query: str) -> list[str]:
        answer = await client.get(f"{PATH}/{tracker['tracker_id']}/deliveries", params=query)
        return [one["message_id"] for one in answer.json()["deliveries"]]

    assert await found(status="parked") == ["m-2"]
    assert await found(status="pending") == []
    assert await found(until="2026-11-20") == ["m-1"]
    assert await found(since="2026-11-21", status="delivered") == []
    answer = await client.post(f"{PATH}/{tracker['tracker_id']}/replay", json={"status": "dead", "since": "2026-11-21"})
    assert answer.json()["replayed"] == 0


async def test_a_test_event_for_a_tracker_returns_the_result_of_the_attempt(client: httpx.AsyncClient, receiver: Receiver) -> None:
    tracker = await make(client, receiver.url(), success={"statuses": "200", "body_contains": "yes"})
    answer = (await client.post(f"{PATH}/{tracker['tracker_id']}/test")).json()
    assert answer["event_id"] == receiver.requests[0].headers["webhook-id"]
    assert answer.pop("milliseconds") >= 0
    assert answer == {
        "status": True,
        "delivery_id": answer["delivery_id"],
        "event_id": answer["event_id"],
        "delivered": False,
        "reason": "refused_in_body",
        "http_status": 200,
        "error": "refused_in_body",
        "detail": "",
        "answer": "OK",
    }
    shown = (await client.get(f"/api/v1/deliveries/{answer['delivery_id']}")).json()["delivery"]
    assert (shown["event"], shown["status"], len(shown["attempts"])) == ("test", "dead", 1)


async def test_the_conversion_url_of_an_application_receives_conversions_as_flat_json(
    service: Service, client: httpx.AsyncClient, story: Story, receiver: Receiver
) -> None:
    path = "/api/v1/application"
    answer = await client.patch(
        path, json={"conversion_url": receiver.url("/conv?v={value}"), "conversion_fields": ["phone", "value", "conversion_id"]}
    )
    application = flat(answer)
    expected = {
        "application_id": 1,
        "name": "default",
        "company_id": None,
        "domains": [],
        "click_events": "first",
        "click_id_param": None,
        "fallback_url": None,
        "link_ttl_days": None,
        "ip_privacy": None,
        "conversion_url": receiver.url("/conv?v={value}"),
        "conversion_fields": ["phone", "value", "conversion_id"],
        "conversion_tracker_id": application["conversion_tracker_id"],
    }
    assert {name: application[name] for name in expected} == expected
    assert flat(await client.get(path)) == application
    await story.message()
    assert service.first_credentials is not None
    token = {"X-Api-Token": service.first_credentials.tracker_token}
    parameters = {"message_id": "m-1", "value": "25.50", "currency": "EUR"}
    told = (await client.get("/api/v1/track", params=parameters, headers=token)).json()
    await deliver(service)
    (request,) = receiver.requests
    assert (request.method, request.target) == ("POST", "/conv?v=25.50")
    assert request.json == {"phone": "+14085550100", "value": "25.50", "conversion_id": told["conversion_id"]}
    (tracker,) = (await client.get(PATH)).json()["trackers"]
    assert (tracker["role"], tracker["tracker_id"]) == ("conversion_url", application["conversion_tracker_id"])

    only_url = flat(await client.patch(path, json={"conversion_url": receiver.url("/two")}))
    assert only_url["conversion_fields"] == ["phone", "value", "conversion_id"]
    for nothing in (None, ""):
        await client.patch(path, json={"conversion_url": receiver.url("/three")})
        removed = flat(await client.patch(path, json={"conversion_url": nothing}))
        assert (removed["conversion_url"], removed["conversion_tracker_id"]) == (None, None)
    assert (await client.get(PATH)).json()["trackers"] == []


async def test_an_application_can_change_its_settings(client: httpx.AsyncClient) -> None:
    path = "/api/v1/application"
    answer = await client.patch(path, json={"click_events": "every", "click_id_param": "cid", "link_ttl_days": 30})
    assert flat(answer) | {"click_events": "every", "click_id_param": "cid", "link_ttl_days": 30} == flat(await client.get(path))
    back = flat(await client.patch(path, json={"click_id_param": None}))
    assert (back["click_events"], back["click_id_param"], back["link_ttl_days"]) == ("every", None, 30)


async def test_an_update_of_the_application_stores_all_of_its_changes_or_none(client: httpx.AsyncClient) -> None:
    path = "/api/v1/application"
    for given, code in (
        ({"click_events": "every", "conversion_url": "https://t.example/{nonsense}"}, "UNKNOWN_PLACEHOLDER"),
        ({"click_events": "every", "conversion_url": "http://169.254.169.254/"}, "FORBIDDEN_TARGET"),
        ({"click_events": "every", "conversion_fields": ["phone"]}, "INVALID_REQUEST"),
        ({"click_events": "every", "conversion_fields": ["nonsense"]}, "INVALID_REQUEST"),
        ({"click_events": "sometimes"}, "INVALID_REQUEST"),
        ({"click_events": None}, "INVALID_REQUEST"),
        ({"fallback_url": "ftp://x.example/"}, "INVALID_REQUEST"),
        ({"nonsense": 1}, "INVALID_REQUEST"),
    ):
        answer = await client.patch(path, json=given)
        assert (answer.status_code, answer.json()["error_code"]) == (400, code), given
    application = flat(await client.get(path))
    assert (application["click_events"], application["conversion_url"]) == ("first", None)


async def test_the_callback_secret_is_rotated_over_http_and_shown_once(service: Service, client: httpx.AsyncClient) -> None:
    before = (await client.get("/api/v1/application")).json()
    assert (before["callback_secret_set"], before["previous_callback_secret_until"]) == (True, None)
    rotated = await client.post("/api/v1/application/callback-secret", json={"overlap": 60})
    body = rotated.json()
    assert (rotated.status_code, body["callback_secret"][:6]) == (200, "whsec_")
    after = await client.get("/api/v1/application")
    assert after.json()["previous_callback_secret_until"] == body["previous_valid_until"]
    assert body["callback_secret"] not in after.text
    again = (await client.post("/api/v1/application/callback-secret")).json()
    assert again["callback_secret"] != body["callback_secret"]
    assert (await client.post("/api/v1/application/callback-secret", json={"overlap": -1})).status_code == 400


async def test_a_url_with_an_html_entity_is_saved_with_a_warning(service: Service, client: httpx.AsyncClient) -> None:
    url = "http://127.0.0.1:9/x?a={message_id}&amp;b={value}"
    warning = "contains &amp;, which is sent unchanged; write &"
    created = (await client.post(PATH, json={"url": url, "events": ["click"]})).json()
    assert (created["url"], created["warnings"]) == (url, [f"url {warning}"])
    changes = {"conversion_url": url, "fallback_url": "https://shop.example/?a=1&amp;b=2"}
    changed = (await client.patch("/api/v1/application", json=changes)).json()
    assert changed["warnings"] == [f"fallback_url {warning}", f"conversion_url {warning}"]


async def test_a_signing_secret_that_webhook_libraries_cannot_decode_is_saved_with_a_warning(
    service: Service, client: httpx.AsyncClient
) -> None:
    tracker = {"url": "https://tracker.example/", "events": ["click"]}
    created = (await client.post(PATH, json={**tracker, "secret": "My-S3cr3t-pass! My-S3cr3t-pass!"})).json()
    assert [warning for warning in created["warnings"] if "Standard Webhooks" in warning]
    fine = await client.patch(f"{PATH}/{created['tracker_id']}", json={"secret": "b2xk" * 8})
    assert fine.json()["warnings"] == []


async def test_the_concurrent_test_events_of_an_application_are_limited_and_use_no_delivery_slots(
    client: httpx.AsyncClient, service: Service, story: Story, receiver: Receiver
) -> None:
    receiver.by_path = {"/hang": Reply(hang=True)}
    slow = await make(client, receiver.url("/hang"), timeout=60)
    await make(client, receiver.url("/well"))
    path = f"{PATH}/{slow['tracker_id']}/test"
    tests = [asyncio.create_task(client.post(path)) for _ in range(MAX_TESTS_PER_APPLICATION)]
    await receiver.wait_for(MAX_TESTS_PER_APPLICATION)
    refused = await client.post(path)
    assert (refused.status_code, refused.json()["error_code"], refused.headers["retry-after"]) == (429, "RATE_LIMITED", "15")
    with service.test_slots.take(2):
        pass  # the limit of test events applies to each application separately
    await story.first_click()
    await service.fanout.flush()
    await service.dispatcher.step()
    await receiver.wait_for(MAX_TESTS_PER_APPLICATION + 2)
    assert receiver.requests[-1].target == "/well" or receiver.requests[-2].target == "/well"
    for one in [*tests, *service.dispatcher.attempts.tasks]:
        one.cancel()
    await asyncio.gather(*tests, return_exceptions=True)
    assert not service.test_slots._running, "a test ends with its request"


async def test_a_test_event_is_cancelled_when_the_caller_disconnects(service: Service) -> None:
    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(ClientDisconnect):
        await until_disconnected(Request({"type": "http"}, receive), work())
    assert cancelled.is_set()


async def test_a_test_event_returns_its_result_if_the_caller_stays_connected(service: Service) -> None:
    async def receive() -> dict[str, str]:
        await asyncio.Event().wait()
        raise AssertionError

    async def work() -> int:
        return 7

    assert await until_disconnected(Request({"type": "http"}, receive), work()) == 7


async def test_a_test_event_has_a_shorter_time_limit_than_the_timeout_of_the_tracker(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    monkeypatch.setattr(sample_delivery, "MAX_TEST_SECONDS", 0.1)
    receiver.default_reply = Reply(hang=True)
    slow = await make(client, receiver.url(), timeout=60)
    answer = (await client.post(f"{PATH}/{slow['tracker_id']}/test")).json()
    assert (answer["delivered"], answer["error"]) == (False, "timeout")


async def test_each_delivery_in_a_replay_request_is_replayed_or_rejected_separately(
    service: Service, client: httpx.AsyncClient, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = 500
    await make(client, receiver.url("/hook"), max_attempts=1)
    for _ in range(3):
        await story.first_click()
    await deliver(service)
    dead = [row["delivery_id"] for row in (await client.get("/api/v1/deliveries")).json()["deliveries"]]
    await client.post(f"/api/v1/deliveries/{dead[0]}/replay")
    receiver.default_reply = 200
    assert all(one.startswith("dlv_") for one in dead)
    bare = dead[2].removeprefix("dlv_")  # earlier releases returned delivery ids without this prefix
    body = {"delivery_ids": [dead[1], "unknown", dead[0], bare, dead[1]]}
    answer = (await client.post("/api/v1/deliveries/replay", json=body)).json()
    assert (answer["replayed"], answer["refused"]) == (2, 2)
    assert [(one["delivery_id"], one["error_code"]) for one in answer["results"]] == [
        (dead[1], None),
        ("unknown", "NOT_FOUND"),
        (dead[0], "CONFLICT"),
        (bare, None),
    ]
    clock.forward(seconds=5)
    await deliver(service)
    assert len(receiver.requests) == 6


@on_one_service
@pytest.mark.parametrize("ids", [[], ["x"] * 1001, ["x" * 65], "x", None, [1]])
async def test_a_replay_request_with_an_invalid_list_of_deliveries_is_rejected(client: httpx.AsyncClient, ids: Any) -> None:
    response = await client.post("/api/v1/deliveries/replay", json={"delivery_ids": ids})
    assert (response.status_code, response.json()["error_code"]) == (400, "INVALID_REQUEST")
