import random

from sqlalchemy import func, select

from shortener.container import Service
from shortener.delivery.dispatcher import MAX_STARTS, Dispatcher
from shortener.delivery.fanout import MAX_EVENTS_WHILE_BUSY, Fanout
from shortener.delivery.throttle import BUSY_RATE, FLOOD_RATE, MAX_PAUSE_SECONDS, WINDOW_SECONDS, Throttle
from shortener.storage import schema
from tests.delivery.conftest import MakeTracker, Story
from tests.receiver import Receiver


class Hits:
    """A fake counter of hits and a fake clock. The test sets both."""

    def __init__(self) -> None:
        self.count = 0
        self.now = 0.0
        self.throttle = Throttle(lambda: self.count, lambda: self.now)

    def arrive(self, count: float, seconds: float = WINDOW_SECONDS) -> bool:
        self.count += int(count)
        self.now += seconds
        return self.throttle.is_busy


def test_the_delivery_throttle_is_busy_while_many_hits_arrive() -> None:
    hits = Hits()
    assert not hits.throttle.is_busy
    assert not hits.arrive(BUSY_RATE * WINDOW_SECONDS - 1)
    assert hits.arrive(BUSY_RATE * WINDOW_SECONDS)
    assert hits.arrive(0, WINDOW_SECONDS / 2), "the rate is measured over a whole window"
    assert not hits.arrive(0)
    assert not hits.arrive(BUSY_RATE * WINDOW_SECONDS, 10), "the same number of hits over a longer time"


def test_the_pauses_of_deliveries_grow_with_the_rate_of_hits_above_the_flood_rate() -> None:
    hits = Hits()
    assert hits.throttle.pause_for(0.004) == 0
    hits.arrive(FLOOD_RATE * WINDOW_SECONDS)
    assert hits.throttle.pause_for(0.004) == 2 * 0.004
    hits.arrive(2 * FLOOD_RATE * WINDOW_SECONDS)
    assert hits.throttle.pause_for(0.004) == 4 * 0.004
    hits.arrive(20 * FLOOD_RATE * WINDOW_SECONDS)
    assert hits.throttle.pause_for(0.004) == MAX_PAUSE_SECONDS
    assert hits.throttle.pause_for(1.0) == 1.0


async def test_a_busy_throttle_limits_the_batch_sizes_of_the_fanout_and_the_dispatcher(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    hits = Hits()
    hits.arrive(1000)
    await make_tracker(receiver.url(), concurrency=64)
    for _ in range(MAX_EVENTS_WHILE_BUSY + 1):
        await story.first_click()
    fanout = Fanout(
        service.database,
        service.ids,
        service.click_ids,
        service.clock,
        base_url="http://127.0.0.1:8000",
        throttle=hits.throttle,
        on_deliveries=lambda: None,
    )
    assert await fanout.step() == MAX_EVENTS_WHILE_BUSY
    dispatcher = Dispatcher(
        service.database,
        service.trackers,
        service.sender,
        service.ids,
        service.clock,
        service.settings,
        random.Random(1),
        hits.throttle,
    )
    assert await dispatcher.step() == MAX_STARTS
    await dispatcher.flush()
    delivered = select(func.count()).where(schema.deliveries.c.status == 1)
    assert await service.database.read(lambda connection: connection.execute(delivered).scalar_one()) == MAX_EVENTS_WHILE_BUSY
