"""Tests of credentials: API keys, tracker tokens and permissions."""

import asyncio
import base64
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import Connection, func, select

from shortener.accounts.administration import update_application
from shortener.accounts.credentials import Credentials, create_key, list_keys, revoke_key, rotate_token, update_key
from shortener.accounts.postback_keys import create_postback_key
from shortener.container import Service
from shortener.storage import schema
from tests.conftest import Clock, MakeService, client_of
from tests.databases import take_down_after
from tests.one_service import on_one_service

BODY = {"to": "+14085550100", "body": "x"}


async def messages(service: Service) -> int:
    def ask(connection: Connection) -> int:
        return connection.execute(select(func.count()).select_from(schema.messages)).scalar_one()

    return await service.database.read(ask)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def test_an_api_key_is_accepted_in_the_header_of_every_vendor(service: Service, credentials: Credentials) -> None:
    key = credentials.api_key
    ways = [
        {"X-API-Key": key},
        {"Authorization": f"Bearer {key}"},
        {"Authorization": f"bearer {key}"},
        {"Authorization": f"App {key}"},
        {"Authorization": basic(str(credentials.application_id), key)},
    ]
    for headers in ways:
        async with client_of(service, headers) as client:
            assert (await client.post("/api/v1/rewrite", json=BODY)).status_code == 200


async def test_an_api_key_that_exceeds_its_rate_limit_gets_429(service: Service, credentials: Credentials, clock: Clock) -> None:
    limited = await service.database.write(create_key, credentials.application_id, "", ["sms.send"], clock(), 3)
    await service.directory.refresh()
    async with (
        client_of(service, {"X-API-Key": limited}) as client,
        client_of(service, {"X-API-Key": credentials.api_key}) as other,
    ):
        assert [(await client.post("/api/v1/rewrite", json=BODY)).status_code for _ in range(3)] == [200] * 3
        before = await messages(service)
        response = await client.post("/api/v1/rewrite", json=BODY)
        assert (response.status_code, response.json()["error_code"]) == (429, "RATE_LIMITED")
        assert response.headers["Retry-After"] == "20"
        assert await messages(service) == before
        assert (await other.post("/api/v1/rewrite", json=BODY)).status_code == 200, "another key has its own limit"
        clock.forward(seconds=20)
        assert (await client.post("/api/v1/rewrite", json=BODY)).status_code == 200
        (key,) = [key for key in await service.database.read(list_keys) if key["rate_limit"] == 3]
        await service.database.write(update_key, key["application_id"], key["id"], {"rate_limit": None})
        await service.directory.refresh()
        assert [(await client.post("/api/v1/rewrite", json=BODY)).status_code for _ in range(9)] == [200] * 9


async def test_a_missing_or_wrong_api_key_returns_401_and_nothing_is_stored(service: Service, credentials: Credentials) -> None:
    key = credentials.api_key
    ways: list[dict[str, str]] = [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": key[:-1]},
        {"X-API-Key": credentials.tracker_token},
        {"X-API-Key": "ключ".encode().decode("latin-1")},
        {"Authorization": key},
        {"Authorization": "Bearer"},
        {"Authorization": basic("99", key)},
        {"Authorization": basic(str(credentials.application_id), "x")},
        {"Authorization": "Basic !!!"},
    ]
    for headers in ways:
        async with client_of(service) as client:
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            answer = await client.post("/api/v1/rewrite", content=b"{not json", headers=raw)
        assert answer.status_code == 401, headers
        assert answer.json()["error_code"] == "UNAUTHORIZED"
        assert "www-authenticate" in answer.headers
    assert await messages(service) == 0


async def test_an_api_key_without_the_required_permission_gets_403(
    service: Service, credentials: Credentials, clock: Clock
) -> None:
    reader = await service.database.write(create_key, credentials.application_id, "reader", ["sms.read"], clock())
    await service.directory.refresh()
    async with client_of(service, {"X-API-Key": reader}) as client:
        answer = await client.post("/api/v1/rewrite", json=BODY)
    assert (answer.status_code, answer.json()["error_code"]) == (403, "FORBIDDEN")
    assert await messages(service) == 0


