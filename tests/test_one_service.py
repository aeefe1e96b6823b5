"""Tests of the decorator that runs the cases of a test on one service (one_service.py)."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Iterator

import pytest

from tests.one_service import Test, at_once_on_one_service, on_one_service
from tests.servers import PATIENCE


class _Subtests:
    """A replacement of the fixture `subtests`. It stores the names of all cases, and the names of the cases that failed."""

    def __init__(self) -> None:
        self.run: list[str] = []
        self.failed: list[str] = []

    @contextlib.contextmanager
    def test(self, message: str) -> Iterator[None]:
        self.run.append(message)
        try:
            yield
        except AssertionError:
            self.failed.append(message)


@pytest.mark.parametrize("decorator", [on_one_service, at_once_on_one_service])
async def test_every_combination_of_the_cases_is_a_subtest_and_those_after_a_failed_one_run_too(
    decorator: Callable[[Test], Test],
) -> None:
    @decorator
    @pytest.mark.slow
    @pytest.mark.parametrize(("path", "status"), [("/a", 404), pytest.param("/b", 400, id="second")])
    @pytest.mark.parametrize("method", ["GET", "POST"])
    async def test(client: str, path: str, status: int, method: str) -> None:
        assert client == "the client"
        assert (path, status, method) != ("/a", 404, "GET")

    subtests = _Subtests()
    await test(subtests=subtests, client="the client")
    assert list(inspect.signature(test).parameters) == ["subtests", "client"]
    assert [mark.name for mark in test.pytestmark] == ["slow"]  # type: ignore[attr-defined]
    assert sorted(subtests.run) == [
        "method='GET', path='/a', status=404",
        "method='GET', path='/b', status=400",
        "method='POST', path='/a', status=404",
        "method='POST', path='/b', status=400",
    ]
    assert subtests.failed == ["method='GET', path='/a', status=404"]


async def test_cases_can_run_at_the_same_time() -> None:
    arrived: list[int] = []

    @at_once_on_one_service
    @pytest.mark.parametrize("number", [1, 2, 3])
    async def test(number: int) -> None:
        arrived.append(number)
        async with asyncio.timeout(PATIENCE):
            while len(arrived) < 3:
                await asyncio.sleep(0)

    subtests = _Subtests()
    await test(subtests=subtests)
    assert (len(subtests.run), subtests.failed) == (3, [])


@on_one_service
@pytest.mark.parametrize("number", [1, 2])
async def test_a_test_with_this_decorator_gets_its_fixtures_and_cases(
    number: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert number in (1, 2)
    assert tmp_path_factory.getbasetemp().is_dir()
