"""These tests check which queues a dispatch cycle examines if there are callbacks to thousands of hosts, on both databases."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Connection, insert, select, text

from shortener.container import Service
from shortener.delivery.claim_writer import ClaimResult
from shortener.delivery.claims import SlotUsage
from shortener.delivery.processes import ProcessShare
from shortener.delivery.queue_walk import CALLBACKS_PAUSE_MS, MAX_QUEUES
from shortener.storage import schema
from shortener.storage.types import to_ms
from tests.conftest import NOON, Clock
from tests.delivery.conftest import MakeTracker, Story

HOSTS = 2 * MAX_QUEUES + 50
GREEDY = 2  # the id of the application with the callbacks


@pytest.fixture
async def tracker(service: Service, make_tracker: MakeTracker, story: Story) -> int:
    """Create a tracker with one due delivery. Return its id."""
    tracker = await make_tracker("http://127.0.0.1:9/")
    await story.first_click()
    await service.fanout.flush()
    return tracker


async def fill(service: Service, due_at: datetime, *, host: str = "host", application: int = GREEDY, count: int = HOSTS) -> None:
    """Store one delivery of a callback for each of many hosts."""

    def insert_deliveries(connection: Connection) -> None:
        common = {
            "event_id": 1,
            "topic": 2,
            "application_id": application,
            "status": 0,
            "attempt": 0,
            "created_at": NOON,
            "queue": 0,
        }
        rows = [
            {
                "id": application * 10_000 + n,
                "lane": f"c{application}/{host}{n}.example",
                "callback_url": "http://127.0.0.1:9/",
                "next_at": due_at,
                **common,
            }
            for n in range(count)
        ]
        connection.execute(insert(schema.deliveries), rows)

    await service.database.write(insert_deliveries)


async def run_cycle(service: Service, clock: Clock, usage: SlotUsage, limit: int = 8) -> ClaimResult:
    """Claim deliveries as a dispatch cycle does, without attempting them."""
    claims = service.dispatcher._claims
    result = await service.database.write(claims.write, usage, limit, {}, to_ms(clock()), ProcessShare(), ())
    claims.committed(result)
    return result


def queues(result: ClaimResult) -> list[str]:
    return [attempt.claim.queue for attempt in result.attempts]


def full_for(application: int) -> SlotUsage:
    """Return slot usage in which one application uses all slots that are permitted for its callbacks."""
    usage = SlotUsage(256)
    usage.take("c-other", application, 256 - 256 // 8)
    return usage


async def test_a_delivery_to_a_tracker_is_claimed_at_once_while_an_application_without_free_slots_has_thousands_of_callbacks(
    service: Service, clock: Clock, tracker: int
) -> None:
    await fill(service, NOON)
    result = await run_cycle(service, clock, full_for(GREEDY))
    assert queues(result) == [f"t{tracker}"]
    following = await run_cycle(service, clock, full_for(GREEDY))
    assert (queues(following), following.more) == ([], False), "no further cycle examines the callbacks"


async def test_a_delivery_to_a_tracker_is_claimed_at_once_while_thousands_of_callbacks_wait_for_their_retry(
    service: Service, clock: Clock, tracker: int
) -> None:
    await fill(service, NOON + timedelta(hours=1))
    assert queues(await run_cycle(service, clock, SlotUsage(256))) == [f"t{tracker}"]


async def test_callbacks_of_an_application_are_claimed_at_once_while_another_application_without_free_slots_has_thousands(
    service: Service, clock: Clock
) -> None:
    await fill(service, NOON)
    await fill(service, NOON, application=1, count=1)
    await fill(service, NOON, application=20, count=1)
    found = set()
    for _ in range(2):
        found |= set(queues(await run_cycle(service, clock, full_for(GREEDY))))
    greedy = {name for name in found if name.startswith(f"c{GREEDY}/")}
    assert found - greedy == {"c1/host0.example", "c20/host0.example"}
    assert not greedy


async def test_after_all_callback_queues_were_examined_in_vain_the_next_examination_waits_for_a_pause(
    service: Service, clock: Clock
) -> None:
    await fill(service, NOON + timedelta(hours=1))
    cycles = 1
    while (await run_cycle(service, clock, SlotUsage(256))).more:
        cycles += 1
    assert cycles == HOSTS // MAX_QUEUES + 1
    await fill(service, NOON, application=1, host="new", count=1)
    paused = await run_cycle(service, clock, SlotUsage(256))
    assert (queues(paused), paused.more, paused.wake_at) == ([], False, to_ms(NOON) + CALLBACKS_PAUSE_MS)
    clock.forward(seconds=CALLBACKS_PAUSE_MS / 1000)
    assert queues(await run_cycle(service, clock, SlotUsage(256))) == ["c1/new0.example"]


async def test_few_callback_queues_are_examined_without_a_pause(service: Service, clock: Clock) -> None:
    await fill(service, NOON + timedelta(hours=1), count=MAX_QUEUES - 2)
    assert not (await run_cycle(service, clock, SlotUsage(256))).more
    await fill(service, NOON, application=1, host="new", count=1)
    assert queues(await run_cycle(service, clock, SlotUsage(256))) == ["c1/new0.example"]


async def test_a_clock_that_was_set_back_does_not_prolong_the_pause_of_callbacks(service: Service, clock: Clock) -> None:
    await fill(service, NOON + timedelta(hours=1))
    while (await run_cycle(service, clock, SlotUsage(256))).more:
        pass
    clock.forward(seconds=-3600)
    await fill(service, clock(), application=1, host="new", count=1)
    found = [queues(await run_cycle(service, clock, SlotUsage(256))) for _ in range(3)]
    assert ["c1/new0.example"] in found


async def test_with_one_free_slot_trackers_and_callbacks_get_claims_in_turn(
    service: Service, clock: Clock, story: Story, tracker: int
) -> None:
    for _ in range(3):
        await story.first_click()
    await service.fanout.flush()
    await fill(service, NOON, application=1)
    found = [queues(await run_cycle(service, clock, SlotUsage(256), limit=1))[0][0] for _ in range(6)]
    assert Counter(found) == {"t": 3, "c": 3}


async def test_the_database_sorts_the_names_of_queues_as_python_does(service: Service, clock: Clock) -> None:
    """The walk compares names in Python. A linguistic collation of PostgreSQL sorts "c12/~" before "c12/host"."""
    await fill(service, NOON, application=12, host="Host", count=2)
    await fill(service, NOON, application=1, host="2host", count=2)

    def read(connection: Connection) -> tuple[list[str], str | None]:
        names = list(connection.scalars(select(schema.deliveries.c.lane).order_by(schema.deliveries.c.lane)))
        if connection.dialect.name == "sqlite":
            return names, "C"
        statement = "SELECT collation_name FROM information_schema.columns WHERE table_name = 'deliveries' AND column_name = 'lane'"
        return names, connection.scalar(text(statement))

    names, collation = await service.database.read(read)
    assert names == sorted(names)
    assert collation == "C"
