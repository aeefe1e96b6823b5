"""Tests of the background job that runs full garbage collections."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from shortener import lean_imports
from shortener.clicks import user_agents
from shortener.container import Service
from shortener.container.full_collections import (
    MAX_DELAY_SECONDS,
    MAX_THOROUGH_DELAY_SECONDS,
    THOROUGH_SECONDS,
    FullCollections,
)
from shortener.delivery import sender
from shortener.server import application
from shortener.web import routes


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list to which each full collection adds an entry. The collections themselves do not take place."""
    done: list[float] = []
    monkeypatch.setattr(gc, "collect", lambda: done.append(1))
    return done


async def test_a_full_collection_waits_for_the_end_of_large_requests_but_at_most_for_the_maximum_delay(
    collections: list[float],
) -> None:
    now, is_busy = 0.0, True
    job = FullCollections(lambda: is_busy, lambda: False, lambda: now)
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


class Node:
    """An object that refers to itself, so that only a garbage collection frees it."""

    freed = 0

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        Node.freed += 1


async def test_the_job_frees_objects_that_refer_to_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.freeze()  # otherwise the collection would examine all objects of the test process
    excluded: list[int] = []
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 0)
    monkeypatch.setattr(gc, "freeze", lambda: excluded.append(1))
    gc.disable()
    try:
        before = Node.freed
        Node()
        await FullCollections(lambda: False, lambda: False).step()
        assert Node.freed == before + 1
        assert excluded == [], "only a process that has excluded the objects of its start excludes others"
    finally:
        gc.enable()


async def test_the_job_counts_the_excluded_objects_only_once(collections: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def count() -> int:
        counted.append(150_000)
        return counted[-1]

    monkeypatch.setattr(gc, "get_freeze_count", count)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    job = FullCollections(lambda: False, lambda: False)
    for _ in range(3):
        await job.step()
    assert len(counted) == 1


async def test_a_collection_includes_the_excluded_objects_each_hour_or_later_while_many_people_click(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, has_hits = 0.0, False
    calls: list[str] = []
    for name in ("unfreeze", "collect", "freeze"):
        monkeypatch.setattr(gc, name, lambda name=name: calls.append(name))
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 1)
    job = FullCollections(lambda: False, lambda: has_hits, lambda: now)
    for at, hits, is_thorough in (
        (THOROUGH_SECONDS - 1, False, False),
        (THOROUGH_SECONDS, True, False),
        (THOROUGH_SECONDS + 1, False, True),
        (2 * THOROUGH_SECONDS + 1, True, False),
        (THOROUGH_SECONDS + 1 + MAX_THOROUGH_DELAY_SECONDS, True, True),
    ):
        now, has_hits = at, hits
        await job.step()
        assert calls == ["unfreeze"] * is_thorough + ["collect", "freeze"]
        calls.clear()


@pytest.mark.slow  # examines all objects of the test process several times
async def test_objects_that_survive_a_collection_are_examined_again_each_hour_or_later_while_many_people_click() -> None:
    now, has_hits = 0.0, False
    job = FullCollections(lambda: False, lambda: has_hits, lambda: now)

    async def is_freed(at: float) -> bool:
        """Return whether the job frees an object at the time `at`. The object has survived an earlier collection and has then
        become garbage."""
        nonlocal now
        gc.collect()
        before, node = Node.freed, Node()
        await job.step()
        del node
        now = at
        await job.step()
        return Node.freed > before

    gc.disable()
    gc.freeze()
    try:
        assert not await is_freed(THOROUGH_SECONDS - 1)
        has_hits = True
        assert not await is_freed(THOROUGH_SECONDS)
        has_hits = False
        assert await is_freed(THOROUGH_SECONDS + 1)
        has_hits = True
        assert not await is_freed(2 * THOROUGH_SECONDS + 1)
        assert await is_freed(THOROUGH_SECONDS + 1 + MAX_THOROUGH_DELAY_SECONDS)
    finally:
        gc.unfreeze()
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


def is_examined(value: object) -> bool:
    """Return whether full collections examine this object."""
    return any(one is value for one in gc.get_objects())


@pytest.mark.parametrize(
    "import_modules",
    [
        lambda _: lean_imports.exclude_imported_objects(),
        lambda _: routes._prepare(["health"]),
        lambda _: sender._import_client(),
        lambda _: user_agents._load(),
        application._new_portal,
    ],
    ids=["function", "api", "http_client", "user_agents", "portal"],
)
async def test_full_collections_do_not_examine_modules_that_a_serving_process_imports_later(
    service: Service, import_modules: Callable[[Service], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean_imports, "_excludes_objects", False)
    # The excluded objects stay excluded: otherwise the end of this module would examine all objects of the test process.
    lean_imports.exclude_objects_of_start()
    value = [service]
    import_modules(service)
    assert not is_examined(value)


def test_a_process_that_has_not_excluded_the_objects_of_its_start_excludes_none_after_an_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lean_imports, "_excludes_objects", False)
    gc.freeze()  # so that `is_examined` searches few objects
    value = [1]
    lean_imports.exclude_imported_objects()
    assert is_examined(value)
