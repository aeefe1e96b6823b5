"""Tests of the parser and the builder of SMPP PDUs."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.gateways.smpp.pdus import PduError, build_pdu, parse_pdu, status_name


def raw(code: int, body: bytes = b"", status: int = 0, sequence: int = 7) -> bytes:
    return struct.pack(">LLLL", 16 + len(body), code, status, sequence) + body


DELIVER = b"\0\1\1" + b"14085550100\0" + b"\0\0" + b"123\0" + b"\x04\0\0\0\0\0\0\0\0\4text"


def test_a_submit_sm_has_the_layout_of_the_specification() -> None:
    built = build_pdu("submit_sm", 5, source_addr="Brand", source_addr_ton=5, destination_addr="1408", short_message=b"\0x")
    assert built == raw(4, b"\0\5\0Brand\0\0\0" + b"1408\0" + bytes(9) + b"\2\0x", sequence=5)


def test_an_smpp_error_response_without_a_body_is_parsed() -> None:
    pdu = parse_pdu(raw(0x80000004, status=0x58))
    assert (pdu.command, pdu.status, pdu.sequence, pdu.message_id, pdu.is_response) == ("submit_sm_resp", 0x58, 7, "", True)
    assert status_name(0x58) == "ESME_RTHROTTLED"
    assert status_name(0x4FF) == "0x000004FF"


def test_optional_smpp_parameters_of_any_tag_and_length_are_parsed() -> None:
    optional = struct.pack(">HH3s", 0x1400, 3, b"abc") + struct.pack(">HHH", 0x0427, 2, 2) + struct.pack(">HH", 0x0204, 9)
    pdu = parse_pdu(raw(5, DELIVER + optional))
    assert (pdu.source, pdu.destination, pdu.short_message) == ("14085550100", "123", b"text")
    assert pdu.optional == {0x1400: b"abc", 0x0427: b"\0\2", 0x0204: b""}


def test_an_smpp_pdu_with_an_unknown_command_is_parsed_without_an_error() -> None:
    assert parse_pdu(raw(0x0111)).command == ""


@given(st.binary(max_size=80))
def test_parsing_any_bytes_as_a_deliver_sm_raises_no_exception_except_pdu_error(body: bytes) -> None:
    with contextlib.suppress(PduError):
        parse_pdu(raw(5, body))


@pytest.mark.parametrize("length", [4, 15, len(DELIVER) - 6, len(DELIVER) - 1])
def test_parsing_an_incomplete_deliver_sm_raises_pdu_error(length: int) -> None:
    with pytest.raises(PduError):
        parse_pdu(raw(5, DELIVER[:length]))


def test_parsing_an_incomplete_smpp_header_raises_pdu_error() -> None:
    with pytest.raises(PduError):
        parse_pdu(b"\0\0\0\x10")


def test_parsing_an_smpp_string_without_its_final_zero_byte_raises_pdu_error() -> None:
    with pytest.raises(PduError):
        parse_pdu(raw(5, b"abcd"))
