"""Tests of the throttle; its effect on deliveries is tested in tests/delivery/test_dispatcher.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shortener.clicks.throttle import BUSY_RATE, FLOOD_RATE, FLOOD_WAITING, MAX_PAUSE_SECONDS, WINDOW_SECONDS
from tests.clicks.helpers import Hits


def test_the_throttle_is_busy_while_many_hits_arrive() -> None:
    hits = Hits()
    assert not hits.throttle.is_busy
    assert not hits.arrive(BUSY_RATE * WINDOW_SECONDS - 1)
    assert hits.arrive(BUSY_RATE * WINDOW_SECONDS)
    assert hits.arrive(0, WINDOW_SECONDS / 2), "the rate is measured over a whole window"
    assert not hits.arrive(0)
    assert not hits.arrive(BUSY_RATE * WINDOW_SECONDS, 10), "the same number of hits in a longer time is a lower rate"


def test_the_pauses_grow_with_the_rate_of_hits_above_the_flood_rate() -> None:
    hits = Hits()
    assert hits.throttle.pause_for(0.004) == 0
    hits.arrive(FLOOD_RATE * WINDOW_SECONDS)
    assert hits.throttle.pause_for(0.004) == 2 * 0.004
    hits.arrive(2 * FLOOD_RATE * WINDOW_SECONDS)
    assert hits.throttle.pause_for(0.004) == 4 * 0.004
    hits.arrive(20 * FLOOD_RATE * WINDOW_SECONDS)
    assert hits.throttle.pause_for(0.004) == MAX_PAUSE_SECONDS
    assert hits.throttle.pause_for(1.0) == 1.0


def test_the_pauses_grow_with_the_number_of_clients_that_wait() -> None:
    hits = Hits()
    hits.arrive(BUSY_RATE, clients=FLOOD_WAITING)
    assert hits.throttle.pause_for(0.004) == 2 * 0.004
    hits.arrive(BUSY_RATE, clients=4 * FLOOD_WAITING)
    assert hits.throttle.pause_for(0.004) == 16 * 0.004
    hits.arrive(BUSY_RATE, clients=FLOOD_WAITING)
    assert hits.throttle.pause_for(0.004) == 2 * 0.004
    hits.arrive(1, clients=4 * FLOOD_WAITING)
    assert hits.throttle.pause_for(0.004) == 0, "few hits arrive"


async def test_an_export_pauses_after_each_page_while_many_hits_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    hits, pauses = Hits(), []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def pages() -> AsyncIterator[bytes]:
        for page in (b"1", b"2", b"3"):
            hits.now += 0.01  # the time that the page takes
            yield page

    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert [page async for page in hits.throttle.slow_down(pages())] == [b"1", b"2", b"3"]
    assert pauses == []
    hits.arrive(FLOOD_RATE * WINDOW_SECONDS)
    assert [page async for page in hits.throttle.slow_down(pages())] == [b"1", b"2", b"3"]
    assert pauses == pytest.approx([0.02] * 3)


async def test_an_export_does_not_pause_for_the_time_that_its_client_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    hits, pauses = Hits(), []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def pages() -> AsyncIterator[bytes]:
        hits.now += 0.01  # the time that the page takes
        yield b"1"

    monkeypatch.setattr(asyncio, "sleep", sleep)
    hits.arrive(FLOOD_RATE * WINDOW_SECONDS)
    async for _ in hits.throttle.slow_down(pages()):
        hits.arrive(FLOOD_RATE * WINDOW_SECONDS)  # the client needs this time to receive the page
    assert pauses == pytest.approx([0.02])
