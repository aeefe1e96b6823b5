"""Tests of the parser of SMPP delivery receipts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shortener.gateways.smpp.pdus import MESSAGE_PAYLOAD, MESSAGE_STATE, NETWORK_ERROR_CODE, RECEIPTED_MESSAGE_ID, ReceivedPdu
from shortener.gateways.smpp.receipts import is_receipt, parse_receipt, response_id
from shortener.gateways.smpp.settings import MessageIds

TEXT = b"id:7f sub:001 dlvrd:001 submit date:2611281200 done date:2611281201 stat:DELIVRD err:000 text:id:99 stat:X"


def pdu(text: bytes = b"", esm_class: int = 4, **optional: bytes) -> ReceivedPdu:
    tags = {"id": RECEIPTED_MESSAGE_ID, "state": MESSAGE_STATE, "payload": MESSAGE_PAYLOAD, "error": NETWORK_ERROR_CODE}
    found = {tags[name]: value for name, value in optional.items()}
    return ReceivedPdu("deliver_sm", 0, 1, esm_class=esm_class, short_message=text, optional=found)


def test_the_id_and_the_state_are_parsed_from_a_delivery_receipt_in_the_usual_format() -> None:
    report = parse_receipt(pdu(TEXT), "same")
    assert report is not None
    assert (report.word, report.gateway_message_id, report.error_code) == ("DELIVRD", "7f", None)


def test_the_error_code_of_a_failed_message_is_parsed_from_its_delivery_receipt() -> None:
    report = parse_receipt(pdu(b"id:7 stat:UNDELIV err:044"), "same")
    assert report is not None
    assert (report.word, report.error_code) == ("UNDELIV", "044")
    tagged = parse_receipt(pdu(id=b"7\0", state=b"\x05", error=b"\x03\x00\x2c"), "same")
    assert tagged is not None
    assert (tagged.word, tagged.error_code) == ("UNDELIV", "44")


def test_the_optional_parameters_of_a_delivery_receipt_have_priority_over_its_text() -> None:
    report = parse_receipt(pdu(id=b"abc\0", state=b"\x02"), "same")
    assert report is not None
    assert (report.word, report.gateway_message_id) == ("DELIVRD", "abc")
    report = parse_receipt(pdu(payload=TEXT), "same")
    assert report is not None
    assert report.gateway_message_id == "7f"


@pytest.mark.parametrize("data", [b"", b"hello", b"id:7", b"stat:DELIVRD"])
def test_a_delivery_receipt_without_an_id_or_a_state_is_rejected_as_unreadable(data: bytes) -> None:
    assert parse_receipt(pdu(data), "same") is None


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        (pdu(b"STOP", esm_class=0), False),
        (pdu(b"my id: please stat", esm_class=0), False),
        (pdu(b"", esm_class=0x40), False),
        (pdu(TEXT, esm_class=0), True),
        (pdu(b"", esm_class=0x04), True),
        (pdu(b"", esm_class=0x24), False),
        (pdu(b"", esm_class=0x20), True),
        (pdu(b"", esm_class=0, id=b"1\0"), True),
    ],
)
def test_delivery_receipts_are_distinguished_from_replies_of_people(received: ReceivedPdu, expected: bool) -> None:
    assert is_receipt(received) is expected


@pytest.mark.parametrize(
    ("notation", "response", "receipt"),
    [
        ("same", "00Ab", "00Ab"),
        ("hex_response", "0000001A", "26"),
        ("hex_receipt", "26", "0000001a"),
        ("hex", "0000001A", "1a"),
        ("hex_response", "uuid-1", "uuid-1"),
    ],
)
def test_decimal_and_hexadecimal_notations_of_an_smpp_message_id_are_recognised_as_equal(
    notation: MessageIds, response: str, receipt: str
) -> None:
    report = parse_receipt(pdu(f"id:{receipt} stat:DELIVRD".encode()), notation)
    assert report is not None
    assert report.gateway_message_id == response_id(response, notation)
    tagged = parse_receipt(pdu(id=response.encode(), state=b"\x02"), notation)
    assert tagged is not None
    assert tagged.gateway_message_id == response_id(response, notation)


def test_a_receipt_that_only_its_text_marks_contains_its_addresses_so_that_they_can_be_checked() -> None:
    addresses = []
    for received in (pdu(TEXT, esm_class=0), pdu(TEXT), pdu(TEXT, esm_class=0, id=b"7\0")):
        report = parse_receipt(replace(received, source="14085550100", destination="12345"), "same")
        assert report is not None
        addresses.append(report.addresses)
    assert addresses == [("14085550100", "12345"), (), ()]
