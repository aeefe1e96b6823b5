from shortener.model import Topic
from shortener.outbox.events import encode_event_id


def test_the_public_id_of_an_event_differs_by_topic_and_contains_no_dot() -> None:
    ids = {encode_event_id(12345, topic) for topic in Topic}
    assert len(ids) == len(Topic)
    assert not any("." in one for one in ids)  # Standard Webhooks sign "id.timestamp.body", so an event id must not contain a dot.
