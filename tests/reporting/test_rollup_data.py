"""Tests of the format of rolled-up counts: packed histograms, their sums and their changes."""

from __future__ import annotations

from decimal import Decimal

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from shortener.reporting.rollup_data import (
    HISTOGRAM,
    MIN_PACKED_BUCKETS,
    Amounts,
    PeriodSums,
    add_amounts,
    dumps,
    loads,
    unpack,
)

buckets = st.dictionaries(
    st.integers(0, 401).map(lambda bucket: f"ttc:{bucket}"), st.one_of(st.integers(-3, 300), st.integers(0, 2**40)), max_size=80
)
others = st.dictionaries(
    st.sampled_from(["messages", "clicks", "device:phone", "conversions:other:sale"]), st.integers(-(10**12), 10**12)
)
money = st.dictionaries(
    st.sampled_from(["value:EUR", "value:EUR:positive:sale"]), st.decimals(places=2, allow_nan=False, min_value=-9, max_value=9)
)
rows = st.builds(
    lambda one, two, three: {**one, **two, **{metric: format(amount, "f") for metric, amount in three.items()}},
    buckets,
    others,
    money,
)


def without_zero(amounts: Amounts) -> dict[str, Decimal]:
    return {metric: Decimal(amount) for metric, amount in amounts.items() if Decimal(amount)}


@given(rows)
@example({f"ttc:{bucket}": 1 for bucket in range(0, 250, 5)})
@example({f"ttc:{bucket}": 70_000 + bucket for bucket in range(400)})
def test_rolled_up_counts_are_stored_and_read_without_a_change(row: Amounts) -> None:
    stored = loads(dumps(dict(row)))
    assert without_zero(unpack(stored)) == without_zero(row)
    assert loads(stored) == stored, "SQLite returns rows that are parsed already"


@given(st.lists(rows, max_size=8))
def test_the_sums_of_rolled_up_counts_are_exact_with_and_without_histograms(written: list[Amounts]) -> None:
    written = [{metric: max(int(v), 0) if metric.startswith("ttc:") else v for metric, v in row.items()} for row in written]
    sums, expected = PeriodSums(), dict[str, Decimal]()
    for row in written:
        sums.add(loads(dumps(dict(row))))
        for metric, amount in row.items():
            expected[metric] = expected.get(metric, Decimal()) + Decimal(amount)
    found: dict[str, Decimal] = {metric: Decimal(count) for metric, count in sums.counts.items()} | sums.money
    for bucket, count in sums.histogram().items():
        found[f"ttc:{bucket}"] = found.get(f"ttc:{bucket}", Decimal()) + count
    assert without_zero(dict(found)) == without_zero(dict(expected))  # type: ignore[arg-type]


@given(st.lists(rows, min_size=1, max_size=6))
def test_counts_are_added_to_a_stored_row_of_rolled_up_counts(changes: list[Amounts]) -> None:
    text, expected = dumps({}), dict[str, Decimal]()
    for change in changes:
        text = dumps(add_amounts(loads(text), change))
        for metric, amount in change.items():
            expected[metric] = expected.get(metric, Decimal()) + Decimal(amount)
    assert without_zero(unpack(loads(text))) == without_zero(dict(expected))  # type: ignore[arg-type]


def test_time_to_click_buckets_are_stored_as_a_histogram_only_if_the_histogram_is_shorter() -> None:
    few: Amounts = {f"ttc:{bucket}": 1 for bucket in range(MIN_PACKED_BUCKETS - 1)}
    assert loads(dumps(dict(few))) == few
    many: Amounts = {f"ttc:{bucket}": 3 for bucket in range(30, 250)}
    assert loads(dumps(dict(many))).keys() == {HISTOGRAM}
    assert len(dumps(dict(many))) * 5 < len(orjson.dumps(many))


def test_negative_and_very_large_counts_are_not_stored_in_a_histogram_but_as_single_entries() -> None:
    negative: Amounts = {f"ttc:{bucket}": -1 if bucket == 3 else 1 for bucket in range(50)}
    assert loads(dumps(dict(negative))) == negative
    huge: Amounts = {f"ttc:{bucket}": 2**33 for bucket in range(50)}
    assert loads(dumps(dict(huge))) == huge
    assert unpack(loads(dumps(add_amounts(loads(dumps({f"ttc:{n}": 1 for n in range(50)})), {"ttc:3": -2}))))["ttc:3"] == -1


def test_a_stored_histogram_grows_if_a_count_has_a_new_bucket_or_needs_more_bytes() -> None:
    stored = loads(dumps({f"ttc:{bucket}": 250 for bucket in range(100, 150)}))
    for bucket, amount, expected in ((100, 5, 255), (100, 1, 256), (90, 3, 3), (160, 70_000, 70_000), (149, -250, 0)):
        stored = loads(dumps(add_amounts(stored, {f"ttc:{bucket}": amount})))
        assert stored.keys() == {HISTOGRAM}
        assert unpack(dict(stored)).get(f"ttc:{bucket}", 0) == expected


def test_a_change_of_other_metrics_does_not_decode_the_stored_histogram() -> None:
    stored = loads(dumps({f"ttc:{bucket}": 1 for bucket in range(50)}))
    packed = stored[HISTOGRAM]
    assert add_amounts(stored, {"clicks": 2}) == {HISTOGRAM: packed, "clicks": 2}
