"""POST /api/v1/rewrite over HTTP, on SQLite and PostgreSQL."""

import asyncio
import hashlib
from datetime import timedelta
from typing import Any

import httpx
import orjson
import pytest
from sqlalchemy import update

from shortener.container import Service
from shortener.retention.purge import purge
from shortener.storage import schema
from shortener.web.rewrite_shapes import RewriteMessage
from tests.conftest import Clock
from tests.databases import someone_at, until_it_waits
from tests.factory import rows
from tests.one_service import on_one_service
from tests.web.calls import PHONE, TO
from tests.web.calls import count_messages_and_links as stored
from tests.web.calls import request_rewrite as rewrite

SYNIVERSE = (
    'Hello Kola, thanks for your patronage, please visit us at #track("https://shop.example/a?b=1") '
    "cool information for you for new information"
)


async def test_a_track_directive_is_replaced_by_a_short_link_for_the_recipient(client: httpx.AsyncClient, service: Service) -> None:
    answer = await rewrite(client, body=SYNIVERSE)
    assert answer.status_code == 200
    assert answer.json()["status"] is True
    message = answer.json()["messages"][0]
    code = message["links"][0]["code"]
    assert len(code) == 10
    assert code.isalnum()
    assert message["body"] == (
        f"Hello Kola, thanks for your patronage, please visit us at http://127.0.0.1:8000/{code} "
        "cool information for you for new information"
    )
    assert message["links"] == [
        {
            "code": code,
            "short_url": f"http://127.0.0.1:8000/{code}",
            "url": "https://shop.example/a?b=1",
            "label": None,
            "expires_at": "2027-02-18T12:00:00Z",
        }
    ]
    assert (message["to"], message["encoding"], message["segments"], message["warnings"]) == (TO, "GSM-7", 1, [])
    assert len(message["message_id"]) == len(message["message_request_id"]) == 22
    assert await stored(service) == (1, 1)


@on_one_service
@pytest.mark.parametrize(
    "directive",
    [
        '#track("https://x.example/")',
        '#track(\\"https://x.example/\\")',
        "#track('https://x.example/')",
        "#track(“https://x.example/”)",
        '#track( "https://x.example/" )',
    ],
)
async def test_typographic_quotes_in_directives_are_accepted(client: httpx.AsyncClient, directive: str) -> None:
    message = (await rewrite(client, body=f"a {directive} b")).json()["messages"][0]
    assert message["body"] == f"a {message['links'][0]['short_url']} b"
    assert message["links"][0]["url"] == "https://x.example/"


async def test_each_directive_of_a_text_gets_its_own_link_and_label(client: httpx.AsyncClient) -> None:
    body = 'one #track("https://x.example/1") two #trackurl("https://x.example/2","second") three #track("https://x.example/1")'
    message = (await rewrite(client, body=body)).json()["messages"][0]
    assert [(link["url"], link["label"]) for link in message["links"]] == [
        ("https://x.example/1", None),
        ("https://x.example/2", "second"),
        ("https://x.example/1", None),
    ]
    assert len({link["code"] for link in message["links"]}) == 3
    one, two, three = (link["short_url"] for link in message["links"])
    assert message["body"] == f"one {one} two {two} three {three}"


async def test_each_recipient_gets_a_separate_message_with_separate_links(client: httpx.AsyncClient, service: Service) -> None:
    numbers = [f"+1408555{number:04}" for number in range(100, 150)]
    answer = await rewrite(client, to=numbers, body='see #track("https://x.example/")')
    messages = answer.json()["messages"]
    assert [message["to"] for message in messages] == numbers
    assert len({message["links"][0]["code"] for message in messages}) == 50
    assert len({message["message_id"] for message in messages}) == 50
    assert len({message["message_request_id"] for message in messages}) == 1
    assert await stored(service) == (50, 50)


async def test_a_text_without_directives_is_returned_unchanged_and_its_message_is_stored(
    client: httpx.AsyncClient, service: Service
) -> None:
    body = "  plain \r\n text, #tracker and https://x.example/ and \u202eRTL\u202c \U0001f600 stay "
    message = (await rewrite(client, body=body)).json()["messages"][0]
    assert message["body"] == body
    assert message["links"] == []
    assert message["encoding"] == "UCS-2"
    assert await stored(service) == (1, 0)


