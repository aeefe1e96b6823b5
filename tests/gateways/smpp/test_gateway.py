"""Tests of the connection to an SMPP gateway, with an SMSC in the process of the test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from shortener.delivery.guard import Guard
from shortener.gateways.early_reports import MessageNotKnownYet
from shortener.gateways.smpp import connection
from shortener.gateways.smpp import gateway as gateway_module
from shortener.gateways.smpp.gateway import SmppGateway
from shortener.gateways.smpp.pdus import ReceivedPdu
from shortener.gateways.smpp.settings import SmppSettings
from shortener.gateways.submission import GatewayConfig, GatewayContext, GatewayReport, OutgoingMessage, SubmitOutcome
from tests.gateways.smpp.smsc import Smsc, running_smsc
from tests.servers import PATIENCE

ACCEPTED, REJECTED, RETRY, DOUBT = (
    SubmitOutcome.ACCEPTED,
    SubmitOutcome.REJECTED,
    SubmitOutcome.RETRY,
    SubmitOutcome.DOUBT,
)
TIMEOUT = 20.0


class Records:
    """The delivery reports and replies that the SMPP gateway recorded."""

    def __init__(self) -> None:
        self.reports: list[GatewayReport] = []
        self.replies: list[tuple[str, str]] = []
        self.error: Exception | None = None
        self.unreadable = 0

    async def report(self, gateway_id: int, report: GatewayReport) -> bool:
        if self.error:
            raise self.error
        self.reports.append(report)
        return True

    def count_unreadable(self, gateway_id: int) -> None:
        self.unreadable += 1

    async def reply(self, gateway_id: int, phone: str, text: str) -> None:
        if self.error:
            raise self.error
        self.replies.append((phone, text))


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(gateway_module, "THROTTLE_PAUSE_SECONDS", 0.04)


@asynccontextmanager
async def connected(smsc: Smsc, records: Records, *, receives: bool = True, **settings: Any) -> AsyncIterator[SmppGateway]:
    """Open a connection of an SMPP gateway to the fake SMSC."""
    values = {"url": f"smpp://127.0.0.1:{smsc.port}", "system_id": "shortener", "password": "secret"} | settings
    config = GatewayConfig(1, "test", "smpp", 1, SmppSettings(**values), "https://go.example/r", allow_private=True)
    sender = cast("Any", None)  # an SMPP connection sends no HTTP requests
    context = GatewayContext(
        sender,
        sender,
        records.report,
        lambda: datetime.now(UTC),
        records.reply if receives else None,
        count_unreadable=records.count_unreadable if receives else None,
    )
    gateway = SmppGateway(config, context)
    try:
        yield gateway
    finally:
        await gateway.close()


def message(text: str = "hello", reference: str = "r1", sender: str = "Brand") -> OutgoingMessage:
    return OutgoingMessage(reference, f"m-{reference}", "+14085550100", text, sender, "GSM-7", 1, "https://go.example/r")


async def test_the_smpp_gateway_submits_a_message_with_its_addresses_and_returns_the_id_from_the_smsc(records: Records) -> None:
    async with running_smsc() as smsc, connected(smsc, records) as gateway:
        result = await gateway.submit(message(), TIMEOUT)
        assert (result.outcome, result.status) == (ACCEPTED, 0)
        (pdu,) = smsc.submitted
        assert result.gateway_message_id == f"id-{pdu.sequence}"
        assert (pdu.source_addr, pdu.source_addr_ton, pdu.source_addr_npi) == (b"Brand", 5, 0)
        assert (pdu.destination_addr, pdu.dest_addr_ton, pdu.dest_addr_npi) == (b"14085550100", 1, 1)
        assert (pdu.short_message, pdu.data_coding, pdu.registered_delivery, pdu.esm_class) == (b"hello", 0, 1, 0)
        (bind,) = smsc.binds
        assert (bind.command, bind.system_id, bind.password) == ("bind_transceiver", b"shortener", b"secret")
    assert smsc.commands[-1] == "unbind"


@pytest.mark.parametrize(
    ("sender", "address", "ton", "npi"),
    [("18775550100", b"18775550100", 1, 1), ("+18775550100", b"18775550100", 1, 1), ("12345", b"12345", 3, 1), ("", b"", 0, 0)],
)
async def test_the_smpp_address_type_of_a_sender_depends_on_the_form_of_the_sender(
    records: Records, sender: str, address: bytes, ton: int, npi: int
) -> None:
    async with running_smsc() as smsc, connected(smsc, records) as gateway:
        await gateway.submit(message(sender=sender), TIMEOUT)
    (pdu,) = smsc.submitted
    assert (pdu.source_addr, pdu.source_addr_ton or 0, pdu.source_addr_npi or 0) == (address, ton, npi)


async def test_a_sender_that_smpp_cannot_represent_is_rejected_without_a_request(records: Records) -> None:
    async with running_smsc() as smsc, connected(smsc, records) as gateway:
        assert (await gateway.submit(message(sender="Größe"), TIMEOUT)).reason == "invalid_sender"
    assert smsc.submitted == []


async def test_a_long_text_is_sent_in_parts_and_only_the_last_part_requests_a_delivery_receipt(records: Records) -> None:
    async with running_smsc() as smsc, connected(smsc, records) as gateway:
        result = await gateway.submit(message("я" * 150), TIMEOUT)
    assert [pdu.esm_class for pdu in smsc.submitted] == [0x40] * 3
    assert [pdu.short_message[5] for pdu in smsc.submitted] == [1, 2, 3]
    assert [pdu.registered_delivery for pdu in smsc.submitted] == [0, 0, 1]
    assert result.gateway_message_id == f"id-{smsc.submitted[-1].sequence}"


@pytest.mark.parametrize("status", [0x58, 0x14])
async def test_a_throttled_message_is_retried_and_lowers_the_rate_of_the_gateway(records: Records, status: int) -> None:
    async with running_smsc(decide=lambda pdu: status) as smsc, connected(smsc, records) as gateway:
        result = await gateway.submit(message(), TIMEOUT)
    assert (result.outcome, result.reason, result.is_throttled, result.status) == (RETRY, "throttled", True, status)


@pytest.mark.parametrize(
    ("status", "outcome", "reason"),
    [(0x0B, REJECTED, "rejected"), (0x45, REJECTED, "rejected"), (0x08, RETRY, "gateway_error"), (0x64, RETRY, "gateway_error")],
)
async def test_an_smpp_error_status_rejects_a_message_unless_the_status_is_temporary(
    records: Records, status: int, outcome: SubmitOutcome, reason: str
) -> None:
    async with running_smsc(decide=lambda pdu: status) as smsc, connected(smsc, records) as gateway:
        result = await gateway.submit(message(), TIMEOUT)
    assert (result.outcome, result.reason, result.status) == (outcome, reason, status)
    assert "ESME_R" in result.detail


async def test_a_message_is_retried_after_an_smpp_error_that_the_setting_retry_statuses_contains(records: Records) -> None:
    async with running_smsc(decide=lambda pdu: 0x45) as smsc, connected(smsc, records, retry_statuses="0x45, 1025") as gateway:
        assert (await gateway.submit(message(), TIMEOUT)).outcome is RETRY


async def test_a_throttled_part_of_a_long_message_is_sent_again_and_accepted_parts_are_not_sent_again(records: Records) -> None:
    statuses = iter([0, 0x58, 0x58, 0, 0])
    async with running_smsc(decide=lambda pdu: next(statuses)) as smsc, connected(smsc, records) as gateway:
        assert (await gateway.submit(message("x" * 400), TIMEOUT)).outcome is ACCEPTED
    assert [pdu.short_message[5] for pdu in smsc.submitted] == [1, 2, 2, 2, 3]


async def test_the_next_attempt_does_not_repeat_accepted_parts_of_a_long_message(records: Records) -> None:
    async with running_smsc() as smsc, connected(smsc, records) as gateway:
        smsc.decide = lambda pdu: 0 if pdu.short_message[5] == 1 else 0x08
        first = await gateway.submit(message("x" * 400), TIMEOUT)
        assert (first.outcome, first.reason) == (DOUBT, "gateway_error")
        assert first.detail.startswith("part 2 of 3")
        smsc.decide = lambda pdu: 0
        assert (await gateway.submit(message("x" * 400), TIMEOUT)).outcome is ACCEPTED
    assert [pdu.short_message[5] for pdu in smsc.submitted] == [1, 2, 2, 3]


async def test_a_message_without_a_response_is_doubtful_and_a_late_response_prevents_a_second_submit(records: Records) -> None:
    async with running_smsc(decide=lambda pdu: None) as smsc, connected(smsc, records) as gateway:
        gateway.keep_open()
        await smsc.wait_for(lambda: bool(smsc.binds))
        result = await gateway.submit(message(), 0.2)
        assert (result.outcome, result.reason) == (DOUBT, "timeout")
        await smsc.wait_for(lambda: bool(smsc.submitted))
        smsc.respond(smsc.submitted[0])
        async with asyncio.timeout(PATIENCE):
            while not records.reports:
                await asyncio.sleep(0.01)  # wait a moment before the condition is checked again
        (report,) = records.reports
        assert (report.word, report.reference, report.gateway_message_id) == ("SENT", "r1", f"id-{smsc.submitted[0].sequence}")
        assert (await gateway.submit(message(), TIMEOUT)).outcome is ACCEPTED
    assert len(smsc.submitted) == 1


async def test_after_the_loss_of_an_smpp_connection_only_submitted_messages_without_a_response_are_doubtful(
    records: Records,
) -> None:
    async with running_smsc(decide=lambda pdu: None) as smsc, connected(smsc, records, window=3) as gateway:
        attempts = [asyncio.create_task(gateway.submit(message(reference=f"r{index}"), 2.0)) for index in range(5)]
        await smsc.wait_for(lambda: len(smsc.submitted) == 3)
        smsc.decide = lambda pdu: 0
        smsc.drop()
        results = [await attempt for attempt in attempts]
        sent = {result.reason for result in results[:3]}
        assert sent == {"connection_lost"}
        assert {result.outcome for result in results[:3]} == {DOUBT}
        # The other messages were not sent on the lost connection. They are sent on the next connection or in the next attempt.
        assert {result.outcome for result in results[3:]} <= {RETRY, ACCEPTED}
        assert (await gateway.submit(message(reference="r9"), TIMEOUT)).outcome is ACCEPTED
    assert len(smsc.binds) >= 2


async def test_the_smpp_window_limits_the_number_of_requests_without_a_response(records: Records) -> None:
    async with running_smsc(decide=lambda pdu: None) as smsc, connected(smsc, records, window=2) as gateway:
        attempts = [asyncio.create_task(gateway.submit(message(reference=f"r{index}"), TIMEOUT)) for index in range(6)]
        for done in range(6):
            await smsc.wait_for(lambda done=done: len(smsc.submitted) > done)  # type: ignore[misc]
            assert len(smsc.submitted) - done <= 2
            smsc.respond(smsc.submitted[done])
        assert {result.outcome for result in await asyncio.gather(*attempts)} == {ACCEPTED}


async def test_if_the_smsc_refuses_the_bind_the_message_is_not_sent_and_the_reason_is_returned(records: Records) -> None:
    async with running_smsc(bind_status=0x0E) as smsc, connected(smsc, records) as gateway:
        result = await gateway.submit(message(), TIMEOUT)
    assert (result.outcome, result.reason, result.status) == (RETRY, "bind_refused", 0x0E)
    assert "ESME_RINVPASWD" in result.detail


async def test_the_smpp_gateway_connects_again_when_the_smsc_is_available_again(records: Records) -> None:
    async with running_smsc() as smsc:
        port = smsc.port
    async with connected(smsc, records) as gateway:
        result = await gateway.submit(message(), TIMEOUT)
        assert (result.outcome, result.reason) == (RETRY, "connection_refused")
        async with running_smsc(port=port):
            assert (await gateway.submit(message(), TIMEOUT)).outcome is ACCEPTED


async def test_smpp_delivery_receipts_and_replies_are_recorded_before_they_are_acknowledged(records: Records) -> None:
    async with running_smsc() as smsc, connected(smsc, records) as gateway:
        gateway.keep_open()
        await smsc.wait_for(lambda: bool(smsc.binds))
        smsc.deliver(b"id:7 stat:DELIVRD err:000", esm_class=4)
        await smsc.wait_for(lambda: smsc.delivered == [0])
        assert [(one.word, one.gateway_message_id) for one in records.reports] == [("DELIVRD", "7")]
        smsc.deliver("СТОП".encode("utf-16-be"), data_coding=8)
        await smsc.wait_for(lambda: smsc.delivered == [0, 0])
        assert records.replies == [("14085550100", "СТОП")]
        expected = [0, 0]
        for error in (OSError("the database is unavailable"), MessageNotKnownYet()):
            records.error = error
            expected.append(0x64)
            smsc.deliver(b"id:8 stat:DELIVRD err:000", esm_class=4)
            await smsc.wait_for(lambda: smsc.delivered == expected)


async def test_an_smpp_delivery_receipt_without_an_id_is_acknowledged_and_counted(records: Records) -> None:
    async with running_smsc() as smsc, connected(smsc, records) as gateway:
        gateway.keep_open()
        await smsc.wait_for(lambda: bool(smsc.binds))
        smsc.deliver(b"stat:DELIVRD err:000", esm_class=4)
        await smsc.wait_for(lambda: smsc.delivered == [0])
    assert (records.reports, records.unreadable) == ([], 1)


async def test_an_smpp_connection_without_a_response_to_enquire_link_is_replaced(records: Records) -> None:
    async with (
        running_smsc(answers_enquire_link=False) as smsc,
        connected(smsc, records, enquire_link_seconds=1) as gateway,
    ):
        gateway.keep_open()
        await smsc.wait_for(lambda: "enquire_link" in smsc.commands)
        session = gateway._connection._session
        async with asyncio.timeout(PATIENCE):
            while session is None or session.is_open:
                await asyncio.sleep(0.02)  # wait a moment before the condition is checked again
        smsc.answers_enquire_link = True
        assert (await gateway.submit(message(), TIMEOUT)).outcome is ACCEPTED
    assert len(smsc.binds) == 2


async def test_a_process_that_only_tests_gateways_receives_no_delivery_receipts(records: Records) -> None:
    async with running_smsc() as smsc, connected(smsc, records, receives=False) as gateway:
        assert (await gateway.submit(message(), TIMEOUT)).outcome is ACCEPTED
    assert smsc.binds[0].command == "bind_transmitter"


async def test_no_connection_is_opened_to_an_smpp_gateway_that_has_a_private_address_without_permission(records: Records) -> None:
    async with running_smsc() as smsc, connected(smsc, records) as gateway:
        object.__setattr__(gateway._connection, "_guard", Guard())
        assert (await gateway.submit(message(), TIMEOUT)).reason == "blocked_address"
    assert smsc.binds == []


async def test_host_names_for_which_the_resolver_does_not_respond_delay_no_other_smpp_gateway() -> None:
    released = threading.Event()

    def lookup(host: str, port: int) -> list[str]:
        if host.startswith("silent"):
            released.wait(PATIENCE)
            raise OSError("no response")
        return ["127.0.0.1"]

    async def handle(pdu: ReceivedPdu) -> int:
        return 0

    guard = Guard(allow_private=True, lookup=lookup)
    async with running_smsc() as smsc:
        hosts = [*(f"silent{number}.example" for number in range(20)), "smsc.example"]
        connections = [
            connection.SmppConnection(
                host, SmppSettings(url=f"smpp://{host}:{smsc.port}", system_id="x"), guard, handle, receives=True
            )
            for host in hosts
        ]
        for one in connections:
            one.keep_open()
        try:
            assert (await connections[-1].session(TIMEOUT)).is_open
        finally:
            released.set()
            for one in connections:
                await one.close()


async def test_a_message_is_not_sent_and_not_doubtful_if_the_host_of_the_smpp_gateway_is_not_a_valid_name(records: Records) -> None:
    async with running_smsc() as smsc, connected(smsc, records, url="smpp://a..b:2775") as gateway:
        result = await gateway.submit(message(), TIMEOUT)
    assert (result.outcome, result.reason, result.detail) == (RETRY, "not_connected", "the host name is invalid")
