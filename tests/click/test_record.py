"""One transaction of hits, on both engines: what it counts, and what it leaves out when it is repeated."""

from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from shortener.click import queries
from shortener.click.landing import Guide
from shortener.click.record import Record, time_to_click_bucket, time_to_click_seconds
from shortener.log.tallies import QUARTER_MS
from shortener.model import Verdict
from shortener.report.counts import verify
from shortener.rewrite.service import Outgoing
from shortener.service import Service, places_of
from shortener.store import schema
from tests.click.test_recorder import hit, rows, send
from tests.conftest import Clock


def record_of(service: Service) -> Record:
    places = places_of(service.directory)
    return Record(service.ids, Guide(places, service.click_ids), places.special)


async def counted(service: Service) -> dict[tuple[int, str], int]:
    """By quarter, from the beginning of the test's hour, and metric."""
    noon = service.now_ms() // (4 * QUARTER_MS) * 4
    (tally,) = await rows(service, schema.tallies)
    assert len({(quarter, metric) for _, quarter, metric, _ in tally.data}) == len(tally.data)
    return {(quarter - noon, metric): int(amount) for _, quarter, metric, amount in tally.data}


async def test_a_batch_counts_each_hit_by_its_kind_and_quarter_and_a_first_click_three_times(
    service: Service, clock: Clock
) -> None:
    codes = [(await send(service))[0] for _ in range(3)]
    both = await send(service, '#track("https://x.example/1") #track("https://x.example/2")')
    (soon,) = await send(service, expires_in=30)
    await service.database.write(lambda c: c.execute(schema.tallies.delete()))
    clock.forward(seconds=60)
    now, bucket = service.now_ms(), f"ttc:{time_to_click_bucket(60)}"
    batch = [
        hit(service, codes[0]),
        hit(service, codes[1]),
        hit(service, codes[0]),
        hit(service, codes[2], at=now + QUARTER_MS),
        *(hit(service, code) for code in both),
        hit(service, codes[2], Verdict.SUSPECTED),
        hit(service, codes[2], Verdict.IGNORED),
        hit(service, soon),
        hit(service, soon, Verdict.SUSPECTED),
        hit(service, "doesnotexist"),
    ]
    outcome = await service.database.write(record_of(service).write, batch)
    assert (outcome.recorded, outcome.first_clicks, outcome.events) == (10, 4, 6)
    assert [bool(landing.location) for landing in outcome.landings] == [True] * 8 + [False] * 3
    assert await counted(service) == {
        (0, "clicks"): 5,
        (0, "clicked_messages"): 3,
        (0, bucket): 3,
        (1, "clicks"): 1,
        (1, "clicked_messages"): 1,
        (1, f"ttc:{time_to_click_bucket(60 + 15 * 60)}"): 1,
        (0, "suspected_hits"): 1,
        (0, "ignored_hits"): 1,
        (0, "late_hits"): 2,
    }


async def test_a_batch_that_is_written_again_leaves_out_what_is_stored(service: Service, clock: Clock) -> None:
    codes = [(await send(service))[0] for _ in range(2)]
    record = record_of(service)
    first = [hit(service, code) for code in codes]
    await service.database.write(record.write, first)
    more = [*first, hit(service, codes[0])]
    outcome = await service.database.write(record.write, more, True)
    assert (outcome.recorded, outcome.first_clicks, outcome.events) == (1, 0, 0)
    assert [landing.location for landing in outcome.landings] == [b"https://x.example/a"] * 3
    assert Counter(one.id for one in await rows(service, schema.hits)) == Counter(one.id for one in more)
    assert await service.database.read(verify, clock() - timedelta(days=1), clock() + timedelta(days=1)) == []


async def test_first_clicks_fit_into_the_pages_of_their_messages(service: Service) -> None:
    """A message that grew would split its page now and then, and a click would write four pages instead of one."""
    if service.database.dialect != "sqlite":
        pytest.skip("PostgreSQL writes a new version of the row anyway")
    recipients = tuple(f"+1408555{number:04d}" for number in range(500))
    await service.rewriter.rewrite(service.directory.applications()[0], [Outgoing(recipients, '#track("https://x.example/")')])

    def click_all(connection: Connection) -> list[int]:
        links = connection.execute(select(schema.links.c.code)).scalars().all()
        targets = {target.message: target for target in queries.find(connection, links).values()}
        pages = [connection.exec_driver_sql("PRAGMA page_count").scalar_one()]
        at, hit_id = service.now_ms(), service.ids()
        won = queries.claim(connection, [(message, at, hit_id, 1) for message in targets], targets)
        assert len(won) == len(recipients)
        return [*pages, connection.exec_driver_sql("PRAGMA page_count").scalar_one()]

    before, after = await service.database.write(click_all)
    assert before == after


@pytest.mark.parametrize(("seconds", "bucket"), [(-5, 0), (0, 0), (1, 0), (1.01, 1), (1.06, 2)])
def test_the_first_bucket_ends_after_a_second_and_the_next_ones_grow(seconds: float, bucket: int) -> None:
    assert time_to_click_bucket(seconds) == bucket


@given(st.floats(1, 1e8, exclude_min=True))
def test_the_middle_of_a_bucket_is_within_two_and_a_half_percent_of_what_is_in_it(seconds: float) -> None:
    middle = time_to_click_seconds(time_to_click_bucket(seconds))
    assert abs(middle / seconds - 1) < 0.025