async def test_the_sms_segments_of_the_rewritten_text_are_counted(client: httpx.AsyncClient) -> None:
    long_url = "https://x.example/" + "a" * 200
    message = (await rewrite(client, body=f'see #track("{long_url}")')).json()["messages"][0]
    assert (message["segments"], message["segments_without_rewriting"]) == (1, 2)


async def test_a_repeated_rewrite_with_the_same_message_id_and_content_returns_the_same_codes(
    client: httpx.AsyncClient, service: Service
) -> None:
    message: dict[str, Any] = {"message_id": "m-1", "body": SYNIVERSE, "metadata": {"b": 1, "a": "x"}, "mt_price": "0.0095"}
    first = (await rewrite(client, **message)).json()
    again = (await rewrite(client, **message)).json()
    assert again == first
    assert await stored(service) == (1, 1)


async def test_a_rewrite_with_a_used_message_id_and_other_content_returns_409(client: httpx.AsyncClient, service: Service) -> None:
    await rewrite(client, message_id="m-1", body=SYNIVERSE)
    batch = [{"to": TO, "body": "new"}, {"to": TO, "message_id": "m-1", "body": "other"}]
    answer = await client.post("/api/v1/rewrite", json={"messages": batch})
    assert (answer.status_code, answer.json()["error_code"]) == (409, "MESSAGE_ID_CONFLICT")
    assert answer.json()["details"][0]["field"] == "messages.1.message_id"
    assert await stored(service) == (1, 1)


@pytest.mark.parametrize(("first", "second"), [("all_urls", "directives"), ("directives", "all_urls"), ("all_urls", "first_url")])
@pytest.mark.parametrize("body", ["no link", "see https://x.example/ now", "see x.example and y.example"])
async def test_a_repeat_gets_the_warnings_of_the_first_response_after_the_default_track_mode_changed(
    client: httpx.AsyncClient, first: str, second: str, body: str
) -> None:
    await client.patch("/api/v1/application", json={"track": first})
    expected = (await rewrite(client, message_id="m-1", body=body)).json()
    await client.patch("/api/v1/application", json={"track": second})
    assert (await rewrite(client, message_id="m-1", body=body)).json() == expected


