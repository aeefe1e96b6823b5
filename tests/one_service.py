"""This module runs the cases of a parametrised test one after the other on one service.

A service takes longer to open and to close than most rejected requests. `on_one_service` is for tests whose cases leave nothing
behind that another case could notice, such as requests that are rejected. Each case is a subtest: all cases run, and a case that
fails is reported with its values.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet

Test = Callable[..., Awaitable[None]]


def on_one_service(test: Test) -> Test:
    """Run all cases of the decorators `pytest.mark.parametrize` below this decorator as subtests of one test."""
    marks: list[pytest.Mark] = getattr(test, "pytestmark", [])
    cases = [
        functools.reduce(dict.__or__, combination)
        for combination in itertools.product(*(_cases(mark) for mark in marks if mark.name == "parametrize"))
    ]
    assert cases[0], "a test without cases does not need this decorator"
    signature = inspect.signature(test)
    fixtures = [parameter for name, parameter in signature.parameters.items() if name not in cases[0]]
    subtests = inspect.Parameter("subtests", inspect.Parameter.POSITIONAL_OR_KEYWORD)

    @functools.wraps(test)
    async def run_cases(subtests: pytest.Subtests, **values: Any) -> None:
        for case in cases:
            with subtests.test(", ".join(f"{name}={value!r}" for name, value in case.items())):
                await test(**values, **case)

    vars(run_cases)["__signature__"] = signature.replace(parameters=[subtests, *fixtures])
    vars(run_cases)["pytestmark"] = [mark for mark in marks if mark.name != "parametrize"]
    return run_cases


def _cases(mark: pytest.Mark) -> list[dict[str, Any]]:
    names, values = mark.args
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    rows = [value.values if isinstance(value, ParameterSet) else value if len(names) > 1 else (value,) for value in values]
    return [dict(zip(names, row, strict=True)) for row in rows]
