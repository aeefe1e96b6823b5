"""Tests of the measurement of pauses."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pauses import SLEEP_SECONDS, Pauses, watch


def test_the_longest_pause_of_the_processor_is_the_longest_delay_after_a_sleep() -> None:
    times = iter([0.0, SLEEP_SECONDS, 1.0, 1.0 + SLEEP_SECONDS + 0.4, 2.0, 2.0 + SLEEP_SECONDS + 0.1])
    pauses = Pauses(clock=lambda: next(times))
    for _ in range(3):
        pauses.sleep()
    assert pauses.processor == pytest.approx(400)
    assert pauses.disk == 0


def test_the_longest_pause_of_the_disk_is_the_longest_write(tmp_path: Path) -> None:
    times = iter([0.0, 0.001, 1.0, 1.145, 2.0, 2.002])
    pauses = Pauses(clock=lambda: next(times))
    with (tmp_path / "file").open("wb") as file:
        for _ in range(3):
            pauses.write(file.fileno())
    assert str(pauses) == "longest pause of the processor 0 ms, of the disk 145 ms"


def test_a_watched_block_has_pauses_of_the_disk_and_leaves_no_file(tmp_path: Path) -> None:
    with watch(tmp_path) as pauses:
        pass
    assert pauses.disk > 0
    assert list(tmp_path.iterdir()) == []
