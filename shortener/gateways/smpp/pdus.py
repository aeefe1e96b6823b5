"""The PDUs of SMPP 3.4 that a gateway uses. This is the only module that uses the library `smpplib`.

The library builds and parses PDUs. Its client is not used, because the client blocks the thread. Optional parameters are parsed by
this module, because the library rejects known parameters in unusual PDUs, and parameters of an unusual length.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from smpplib import command, consts, exceptions, smpp

from shortener.model import record

HEADER_BYTES = 16
MAX_PDU_BYTES = 70_000  # the maximum length of a PDU, whose largest parameter message_payload has at most 65,535 bytes
MAX_SEQUENCE = 0x7FFFFFFF

RECEIPTED_MESSAGE_ID, MESSAGE_STATE, MESSAGE_PAYLOAD, NETWORK_ERROR_CODE = 0x001E, 0x0427, 0x0424, 0x0423
UDH_FLAG = 0x40  # bit of esm_class: the short message begins with a user data header

OK, SYSTEM_ERROR, QUEUE_FULL, TEMPORARY_APP_ERROR, THROTTLED = 0x00, 0x08, 0x14, 0x64, 0x58
INVALID_LENGTH, INVALID_COMMAND = 0x02, 0x03
_STATUS_NAMES = {value: name.removeprefix("SMPP_") for name, value in vars(consts).items() if name.startswith("SMPP_ESME_")}


class PduError(Exception):
    """Raised if received bytes are not a PDU."""


@record
class ReceivedPdu:
    """A received PDU. `command` is its name, such as deliver_sm; an empty text means an unknown command.

    `message_id` is set for responses only. `optional`, which contains the optional parameters by tag, and the fields after it are
    set for deliver_sm only."""

    command: str
    status: int
    sequence: int
    message_id: str = ""
    optional: Mapping[int, bytes] = field(default_factory=dict)
    source: str = ""
    destination: str = ""
    esm_class: int = 0
    data_coding: int = 0
    short_message: bytes = b""

    @property
    def is_response(self) -> bool:
        return self.command.endswith("_resp") or self.command == "generic_nack"


def status_name(status: int) -> str:
    """Return the name of a command status, such as ESME_RTHROTTLED, or its number."""
    return str(_STATUS_NAMES.get(status, f"0x{status:08X}"))


def status_text(status: int) -> str:
    """Return a text that explains an SMPP command status."""
    return str(consts.DESCRIPTIONS.get(status, f"status 0x{status:X} of the gateway"))


def build_pdu(name: str, sequence: int, status: int = OK, **fields: Any) -> bytes:
    """Return the bytes of a PDU with these fields."""
    pdu = smpp.make_pdu(name, client=None, sequence=sequence, **fields)
    pdu.sequence, pdu.status = sequence, status
    built: bytes = pdu.generate()
    return built


class _ReceivedDeliverSm(command.DeliverSM):  # type: ignore[misc]  # the library has no types
    """A deliver_sm whose optional parameters are not parsed by the library."""

    rest = b""

    def _parse_string(self, field: str, data: bytes, pos: int, length: int | None = None) -> Any:
        if data.find(b"\0", pos) < 0:  # without this check, the library would read an earlier part of the body again
            raise ValueError("a text does not end")
        return super()._parse_string(field, data, pos, length)

    def parse_optional_params(self, data: bytes) -> None:
        self.rest = data


def parse_pdu(data: bytes) -> ReceivedPdu:
    """Parse the bytes of one complete PDU. Raise PduError if they are not a PDU."""
    try:
        _, code, status, sequence = struct.unpack(">LLLL", data[:HEADER_BYTES])
        name = str(command.pdu.extract_command(data))
    except exceptions.UnknownCommandError:
        return ReceivedPdu("", status, sequence)
    except struct.error:
        raise PduError("the header is incomplete") from None
    if code & 0x80000000:
        # A response with an error often has no body. Only the first text of a body is used: the id of a message.
        return ReceivedPdu(name, status, sequence, data[HEADER_BYTES:].partition(b"\0")[0].decode("latin-1"))
    if name != "deliver_sm":
        return ReceivedPdu(name, status, sequence)
    pdu = _ReceivedDeliverSm(name, client=None, sequence=sequence)
    try:
        pdu.parse(data)
        # The library raises no error for a body that ends too early, so it is checked here.
        if pdu.sm_default_msg_id is None or len(pdu.short_message or b"") != pdu.sm_length:
            raise ValueError("the body is incomplete")
        return ReceivedPdu(
            name,
            status,
            sequence,
            optional=_parse_optional(pdu.rest),
            source=_text(pdu.source_addr),
            destination=_text(pdu.destination_addr),
            esm_class=pdu.esm_class or 0,
            data_coding=pdu.data_coding or 0,
            short_message=pdu.short_message or b"",
        )
    except Exception as error:  # the library raises many kinds of errors for incomplete bytes
        raise PduError(f"the body of a deliver_sm is invalid ({type(error).__name__})") from None


def _text(value: Any) -> str:
    return bytes(value or b"").decode("latin-1")


def _parse_optional(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    position = 0
    while position + 4 <= len(data):
        tag, length = struct.unpack_from(">HH", data, position)
        found[tag] = data[position + 4 : position + 4 + length]
        position += 4 + length
    return found
