"""Tests of the fixtures and hooks in tests/conftest.py."""

from __future__ import annotations

import pytest

from tests.conftest import pytest_collection_modifyitems


def test_a_run_with_two_tests_that_have_the_same_node_id_ends_with_an_error(request: pytest.FixtureRequest) -> None:
    with pytest.raises(pytest.UsageError, match="several tests have the same node id"):
        pytest_collection_modifyitems(request.config, [request.node, request.node])
