"""Run all cases of a parametrised test of a pure function in one test.

Pytest needs a millisecond for a test, also in each test process that only collects it. That is more than most of these cases need.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

from tests.one_service import cases_of, name_of


def in_one_test(test: Callable[..., None]) -> Callable[[], None]:
    """Let one test run all cases of the decorators `pytest.mark.parametrize` below this one. The cases contain all arguments.

    All cases run. The error of the test contains the error of each case that failed, with the arguments of the case."""
    assert not inspect.iscoroutinefunction(test), "use on_one_service: this decorator would never run an asynchronous test"
    marks, cases = cases_of(test)
    assert cases[0].keys() == inspect.signature(test).parameters.keys(), "all arguments come from the cases"

    def run_cases() -> None:
        errors: list[BaseException] = []
        for case in cases:
            try:
                test(**case)
            # `pytest.raises` reports a missing error with `pytest.fail`, whose exception is no Exception.
            except (Exception, pytest.fail.Exception) as error:
                error.add_note(name_of(case))
                errors.append(error)
        if errors:
            raise BaseExceptionGroup(f"{len(errors)} of {len(cases)} cases failed", errors)

    run_cases.__name__, run_cases.__doc__, run_cases.__module__ = test.__name__, test.__doc__, test.__module__
    vars(run_cases)["pytestmark"] = [mark for mark in marks if mark.name != "parametrize"]
    return run_cases
