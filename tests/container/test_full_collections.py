"""Tests for shortener/container/full_collections.py."""

from __future__ import annotations

import gc

import pytest

from shortener.container import Service
from shortener.container.full_collections import MAX_DELAY_SECONDS, FullCollections


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that gets one entry for each full collection. No collection takes place."""
    done: list[float] = []
    monkeypatch.setattr(gc, "collect", lambda: done.append(1))
    return done


async def test_a_full_collection_waits_for_the_end_of_large_requests_but_at_most_for_the_maximum_delay(
    collections: list[float],
) -> None:
    now, is_busy = 0.0, True
    job = FullCollections(lambda: is_busy, lambda: now)
    assert await job.step() == 0
    assert collections == []
    now = MAX_DELAY_SECONDS
    await job.step()
    assert len(collections) == 1
    now += 1
    await job.step()
    assert len(collections) == 1, "the maximum delay starts again after a full collection"
    is_busy = False
    await job.step()
    assert len(collections) == 2


async def test_the_job_frees_objects_that_refer_to_each_other() -> None:
    freed: list[bool] = []

    class Node:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            freed.append(True)

    gc.disable()
    try:
        Node()
        await FullCollections(lambda: False).step()
        assert freed
    finally:
        gc.enable()


async def test_a_service_starts_no_full_collection_while_a_large_rewrite_request_is_in_progress(
    service: Service, collections: list[float]
) -> None:
    job = service.jobs.table["garbage"]
    service.rewrite_totals.large_requests = 1
    await job.step()
    assert collections == []
    service.rewrite_totals.large_requests = 0
    await job.step()
    assert len(collections) == 1
