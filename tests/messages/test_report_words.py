from pathlib import Path

import pytest

from shortener.messages.report_words import WORDS, parse_state
from shortener.model import State

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "delivery-reports.md"


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
