"""This module recognises the delivery receipts of SMPP gateways, and reads the id and the state of the message from them.

A receipt is a deliver_sm with the message type "delivery receipt" in its esm_class. Some gateways do not set this message type, so
a text such as "id:7 sub:001 dlvrd:001 submit date:2611281200 done date:2611281200 stat:DELIVRD err:000 text:hello" is a receipt as
well. A person can write such a text too. Therefore a receipt that is recognised by its text alone is valid only if one of its
addresses is the recipient of the message. The optional parameter `receipted_message_id` has priority over the id in the text. The
optional parameter `message_state` is used if the text contains no state.

The time of a receipt is not used, because it has no time zone.
"""

from __future__ import annotations

import re

from shortener.gateways.smpp.pdus import MESSAGE_PAYLOAD, MESSAGE_STATE, NETWORK_ERROR_CODE, RECEIPTED_MESSAGE_ID, ReceivedPdu
from shortener.gateways.smpp.settings import MessageIds
from shortener.gateways.submission import GatewayReport

_MESSAGE_TYPE = 0x3C  # the bits of esm_class that contain the message type
_RECEIPT_TYPES = (0x04, 0x20)  # the message types "delivery receipt" and "intermediate delivery notification"
_ID = re.compile(r"\bid:\s*(\S+)", re.IGNORECASE)
_STATE = re.compile(r"\bstat:\s*([A-Za-z]+)", re.IGNORECASE)
_ERROR = re.compile(r"\berr:\s*([0-9A-Za-z]+)", re.IGNORECASE)
#: The word for each value of the optional parameter `message_state`.
_STATES = {
    0: "SCHEDULED",
    1: "ENROUTE",
    2: "DELIVRD",
    3: "EXPIRED",
    4: "DELETED",
    5: "UNDELIV",
    6: "ACCEPTD",
    7: "UNKNOWN",
    8: "REJECTD",
    9: "SKIPPED",
}


def message_bytes(pdu: ReceivedPdu) -> bytes:
    """Return the bytes of the text of a deliver_sm, which may be in the optional parameter message_payload."""
    return pdu.short_message or pdu.optional.get(MESSAGE_PAYLOAD, b"")


def is_receipt(pdu: ReceivedPdu) -> bool:
    """Return whether a deliver_sm is a delivery receipt, and not a reply of a recipient."""
    if _is_marked(pdu):
        return True
    text = message_bytes(pdu)[:300].decode("latin-1")
    return text[:3].lower() == "id:" and _STATE.search(text) is not None


def _is_marked(pdu: ReceivedPdu) -> bool:
    """Return whether the gateway has marked a deliver_sm as a delivery receipt."""
    return pdu.esm_class & _MESSAGE_TYPE in _RECEIPT_TYPES or RECEIPTED_MESSAGE_ID in pdu.optional


def parse_receipt(pdu: ReceivedPdu, message_ids: MessageIds) -> GatewayReport | None:
    """Return the delivery report in a receipt; None if it does not contain an id and a state."""
    text = message_bytes(pdu).decode("latin-1")
    tagged = pdu.optional.get(RECEIPTED_MESSAGE_ID, b"").partition(b"\0")[0].decode("latin-1").strip()
    in_text = _ID.search(text)
    if tagged:
        message_id = response_id(tagged, message_ids)
    elif in_text:
        message_id = receipt_id(in_text[1], message_ids)
    else:
        return None
    word = _STATE.search(text)
    state = word[1].upper() if word else _STATES.get(int.from_bytes(pdu.optional.get(MESSAGE_STATE, b"\xff")[:1], "big"))
    if not state:
        return None
    addresses = () if _is_marked(pdu) else (pdu.source, pdu.destination)
    return GatewayReport(state, gateway_message_id=message_id, error_code=_error_code(pdu, text), addresses=addresses)


def _error_code(pdu: ReceivedPdu, text: str) -> str | None:
    found = _ERROR.search(text)
    if found and found[1].strip("0"):
        return found[1]
    code = pdu.optional.get(NETWORK_ERROR_CODE, b"")
    number = int.from_bytes(code[1:3], "big") if len(code) == 3 else 0
    return str(number) if number else None


def response_id(text: str, message_ids: MessageIds) -> str:
    """Return the message id in a submit_sm_resp, in the notation in which it is stored and compared with the ids of receipts."""
    return _decimal(text, is_hex=message_ids in ("hex_response", "hex"), is_compared=message_ids != "same")


def receipt_id(text: str, message_ids: MessageIds) -> str:
    """Return the message id in the text of a receipt, in the notation in which it is compared with stored ids."""
    return _decimal(text, is_hex=message_ids in ("hex_receipt", "hex"), is_compared=message_ids != "same")


def _decimal(text: str, *, is_hex: bool, is_compared: bool) -> str:
    """Return a message id as a decimal number if the gateway's ids are compared as numbers. Return any other id unchanged."""
    text = text.strip()
    if not is_compared:
        return text
    try:
        return str(int(text, 16 if is_hex else 10))
    except ValueError:
        return text
