"""Tests of delivery reports of gateways: how the message is found, and which state it gets."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import update

from shortener.accounts.administration import create_application
from shortener.container import Service
from shortener.gateways.decisions import discard, resend
from shortener.gateways.http import HttpGateway
from shortener.gateways.report_calls import ReportCall
from shortener.gateways.reports import GatewayReports
from shortener.gateways.submission import GatewayReport, OutgoingMessage, SubmitResult
from shortener.gateways.unrecorded_reports import LossReason
from shortener.ids import encode
from shortener.messages.balances import change_balance, read_balance
from shortener.messages.prices import set_price
from shortener.model import ALL_APPLICATIONS, State
from shortener.retention.erasure import erase_message
from shortener.storage import schema
from tests.conftest import NOON, Clock
from tests.factory import AUDIT, keep_sends, rows
from tests.gateways.conftest import MakeGateway, SendMessages, stored_message, stored_send
from tests.gateways.sending import FAILED, HELD, PENDING, SENT, kill, other_process, receive, start_attempts
from tests.one_service import on_one_service
from tests.receiver import Receiver, Reply


@pytest.fixture
async def message(service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver) -> str:
    """The id of a message that the gateway 2 of the default application has accepted with the id gw-1."""
    receiver.default_reply = Reply(200, b'{"id":"gw-1"}')
    await make_gateway(receiver.url())
    [sent] = await send_messages(message_ids=("m-1",))
    await service.gateway_dispatcher.flush()
    return str(sent["message_id"])


async def gateway_id(service: Service) -> int:
    return (await service.gateways.find("test", 1)).id


@on_one_service
@pytest.mark.parametrize("by", ["gateway_message_id", "message_id"])
@pytest.mark.parametrize("character", ["\ud800", "\0"])
async def test_a_gateway_report_with_an_id_that_a_database_cannot_store_is_about_an_unknown_message(
    service: Service, message: str, by: str, character: str
) -> None:
    report = replace(GatewayReport("DELIVRD", at=NOON), **{by: f"gw-1{character}"})  # type: ignore[arg-type]
    assert not await receive(service, await gateway_id(service), report)


@pytest.mark.parametrize("by", ["reference", "gateway_message_id", "message_id"])
async def test_a_gateway_report_can_identify_its_message_by_any_of_three_ids(service: Service, message: str, by: str) -> None:
    reference = encode((await stored_send(service)).id)
    ids = {"reference": reference, "gateway_message_id": "gw-1", "message_id": message}
    report = GatewayReport("DELIVRD", at=NOON, error_code="000", description="ok", price="0.01")
    report = replace(report, **{by: ids[by]})  # type: ignore[arg-type]
    assert await receive(service, await gateway_id(service), report)
    stored = await stored_message(service, message)
    assert (stored.state, stored.report_status, stored.reason_code) == (State.DELIVERED, "DELIVRD", "000")
    assert str(stored.mt_price) == "0.01"


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("1e-1000", "0.00000000000000000000"),
        ("1e-900000000", "0.00000000000000000000"),
        ("0e900000000", "0"),
        ("1e5", "100000"),
        ("0.0123456789012345678949", "0.01234567890123456789"),
        ("999999.99999999999999999999", "999999.99999999999999999999"),
        ("1e900000000", None),
        ("NaN", None),
        ("-1", None),
        ("free", None),
    ],
)
async def test_the_price_in_a_gateway_report_is_stored_without_an_exponent_and_with_at_most_20_decimals(
    service: Service, message: str, text: str, stored: str | None
) -> None:
    report = GatewayReport("DELIVRD", reference=encode((await stored_send(service)).id), price=text)
    assert await receive(service, await gateway_id(service), report)
    price = (await stored_message(service, message)).mt_price
    assert (None if price is None else format(price, "f")) == stored


async def test_a_gateway_cannot_report_the_delivery_of_a_message_of_another_gateway(
    service: Service, message: str, make_gateway: MakeGateway
) -> None:
    other = await make_gateway("http://127.0.0.1:9/", name="other")
    service.gateway_reports._wait.seconds = 0
    for ids in ({"reference": encode((await stored_send(service)).id)}, {"gateway_message_id": "gw-1"}, {"message_id": message}):
        assert not await receive(service, other.id, GatewayReport("DELIVRD", **ids))  # type: ignore[arg-type] # `at` has another type
    assert (await stored_message(service, message)).state == State.SENT


async def test_a_late_gateway_report_about_an_erased_message_stores_no_id_of_the_gateway(service: Service, message: str) -> None:
    reference = encode((await stored_send(service)).id)
    await service.database.write(erase_message, 1, message, NOON, AUDIT, keep_sends)
    report = GatewayReport("DELIVRD", reference=reference, gateway_message_id="gw-1", at=NOON)
    assert await receive(service, await gateway_id(service), report)
    stored = await stored_message(service, message)
    assert (stored.state, stored.telecom_message_id) == (State.DELIVERED, None)
    assert (await stored_send(service)).gateway_message_id is None


async def test_status_words_in_gateway_reports_are_mapped_to_message_states(service: Service, message: str) -> None:
    gateway, reference = await gateway_id(service), encode((await stored_send(service)).id)
    states = {"4": "-", "1": "DELIVERED"}
    assert await receive(service, gateway, GatewayReport("4", reference=reference), states)
    assert (await stored_message(service, message)).state == State.SENT
    assert await receive(service, gateway, GatewayReport("1", reference=reference), states)
    assert (await stored_message(service, message)).state == State.DELIVERED


async def test_a_gateway_report_with_an_unknown_status_word_changes_nothing(service: Service, message: str) -> None:
    report = GatewayReport("17", reference=encode((await stored_send(service)).id))
    assert not await receive(service, await gateway_id(service), report)
    assert (await stored_message(service, message)).state == State.SENT


async def test_a_gateway_report_that_arrives_before_the_send_response_is_applied_after_the_response(
    service: Service, clock: Clock, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    receiver.default_reply = Reply(200, b'{"id":"gw-1"}')
    gateway = await make_gateway(receiver.url())
    await send_messages()
    # A busy machine may need more than the service's 0.1 s to send the message and to store the response.
    patient = GatewayReports(service.database, service.delivery_reports, clock, timeout=20, wait=4)
    early = asyncio.ensure_future(patient.receive(gateway.id, GatewayReport("DELIVRD", gateway_message_id="gw-1")))
    await asyncio.sleep(0.02)  # the report begins to wait for its message
    await service.gateway_dispatcher.flush()
    assert await early


async def test_a_delivery_report_for_a_held_message_ends_the_hold(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    receiver.default_reply = Reply(close=True)
    gateway = await make_gateway(receiver.url(), on_doubt="hold")
    await send_messages()
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert send.status == HELD
    assert await receive(service, gateway.id, GatewayReport("DELIVRD", reference=encode(send.id)))
    send = await stored_send(service)
    assert (send.status, send.text) == (SENT, None)


@pytest.mark.parametrize("word", ["DELIVRD", "UNDELIV"])
@pytest.mark.parametrize("moment", ["during the attempt", "while the attempt is recorded"])
async def test_a_delivery_report_that_arrives_before_the_message_is_held_ends_the_hold(
    word: str,
    moment: str,
    service: Service,
    make_gateway: MakeGateway,
    send_messages: SendMessages,
    receiver: Receiver,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempt_ends = asyncio.Event()
    receiver.default_reply = Reply(close=True, after=attempt_ends)
    gateway = await make_gateway(receiver.url(), on_doubt="hold")
    [message] = await send_messages()
    dispatcher = other_process(service)
    await start_attempts(dispatcher, receiver, 1)
    if moment == "while the attempt is recorded":
        record = service.delivery_reports.record

        async def record_after_the_attempt(*args: Any) -> Any:
            # The report has found the message. Now the attempt ends and the dispatcher holds the message.
            attempt_ends.set()
            await dispatcher.flush()
            assert (await stored_send(service)).status == HELD
            return await record(*args)

        monkeypatch.setattr(service.delivery_reports, "record", record_after_the_attempt)
    report = GatewayReport(word, reference=encode((await stored_send(service)).id))
    assert await receive(service, gateway.id, report)
    attempt_ends.set()
    await dispatcher.flush()
    status, state = (SENT, State.DELIVERED) if word == "DELIVRD" else (FAILED, State.FAILED)
    send = await stored_send(service)
    assert (send.status, send.text, send.last_error if moment == "during the attempt" else None) == (status, None, None)
    assert (dispatcher.totals.held, dispatcher.totals.sent + dispatcher.totals.failed) in ((0, 1), (1, 0))
    clock.forward(hours=25)
    await dispatcher.flush()
    stored = await stored_message(service, message["message_id"])
    assert (stored.state, stored.failed_at is None) == (state, word == "DELIVRD")
    assert len(await rows(service.database, schema.events)) == 1


@pytest.mark.parametrize("end", ["expired", "removed", "discarded"])
async def test_a_doubtful_message_with_a_delivery_report_does_not_become_failed_when_it_is_given_up(
    end: str, service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = Reply(close=True)
    gateway = await make_gateway(receiver.url(), schedule=[3600.0])
    [message] = await send_messages()
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert (send.status, send.doubtful) == (PENDING, True)
    assert await receive(service, gateway.id, GatewayReport("DELIVRD", reference=encode(send.id)))
    if end == "expired":
        await service.gateways.update(AUDIT, gateway.id, {"enabled": False})
        clock.forward(hours=25)
    elif end == "removed":
        await service.gateways.remove(AUDIT, gateway.id)
    else:
        writer = service.gateway_dispatcher.writer
        await service.database.write(discard, AUDIT, writer, 1, message["message_id"], clock(), service.clock_guard.leases_wait)
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert (send.status, send.text) == (SENT, None)
    stored = await stored_message(service, message["message_id"])
    assert (stored.state, stored.failed_at) == (State.DELIVERED, None)


@pytest.mark.parametrize("response", [500, 429])
async def test_a_message_that_the_gateway_reports_as_sent_is_not_sent_again_after_a_temporary_failure(
    response: int, service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = response
    gateway = await make_gateway(receiver.url(), schedule=[1.0])
    [message] = await send_messages()
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert (send.status, send.doubtful) == (PENDING, False)
    assert await receive(service, gateway.id, GatewayReport("DELIVRD", reference=encode(send.id)))
    clock.forward(minutes=10)
    await service.gateway_dispatcher.flush()
    assert len(receiver.requests) == 1
    send = await stored_send(service)
    assert (send.status, send.text) == (SENT, None)
    assert (await stored_message(service, message["message_id"])).state == State.DELIVERED


async def test_a_message_that_the_gateway_reports_as_failed_is_sent_again_after_a_temporary_failure(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [500]
    gateway = await make_gateway(receiver.url(), schedule=[1.0])
    await send_messages()
    await service.gateway_dispatcher.flush()
    report = GatewayReport("UNDELIV", reference=encode((await stored_send(service)).id))
    assert await receive(service, gateway.id, report)
    clock.forward(minutes=1)
    await service.gateway_dispatcher.flush()
    assert len(receiver.requests) == 2
    assert (await stored_send(service)).status == SENT


@pytest.mark.parametrize("response", [400, 500, 200])
async def test_a_message_that_the_gateway_reports_as_sent_during_its_last_attempt_is_sent_and_not_refunded(
    response: int,
    service: Service,
    make_gateway: MakeGateway,
    send_messages: SendMessages,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal(10))
    await service.database.write(set_price, 0, "1", Decimal("0.25"))
    receiver.default_reply = Reply(response, b'{"error":"failed"}')
    settings = {"success_path": "$.status", "success_values": ["ok"]}
    await make_gateway(receiver.url(), max_attempts=1, settings=settings)
    [message] = await send_messages()
    submit = HttpGateway.submit

    async def report_and_submit(gateway: HttpGateway, message: OutgoingMessage, timeout: float) -> SubmitResult:
        assert await receive(service, gateway.config.id, GatewayReport("DELIVRD", reference=message.reference))
        return await submit(gateway, message, timeout)

    monkeypatch.setattr(HttpGateway, "submit", report_and_submit)
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert (send.status, send.text, send.refunded, send.last_error) == (SENT, None, False, None)
    stored = await stored_message(service, message["message_id"])
    assert (stored.state, stored.failed_at) == (State.DELIVERED, None)
    assert await service.database.read(read_balance, 1) == (Decimal("9.75"), "USD")
    assert (service.gateway_dispatcher.totals.sent, service.gateway_dispatcher.totals.failed) == (1, 0)


async def test_a_message_that_is_sent_again_after_its_lease_has_ended_stays_doubtful(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = Reply(hang=True)
    await make_gateway(receiver.url(), timeout=5)
    [message] = await send_messages()
    dispatcher = other_process(service)
    await start_attempts(dispatcher, receiver, 1)
    kill(dispatcher)
    clock.forward(minutes=1)
    await service.database.write(resend, AUDIT, 1, message["message_id"], clock(), service.clock_guard.leases_wait)
    send = await stored_send(service)
    assert (send.status, send.doubtful, send.lease_until) == (PENDING, True, None)


async def test_a_report_by_message_id_is_unknown_if_messages_of_several_applications_have_this_id(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages
) -> None:
    gateway = await make_gateway(owner=ALL_APPLICATIONS)
    other = (await service.database.write(create_application, "other", NOON)).application_id
    statement = update(schema.applications).values(gateway_id=gateway.id)
    await service.database.write(lambda connection: connection.execute(statement).rowcount)
    await service.directory.refresh()
    await send_messages(message_ids=("m-1",))
    report = GatewayReport("DELIVRD", message_id="m-1")
    assert await receive(service, gateway.id, report)
    await send_messages(message_ids=("m-1",), application_id=other)
    assert not await receive(service, gateway.id, report)
    [first, second] = await rows(service.database, schema.messages)
    assert {first.state, second.state} == {State.CREATED, State.DELIVERED}


@pytest.mark.parametrize(
    ("addresses", "is_known"),
    [
        (("14085550000", "12345"), True),
        (("+1 408 555-0000", ""), True),
        (("0014085550000", ""), True),
        (("04085550000", ""), True),
        (("Brand", "14085550000"), True),
        (("14085550001", "12345"), False),
        (("0000", ""), False),
        (("", ""), False),
    ],
)
async def test_a_report_that_only_its_text_marks_as_a_receipt_must_have_the_number_of_the_recipient(
    service: Service, message: str, addresses: tuple[str, ...], is_known: bool
) -> None:
    report = GatewayReport("UNDELIV", gateway_message_id="gw-1", addresses=addresses)
    service.gateway_reports._wait.seconds = 0
    assert await receive(service, await gateway_id(service), report) is is_known
    assert (await stored_message(service, message)).state == (State.FAILED if is_known else State.SENT)


async def test_all_unknown_reports_of_one_call_wait_together(
    service: Service, message: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    recorder = GatewayReports(service.database, service.delivery_reports, clock, timeout=20, wait=1)
    known = GatewayReport("DELIVRD", message_id=message)
    unknown = [GatewayReport("DELIVRD", gateway_message_id=f"unknown-{number}") for number in range(20)]
    await recorder.receive_all(await gateway_id(service), ReportCall([*unknown, known], {}), {})
    assert pauses == [0.1, 0.3, 0.6]
    assert recorder.unrecorded.of_gateway(await gateway_id(service)) == {LossReason.UNKNOWN_MESSAGE: 20}
    assert (await stored_message(service, message)).state == State.DELIVERED
