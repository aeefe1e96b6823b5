"""This module contains one table of the words that carriers and gateways use for the state of a message.

`parse_state` ignores case, and it ignores the difference between spaces, hyphens and underscores. Words such as `ENROUTE`,
`UNKNOWN` and `queued` mean no state that a report can set: the report is stored, and the state of the message does not change.

Numbers are rejected because their meanings differ: 2 means delivered in SMPP, but failed in Kannel and playSMS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from shortener.model import State

#: The states that a delivery report can set, by name.
REPORTED_STATES = (State.SENT, State.DELIVERED, State.READ, State.FAILED, State.EXPIRED)

_SENT, _DELIVERED, _READ, _FAILED, _EXPIRED = REPORTED_STATES

#: The words of each system, and the state that each word means. None: the word is stored, and the state does not change.
WORDS: Mapping[str, Mapping[str, State | None]] = {
    "SMPP": {
        "DELIVRD": _DELIVERED,
        "UNDELIV": _FAILED,
        "UNDELIVERABLE": _FAILED,
        "REJECTD": _FAILED,
        "REJECTED": _FAILED,
        "DELETED": _FAILED,
        "EXPIRED": _EXPIRED,
        "SKIPPED": _FAILED,
        "DELIVERED": _DELIVERED,
        "ACCEPTD": None,
        "ACCEPTED": None,
        "ENROUTE": None,
        "SCHEDULED": None,
        "UNKNOWN": None,
    },
    "Kannel": {
        "DELIVERY SUCCESS": _DELIVERED,
        "DELIVERY FAILURE": _FAILED,
        "MESSAGE BUFFERED": None,
        "SMSC SUBMIT": _SENT,
        "SMSC REJECT": _FAILED,
        "SMSC INTERMEDIATE NOTIFICATION": None,
        # The texts in Kannel's documentation of the bits of dlr-mask.
        "DELIVERED TO PHONE": _DELIVERED,
        "NON DELIVERED TO PHONE": _FAILED,
        "QUEUED ON SMSC": None,
        "DELIVERED TO SMSC": _SENT,
        "NON DELIVERED TO SMSC": _FAILED,
    },
    # A word that begins with ESME_R, but is not in this table, means that the submission failed (PREFIXES).
    "Jasmin": {"ESME_ROK": _SENT, "DELIVRD": _DELIVERED, "UNDELIV": _FAILED},
    "playSMS": {"PENDING": None, "SENT": _SENT, "FAILED": _FAILED, "DELIVERED": _DELIVERED},
    "Twilio": {
        "ACCEPTED": None,
        "SCHEDULED": None,
        "QUEUED": None,
        "SENDING": None,
        "SENT": _SENT,
        "DELIVERED": _DELIVERED,
        "UNDELIVERED": _FAILED,
        "FAILED": _FAILED,
        "CANCELED": _FAILED,
        "READ": _READ,
        "PARTIALLY_DELIVERED": None,  # A part of the text is missing on the phone, so the message is neither delivered nor failed.
        "RECEIVING": None,
        "RECEIVED": None,
    },
    "Infobip": {
        "PENDING": None,
        "PENDING_WAITING_DELIVERY": None,
        "PENDING_ENROUTE": None,
        "PENDING_ACCEPTED": None,
        "DELIVERED_TO_OPERATOR": _SENT,
        "DELIVERED_TO_HANDSET": _DELIVERED,
        "SEEN": _READ,
        "EXPIRED_EXPIRED": _EXPIRED,
        "EXPIRED_DLR_UNKNOWN": _EXPIRED,
        "MISSING_TO": _FAILED,
        "SIGNALS_BLOCKED": _FAILED,
    },
    "Vonage": {
        "SUBMITTED": _SENT,
        "BUFFERED": None,
        "DELIVERED": _DELIVERED,
        "READ": _READ,
        "FAILED": _FAILED,
        "REJECTED": _FAILED,
        "UNDELIVERABLE": _FAILED,
        "EXPIRED": _EXPIRED,
        "DELETED": _FAILED,
        "ACCEPTED": None,
        "UNKNOWN": None,
    },
    "other gateways": {
        "PROCESSING": None,
        "PROCESSED": None,
        "WAITING": None,
        "SUBMITD": _SENT,
        "DISPATCHED": _SENT,
        "TRANSMITTED": _SENT,
        "DELIVERING": _SENT,
        "DELIVERY UNKNOWN": None,
        "NOT DELIVERED": _FAILED,
        "NOTDELIVERED": _FAILED,
        "DELIVERY FAILED": _FAILED,
        "SENDING FAILED": _FAILED,
        "CANCELLED": _FAILED,
        "BLOCKED": _FAILED,
        "BLACKLISTED": _FAILED,
        "ABORTED": _FAILED,
        "ERROR": _FAILED,
        "NO ROUTE": _FAILED,
        "NOROUTE": _FAILED,
        "DLR EXPIRED": _EXPIRED,
    },
}
#: A regular expression for the status word in the text of an SMPP receipt: "id:1 sub:001 dlvrd:001 submit date:... stat:DELIVRD
#: err:000 text:".
_RECEIPT = re.compile(r"\bid:.*\bstat:([A-Za-z]{1,20})\b", re.IGNORECASE | re.DOTALL)


def _normalized(word: str) -> str:
    return re.sub(r"[\s_-]+", " ", word.strip()).upper()


#: The states of all other words that begin with one of these texts (Jasmin, Infobip, Kannel).
PREFIXES: Mapping[str, State | None] = {
    "ESME_R": _FAILED,
    "PENDING_": None,
    "UNDELIVERABLE_": _FAILED,
    "EXPIRED_": _EXPIRED,
    "REJECTED_": _FAILED,
    "ACK/": _SENT,
    "NACK/": _FAILED,
}
_BY_PREFIX = {_normalized(f"{prefix}.")[:-1]: state for prefix, state in PREFIXES.items()}
_BY_WORD = {_normalized(word): state for words in WORDS.values() for word, state in words.items()}
_BY_WORD |= {state.name: state for state in REPORTED_STATES}


def parse_state(word: str) -> tuple[State | None, bool]:
    """Return the state that a status word means (None if it means no state), and whether the word is this service's own name of the
    state.

    The word may be the complete text of an SMPP receipt. Raise ValueError if the word is unknown; its text explains the error to
    the caller."""
    normal = _normalized(word)
    if normal in _BY_WORD:
        state = _BY_WORD[normal]
        return state, state is not None and normal == state.name
    for prefix, state in _BY_PREFIX.items():
        if normal.startswith(prefix):
            return state, False
    if (receipt := _RECEIPT.search(word)) is not None:
        return parse_state(receipt[1])[0], False
    if normal.lstrip("+-").isdecimal():
        raise ValueError("must be a word such as DELIVERED or DELIVRD; a number means something else in each system")
    names = ", ".join(state.name for state in REPORTED_STATES)
    raise ValueError(f"must be {names}, or a word of SMPP, Kannel, Jasmin, playSMS, Twilio, Infobip or Vonage")
