from pathlib import Path

import pytest

from shortener.messages.report_words import PREFIXES, WORDS, parse_state
from shortener.model import State
from tests.one_test import in_one_test

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "delivery-reports.md"


@in_one_test
@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("delivered", State.DELIVERED),
        ("DELIVRD", State.DELIVERED),
        ("UNDELIV", State.FAILED),
        ("REJECTD", State.FAILED),
        ("DELETED", State.FAILED),
        ("Expired", State.EXPIRED),
        ("ENROUTE", None),
        ("UNKNOWN", None),
        ("ACCEPTD", None),
        ("smsc-submit", State.SENT),
        ("ESME_ROK", State.SENT),
        ("ESME_RTHROTTLED", State.FAILED),
        ("REJECTED_NOT_ENOUGH_CREDITS", State.FAILED),
        ("DELIVERED_TO_HANDSET", State.DELIVERED),
        (" submitted ", State.SENT),
        ("id:1f sub:001 dlvrd:001 submit date:2611281000 done date:2611281001 stat:DELIVRD err:000 text:Hi", State.DELIVERED),
        ("id:1 sub:001 dlvrd:000 submit date:2611281000 done date:2611281001 stat:UNDELIV err:011 Text:stat", State.FAILED),
        ("id:1 stat:ENROUTE err:000", None),
        ("partially_delivered", None),
        ("non-delivered to phone", State.FAILED),
        ("ACK/", State.SENT),
        ("NACK/0x00000045/Submit Failed", State.FAILED),
        ("ESME_RINVDSTADR", State.FAILED),
        ("PENDING_SOMETHING_NEW", None),
        ("EXPIRED_SOMETHING_NEW", State.EXPIRED),
        ("undeliverable_not_sent", State.FAILED),
        ("Cancelled", State.FAILED),
        ("DELIVERED_TO_OPERATOR", State.SENT),
    ],
)
def test_the_status_words_of_smpp_and_gateways_are_parsed_to_message_states(word: str, state: State | None) -> None:
    assert parse_state(word)[0] is state


@pytest.mark.parametrize("word", ["LOST", "", "2", "CLICKTHRU", "CREATED", "id:1 stat:LOST err:000", "stat:DELIVRD"])
def test_unknown_words_and_numbers_are_rejected_as_the_state_of_a_delivery_report(word: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_state(word)


def test_each_delivery_status_word_has_the_same_meaning_in_all_systems() -> None:
    for words in WORDS.values():
        for word, state in words.items():
            assert parse_state(word)[0] is state, word


def test_the_delivery_reports_page_contains_each_status_word() -> None:
    text = PAGE.read_text()
    assert [word for words in WORDS.values() for word in words if f"`{word}`" not in text] == []
    assert [prefix for prefix in PREFIXES if f"`{prefix}`" not in text] == []


#: The words that the documentation of each gateway lists for the states of an SMS (2026).
DOCUMENTED = {
    "SMPP 3.4, receipt": "DELIVRD EXPIRED DELETED UNDELIV ACCEPTD UNKNOWN REJECTD",
    "SMPP 5.0, message_state": "SCHEDULED ENROUTE DELIVERED EXPIRED DELETED UNDELIVERABLE ACCEPTED UNKNOWN REJECTED SKIPPED",
    "Twilio": "queued sending sent failed delivered undelivered receiving received accepted scheduled "
    "read partially_delivered canceled",
    "Vonage, SMS API": "delivered expired failed rejected accepted buffered unknown deleted",
    "Vonage, Messages API": "submitted delivered rejected undeliverable read",
    "Infobip, groups": "PENDING UNDELIVERABLE DELIVERED EXPIRED REJECTED",
    "Infobip": "PENDING_WAITING_DELIVERY PENDING_ENROUTE PENDING_ACCEPTED UNDELIVERABLE_REJECTED_OPERATOR "
    "UNDELIVERABLE_NOT_DELIVERED UNDELIVERABLE_NOT_SENT UNDELIVERABLE_REJECTED_PLATFORM DELIVERED_TO_OPERATOR "
    "DELIVERED_TO_HANDSET EXPIRED_EXPIRED EXPIRED_DLR_UNKNOWN SIGNALS_BLOCKED REJECTED_NETWORK REJECTED_PREFIX_MISSING "
    "REJECTED_DND REJECTED_SOURCE REJECTED_NOT_ENOUGH_CREDITS REJECTED_SENDER REJECTED_DESTINATION_BLOCKLISTED "
    "REJECTED_PREPAID_PACKAGE_EXPIRED REJECTED_DESTINATION_NOT_REGISTERED REJECTED_ROUTE_NOT_AVAILABLE "
    "REJECTED_FLOODING_FILTER REJECTED_SYSTEM_ERROR REJECTED_DUPLICATE_MESSAGE_ID REJECTED_INVALID_UDH "
    "REJECTED_MESSAGE_TOO_LONG MISSING_TO REJECTED_DESTINATION",
    "Jasmin": "ESME_ROK ESME_RINVNUMDESTS ESME_RSUBMITFAIL ESME_RTHROTTLED DELIVRD EXPIRED DELETED UNDELIV ACCEPTD UNKNOWN REJECTD",
    "Kannel": "ACK/ NACK/0x0000000b/Invalid_Destination_Address",
    "playSMS": "Pending Sent Failed Delivered",
}


@pytest.mark.parametrize("system", DOCUMENTED)
def test_every_status_word_that_a_gateway_documents_is_accepted(system: str) -> None:
    for word in DOCUMENTED[system].split():
        parse_state(word)