async def test_revoked_api_keys_and_the_api_keys_of_a_disabled_application_are_rejected(
    service: Service, credentials: Credentials, clock: Clock
) -> None:
    second = await service.database.write(create_key, credentials.application_id, "second", ["sms.send"], clock())
    await service.database.write(revoke_key, 2, clock())
    await service.directory.refresh()
    assert service.directory.find_by_api_key(second) is None
    assert service.directory.find_by_api_key(credentials.api_key) is not None
    await service.database.write(update_application, credentials.application_id, {"disabled": True}, clock())
    await service.directory.refresh()
    assert service.directory.find_by_api_key(credentials.api_key) is None


async def test_a_credential_that_another_process_created_is_accepted_at_once(
    service: Service, credentials: Credentials, clock: Clock
) -> None:
    key = await service.database.write(create_key, credentials.application_id, "new", ["sms.send"], clock())
    async with client_of(service, {"X-API-Key": key}) as client:
        assert (await client.post("/api/v1/rewrite", json=BODY)).status_code == 200
    token, _ = await service.database.write(rotate_token, credentials.application_id, clock(), timedelta(hours=1))
    async with client_of(service, {"X-Api-Token": token}) as client:
        assert (await client.get("/api/v1/track", params={"message_id": "unknown"})).status_code == 404
    _, postback_key = await service.database.write(create_postback_key, credentials.application_id, "new", clock())
    async with client_of(service) as client:
        assert (await client.get(f"/api/v1/postback/{postback_key}", params={"message_id": "unknown"})).status_code == 404


