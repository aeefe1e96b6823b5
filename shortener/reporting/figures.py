"""This module contains the figures of one group in a statistics report, such as the figures of one day or of one campaign. They
are computed from counts by metric."""

# Tested by tests/reporting/test_statistics.py

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import field
from decimal import Decimal

from shortener.conversions.first_conversions import CONVERTED_MESSAGES
from shortener.conversions.status_words import CATEGORIES
from shortener.model import mutable_record
from shortener.outbox.count_deltas import COST, time_to_click_bucket, time_to_click_seconds
from shortener.reporting.rollup_data import EXACT, TIME_TO_CLICK, VALUE, PeriodSums

# The prefixes of the metrics whose names contain a parameter, such as "value:EUR" or "conversions:positive:sale".
_CONVERSIONS = "conversions:"
_DEVICE = "device:"
_BROWSER = "browser:"
_CLICK_COUNTRY = "click_country:"


@mutable_record
class ConversionFigures:
    """The number of conversions with one action and one category, and the sum of their values for each currency."""

    conversions: int = 0
    value: dict[str, Decimal] = field(default_factory=dict)

    def add_value(self, currency: str, amount: Decimal) -> None:
        """Add an amount of money to the sum of its currency."""
        self.value[currency] = EXACT.add(self.value.get(currency, Decimal()), amount)

    def add(self, other: ConversionFigures) -> None:
        """Add the number and the values of other conversions to these figures."""
        self.conversions += other.conversions
        for currency, amount in other.value.items():
            self.add_value(currency, amount)


