"""Tests of three parts of the portal: the page of the gateways, the list of the messages that gateways send, and the decisions
about held messages."""

from __future__ import annotations

import asyncio
import csv
import html
import io
import re
from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from shortener.accounts.administration import create_application
from shortener.container import Service
from shortener.gateways.connection_keeper import ConnectionKeeper
from shortener.gateways.gateway import NewGateway
from shortener.gateways.queries import update_gateway
from shortener.gateways.report_calls import ReportCall
from shortener.gateways.submission import GatewayReport
from shortener.gateways.unrecorded_reports import LossReason
from shortener.messages.balances import change_balance
from shortener.messages.prices import set_price
from shortener.model import SendStatus
from shortener.portal.operators import Role
from shortener.reporting import sends as sends_module
from tests.conftest import NOON, Clock
from tests.factory import AUDIT
from tests.gateways.conftest import MakeGateway, SendMessages, stored_sends
from tests.gateways.smpp.smsc import running_smsc
from tests.portal.conftest import SignIn, log
from tests.receiver import Receiver, Reply
from tests.servers import PATIENCE

FIGURE = re.compile(r'data-figure="(\w+)" data-value="(\d+)" href="([^"]+)"')
HIDDEN = re.compile(r'<input type="hidden" name="(\w+)" value="([^"]*)">')
ACCEPTED = Reply(200, b'{"id":"gw-1"}')


async def rows(browser: httpx.AsyncClient, href: str) -> list[dict[str, str]]:
    """Return the rows of the CSV of a list."""
    path, _, query = href.partition("?")
    response = await browser.get(f"{path}.csv?{query}")
    assert response.status_code == 200, response.text
    return list(csv.DictReader(io.StringIO(response.text)))


async def figures(browser: httpx.AsyncClient, page: str) -> dict[str, int]:
    """Return the figures of a page by name. Figures of the same name are added. Check that each figure equals the number of rows
    in its list."""
    found: dict[str, int] = {}
    for name, value, href in FIGURE.findall((await browser.get(page)).text):
        assert len(await rows(browser, html.unescape(href))) == int(value), (page, name, href)
        found[name] = found.get(name, 0) + int(value)
    return found


@pytest.fixture
async def messages(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> dict[str, str]:
    """The ids of four messages of the selected gateway `test`, by their state: held, sent, failed and waiting."""
    await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal("12.5"), currency="EUR")
    await service.database.write(set_price, 0, "1", Decimal("0.25"))
    gateway = await make_gateway(receiver.url(), on_doubt="hold")
    found = {}
    for state, reply in (("held", Reply(close=True)), ("sent", ACCEPTED), ("failed", Reply(400, b'{"error":"no"}'))):
        receiver.replies = [reply]
        [message] = await send_messages()
        await service.gateway_dispatcher.flush()
        found[state] = message["message_id"]
    [message] = await send_messages()
    found["pending"] = message["message_id"]
    assert [SendStatus(row.status).api_name for row in await stored_sends(service)] == list(found)
    opened = {"failures_in_row": 12, "opened_at": clock() - timedelta(minutes=3), "open_until": clock() + timedelta(minutes=4)}
    await service.database.write(update_gateway, gateway.id, opened)
    clock.forward(minutes=2)
    return found


