"""Tests of the parser of rows of count deltas. It must accept all rows that the service writes, and must reject each row that a
report could not add up.
"""

from __future__ import annotations

import json
from decimal import Decimal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.outbox.count_deltas import CountDelta, time_to_click_bucket
from shortener.reporting.delta_content import MAX_COUNT, MAX_ID, MAX_SLOT, UnreadableDelta, event_of, pack, parse
from shortener.reporting.figures import Figures
from shortener.reporting.rollup_data import add_amounts, amounts_of, dumps, loads
from shortener.reporting.rollups import CountedEvent
from tests.one_test import in_one_test

ORIGINS = "[[2,0]]"


@pytest.mark.parametrize(
    ("metric", "amount"),
    [
        ("clicks", -1),
        ("messages", 3),
        ("value:EUR", Decimal("-0.30")),
        ("value:", Decimal("1E+3")),
        ("value:cost", Decimal("0E-6")),
        ("value:EUR:positive:sale:b", Decimal("999999999999999999.999999")),
        ("conversions:other:(other)", -1),
        (f"ttc:{time_to_click_bucket(10**9)}", 1),
        ("a metric of a newer release", 1),
    ],
)
def test_every_amount_that_the_service_writes_is_read_and_packed_again(metric: str, amount: int | Decimal) -> None:
    delta = CountDelta()
    delta.add_slots(1, 5, metric, 4, 7, amount)
    data, origins = delta.dumps(), orjson.dumps(delta.origins())
    entries = parse(data, origins)
    assert [event_of(entry) for entry in entries] == [(CountedEvent(1, 5, metric, 4, 7), amount)]
    _, data, packed_origins = pack(9, entries, has_origins=True)
    assert parse(data, packed_origins) == entries


def test_a_row_of_an_older_release_without_origins_is_read() -> None:
    assert [event_of(entry) for entry in parse('[[1,5,"clicks","2"]]', None)] == [(CountedEvent(1, 5, "clicks"), 2)]
    assert pack(9, parse('[[1,5,"clicks","2"]]', None), has_origins=False) == (9, '[[1,5,"clicks","2"]]', None)


@in_one_test
@pytest.mark.parametrize(
    ("entry", "origins"),
    [
        ([1, 5, "clicks", "NaN"], ORIGINS),
        ([1, 5, "value:EUR", "NaN"], ORIGINS),
        ([1, 5, "value:EUR", "-Infinity"], ORIGINS),
        ([1, 5, "value:EUR", "1E+31"], ORIGINS),
        ([1, 5, "value:EUR", "1E-31"], ORIGINS),
        ([1, 5, "value:EUR", "1E+99999999999999999999"], ORIGINS),
        ([1, 5, "clicks", "1.5"], ORIGINS),
        ([1, 5, "clicks", "1E+3"], ORIGINS),
        ([1, 5, "clicks", str(MAX_COUNT + 1)], ORIGINS),
        ([1, 5, "clicks", "9" * 5000], ORIGINS),
        ([1, 5, "clicks", 1], ORIGINS),
        ([1, 5, "clicks", True], ORIGINS),
        ([1, 5, "clicks", None], ORIGINS),
        ([1, 5, "messages", "-1"], ORIGINS),
        ([1, 5, "ignored_hits", "-1"], ORIGINS),
        ([1, 5, "", "1"], ORIGINS),
        ([1, 5, "a\0b", "1"], ORIGINS),
        ([1, 5, "a" * 2001, "1"], ORIGINS),
        ([1, 5, "ttc", "1"], ORIGINS),
        ([1, 5, "ttc:x", "1"], ORIGINS),
        ([1, 5, "ttc:-1", "1"], ORIGINS),
        ([1, 5, "ttc:99999", "1"], ORIGINS),
        ([1, 5, "value:EUR:positive", "1"], ORIGINS),
        ([1.0, 5, "clicks", "1"], ORIGINS),
        ([-1, 5, "clicks", "1"], ORIGINS),
        ([MAX_ID + 1, 5, "clicks", "1"], ORIGINS),
        ([1, MAX_SLOT + 1, "clicks", "1"], ORIGINS),
        ([1, "5", "clicks", "1"], ORIGINS),
        ([1, 5, "clicks"], ORIGINS),
        ("four", ORIGINS),
        (None, ORIGINS),
        ([1, 5, "clicks", "1"], "[]"),
        ([1, 5, "clicks", "1"], "[[2]]"),
        ([1, 5, "clicks", "1"], "[[2,null]]"),
        ([1, 5, "clicks", "1"], f"[[{MAX_SLOT + 1},0]]"),
        ([1, 5, "clicks", "1"], f"[[2,{MAX_ID + 1}]]"),
        ([1, 5, "clicks", "1"], "{}"),
        ([1, 5, "clicks", "1"], ""),
    ],
)
def test_a_row_with_a_damaged_entry_is_unreadable(entry: object, origins: str) -> None:
    with pytest.raises(UnreadableDelta):
        parse(json.dumps([entry]), origins)


@pytest.mark.parametrize("data", [None, "", b"\xff", "[[1,5,", "{}", "7", "[" * 5000, '[[1,5,"\\ud800","1"]]', "[[1,5,NaN,1]]"])
def test_a_row_whose_data_is_no_list_of_entries_is_unreadable(data: str | bytes | None) -> None:
    with pytest.raises(UnreadableDelta):
        parse(data, ORIGINS)


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_amounts = st.sampled_from(["1", "-1", "0.5", "1E+40", "NaN", "sNaN", "Infinity", " 1", "1_0", "٣", str(10**15)]) | _scalars
_metrics = (
    st.sampled_from(["clicks", "messages", "ttc", "ttc:5", "ttc:", "value:", "value:EUR:a", "value:EUR:a:b", "device:"]) | _scalars
)
_entries = st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 9), _metrics, _amounts) | _scalars, max_size=2)


@given(_entries, st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 2)) | _scalars, max_size=2))
def test_any_row_is_either_unreadable_or_can_be_added_to_a_report_and_to_the_rolled_up_counts(
    data: object, origins: object
) -> None:
    try:
        entries = parse(json.dumps(data), json.dumps(origins))
    except UnreadableDelta:
        return
    for key, amount in map(event_of, entries):
        Figures().add(key.metric, Decimal(amount))
        stored = add_amounts(loads(dumps(add_amounts({}, amounts_of({key.metric: amount})))), amounts_of({key.metric: amount}))
        assert Decimal(stored[key.metric]) == amount * 2
