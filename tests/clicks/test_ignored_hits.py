"""HEAD requests and prefetches of one link: the first of a minute are stored, the others only counted."""

from __future__ import annotations

from shortener.clicks import ignored_hits
from shortener.clicks.ignored_hits import IgnoredHitLimit
from shortener.container import Service
from shortener.model import Verdict
from shortener.storage import schema
from tests.clicks.helpers import PHONE_HEADERS, create_codes, fetch_rows
from tests.conftest import MakeService, client_of

MINUTE = 60_000


def test_so_many_hits_of_a_link_are_admitted_in_a_minute() -> None:
    limit = IgnoredHitLimit(2)
    assert [limit.admit("a", MINUTE), limit.admit("a", MINUTE + 1), limit.admit("a", 2 * MINUTE - 1)] == [True, True, False]
    assert limit.admit("b", MINUTE)
    assert [limit.admit("a", 2 * MINUTE) for _ in range(3)] == [True, True, False]
    assert all(IgnoredHitLimit(0).admit("a", MINUTE) for _ in range(100))


def test_the_number_of_remembered_links_is_limited() -> None:
    limit = IgnoredHitLimit(1)
    for number in range(3 * ignored_hits.MAX_LINKS):
        assert limit.admit(str(number), MINUTE)
    assert len(limit._counts) <= ignored_hits.MAX_LINKS


async def test_a_flood_of_head_requests_gets_redirects_but_stores_few_rows(make_service: MakeService) -> None:
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
