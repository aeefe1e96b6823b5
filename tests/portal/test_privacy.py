"""Tests of the page that erases a person's data."""

from __future__ import annotations

from decimal import Decimal

import pytest

from shortener.container import Service
from shortener.gateways.gateway import NewGateway
from shortener.messages.balances import change_balance, read_balance
from shortener.messages.prices import set_price
from shortener.messages.rewrite_item import RewriteItem
from shortener.portal.operators import Role
from shortener.storage.schema import messages, sends
from tests.clicks.helpers import TO, create_codes, fetch_rows, forget_expressions, make_hit
from tests.conftest import NOON, Clock
from tests.factory import AUDIT
from tests.one_service import on_one_service
from tests.portal.conftest import SignIn, log


async def test_the_erasure_page_first_shows_the_number_of_messages_and_then_a_receipt(service: Service, sign_in: SignIn) -> None:
    for _ in range(2):
        await create_codes(service)
    browser = await sign_in("Mia", Role.MANAGER, 1)
    form = {"kind": "phone", "subject": "+1 (408) 555-0100"}
    question = await browser.post("/portal/1/privacy", data=form | {"action": "count"})
    assert question.status_code == 200
    assert f"Erase {TO}?" in question.text
    assert "2 messages" in question.text
    assert {row.to_address for row in await fetch_rows(service, messages)} == {TO}, "nothing is erased yet"

    receipt = await browser.post("/portal/1/privacy", data=form | {"action": "erase"})
    assert receipt.status_code == 200
    text = receipt.text.partition('id="receipt"')[2].partition("</section>")[0]
    assert "Mia" in text
    assert "all messages to one number" in text
    assert TO not in text
    assert TO not in {row.to_address for row in await fetch_rows(service, messages)}
    row = (await log(service))[-1]
    assert (row.action, row.operator, row.after["messages"], row.after["links"]) == ("data_erased", "Mia", 2, 2)
    assert "555" not in f"{row.object} {row.after}"
    again = await browser.post("/portal/1/privacy", data=form | {"action": "erase"})
    assert again.status_code == 422
    assert "no message of this application has this number" in again.text


async def test_the_erasure_page_erases_one_message_by_its_id(
    service: Service, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = await create_codes(service, message_ids=("m-1",))
    await service.recorder.record(make_hit(service, code))
    forget_expressions(monkeypatch)
    await create_codes(service, message_ids=("m-2",))
    browser = await sign_in("Mia", Role.MANAGER, 1)
    form = {"kind": "message_id", "subject": "m-1", "action": "erase"}
    assert (await browser.post("/portal/1/privacy", data=form)).status_code == 200
    stored = {row.message_id: row.to_address for row in await fetch_rows(service, messages)}
    assert stored["m-1"] != TO
    assert stored["m-2"] == TO
    assert (await log(service))[-1].object == "one message"


@pytest.mark.parametrize("kind", ["phone", "message_id"])
async def test_the_erasure_page_refunds_the_cost_of_an_unsent_message(kind: str, service: Service, sign_in: SignIn) -> None:
    await service.gateways.create(AUDIT, 1, NewGateway(name="test", settings={"url": "http://127.0.0.1:9/"}))
    await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal(10))
    await service.database.write(set_price, 0, "1", Decimal("0.25"))
    await service.directory.refresh()
    application = service.directory.application(1)
    assert application is not None
    [message] = await service.rewriter.rewrite(application, [RewriteItem((TO,), "hello", gateway="test")])
    browser = await sign_in("Mia", Role.MANAGER, 1)
    form = {"kind": kind, "subject": TO if kind == "phone" else message["message_id"], "action": "erase"}
    assert (await browser.post("/portal/1/privacy", data=form)).status_code == 200
    [send] = await fetch_rows(service, sends)
    assert (send.last_error, send.refunded) == ("erased", True)
    assert await service.database.read(read_balance, 1) == (Decimal(10), "USD")


@on_one_service
@pytest.mark.parametrize(
    ("kind", "subject"),
    [
        ("phone", ""),
        ("phone", "12"),
        ("phone", "+0"),
        ("phone", TO),
        ("message_id", "unknown"),
        ("message_id", "x" * 256),
        ("x", TO),
    ],
)
async def test_the_erasure_of_a_phone_number_without_messages_changes_nothing(
    service: Service, sign_in: SignIn, kind: str, subject: str
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    response = await browser.post("/portal/1/privacy", data={"kind": kind, "subject": subject, "action": "erase"})
    assert response.status_code == 422
    assert [row.action for row in await log(service)] == ["invitation_accepted"]


async def test_erasing_requires_a_manager_of_the_application_and_a_recently_entered_password(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    from shortener.accounts.administration import create_application

    await create_codes(service)
    support = await sign_in("Sue", Role.SUPPORT, 1)
    assert (await support.get("/portal/1/privacy")).status_code == 403
    other = await service.database.write(create_application, "Other", service.clock())
    await service.directory.refresh()
    manager = await sign_in("Mia", Role.MANAGER, other.application_id)
    form = {"kind": "phone", "subject": TO, "action": "erase"}
    assert (await manager.post("/portal/1/privacy", data=form)).status_code == 404
    assert (await manager.post(f"/portal/{other.application_id}/privacy", data=form)).status_code == 422, (
        "the message belongs to another application"
    )
    clock.forward(minutes=11)
    response = await manager.post(f"/portal/{other.application_id}/privacy", data=form)
    assert response.status_code == 403
    assert "Confirm your password" in response.text
    assert {row.to_address for row in await fetch_rows(service, messages)} == {TO}
