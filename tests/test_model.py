from dataclasses import field, replace

import pytest

from shortener.model import (
    EVENT_NAMES,
    SUBSCRIBABLE_TOPICS,
    DeliveryStatus,
    State,
    Topic,
    Verdict,
    mutable_record,
    record,
)


def test_every_event_name_belongs_to_one_topic() -> None:
    assert [topic.api_name for topic in SUBSCRIBABLE_TOPICS] == list(EVENT_NAMES)
    assert set(Topic) - set(SUBSCRIBABLE_TOPICS) == {Topic.TEST, Topic.SUSPECTED}


@pytest.mark.parametrize(
    ("current", "new", "moves"),
    [
        (State.CREATED, State.SENT, True),
        (State.SENT, State.SENT, False),
        (State.FAILED, State.EXPIRED, False),
        (State.FAILED, State.DELIVERED, True),
        (State.DELIVERED, State.FAILED, False),
        (State.CLICKTHRU, State.READ, False),
    ],
)
def test_a_message_state_is_replaced_only_by_a_state_of_higher_rank(current: State, new: State, moves: bool) -> None:
    assert new.may_follow(current) is moves


def test_names_of_verdicts_topics_and_statuses_are_lower_case_in_the_api() -> None:
    assert Verdict.SUSPECTED.api_name == "suspected"
    assert DeliveryStatus.PARKED.api_name == "parked"
    assert Topic.CLICK_RETRACTED.api_name == "click_retracted"


@record
class Card:
    number: int
    holder: str = field(default="", repr=False)
    note: str = field(default="", compare=False)


@record
class Named(Card):
    name: str = ""

    def __repr__(self) -> str:
        return self.name


@mutable_record
class Total:
    hits: int = 0


def test_records_are_equal_and_have_one_hash_if_they_have_the_same_class_and_compared_fields() -> None:
    assert Card(1, "a", "x") == Card(1, "a", "y") != Card(2, "a", "x")
    assert len({Card(1, "a", "x"), Card(1, "a", "y"), Card(1, "b")}) == 2
    others: list[object] = [Named(1), (1, "", "")]
    assert Card(1) not in others
    assert replace(Card(1), number=3) == Card(3)


def test_the_text_of_a_record_has_the_fields_that_may_be_shown_unless_the_class_has_its_own_text() -> None:
    assert repr(Card(1, "secret", "n")) == "Card(number=1, note='n')"
    assert repr(Named(1, name="own")) == "own"


def test_a_record_has_slots_and_a_mutable_record_has_no_hash() -> None:
    with pytest.raises(AttributeError):
        Card(1).other = 2  # type: ignore[attr-defined]
    total = Total()
    total.hits += 1
    assert total == Total(1)
    with pytest.raises(TypeError):
        hash(total)