async def test_the_held_messages_that_need_attention_are_a_figure_of_the_overview(
    sign_in: SignIn, messages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer = await sign_in("Vera", Role.VIEWER, 1)
    assert (await figures(viewer, "/portal/1/"))["held"] == 1
    monkeypatch.setattr("shortener.portal.attention.MAX_COUNTED", 1)
    text = (await viewer.get("/portal/1/")).text
    assert "1 or more held message waits for a decision" in text
    assert 'data-figure="held"' not in text


async def test_the_page_of_the_gateways_shows_their_state_and_each_number_leads_to_as_many_messages(
    service: Service, sign_in: SignIn, messages: dict[str, str], clock: Clock
) -> None:
    viewer = await sign_in("Vera", Role.VIEWER, 1)
    assert await figures(viewer, "/portal/1/gateways") == {"pending": 1, "held": 1, "sent": 1, "failed": 1, "doubtful": 1}
    text = html.unescape((await viewer.get("/portal/1/gateways?tz=UTC")).text)
    assert re.search(r'<span class="name">test</span>.*selected.*<span class="sub">http</span>', text)
    assert "failing, waits" in text
    assert f"{clock() - timedelta(minutes=5):%H:%M:%S}" in text, "the page shows when the circuit breaker has opened"
    assert f"{clock() + timedelta(minutes=2):%H:%M:%S}" in text, "the page shows the time of the next attempt"
    assert "oldest 2\N{NO-BREAK SPACE}min" in text
    assert "the gateway rejected the message" in text
    assert "11.75 EUR" in text
    assert "127.0.0.1" not in text, "the URL of a gateway may contain credentials"
    [row, *_] = await rows(viewer, "/portal/1/gateways")
    assert (row["name"], row["selected"], row["breaker"], row["waiting"], row["held"]) == ("test", "true", "open", "1", "1")
    assert (row["sent"], row["failed"], row["doubtful"], row["last_error"]) == ("1", "1", "1", "rejected")
    assert await figures(viewer, "/portal/1/gateways?period=yesterday") == {
        "pending": 1,
        "held": 1,
        "sent": 0,
        "failed": 0,
        "doubtful": 0,
    }


@pytest.mark.parametrize(
    ("health", "shown", "breaker"),
    [
        ({"failures_in_row": 0}, "not used yet", "closed"),
        ({"last_success_at": NOON}, "working", "closed"),
        ({"last_failure_at": NOON}, "working", "closed"),
        ({"failures_in_row": 2, "last_failure_at": NOON}, "last attempt failed", "closed"),
        ({"failures_in_row": 12, "opened_at": NOON, "open_until": NOON}, "testing again", "half_open"),
    ],
)
async def test_the_page_of_the_gateways_shows_the_last_attempts_and_its_csv_only_the_state_of_the_circuit_breaker(
    service: Service, sign_in: SignIn, make_gateway: MakeGateway, health: dict[str, Any], shown: str, breaker: str
) -> None:
    gateway = await make_gateway()
    await service.database.write(update_gateway, gateway.id, health)
    viewer = await sign_in("Vera", Role.VIEWER, 1)
    text = (await viewer.get("/portal/1/gateways")).text
    assert f"<span>{shown}</span>" in text[text.index('<span class="name">test</span>') :].partition("</tr>")[0]
    shown_breakers = {row["name"]: row["breaker"] for row in await rows(viewer, "/portal/1/gateways")}
    assert shown_breakers == {"test": breaker, "simulator": "closed"}, "the application may use the simulator of the installation"


async def test_a_number_of_messages_that_was_not_counted_completely_is_shown_as_a_lower_limit(
    sign_in: SignIn, messages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = await sign_in("Vera", Role.VIEWER, 1)
    monkeypatch.setattr(sends_module, "MAX_COUNTED", 3)
    text = (await browser.get("/portal/1/gateways")).text
    assert re.search(r'at least 1 <a class="sub" href="[^"]*state=failed">List</a>', text), "the number itself is no link"
    assert "“At least” means" in text
    assert not re.search(r'data-figure="(sent|failed|doubtful)"', text)


async def test_the_list_of_the_messages_of_gateways_shows_masked_numbers_states_and_errors_in_words(
    sign_in: SignIn, service: Service, messages: dict[str, str]
) -> None:
    viewer, support = await sign_in("Vera", Role.VIEWER, 1), await sign_in("Sue", Role.SUPPORT, 1)
    text = html.unescape((await viewer.get("/portal/1/sends")).text)
    for message_id in messages.values():
        assert f'<a href="/portal/1/messages/{message_id}">{message_id}</a>' in text
    assert "4085550000" not in text
    for words in (
        "the gateway closed the connection without a response",
        "the gateway rejected the message",
        "doubtful: the gateway may have it",
    ):
        assert words in text
    assert "Send again" not in text, "a viewer cannot decide"
    for state, message_id in messages.items():
        assert [row["message_id"] for row in await rows(viewer, f"/portal/1/sends?state={state}")] == [message_id]
    assert len(await rows(viewer, "/portal/1/sends?gateway=99")) == 0
    assert {row["to"].lstrip("'") for row in await rows(viewer, "/portal/1/sends?numbers=1")} == {"+14…00"}
    revealed = await rows(support, "/portal/1/sends?numbers=1&gateway=2")
    assert {row["to"].lstrip("'") for row in revealed} == {"+14085550000"}
    assert (await log(service))[-1].after == {"gateway": "2", "numbers": "1"}
    assert (await viewer.get("/portal/1/sends?state=nonsense")).status_code == 400
    cost = {row["message_id"]: row["cost"] for row in await rows(viewer, "/portal/1/sends")}
    assert cost == {messages["held"]: "0.25", messages["sent"]: "0.25", messages["failed"]: "", messages["pending"]: "0.25"}


async def test_the_list_of_the_messages_of_gateways_has_pages_and_also_exists_for_all_applications(
    sign_in: SignIn, messages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = await sign_in()
    monkeypatch.setattr("shortener.portal.listing.ROWS", 3)
    for path in ("/portal/1/sends", "/portal/all/sends"):
        page = (await admin.get(path)).text
        assert re.findall(r'<th scope="row"><a href="[^"]*">([^<]+)', page) == list(messages.values())[:0:-1]
        (following,) = re.findall(r'rel="next" href="([^"]+)"', page)
        assert messages["held"] in (await admin.get(html.unescape(following))).text
    assert len(await rows(admin, "/portal/all/sends")) == 4
    assert (await admin.get("/portal/all/gateways")).status_code == 404
    assert "Send again…" in (await admin.get("/portal/1/sends?state=held")).text
    assert "Send again…" not in (await admin.get("/portal/all/sends?state=held")).text, "decisions are made in an application"


async def test_a_manager_sends_a_held_message_again_after_a_question(
    service: Service, sign_in: SignIn, messages: dict[str, str], receiver: Receiver, clock: Clock
) -> None:
    manager, support = await sign_in("Mia", Role.MANAGER, 1), await sign_in("Sue", Role.SUPPORT, 1)
    page = (await manager.get("/portal/1/sends?state=held&period=365d")).text
    assert "Send again…" in page
    (back,) = re.findall(r'name="back" value="([^"]+)"', page)
    form = {"action": "resend", "message": messages["held"], "back": html.unescape(back)}
    assert (await support.post("/portal/1/sends", data=form)).status_code == 403
    before = await log(service)
    asked = html.unescape((await manager.post("/portal/1/sends", data=form)).text)
    assert "Nothing has changed yet." in asked
    assert "If the gateway has already accepted the message, the recipient gets it twice." in asked
    assert await log(service) == before
    fields = {name: html.unescape(value) for name, value in HIDDEN.findall(asked[asked.index("Nothing has changed yet.") :])}
    service.gateway_dispatcher.wake_up._event.clear()
    done = await manager.post("/portal/1/sends", data=fields)
    assert service.gateway_dispatcher.wake_up._event.is_set()
    assert (done.status_code, done.headers["location"]) == (303, "/portal/1/sends?state=held&period=365d&done=resend")
    assert "The message is sent again as soon as possible." in (await manager.get(done.headers["location"])).text
    row = (await log(service))[-1]
    assert (row.action, row.operator, row.object) == ("send_resent", "Mia", messages["held"])
    repeated = await manager.post("/portal/1/sends", data=fields)
    assert repeated.headers["location"] == "/portal/1/sends?state=held&period=365d&done=repeated"
    for path in (repeated.headers["location"], f"/portal/1/messages/{messages['held']}?done=repeated"):
        shown = (await manager.get(path)).text
        assert "This decision was sent before and was carried out then. Nothing was done now." in shown
        assert "The message is sent again as soon as possible." not in shown
    assert [row.action for row in await log(service)].count("send_resent") == 1
    assert "Give up…" in (await manager.get("/portal/1/sends?state=doubtful")).text, "the message can still be given up"
    receiver.default_reply = ACCEPTED
    await service.database.write(update_gateway, 2, {"failures_in_row": 0, "opened_at": None, "open_until": None})
    clock.forward(seconds=1)
    await service.gateway_dispatcher.flush()
    assert {row["send_status"] for row in await rows(manager, "/portal/1/sends?state=doubtful")} == {"sent"}
    assert "Give up…" not in (await manager.get("/portal/1/sends?state=doubtful")).text


async def test_a_manager_gives_a_held_message_up_after_a_question(
    service: Service, sign_in: SignIn, messages: dict[str, str]
) -> None:
    manager = await sign_in("Mia", Role.MANAGER, 1)
    form = {"action": "discard", "message": messages["held"]}
    asked = html.unescape((await manager.post("/portal/1/sends", data=form)).text)
    assert "Its cost of 0.25 is not refunded, because the gateway may have accepted the message." in asked
    waiting = {"action": "discard", "message": messages["pending"]}
    assert "Its cost of 0.25 is refunded." in (await manager.post("/portal/1/sends", data=waiting)).text
    service.events_wake_up._event.clear()
    assert (await manager.post("/portal/1/sends", data={**form, "confirmed": "yes"})).status_code == 303
    assert service.events_wake_up._event.is_set(), "the fan-out delivers the event that the message has failed"
    assert (await log(service))[-1].action == "send_discarded"
    assert [row["last_error"] for row in await rows(manager, "/portal/1/sends?state=doubtful")] == ["discarded"]
    assert (await manager.post("/portal/1/sends", data={**form, "confirmed": "yes"})).status_code == 409
    for state in ("sent", "failed"):
        for action in ("resend", "discard"):
            refused = await manager.post("/portal/1/sends", data={"action": action, "message": messages[state]})
            assert refused.status_code == 409, "the page asks nothing about a message that is sent or has failed"
            assert f"already {state}" in refused.text
    unknown = {"action": "discard", "message": "unknown"}
    assert (await manager.post("/portal/1/sends", data=unknown)).status_code == 404
    assert (await manager.post("/portal/1/sends", data={**form, "action": "x"})).status_code == 400


async def test_the_page_of_a_held_message_shows_its_state_in_words_and_leads_to_the_decision(
    service: Service, sign_in: SignIn, messages: dict[str, str]
) -> None:
    manager, support = await sign_in("Mia", Role.MANAGER, 1), await sign_in("Sue", Role.SUPPORT, 1)
    path = f"/portal/1/messages/{messages['held']}"
    page = (await manager.get(path)).text
    (href,) = re.findall(r'test: <a href="([^"]+)"><span class="badge warn"><span>Held<', page)
    assert [row["message_id"] for row in await rows(manager, html.unescape(href))] == [messages["held"]]
    assert "Send again…" in page
    assert "Give up…" in page
    assert "Send again…" not in (await support.get(path)).text, "support may not decide"
    sent = (await manager.get(f"/portal/1/messages/{messages['sent']}")).text
    assert ">Sent<" in sent
    assert "Send again…" not in sent
    (back,) = re.findall(r'name="back" value="([^"]+)"', page)
    form = {"action": "resend", "message": messages["held"], "back": html.unescape(back), "confirmed": "yes"}
    done = await manager.post("/portal/1/sends", data=form)
    assert done.headers["location"] == f"{path}?done=resend"
    again = (await manager.get(done.headers["location"])).text
    assert "The message is sent again as soon as possible." in again
    (href,) = re.findall(r'test: <a href="([^"]+)"><span class="badge"><span>Waiting<', again)
    assert [row["message_id"] for row in await rows(manager, html.unescape(href))] == [messages["held"]]
    assert "Give up…" in again, "the message is doubtful, and can still be given up"


async def test_gateways_and_decisions_of_another_application_return_404(
    service: Service, sign_in: SignIn, messages: dict[str, str], clock: Clock
) -> None:
    other = (await service.database.write(create_application, "other", clock())).application_id
    await service.directory.refresh()
    manager = await sign_in("Mia", Role.MANAGER, other)
    for path in ("gateways", "gateways.csv", "sends", "sends.csv"):
        assert (await manager.get(f"/portal/1/{path}")).status_code == 404
    form = {"action": "discard", "message": messages["held"], "confirmed": "yes"}
    assert (await manager.post("/portal/1/sends", data=form)).status_code == 404
    assert (await manager.post(f"/portal/{other}/sends", data=form)).status_code == 404
    assert messages["held"] not in (await manager.get(f"/portal/{other}/sends")).text
    assert ">test<" not in (await manager.get(f"/portal/{other}/gateways")).text


async def test_the_menu_contains_the_gateways_only_if_the_application_has_or_had_one(
    service: Service, sign_in: SignIn, make_gateway: MakeGateway
) -> None:
    viewer = await sign_in("Vera", Role.VIEWER, 1)
    for path in ("/portal/1/", "/portal/me"):
        assert "/portal/1/gateways" not in (await viewer.get(path)).text
    gateway = await make_gateway()
    await service.gateways.remove(AUDIT, gateway.id, 1)
    await service.directory.refresh()
    for path in ("/portal/me", "/portal/1/"):
        assert "/portal/1/gateways" in (await viewer.get(path)).text


async def test_the_messages_of_a_removed_gateway_are_still_shown_with_its_name(
    service: Service, sign_in: SignIn, messages: dict[str, str]
) -> None:
    viewer = await sign_in("Vera", Role.VIEWER, 1)
    gateway = await service.gateways.find("test", 1)
    await service.gateways.remove(AUDIT, gateway.id, 1)
    await service.directory.refresh()
    assert (await figures(viewer, "/portal/1/gateways"))["sent"] == 1
    assert '<option value="2">test (removed)</option>' in (await viewer.get("/portal/1/sends")).text
    second = await service.gateways.create(AUDIT, 1, NewGateway(name="test", kind="simulator"))
    await service.gateways.remove(AUDIT, second.id, 1)
    text = (await viewer.get("/portal/1/sends?gateway=99")).text
    for number in (gateway.id, second.id):
        assert f'<option value="{number}">test (removed) ({number})</option>' in text
    assert '<option value="99" selected>99</option>' in text


async def test_the_overview_names_a_gateway_that_fails_and_the_held_messages(
    service: Service, sign_in: SignIn, messages: dict[str, str]
) -> None:
    viewer, admin = await sign_in("Vera", Role.VIEWER, 1), await sign_in()
    text = (await viewer.get("/portal/1/")).text
    assert '<a href="/portal/1/gateways">Gateway test fails; its messages wait</a>' in text
    assert 'href="/portal/1/sends?period=365d&amp;state=held">1 held message waits for a decision</a>' in text
    everywhere = (await admin.get("/portal/all/")).text
    assert '<a href="/portal/1/gateways">default: gateway test fails; its messages wait</a>' in everywhere
    assert 'href="/portal/1/sends?period=365d&amp;state=held">default: 1 held message waits for a decision</a>' in everywhere


async def test_the_page_of_the_gateways_says_whether_the_connection_to_an_smpp_gateway_is_open(
    service: Service, sign_in: SignIn
) -> None:
    viewer, connections = await sign_in("Vera", Role.VIEWER, 1), service.gateway_connections
    async with running_smsc() as smsc:
        settings = {"url": f"smpp://127.0.0.1:{smsc.port}", "system_id": "x"}
        gateway = await service.gateways.create(AUDIT, 1, NewGateway(name="smsc", kind="smpp", settings=settings))
        await service.directory.refresh()
        assert "connection" not in (await viewer.get("/portal/1/gateways")).text, (
            "this process does not know whether the connection is open"
        )
        await ConnectionKeeper(service.gateways, service.directory, connections).step()
        async with asyncio.timeout(PATIENCE):
            while not connections.is_open(gateway.id):
                await asyncio.sleep(0.01)  # the pause between two checks
        assert "connection open" in (await viewer.get("/portal/1/gateways")).text
    async with asyncio.timeout(PATIENCE):
        while connections.is_open(gateway.id):
            await asyncio.sleep(0.01)  # the pause between two checks
    assert "connection closed" in (await viewer.get("/portal/1/gateways")).text
    await service.gateways.update(AUDIT, gateway.id, {"enabled": False})
    await service.directory.refresh()
    assert "connection" not in (await viewer.get("/portal/1/gateways")).text, "a disabled gateway needs no connection"
    await connections.close()


async def test_the_page_of_the_gateways_says_how_many_delivery_reports_were_not_recorded(
    service: Service, make_gateway: MakeGateway, sign_in: SignIn
) -> None:
    viewer, gateway = await sign_in("Vera", Role.VIEWER, 1), await make_gateway("http://127.0.0.1:9/")
    other = await make_gateway("http://127.0.0.1:9/", name="other")
    assert "not recorded" not in (await viewer.get("/portal/1/gateways")).text
    call = ReportCall([GatewayReport("GARBAGE", message_id="unknown")], {LossReason.NO_STATUS: 1234})
    service.gateway_reports._wait.seconds = 0
    await service.gateway_reports.receive_all(gateway.id, call, {})
    text = (await viewer.get("/portal/1/gateways")).text
    found = re.findall(r"delivery reports not recorded: ([^<]+)<", text)
    assert found == ["1,234 (no status)", "1 (unknown message)"]
    service.gateway_reports.count_unreadable(other.id)
    assert (
        "delivery reports not recorded: 1 (no id or no state in the SMPP receipt)" in (await viewer.get("/portal/1/gateways")).text
    )
