"""Tests of the charts on portal pages, and of the functions that format numbers and times."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from xml.etree import ElementTree
from zoneinfo import ZoneInfo

import phonenumbers
import pytest

from shortener.portal import formats
from shortener.portal.charts import MAX_BARS, Bar, bar_chart, days_per_bar, label_of_days
from shortener.portal.periods import MAX_DAYS

_SVG = "{http://www.w3.org/2000/svg}"


def test_each_bar_of_a_chart_is_a_link_and_missing_data_are_a_hatched_gap() -> None:
    bars = [Bar("1 Nov", "<Sunday>", 10, "/a?x=1&y=2"), Bar("2 Nov", "Monday", None), Bar("3 Nov", "Tuesday", 0, "/b")]
    tree = ElementTree.fromstring(bar_chart(bars))
    assert [link.get("href") for link in tree.iter(f"{_SVG}a")] == ["/a?x=1&y=2", "/b"]
    assert [shape.get("class") for shape in tree.iter(f"{_SVG}rect")].count("gap") == 1
    assert "<Sunday>: 10" in [title.text for title in tree.iter(f"{_SVG}title")]
    assert "style" not in {name for element in tree.iter() for name in element.attrib}


def test_the_tooltip_of_a_bar_compares_it_with_the_period_before_and_says_that_its_time_is_not_over() -> None:
    bars = [Bar("1", "Sun", 12, "/a", before=10), Bar("2", "Mon", 3, "/b", before=0), Bar("3", "Tue", 1, "/c", 4, is_partial=True)]
    titles = [title.text for title in ElementTree.fromstring(bar_chart(bars)).iter(f"{_SVG}title")]
    assert titles == [
        "Sun: 12\nThe period before: 10 (+20\xa0%)",
        "Mon: 3\nThe period before: 0",
        "Tue: 1\nThe period before: 4\nNot over yet",
    ]


@pytest.mark.parametrize(
    ("highest", "labels"), [(95, ["0", "50", "100"]), (7, ["0", "2", "4", "6", "8"]), (12_000, ["0", "5k", "10k", "15k"])]
)
def test_the_grid_of_a_chart_has_round_numbers_beside_the_bars(highest: int, labels: list[str]) -> None:
    scale, bars = ElementTree.fromstring(bar_chart([Bar("x", "x", highest)]))
    assert [text.text for text in scale.iter(f"{_SVG}text")] == labels
    assert [text.text for text in bars.iter(f"{_SVG}text")] == ["x"]


@pytest.mark.parametrize("number", [1, 2, 3, 6, 7, 8, 24, 28, 30, 31, 53, 73, 90, 120])
def test_the_first_and_the_last_bar_of_a_chart_are_labelled_on_wide_and_on_narrow_screens(number: int) -> None:
    tree = ElementTree.fromstring(bar_chart([Bar(str(index), "x", 1) for index in range(number)]))
    labels = [text for text in tree.iter(f"{_SVG}text") if text.get("class", "").startswith("label")]
    narrow = [int(text.text or "") for text in labels if text.get("class") == "label"]
    everywhere = [int(text.text or "") for text in labels]
    for shown, most in ((everywhere, 9), (narrow, 5)):
        assert (shown[0], shown[-1]) == (0, number - 1)
        assert len(shown) <= most
        gaps = [after - before for before, after in pairwise(shown)]
        assert all(gap >= 0.7 * max(gaps[:-1] or [0]) for gap in gaps), "no label is too close to the last one"
    assert labels[-1].get("text-anchor") == ("end" if number > 7 else "middle"), "the last label ends at the edge of the chart"


def test_an_empty_chart_and_a_chart_of_zeros_are_valid() -> None:
    for bars in ([], [Bar("x", "x", 0)]):
        ElementTree.fromstring(bar_chart(bars))
    with pytest.raises(ValueError, match="at most"):
        bar_chart([Bar("x", "x", 1)] * (MAX_BARS + 1))


def test_a_name_that_begins_or_ends_with_spaces_is_shown_between_quotation_marks() -> None:
    shown = [formats.visible(name) for name in ("Spring sale", "Spring ", " ", "")]
    assert shown == ["Spring sale", "“Spring ”", "“ ”", ""]


def test_numbers_shares_and_durations_are_formatted_for_people() -> None:
    assert [formats.number(value) for value in (None, 0, -5, 1_234_567)] == ["–", "0", "−5", "1,234,567"]
    assert [formats.short_number(value) for value in (950, 1200, 34_000, 1_500_000)] == ["950", "1.2k", "34k", "1.5M"]
    assert [formats.percent(*pair) for pair in ((1, 3), (0, 0), (1, 1), (0.004, 1))] == ["33.3\xa0%", "–", "100\xa0%", "0.40\xa0%"]
    assert [formats.change(*pair) for pair in ((12, 10), (9, 10), (5, 0), (200, 10))] == ["+20\xa0%", "−10\xa0%", "–", "20×"]
    assert formats.change(2_500, 1) == "2,500×"
    assert [formats.points(*pair) for pair in ((0.2, 0.25), (0.5, 0.4), (0.3, 0.3), (None, 0.1))] == [
        "−5.0",
        "+10.0",
        "0.0",
        "–",
    ]
    assert [formats.duration(value) for value in (0.5, 12, 245, 12_000, 187_200)] == [
        "0.5\xa0s",
        "12\xa0s",
        "4\xa0min 5\xa0s",
        "3\xa0h 20\xa0min",
        "2\xa0d 4\xa0h",
    ]


def test_a_time_is_shown_in_the_time_zone_of_the_page() -> None:
    at = datetime(2026, 11, 20, 23, 30, tzinfo=UTC)
    assert formats.clock(at, ZoneInfo("Europe/Berlin")) == "21 Nov 2026, 00:30"


def test_each_country_of_phone_numbers_has_an_english_name() -> None:
    assert (formats.country_name("DE"), formats.country_name(None), formats.country_name("ZZ1")) == ("Germany", "Unknown", "ZZ1")
    assert (formats.country_name("CI"), formats.country_name("XK")) == ("Côte d’Ivoire", "Kosovo")
    assert [code for code in phonenumbers.SUPPORTED_REGIONS if formats.country_name(code) == code] == []


def test_a_chart_of_the_longest_period_has_a_bar_for_every_four_weeks_and_not_too_many_bars() -> None:
    assert [days_per_bar(days) for days in (1, 120, 121, 840, 841, MAX_DAYS)] == [1, 1, 7, 7, 28, 28]
    assert (MAX_DAYS + 1) / days_per_bar(MAX_DAYS + 1) < MAX_BARS


def test_the_title_of_a_bar_names_its_days_and_the_years_if_they_differ() -> None:
    days = [date(2026, 12, 18) + timedelta(days=number) for number in range(28)]
    assert label_of_days(days[:1]) == ("18 Dec", "Fri 18 Dec 2026")
    assert label_of_days(days[:7]) == ("18 Dec", "18 Dec to 24 Dec 2026")
    assert label_of_days(days) == ("Dec 2026", "18 Dec 2026 to 14 Jan 2027")


def test_an_amount_has_the_decimal_places_of_its_currency_and_is_never_rounded() -> None:
    for amount, currency, text in (
        ("37.5", "EUR", "37.50"),
        ("1589.05", "EUR", "1,589.05"),
        ("25.0", "JPY", "25"),
        ("25.0", "USD", "25.00"),
        ("123456801.623456", "USD", "123,456,801.623456"),
        ("1E+3", None, "1,000"),
        ("12.50", None, "12.5"),
        ("-3.10", "EUR", "\N{MINUS SIGN}3.10"),
        (None, "EUR", "–"),
    ):
        assert formats.money(None if amount is None else Decimal(amount), currency) == text
        assert formats.money(amount, currency) == text
    assert [formats.decimal_places(*one) for one in (("25.0", "JPY"), ("37.5", "EUR"), ("0.0095", "EUR"), (None, None))] == [
        0,
        2,
        4,
        0,
    ]
    assert [formats.padding(*one) for one in (("25", "JPY", 2), ("3.5", "EUR", 4), ("37.5", "EUR", 2))] == [".00", "00", ""]
    assert formats.money_with_currency(Decimal("12.5"), None) == "12.5"
    assert formats.money_with_currency("12.5", "EUR") == "12.50 EUR"
