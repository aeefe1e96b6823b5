"""Tests of the decorator that runs the cases of a test in one test (one_test.py)."""

from __future__ import annotations

import pytest

from tests.one_test import in_one_test


def test_all_cases_run_and_the_error_contains_each_case_that_failed() -> None:
    run: list[tuple[int, str]] = []

    @in_one_test
    @pytest.mark.slow
    @pytest.mark.parametrize("number", [1, 2])
    @pytest.mark.parametrize("text", ["a", pytest.param("b", id="second")])
    def test(number: int, text: str) -> None:
        run.append((number, text))
        assert number == 1

    with pytest.raises(ExceptionGroup, match="2 of 4 cases failed") as raised:
        test()
    assert sorted(run) == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert [error.__notes__ for error in raised.value.exceptions] == [["text='a', number=2"], ["text='b', number=2"]]
    assert [mark.name for mark in test.pytestmark] == ["slow"]  # type: ignore[attr-defined]


def test_all_cases_run_although_one_case_does_not_raise_the_error_that_it_expects() -> None:
    run: list[int] = []

    @in_one_test
    @pytest.mark.parametrize("number", [0, 1, 2])
    def test(number: int) -> None:
        run.append(number)
        with pytest.raises(ZeroDivisionError):
            assert 1 / number

    with pytest.raises(BaseExceptionGroup, match="2 of 3 cases failed") as raised:
        test()
    assert run == [0, 1, 2]
    assert [error.__notes__ for error in raised.value.exceptions] == [["number=1"], ["number=2"]]


def test_an_asynchronous_test_is_rejected_because_its_cases_would_not_run() -> None:
    @pytest.mark.parametrize("number", [1])
    async def test(number: int) -> None:
        raise AssertionError

    with pytest.raises(AssertionError, match="on_one_service"):
        in_one_test(test)  # type: ignore[arg-type]


@in_one_test
@pytest.mark.parametrize("number", [1, 2])
def test_a_test_with_this_decorator_gets_its_cases(number: int) -> None:
    assert number in (1, 2)
