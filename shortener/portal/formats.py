"""This module formats numbers, shares, names, times, durations, countries and browsers for the pages of the portal.

If a number is abbreviated, the complete number is next to it. A share is shown as a dash if its total is zero. A time is shown in
the time zone of the page, and the attribute of its `<time>` element contains the time in UTC.
"""
# Tested by tests/portal/test_charts.py

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, tzinfo
from decimal import Decimal
from functools import cache
from pathlib import Path

from shortener.storage.types import to_iso

DASH = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


def number(value: int | float | Decimal | None) -> str:
    """Return a number with commas between thousands, such as 12,410. None becomes a dash."""
    if value is None:
        return DASH
    text = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
    return text.replace("-", _MINUS)


#: Currencies whose amounts are usually written without decimal places (ISO 4217).
_WITHOUT_DECIMALS = frozenset(
    {"BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF"}
)


def money(amount: Decimal | str | None, currency: str | None) -> str:
    """Return an amount of money with commas between thousands and with at least the usual decimal places of its currency, such
    as 1,589.50. The amount is never rounded. Without a currency, it has only the decimal places that it needs. None becomes a
    dash."""
    if amount is None or amount == "":
        return DASH
    text = f"{Decimal(amount):,f}"
    whole, _, decimals = text.partition(".")
    decimals = decimals.rstrip("0")
    if currency and currency not in _WITHOUT_DECIMALS:
        decimals = decimals.ljust(2, "0")
    return (f"{whole}.{decimals}" if decimals else whole).replace("-", _MINUS)


def decimal_places(amount: Decimal | str | None, currency: str | None) -> int:
    """Return the number of decimal places that `money` shows."""
    return len(money(amount, currency).partition(".")[2])


def padding(amount: Decimal | str | None, currency: str | None, places: int) -> str:
    """Return the text that a table adds invisibly to `money`, so that the amount is as wide as one with `places` decimal places."""
    own = decimal_places(amount, currency)
    return ("" if own or not places else ".") + "0" * (places - own)


def money_with_currency(amount: Decimal | str | None, currency: str | None) -> str:
    """Return an amount of money and its currency, such as 1,589.50 EUR."""
    return f"{money(amount, currency)} {currency or ''}".strip()


def visible(text: str) -> str:
    """Return the text. If it begins or ends with a space, put it between quotation marks, so that readers see the space."""
    return text if text == text.strip() else f"\N{LEFT DOUBLE QUOTATION MARK}{text}\N{RIGHT DOUBLE QUOTATION MARK}"


def short_number(value: int | float) -> str:
    """Return an abbreviated number for the axis of a chart: 950, 1.2k, 34k, 1.5M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            scaled = value / limit
            return f"{scaled:.1f}".removesuffix(".0") + unit if scaled < 10 else f"{scaled:.0f}{unit}"
    return f"{value:g}"


def percent(part: float | None, whole: float | None = 1) -> str:
    """Return a share as a percentage, such as 12.3 %. If the total is zero, return a dash. A share below 1 % has two decimal
    places."""
    if part is None or not whole:
        return DASH
    share = 100 * part / whole
    digits = 0 if share in (0, 100) else 2 if abs(share) < 1 else 1
    return f"{share:.{digits}f}\N{NO-BREAK SPACE}%"


def shares(amounts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return (name, number of clicks) for each kind of device or browser. The kind with the most clicks is first."""
    return sorted(((name, amount) for name, amount in amounts.items() if amount), key=lambda row: (-row[1], row[0]))


def change(now: float | None, before: float | None) -> str:
    """Return how much a figure has changed since the previous period, such as +12 % or -3 %. If there is no previous figure,
    return a dash."""
    if now is None or not before:
        return DASH
    ratio = 100 * (now - before) / before
    if abs(ratio) >= 1000:
        return f"{abs(now / before):,.0f}\N{MULTIPLICATION SIGN}"
    text = f"{abs(ratio):.0f}" if abs(ratio) >= 10 else f"{abs(ratio):.1f}".removesuffix(".0")
    sign = "" if text == "0" else "+" if ratio > 0 else _MINUS
    return f"{sign}{text}\N{NO-BREAK SPACE}%"


def points(share: float | None, usual: float | None) -> str:
    """Return the difference of two shares in percentage points, such as -4.5."""
    if share is None or usual is None:
        return DASH
    text = f"{abs(100 * (share - usual)):.1f}"
    sign = "" if text == "0.0" else "+" if share > usual else _MINUS
    return sign + text


def sentence(text: str) -> str:
    """Return a warning of the API as a sentence: its first letter becomes a capital letter, unless the warning begins with the
    name of a field or of a host."""
    return text[:1].upper() + text[1:] if text.partition(" ")[0].isalpha() else text


def duration(seconds: float | None) -> str:
    """Return a duration in one or two units: 12 s, 4 min 5 s, 3 h 20 min, 2 d 4 h. None becomes a dash."""
    if seconds is None:
        return DASH
    if seconds < 10 and seconds != int(seconds):
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s"
    rest = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, rest = divmod(rest, length)
        if amount or (unit == "s" and not parts):
            parts.append(f"{amount}\N{NO-BREAK SPACE}{unit}")
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts)


def clock(at: datetime, zone: tzinfo, precision: str = "minute", now: datetime | None = None) -> str:
    """Return a time as text in a time zone. `precision` is "day", "minute", "second", "millisecond", or "time" (the time of day
    without the date). The year is left out if it is the current year."""
    local = at.astimezone(zone)
    date = "%-d %b" if now is not None and now.astimezone(zone).year == local.year else "%-d %b %Y"
    patterns = {"day": date, "minute": f"{date}, %H:%M", "second": f"{date}, %H:%M:%S", "time": "%H:%M"}
    if precision == "millisecond":
        return f"{local:{date}, %H:%M:%S}.{local.microsecond // 1000:03d}"
    return f"{local:{patterns[precision]}}"


def iso(at: datetime | None) -> str:
    """Return a time in UTC as ISO 8601."""
    return to_iso(at) or ""


@cache
def _country_names() -> dict[str, str]:
    """Return the English name of each country by its ISO 3166 code. The names are those of Unicode's CLDR (LICENSE-unicode)."""
    lines = Path(__file__).with_name("country_names.txt").read_text(encoding="utf-8").splitlines()
    return {code: name for code, _, name in (line.partition(" ") for line in lines)}


def country_name(code: str | None) -> str:
    """Return the English name of the country with this ISO 3166 code, or the code itself if the name is unknown."""
    if not code:
        return "Unknown"
    return _country_names().get(code, code)


def browser(user_agent: str) -> str:
    """Return the browser and the kind of device that a User-Agent header describes, such as "Chrome, desktop"."""
    from shortener.clicks.user_agents import browser_name, parse_device

    if not user_agent:
        return "Unknown browser"
    device = parse_device(user_agent)
    return f"{browser_name(device.browser)}, {device.kind}"


def ago(at: datetime, now: datetime) -> str:
    """Return how long ago a time was, in one unit, such as "5 min ago"."""
    passed = now - at
    if passed < timedelta(minutes=1):
        return "now"
    return duration(passed.total_seconds()).split("  ")[0] + " ago"
