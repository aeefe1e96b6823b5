"""What the start of a server leaves behind in its process."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from shortener.cli.serve import _starting
from shortener.errors import StoreUnavailable


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


def test_nothing_is_collected_during_the_start_and_what_it_made_never_is() -> None:
    with _starting():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


def test_a_start_that_fails_leaves_the_collector_as_it_was() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    with pytest.raises(StoreUnavailable), _starting():
        raise StoreUnavailable("away")
    assert gc.isenabled()
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
