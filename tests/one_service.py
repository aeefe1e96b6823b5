"""This module runs the cases of a parametrised test one after the other on one service.

A service takes longer to open and to close than most rejected requests. `on_one_service` is for tests whose cases leave nothing
behind that another case could notice, such as requests that are rejected. Each case is a subtest: all cases run, and a case that
fails is reported with its values.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet

Test = Callable[..., Awaitable[None]]


def on_one_service(test: Test) -> Test:
    """Let one test run all cases of the decorators `pytest.mark.parametrize` below this one, as subtests."""

    async def run(subtests: pytest.Subtests, cases: Sequence[dict[str, Any]], values: dict[str, Any]) -> None:
        for case in cases:
            with subtests.test(name_of(case)):
                await test(**values, **case)

    return _with_cases(test, run)


def at_once_on_one_service(test: Test) -> Test:
    """Do the same as `on_one_service`, but run all cases at the same time. Use it for cases that wait for a time limit."""

    async def run(subtests: pytest.Subtests, cases: Sequence[dict[str, Any]], values: dict[str, Any]) -> None:
        results = await asyncio.gather(*(test(**values, **case) for case in cases), return_exceptions=True)
        for case, result in zip(cases, results, strict=True):
            with subtests.test(name_of(case)):
                if result is not None:
                    raise result

    return _with_cases(test, run)


Run = Callable[[pytest.Subtests, Sequence[dict[str, Any]], dict[str, Any]], Awaitable[None]]


def _with_cases(test: Test, run: Run) -> Test:
    """Return a test that calls `run` with all cases of `test`. It has the fixtures and the other marks of `test`."""
    marks, cases = cases_of(test)
    assert cases[0], "a test without cases does not need this decorator"
    signature = inspect.signature(test)
    fixtures = [parameter for name, parameter in signature.parameters.items() if name not in cases[0]]
    parameter = inspect.Parameter("subtests", inspect.Parameter.POSITIONAL_OR_KEYWORD)

    @functools.wraps(test)
    async def run_cases(subtests: pytest.Subtests, **values: Any) -> None:
        await run(subtests, cases, values)

    vars(run_cases)["__signature__"] = signature.replace(parameters=[parameter, *fixtures])
    vars(run_cases)["pytestmark"] = [mark for mark in marks if mark.name != "parametrize"]
    return run_cases


def cases_of(test: Callable[..., Any]) -> tuple[list[pytest.Mark], list[dict[str, Any]]]:
    """Return the marks of a test, and the arguments of each case that its decorators `pytest.mark.parametrize` describe."""
    marks: list[pytest.Mark] = getattr(test, "pytestmark", [])
    parts = [_cases(mark) for mark in marks if mark.name == "parametrize"]
    return marks, [functools.reduce(dict.__or__, combination, {}) for combination in itertools.product(*parts)]


def name_of(case: dict[str, Any]) -> str:
    """Return the arguments of a case as text."""
    return ", ".join(f"{name}={value!r}" for name, value in case.items())


def _cases(mark: pytest.Mark) -> list[dict[str, Any]]:
    names, values = mark.args
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    rows = [value.values if isinstance(value, ParameterSet) else value if len(names) > 1 else (value,) for value in values]
    return [dict(zip(names, row, strict=True)) for row in rows]