@pytest.mark.parametrize("changes", [({}, {"metadata": {}}), ({"metadata": {}}, {}), ({"metadata": None}, {"metadata": {}})])
async def test_empty_metadata_of_a_repeat_means_no_metadata(
    client: httpx.AsyncClient, changes: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    first, again = [await rewrite(client, message_id="m-1", body=SYNIVERSE, **fields) for fields in changes]
    assert (again.status_code, again.json()) == (200, first.json())


async def test_a_repeat_of_a_message_that_an_earlier_release_stored_with_empty_metadata_gets_the_first_response(
    client: httpx.AsyncClient, service: Service
) -> None:
    first = await rewrite(client, message_id="m-1", body=SYNIVERSE, metadata={})
    fields: list[Any] = [SYNIVERSE, "directives", "", "", "", "", "", "api", None, None, None, None, None, {}, ["", ""]]
    earlier = hashlib.sha256(orjson.dumps(fields) + TO.encode()).hexdigest()[:32]
    await service.database.write(lambda connection: connection.execute(update(schema.messages).values(content_hash=earlier)))
    assert (await rewrite(client, message_id="m-1", body=SYNIVERSE, metadata={})).json() == first.json()
    assert (await rewrite(client, message_id="m-1", body=SYNIVERSE, metadata={"a": 1})).status_code == 409


async def test_a_repeat_keeps_the_message_request_id_of_the_first_request(client: httpx.AsyncClient) -> None:
    message: dict[str, Any] = {"message_id": "m-1", "body": SYNIVERSE}
    first = (await rewrite(client, **message, message_request_id="r-1")).json()
    assert first["messages"][0]["message_request_id"] == "r-1"
    assert (await rewrite(client, **message, message_request_id="r-2")).json() == first
    assert (await rewrite(client, **message)).json() == first
    other = await rewrite(client, **message, external_message_request_id="x-1")
    assert (other.status_code, other.json()["error_code"]) == (409, "MESSAGE_ID_CONFLICT")


async def test_fifty_concurrent_requests_with_one_message_id_create_one_message(
    client: httpx.AsyncClient, service: Service
) -> None:
    answers = await asyncio.gather(*(rewrite(client, message_id="m-1", body=SYNIVERSE) for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert await stored(service) == (1, 1)


async def test_a_repeated_idempotency_key_gets_the_first_response(client: httpx.AsyncClient, service: Service) -> None:
    batch = {"messages": [{"to": TO, "body": SYNIVERSE}, {"to": TO, "body": "plain"}]}
    headers = {"Idempotency-Key": "send-1"}
    first = await client.post("/api/v1/rewrite", json=batch, headers=headers)
    again = await client.post("/api/v1/rewrite", json=batch, headers=headers)
    assert again.json() == first.json()
    assert await stored(service) == (2, 1)
    other = await client.post("/api/v1/rewrite", json={"to": TO, "body": "other"}, headers=headers)
    assert (other.status_code, other.json()["error_code"]) == (409, "IDEMPOTENCY_CONFLICT")


async def test_links_expire_after_ninety_days_or_at_the_requested_time(client: httpx.AsyncClient, clock: Clock) -> None:
    body = 'see #track("https://x.example/")'

    async def expiry(**more: Any) -> str:
        answer = await rewrite(client, body=body, **more)
        expires_at: str = answer.json()["messages"][0]["links"][0]["expires_at"]
        return expires_at

    assert await expiry() == "2027-02-18T12:00:00Z"
    assert await expiry(expires_in=3600) == "2026-11-20T13:00:00Z"
    assert await expiry(expires_at="2026-12-24T18:00:00+01:00") == "2026-12-24T17:00:00Z"
    assert await expiry(expires_at="2026-12-24T18:00:00") == "2026-12-24T18:00:00Z"
    assert await expiry(expires_at="2026-12-24") == "2026-12-25T00:00:00Z"  # a date includes the whole day
    assert await expiry(expires_at="2026-11-20") == "2026-11-21T00:00:00Z"  # this date is today
    assert (await rewrite(client, body=body, expires_at="2026-11-19")).status_code == 400
    assert (await rewrite(client, body=body, expires_at="9999-12-31")).status_code == 400
    assert (await rewrite(client, body=body, expires_at="9999-12-31T23:59:59-00:01")).status_code == 400
    assert (await rewrite(client, body=body, expires_at="2020-01-01T00:00:00Z")).status_code == 400
    assert (await rewrite(client, body=body, expires_in=True)).status_code == 400
    assert (await rewrite(client, body=body, expires_in=0)).status_code == 400


async def test_a_message_can_have_a_hundred_recipients(client: httpx.AsyncClient, service: Service) -> None:
    numbers = [f"+4479111{number:05}" for number in range(100)]
    assert (await rewrite(client, to=numbers, body="x")).status_code == 200
    assert await stored(service) == (100, 0)
    numbers[57] = "07911100057"
    answer = await rewrite(client, to=numbers, body="x")
    assert [detail["field"] for detail in answer.json()["details"]] == ["to.57"]
    assert await stored(service) == (100, 0)


async def test_a_url_whose_host_mixes_scripts_causes_a_warning(client: httpx.AsyncClient) -> None:
    body = 'see #track("https://www.pаypal.example/login") or #track("https://пример.рф/")'  # the first "а" is Cyrillic
    answer = await client.post("/api/v1/rewrite", json={"to": TO, "body": body})
    assert answer.json()["messages"][0]["warnings"] == [
        "position 4: the host www.xn--pypal-4ve.example mixes Cyrillic and Latin letters, as look-alikes do"
    ]


@pytest.mark.parametrize("sender", ["Gladiator", "72345", "+18775550100", "\nchannel:Bxn9SHBYhl89KnXXXXXXXX ", ""])
async def test_a_valid_sender_causes_no_warning(client: httpx.AsyncClient, sender: str) -> None:
    to = "+447700900123" if sender.isalpha() else TO  # networks in the United States deliver no alphanumeric senders
    answer = await client.post("/api/v1/rewrite", json={"to": to, "body": "x", "message_id": "m-1", "from": sender})
    assert answer.json()["messages"][0]["warnings"] == []
    assert (await client.get("/api/v1/sms/status/m-1")).json()["from"] == sender.strip()


@on_one_service
@pytest.mark.parametrize("sender", ["2Fast", "My", "A very long name", "1877555XXXX", "Shöp"])
async def test_a_sender_that_some_carriers_reject_is_stored_with_a_warning(client: httpx.AsyncClient, sender: str) -> None:
    """23 Telecom allows senders of 3 to 11 alphanumeric characters without a digit at the start. Any other sender gets only a
    warning."""
    answer = await client.post("/api/v1/rewrite", json={"to": TO, "body": "x", "from": sender})
    assert answer.json()["messages"][0]["warnings"] == [
        f"from {sender!r} is neither a number of 3 to 15 digits nor 3 to 11 letters and digits that start with a letter; "
        "carriers may reject it"
    ]


async def test_a_syniverse_sender_with_the_prefix_sender_id_is_stored_as_a_sender_id(client: httpx.AsyncClient) -> None:
    message = {"to": TO, "body": "x", "message_id": "m-1", "from": "sender_id:EjihJOXWJE24O"}
    await client.post("/api/v1/rewrite", json=message)
    status = (await client.get("/api/v1/sms/status/m-1")).json()
    assert (status["from"], status["sender_id_id"]) == ("sender_id:EjihJOXWJE24O", "EjihJOXWJE24O")


@on_one_service
@pytest.mark.parametrize("track", [{"track_link": True}, {"track_link": "true"}, {"track": "first_url"}])
async def test_xoxzo_tracking_replaces_the_first_url_or_bare_domain_of_the_text(
    client: httpx.AsyncClient, track: dict[str, Any]
) -> None:
    answer = await rewrite(client, body="test link tracking https://www.xoxzo.com/en/ and www.other.com", **track)
    message = answer.json()["messages"][0]
    assert [link["url"] for link in message["links"]] == ["https://www.xoxzo.com/en/"]
    assert message["body"] == f"test link tracking {message['links'][0]['short_url']} and www.other.com"
    answer = await rewrite(client, body="go to xoxzo.com now", **track)
    assert answer.json()["messages"][0]["links"][0]["url"] == "http://xoxzo.com"


async def test_the_track_mode_all_urls_replaces_every_url(client: httpx.AsyncClient) -> None:
    message = (await rewrite(client, body="a https://x.example/1, b http://y.example.", track="all_urls")).json()["messages"][0]
    one, two = (link["short_url"] for link in message["links"])
    assert message["body"] == f"a {one}, b {two}."


async def test_a_message_can_have_at_most_thirty_links_and_each_link_can_be_clicked(client: httpx.AsyncClient) -> None:
    urls = [f"https://x.example/{number}" for number in range(31)]
    answer = await rewrite(client, body=" ".join(urls), track="all_urls")
    assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_TRACK_URL")
    assert answer.json()["details"][0]["position"] == len(" ".join(urls[:30])) + 1
    message = (await rewrite(client, body=" ".join(urls[:30]), track="all_urls")).json()["messages"][0]
    for link in message["links"]:
        assert (await client.get(f"/{link['code']}", headers=PHONE)).headers["location"] == link["url"]
    status = (await client.get(f"/api/v1/sms/status/{message['message_id']}")).json()
    assert [link["accessed"] for link in status["links"]] == [True] * 30


@pytest.mark.parametrize("is_purged", [False, True], ids=["the code of a link", "the code of a purged link"])
async def test_a_link_gets_another_code_if_a_link_has_or_had_the_generated_code(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch, is_purged: bool
) -> None:
    taken = (await rewrite(client, body='#track("https://x.example/")')).json()["messages"][0]["links"][0]["code"]
    if is_purged:
        later = service.clock() + timedelta(days=service.settings.message_retention_days + 2)
        assert (await purge(service.database, service.settings, later)).links == 1
    mint = service.codes.mint
    minted: list[str] = []

    def unlucky() -> str:
        minted.append(taken if len(minted) < 3 else mint())
        return minted[-1]

    monkeypatch.setattr(service.codes, "mint", unlucky)
    answer = await rewrite(client, body='#track("https://x.example/")')
    assert answer.json()["messages"][0]["links"][0]["code"] == minted[-1] != taken
    assert len(minted) == 4
    assert await stored(service) == ((1, 1) if is_purged else (2, 2))


async def test_a_link_gets_another_code_if_a_purge_commits_while_the_unique_index_is_checked(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A purge deletes a link. The insert of a link with the same code waits until the purge commits. After that, the unique
    index allows the code. But the snapshot of the insert is older than the row of the code in `purged_codes`, so the insert must
    notice in another way that the code was used."""
    if service.database.dialect == "sqlite":
        pytest.skip("SQLite runs one transaction after the other")
    message = (await rewrite(client, body='#track("https://x.example/")')).json()["messages"][0]
    taken = message["links"][0]["code"]
    codes = iter([taken])
    mint = service.codes.mint
    monkeypatch.setattr(service.codes, "mint", lambda: next(codes, None) or mint())
    (row,) = await rows(service.database, schema.messages)
    purges = "WITH old AS (DELETE FROM links WHERE message_id = $1 RETURNING code) INSERT INTO purged_codes SELECT code FROM old"
    async with someone_at(service, purges, row.id) as purge_connection:
        answer = asyncio.create_task(rewrite(client, body='#track("https://x.example/")'))
        await until_it_waits(purge_connection, answer)
    [link] = (await answer).json()["messages"][0]["links"]
    assert link["code"] != taken
    assert [one.code for one in await rows(service.database, schema.links)] == [link["code"]]


async def test_the_ids_of_a_rewrite_may_be_json_numbers(client: httpx.AsyncClient) -> None:
    ids = {"message_id": 4712, "message_request_id": 4713, "external_message_request_id": 4714}
    response = await client.post("/api/v1/rewrite", json={"to": "+14155550100", "body": "x", **ids})
    assert (response.status_code, response.json()["messages"][0]["message_id"]) == (200, "4712")
    status = (await client.get("/api/v1/sms/status/4712")).json()
    assert {name: status[name] for name in ids} == {name: str(value) for name, value in ids.items()}
    body = {"to": ["+14155550100", "+14155550101"], "body": "x", "message_id": [1, "2"]}
    response = await client.post("/api/v1/rewrite", json=body)
    assert [message["message_id"] for message in response.json()["messages"]] == ["1", "2"]
    response = await client.post("/api/v1/rewrite", json={"to": "+14155550100", "body": "x", "message_id": True})
    assert response.json()["details"][0]["field"] == "message_id"


# These tests check recipients and ids.


async def test_a_numeric_id_sender_or_campaign_is_the_same_as_its_text_in_repeated_rewrites(client: httpx.AsyncClient) -> None:
    first = (await rewrite(client, body="x", message_id=7)).json()["messages"][0]
    assert first["message_id"] == "7"
    assert (await rewrite(client, body="x", message_id="7")).json()["messages"][0] == first
    both = await rewrite(client, to=[TO, "+14085550101"], body="x", message_id=[8, "n"])
    assert [message["message_id"] for message in both.json()["messages"]] == ["8", "n"]
    numbers: dict[str, Any] = dict.fromkeys(
        ("from", "campaign", "sender_id_id", "sender_id_alias", "external_message_request_id"), 7
    )
    texts: dict[str, Any] = dict.fromkeys(numbers, "7")
    as_text = await rewrite(client, body="x", message_id="9", **texts)
    assert (await rewrite(client, body="x", message_id=9, **numbers)).json() == as_text.json()
    assert (await rewrite(client, body="x", message_id=True)).status_code == 400
    assert (await rewrite(client, body="x", message_id=7.5)).status_code == 400


async def test_the_phone_number_of_a_recipient_is_stored_without_spaces_and_hyphens(client: httpx.AsyncClient) -> None:
    body = 'see #track("https://x.example/")'
    first = (await rewrite(client, to=TO, body=body, message_id="m-1")).json()
    for to in ("+1 408-555-0100", "001 (408) 555 0100", "\u202a+14085550100\u202c"):
        again = (await rewrite(client, to=to, body=body, message_id="m-1")).json()
        assert again == first
    (message,) = (await rewrite(client, to="14085550100", body=body, message_id="m-1")).json()["messages"]
    assert (message["to"], message["links"]) == (TO, first["messages"][0]["links"])
    assert message["warnings"] == ["to '14085550100' has no +; it was read as +14085550100"]


# These tests check errors of rewrite requests.


# These tests check settings of the application.


async def test_an_application_can_set_which_urls_become_short_links_and_which_url_schemes_are_allowed(
    client: httpx.AsyncClient,
) -> None:
    changes = {"track": "first_url", "extra_schemes": ["myapp"], "strict_destinations": True}
    answer = await client.patch("/api/v1/application", json=changes)
    assert {name: answer.json()[name] for name in changes} == changes
    (message,) = (await rewrite(client, body="see https://x.example/a now")).json()["messages"]
    assert len(message["links"]) == 1
    (message,) = (await rewrite(client, body="see https://x.example/a now", track="directives")).json()["messages"]
    reason = "`track` is `directives`, and the text contains no #track directive"
    assert message["warnings"] == [f"position 4: https://x.example/a is not tracked: {reason}"]
    (message,) = (await rewrite(client, body='#track("myapp://open/5")')).json()["messages"]
    answer = await client.get("/" + message["links"][0]["code"], headers=PHONE)
    assert (answer.status_code, answer.headers["location"]) == (302, "myapp://open/5")
    answer = await rewrite(client, body='#track("https://x.example/{{code}}")')
    assert answer.json()["error_code"] == "INVALID_TRACK_URL"
    assert "write {code}" in answer.json()["details"][0]["reason"]


@pytest.mark.parametrize("url", ["myapp://order:4711223/x", "myapp://open:now/5", "myapp://[abc", "tel:+14155550100"])
async def test_the_text_after_the_scheme_of_an_app_need_not_be_a_host(client: httpx.AsyncClient, url: str) -> None:
    settings = {"extra_schemes": ["myapp", "tel"], "fallback_url": url}
    assert (await client.patch("/api/v1/application", json=settings)).status_code == 200
    body: dict[str, Any] = {"body": f'#track("{url}")', "message_id": "m1", "fallback_url": url}
    preview = await client.post("/api/v1/rewrite/preview", json={"to": TO, **body})
    assert preview.status_code == 200, preview.text
    first, again = [await rewrite(client, **body) for _ in range(2)]
    assert first.status_code == 200, first.text
    assert again.json() == first.json()
    (created,) = first.json()["messages"][0]["links"]
    assert created["url"] == url
    code = created["code"]
    changed = await client.patch(f"/api/v1/links/{code}", json={"url": url + "/2", "fallback_url": url})
    assert changed.status_code == 200, changed.text


async def test_an_expired_link_redirects_to_its_fallback_url_with_replaced_placeholders(
    client: httpx.AsyncClient, clock: Clock
) -> None:
    fallback = "https://x.example/bye?m={message_id}&l={code}&c={click_id}"
    answer = await rewrite(client, body='#track("https://x.example/")', message_id="m-1", expires_in=60, fallback_url=fallback)
    code = answer.json()["messages"][0]["links"][0]["code"]
    clock.forward(seconds=61)
    location = (await client.get(f"/{code}", headers=PHONE)).headers["location"]
    assert location.startswith(f"https://x.example/bye?m=m-1&l={code}&c=")
    assert "{" not in location


async def test_an_optional_field_of_a_rewrite_that_is_null_counts_as_absent(client: httpx.AsyncClient) -> None:
    names = [name for name in RewriteMessage.model_json_schema()["properties"] if name not in ("to", "body", "message_id")]
    message = {"to": TO, "body": 'Look #track("https://shop.example/")', "message_id": "m-1"}
    first = await client.post("/api/v1/rewrite", json=message)
    with_null = message | dict.fromkeys(names) | {"tracking": None}
    repeated = await client.post("/api/v1/rewrite", json={"on_invalid": None, "messages": [with_null]})
    assert (repeated.status_code, repeated.json()) == (200, first.json())
    for required in ("to", "body"):
        answer = await client.post("/api/v1/rewrite", json=message | {required: None})
        assert [(detail["field"], detail["reason"]) for detail in answer.json()["details"]] == [(required, "is required")]
