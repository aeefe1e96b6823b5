from shortener.model import Topic
from shortener.outbox import events
from shortener.outbox.events import Event, encode_event_id, find_sent_clicks
from shortener.storage.database import Database
from tests.conftest import NOON


def test_the_public_id_of_an_event_differs_by_topic_and_contains_no_dot() -> None:
    ids = {encode_event_id(12345, topic) for topic in Topic}
    assert len(ids) == len(Topic)
    assert not any("." in one for one in ids)  # Standard Webhooks sign "id.timestamp.body", so an event id must not contain a dot.


async def test_the_last_event_of_a_hit_states_whether_its_click_is_sent_also_if_earlier_events_were_purged(
    database: Database,
) -> None:
    click, retracted = Topic.CLICK, Topic.CLICK_RETRACTED
    of_hits = {1: [click], 2: [click, retracted], 3: [click, retracted, click], 4: [retracted], 5: [retracted, click]}
    of_hits |= {6: [click | Topic.SUSPECTED], 7: [Topic.STATE]}
    rows = [(hit, topics) for hit, of_hit in of_hits.items() for topics in of_hit]
    logged = [Event(100 + row, 1, topics, NOON, message_id=9, hit_id=hit) for row, (hit, topics) in enumerate(rows)]
    await database.write(events.append, logged)
    assert await database.read(find_sent_clicks, [9]) == {1: True, 2: False, 3: True, 4: False, 5: True}
    assert await database.read(find_sent_clicks, [8]) == {}
