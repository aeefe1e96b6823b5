import pytest

from shortener.model import EVENT_NAMES, SUBSCRIBABLE_TOPICS, DeliveryStatus, State, Topic, Verdict


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
