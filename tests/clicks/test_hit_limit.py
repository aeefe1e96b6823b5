"""Tests of the limit of ignored hits. In each minute, only the first HEAD requests and prefetches of a link are stored. Later
ones are only counted.
"""

from __future__ import annotations

from shortener.clicks.hit_limit import MAX_LINKS, HitLimit
from shortener.container import Service
from shortener.model import Verdict
from shortener.storage import schema
from tests.clicks.helpers import PHONE_HEADERS, create_codes, fetch_rows
from tests.conftest import MakeService, client_of

MINUTE = 60_000


def test_the_limit_of_stored_ignored_hits_applies_to_each_link_and_minute() -> None:
    limit = HitLimit(2)
    assert [limit.admit("a", MINUTE), limit.admit("a", MINUTE + 1), limit.admit("a", 2 * MINUTE - 1)] == [True, True, False]
    assert limit.admit("b", MINUTE)
    assert [limit.admit("a", 2 * MINUTE) for _ in range(3)] == [True, True, False]
    assert all(HitLimit(0).admit("a", MINUTE) for _ in range(100))


def test_the_number_of_links_whose_ignored_hits_are_counted_is_limited() -> None:
    limit = HitLimit(1)
    for number in range(3 * MAX_LINKS):
        assert limit.admit(str(number), MINUTE)
    assert len(limit._counts) <= MAX_LINKS


async def test_many_head_requests_of_one_link_are_redirected_but_few_rows_are_stored(make_service: MakeService) -> None:
    service: Service = await make_service(ignored_hits_limit=5)
    (code,) = await create_codes(service)
    async with client_of(service) as client:
        statuses = [(await client.head("/" + code)).status_code for _ in range(12)]
        assert (await client.get("/" + code, headers=PHONE_HEADERS)).status_code == 302
        metrics = (await client.get("/metrics")).text
    assert statuses == [302] * 12
    rows = await fetch_rows(service, schema.hits)
    assert sum(row.verdict == Verdict.IGNORED for row in rows) == 5
    assert len(rows) == 6
    assert "shortener_hits_not_stored_total 7.0" in metrics


async def test_many_suspected_hits_of_one_link_are_redirected_but_few_rows_are_stored(make_service: MakeService) -> None:
    service: Service = await make_service(suspected_hits_limit=5)
    (code,) = await create_codes(service)
    (opt_out,) = await create_codes(service, '#trackurl("https://x.example/stop","optout")')
    async with client_of(service) as client:
        for _ in range(12):
            for path in (code, opt_out):
                assert (await client.get("/" + path, headers={"User-Agent": "curl/8.0"})).status_code == 302
        assert (await client.get("/" + code, headers=PHONE_HEADERS)).status_code == 302
        metrics = (await client.get("/metrics")).text
    rows = await fetch_rows(service, schema.hits)
    assert sum(row.verdict == Verdict.SUSPECTED for row in rows) == 5 + 12, "the opt-out link has no limit"
    assert sum(row.verdict == Verdict.HUMAN for row in rows) == 1
    assert "shortener_hits_not_stored_total 7.0" in metrics
