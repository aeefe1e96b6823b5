"""Helpers for tests that change the verdicts of stored hits."""

from collections import Counter
from datetime import timedelta
from typing import Any

from shortener.clicks.verdicts.reclassify import ReclassifyResult
from shortener.container import Service
from shortener.model import HitFlag, Topic
from shortener.reporting.count_check import verify
from shortener.reporting.rollup_check import verify_rollups
from shortener.storage import schema
from tests.clicks.helpers import PHONE_HEADERS, fetch_rows, make_hit
from tests.conftest import NOON, Clock
from tests.rows import messages_now

PHONE = PHONE_HEADERS["User-Agent"]
# The current rules classify this user agent as a crawler. The tests store its hits as HUMAN, so a reclassification changes them.
SCANNER = "curl/8.9.1"
DAY = timedelta(days=1)
FIRST = HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE


async def record_click(service: Service, code: str, user_agent: str = PHONE, **more: Any) -> int:
    """Record a hit with the verdict HUMAN, even if its user agent is a crawler. Return its id. `more` contains fields of Hit."""
    hit = make_hit(service, code, user_agent=user_agent, **more)
    await service.recorder.record(hit)
    return hit.id


async def run_reclassifier(service: Service, **more: Any) -> ReclassifyResult:
    """Move the clock ten minutes forward and reclassify all hits before this time. `more` contains arguments of
    `Reclassifier.run`."""
    assert isinstance(service.clock, Clock)
    now = service.clock.forward(minutes=10)
    return await service.reclassifier.run(NOON - DAY, now, now, **more)


async def sent_events(service: Service) -> list[tuple[Topic, int]]:
    """Return (topics, hit id) of all events, in the order of their ids."""
    return [(Topic(event.topics), event.hit_id) for event in await fetch_rows(service, schema.events)]


async def only_message(service: Service) -> Any:
    """Return the only message in the database, with its first click and its state after this click."""
    (message,) = await fetch_rows(service, messages_now)
    return message


async def count_sums(service: Service) -> dict[str, int]:
    """Return the sum of all count deltas for each metric. Sums that are 0 are left out. The sum of all buckets of the time to
    click is called `ttc`."""
    sums: Counter[str] = Counter()
    for row in await fetch_rows(service, schema.count_deltas):
        for _, _, metric, amount in row.data:
            sums["ttc" if metric.startswith("ttc:") else metric] += int(amount)
    return {metric: amount for metric, amount in sums.items() if amount}


async def assert_counts_match(service: Service) -> None:
    """Assert that the stored counts and rolled-up counts equal the result of counting all rows again."""
    assert await service.database.read(verify, NOON - DAY, NOON + DAY) == []
    assert await service.database.read(verify_rollups, NOON - DAY, NOON + DAY) == []