@mutable_record
class Figures:
    """The figures of one group in a statistics report. A metric without counts has the figure 0.

    `cost` is the sum of the prices of the messages that gateways sent, without refunded prices. `value` contains, for each
    currency ("" for no currency), the sum of the values of conversions that are neither negative nor pending. `by_action`
    contains conversions by category (status_words.CATEGORIES) and action. `times_to_click` contains the number of first clicks in
    each bucket of the time from sending to click. `devices`, `browsers` and `click_countries` (ISO 3166) contain the number of
    clicks, without the newest clicks, which the background job has not counted yet. A rate is None if its divisor is 0.
    """

    counted: dict[str, int] = field(default_factory=dict)
    cost: Decimal = Decimal()
    value: dict[str, Decimal] = field(default_factory=dict)
    by_action: dict[tuple[str, str], ConversionFigures] = field(default_factory=dict)
    times_to_click: dict[int, int] = field(default_factory=dict)
    devices: dict[str, int] = field(default_factory=dict)
    browsers: dict[str, int] = field(default_factory=dict)
    click_countries: dict[str, int] = field(default_factory=dict)

    def add(self, metric: str, amount: Decimal) -> None:
        """Add the amount of a metric to the figure that shows this metric."""
        if metric == COST:
            self.cost = EXACT.add(self.cost, amount)
        elif metric.startswith(VALUE):
            self._add_value(metric.removeprefix(VALUE), amount)
        elif metric.startswith(_CONVERSIONS):
            category, _, action = metric.removeprefix(_CONVERSIONS).partition(":")
            self.by_action.setdefault((category, action), ConversionFigures()).conversions += int(amount)
        elif metric.startswith(TIME_TO_CLICK):
            bucket = int(metric.removeprefix(TIME_TO_CLICK))
            self.times_to_click[bucket] = self.times_to_click.get(bucket, 0) + int(amount)
        elif metric.startswith(_DEVICE):
            kind = metric.removeprefix(_DEVICE)
            self.devices[kind] = self.devices.get(kind, 0) + int(amount)
        elif metric.startswith(_BROWSER):
            name = metric.removeprefix(_BROWSER)
            self.browsers[name] = self.browsers.get(name, 0) + int(amount)
        elif metric.startswith(_CLICK_COUNTRY):
            country = metric.removeprefix(_CLICK_COUNTRY)
            self.click_countries[country] = self.click_countries.get(country, 0) + int(amount)
        else:
            self.counted[metric] = self.counted.get(metric, 0) + int(amount)

    def add_sums(self, sums: PeriodSums) -> None:
        """Add the sums of rolled-up counts to these figures."""
        plain = self.counted
        for metric, count in sums.counts.items():
            if ":" in metric:
                self.add(metric, Decimal(count))
            else:
                plain[metric] = plain.get(metric, 0) + count
        for metric, amount in sums.money.items():
            self.add(metric, amount)
        for bucket, count in sums.histogram().items():
            self.times_to_click[bucket] = self.times_to_click.get(bucket, 0) + count

    def merge(self, other: Figures) -> None:
        """Add the figures of another group to these figures."""
        for name in ("counted", "times_to_click", "devices", "browsers", "click_countries"):
            mine, theirs = getattr(self, name), getattr(other, name)
            for key, number in theirs.items():
                mine[key] = mine.get(key, 0) + number
        self.cost = EXACT.add(self.cost, other.cost)
        for currency, amount in other.value.items():
            self.value[currency] = EXACT.add(self.value.get(currency, Decimal()), amount)
        for kind, counted in other.by_action.items():
            self.by_action.setdefault(kind, ConversionFigures()).add(counted)

    def _add_value(self, name: str, amount: Decimal) -> None:
        """Add an amount of money. `name` is the currency alone, or the currency, the category and the action, separated by
        colons."""
        currency, *kind = name.split(":", 2)
        if kind:
            self.by_action.setdefault((kind[0], kind[1]), ConversionFigures()).add_value(currency, amount)
        else:
            self.value[currency] = EXACT.add(self.value.get(currency, Decimal()), amount)

    def by_category(self) -> dict[str, ConversionFigures]:
        """Return the numbers of conversions by category. The conversions of all actions are added up."""
        found: dict[str, ConversionFigures] = {category: ConversionFigures() for category in CATEGORIES}
        for (category, _), figures in self.by_action.items():
            found.setdefault(category, ConversionFigures()).add(figures)
        return found

    def __getitem__(self, metric: str) -> int:
        return self.counted.get(metric, 0)

    @property
    def delivery_rate(self) -> float | None:
        """The number of delivered messages, divided by the number of all messages."""
        return self._rate("delivered", "messages")

    @property
    def click_rate(self) -> float | None:
        """The number of messages with a click, divided by the number of all messages. Messages without a report of delivery are
        included in the divisor, because not every carrier reports delivery."""
        return self._rate("clicked_messages", "messages")

    @property
    def conversion_rate(self) -> float | None:
        """The number of messages with at least one conversion, divided by the number of all messages."""
        return self._rate(CONVERTED_MESSAGES, "messages")

    def _rate(self, part: str, whole: str) -> float | None:
        return round(self[part] / self[whole], 6) if self[whole] else None

    def clicked_within(self, seconds: Sequence[int]) -> list[int]:
        """Return the numbers of clicked messages, grouped by the time from sending to click. `seconds` are the upper limits of
        the groups. One more group without a limit contains all longer times. A time that is up to 5 % above a limit may count as
        below this limit."""
        within = [0] * (len(seconds) + 1)
        for bucket, amount in self.times_to_click.items():
            within[click_time_group(bucket, seconds)] += amount
        return within

    def seconds_to_click(self, percent: int) -> float | None:
        """Return the time in seconds within which `percent` per cent of the clicked messages were clicked. Return None if there
        are no clicks.

        The time begins when the message was sent, or when it was rewritten if the time of sending is unknown. The error of the
        result is at most 2.5 %, or half a second if that is more."""
        total = sum(self.times_to_click.values())
        if total <= 0:
            return None
        cumulated = 0
        for bucket, amount in sorted(self.times_to_click.items()):
            cumulated += amount
            if cumulated * 100 >= percent * total:
                return round(time_to_click_seconds(bucket), 1)
        return None


def click_time_group(bucket: int, limits: Sequence[int]) -> int:
    """Return the index of the group that contains a bucket of times from sending to click. `limits` are the upper limits of the
    groups in seconds, lowest first. The last group has no limit."""
    return bisect.bisect_left([time_to_click_bucket(limit) for limit in limits], bucket)