async def test_a_credential_that_another_process_created_gets_503_and_not_401_while_the_database_is_unavailable(
    make_service: MakeService, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await make_service(rejected_credential_limit=1)
    token, _ = await service.database.write(rotate_token, 1, clock(), timedelta(hours=1))
    database = take_down_after(service, monkeypatch, 0)
    async with client_of(service, {"X-Api-Token": token}) as client:
        for path in ("track?message_id=unknown", "postback/pk_new?message_id=unknown", "gateways/reports/gr_new"):
            response = await client.get(f"/api/v1/{path}")
            assert (response.status_code, response.json()["error_code"]) == (503, "UNAVAILABLE")
            assert int(response.headers["retry-after"]) > 0
        database.is_back = True
        assert (await client.get("/api/v1/track?message_id=unknown")).status_code == 404, "no wrong credential was counted"


async def test_the_previous_tracker_token_is_valid_until_the_overlap_ends(
    service: Service, credentials: Credentials, clock: Clock
) -> None:
    application = credentials.application_id
    first = credentials.tracker_token
    second, until = await service.database.write(rotate_token, application, clock(), timedelta(hours=24))
    await service.directory.refresh()
    assert until == clock() + timedelta(hours=24)
    assert service.directory.find_by_tracker_token(first, clock()) is not None
    assert service.directory.find_by_tracker_token(second, clock()) is not None
    clock.forward(hours=23, minutes=59)
    assert service.directory.find_by_tracker_token(first, clock()) is not None
    clock.forward(minutes=1)
    assert service.directory.find_by_tracker_token(first, clock()) is None
    assert service.directory.find_by_tracker_token(second, clock()) is not None
    third, _ = await service.database.write(rotate_token, application, clock(), timedelta(hours=24))
    fourth, _ = await service.database.write(rotate_token, application, clock(), timedelta(hours=24))
    await service.directory.refresh()
    assert service.directory.find_by_tracker_token(second, clock()) is None, "one previous token, not all of them"
    assert service.directory.find_by_tracker_token(third, clock()) is not None
    assert service.directory.find_by_tracker_token(fourth, clock()) is not None


async def test_one_tracker_token_is_valid_without_end_after_rotations_at_the_same_time(
    service: Service, credentials: Credentials, clock: Clock
) -> None:
    application = credentials.application_id
    rotations = (service.database.write(rotate_token, application, clock(), timedelta(hours=1)) for _ in range(8))
    await asyncio.gather(*rotations)
    table = schema.tracker_tokens

    def count(connection: Connection) -> tuple[int, int]:
        ends = list(connection.scalars(select(table.c.valid_until).where(table.c.application_id == application)))
        return ends.count(None), sum(end is not None and end > clock() for end in ends)

    assert await service.database.read(count) == (1, 1), "the current token and one previous token"


async def test_credentials_are_stored_hashed(service: Service, credentials: Credentials) -> None:
    def ask(connection: Connection) -> str:
        keys = connection.execute(select(schema.api_keys)).all()
        return repr(keys) + repr(connection.execute(select(schema.tracker_tokens)).all())

    told = await service.database.read(ask)
    assert credentials.api_key not in told
    assert credentials.tracker_token not in told


@on_one_service
@pytest.mark.parametrize("path", ["/api/v1/nothing", "/api/v1/rewrite/", "/api/", "/sms/messages", "/x/y"])
async def test_an_unknown_path_returns_404_and_is_never_redirected(service: Service, path: str) -> None:
    async with client_of(service) as client:
        answer = await client.get(path, headers={"Host": "127.0.0.1:8000"})
    assert answer.status_code == 404
    assert "location" not in answer.headers


async def test_a_wrong_http_method_returns_405(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v1/rewrite")
    assert (answer.status_code, answer.json()["error_code"], answer.headers["allow"]) == (405, "METHOD_NOT_ALLOWED", "POST")


async def test_a_client_that_sends_many_wrong_credentials_gets_429_but_its_requests_with_valid_credentials_succeed(
    make_service: MakeService,
) -> None:
    service = await make_service(rejected_credential_limit=3)
    assert service.first_credentials is not None
    right = {"X-API-Key": service.first_credentials.api_key}
    async with client_of(service) as client:
        assert [(await client.get("/api/v1/sms/stats")).status_code for _ in range(5)] == [401] * 5, "no credential"
        wrong = [await client.get("/api/v1/sms/stats", headers={"X-API-Key": "sk_guess"}) for _ in range(2)]
        wrong += [await client.get("/api/v1/track?message_id=x", headers={"X-Api-Token": "tt_guess"}) for _ in range(2)]
        assert [response.status_code for response in wrong] == [401, 401, 401, 429]
        assert (wrong[3].json()["error_code"], wrong[3].headers["retry-after"]) == ("RATE_LIMITED", "20")
        assert (await client.get("/api/v1/sms/stats", headers=right)).status_code == 200


async def test_a_wrong_credential_of_a_client_above_the_limit_causes_no_read_of_the_database(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await make_service(rejected_credential_limit=2)
    reads = 0
    read = service.directory.refresh

    async def refresh() -> bool:
        nonlocal reads
        reads += 1
        return await read()

    monkeypatch.setattr(service.directory, "refresh", refresh)
    paths = ["/api/v1/sms/stats", "/api/v1/postback/pk_guess?message_id=x", "/api/v1/gateways/reports/rk_guess"] * 2
    async with client_of(service, {"X-API-Key": "sk_guess"}) as client:
        statuses = [(await client.get(path)).status_code for path in paths]
    assert statuses == [401, 401, 429, 429, 429, 429]
    assert reads == 2


async def test_a_401_response_links_to_the_list_of_errors_and_explains_which_credential_the_endpoint_requires(
    service: Service, credentials: Credentials
) -> None:
    path = "/api/v1/track?message_id=m-1&action=sale"
    for headers in ({"X-API-Key": credentials.api_key}, {"X-Api-Token": credentials.api_key}):
        async with client_of(service, headers) as client:
            response = await client.get(path)
        assert response.status_code == 401
        assert "requires a tracker token" in response.json()["description"]
        assert response.headers["Link"] == '</docs#error-codes>; rel="help"'
    async with client_of(service, {"X-Api-Token": "tt_unknown"}) as client:
        assert "unknown or expired" in (await client.get(path)).json()["description"]


NO_KEY = "This call requires an API key (sk_...) in the X-API-Key header. The request has {}."
NO_TOKEN = "This call requires a tracker token (tt_...) in the X-Api-Token header. The request has {}."


@on_one_service
@pytest.mark.parametrize(
    ("path", "headers", "description"),
    [
        ("track", {}, "The tracker token in the X-Api-Token header is missing, unknown or expired."),
        ("track", {"X-Api-Token": "tt_unknown"}, "The tracker token in the X-Api-Token header is missing, unknown or expired."),
        ("track", {"X-Api-Token": "pk_key"}, NO_TOKEN.format("a postback key in the X-Api-Token header")),
        ("track", {"X-API-Key": "a key of INITIAL_API_KEY"}, NO_TOKEN.format("an API key in the X-API-Key header")),
        ("track", {"X-API-Key": "tt_token"}, NO_TOKEN.format("a tracker token in the X-API-Key header")),
        ("track", {"Authorization": "Bearer tt_token"}, NO_TOKEN.format("a tracker token in the Authorization header")),
        ("callback/action", {"Authorization": "App sk_key"}, NO_TOKEN.format("an API key in the Authorization header")),
        ("action/track", {"Authorization": "Basic MTpza19rZXk="}, NO_TOKEN.format("an API key in the Authorization header")),
        ("postback/pk_unknown", {}, "The postback key in the path is unknown, revoked or expired."),
        ("postback/sk_key", {}, "This call requires a postback key (pk_...) in its path. The path has an API key."),
        ("postback/tt_key", {}, "This call requires a postback key (pk_...) in its path. The path has a tracker token."),
    ],
)
async def test_a_401_response_to_a_conversion_report_names_the_credential_that_the_request_has_in_the_wrong_place(
    service: Service, path: str, headers: dict[str, str], description: str
) -> None:
    async with client_of(service, headers) as client:
        response = await client.request("POST" if path == "callback/action" else "GET", f"/api/v1/{path}")
    assert (response.status_code, response.json()["description"]) == (401, description)


@on_one_service
@pytest.mark.parametrize(
    ("headers", "description"),
    [
        ({}, "The request has no API key. Send it in the X-API-Key header."),
        ({"X-API-Key": "sk_unknown"}, "The API key in the X-API-Key header is unknown, revoked or expired."),
        ({"Authorization": "Bearer sk_unknown"}, "The API key in the Authorization header is unknown, revoked or expired."),
        (
            {"X-API-Key": "tt_token"},
            NO_KEY.format("a tracker token in the X-API-Key header"),
        ),
        ({"Authorization": "Bearer tt_token"}, NO_KEY.format("a tracker token in the Authorization header")),
        ({"Authorization": "App pk_key"}, NO_KEY.format("a postback key in the Authorization header")),
        ({"X-Api-Token": "sk_key"}, NO_KEY.format("an API key in the X-Api-Token header")),
        ({"X-API-Key": "a key of INITIAL_API_KEY"}, "The API key in the X-API-Key header is unknown, revoked or expired."),
        ({"Authorization": "a key without a scheme"}, "The API key in the Authorization header is unknown, revoked or expired."),
    ],
)
async def test_a_401_response_to_a_call_that_requires_an_api_key_names_the_header(
    service: Service, headers: dict[str, str], description: str
) -> None:
    async with client_of(service, headers) as client:
        response = await client.get("/api/v1/sms/stats")
    assert (response.status_code, response.json()["description"]) == (401, description)


async def test_the_error_for_an_unknown_path_refers_to_the_documentation_and_the_error_for_a_wrong_method_names_the_others(
    service: Service,
) -> None:
    async with client_of(service, {}) as client:
        unknown, wrong = await client.post("/api/v1/rewrites", json={}), await client.get("/api/v1/rewrite")
        create = await client.post("/api/v1/links", json={"url": "https://shop.example/"})
    assert (unknown.status_code, unknown.json()["description"]) == (404, "No call has this path. /docs lists all calls.")
    assert (wrong.status_code, wrong.json()["description"]) == (405, "This path accepts only POST.")
    description = "This path accepts only GET, HEAD. POST /api/v1/rewrite creates links."
    assert (create.status_code, create.json()["description"]) == (405, description)
