"""This module draws bar charts as SVG on the server. Each bar is a hyperlink to the list of the rows that it counts.

Horizontal positions are percentages and vertical positions are pixels. Therefore a chart fits every width without a script, and
its text keeps its size. The numbers of the grid lines are in a separate column to the left of the bars. The table beneath a chart
shows the same numbers. Screen readers therefore skip the chart (`aria-hidden`). The tab key reaches the links of the table, but
not the links of the chart. A bar with the value None is a gap: there is no data for its time. A gap is drawn as a hatched area,
so that it looks different from zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date, datetime

from markupsafe import Markup

from shortener.model import record
from shortener.portal.formats import change, number, short_number

MAX_BARS = 400
#: The longest period in days with one bar for each day, and the longest with one bar for each week. Longer periods have one bar
#: for every four weeks.
MAX_DAYS_OF_DAYS, MAX_DAYS_OF_WEEKS = 120, 840
_HEIGHT = 176  # Height of the area of the bars, in pixels.
_TOP = 8  # Space above the bars, in pixels. The upper half of the number at the highest grid line needs it.
_BOTTOM = 22  # Space beneath the bars for the labels of the horizontal axis, in pixels.
_MAX_LABELS = 7  # The approximate number of labels on the horizontal axis.
_WIDE_SLOT = 14  # A bar is wide enough for its label if each bar, with its space, gets at least this percentage of the width.
_MIN_BAR = 2  # The minimum height in pixels of a bar that is not zero.
_GAP_SHARE = 0.22  # The share of the width for one bar that stays empty, as space between two bars. Many bars have less space.


@record
class Bar:
    """One bar of a chart. `label` is the text under the axis, `title` is the complete description, and `href` is the URL of the
    list of the counted rows. If `value` is None, the bar is a gap. `before` is the value of the previous period, which is drawn as
    a mark. `is_partial` is true if the time of the bar has not ended yet."""

    label: str
    title: str
    value: int | float | None
    href: str | None = None
    before: int | float | None = None
    is_partial: bool = False


def days_per_bar(days: int) -> int:
    """Return the number of days that one bar covers, if the chart shows `days` days."""
    if days <= MAX_DAYS_OF_DAYS:
        return 1
    return 7 if days <= MAX_DAYS_OF_WEEKS else 28


def label_of_days(days: Sequence[date]) -> tuple[str, str]:
    """Return the label (under the axis) and the title (the complete description) of a bar for these days."""
    first, last = days[0], days[-1]
    if len(days) == 1:
        return f"{first:%-d %b}", f"{first:%a %-d %b %Y}"
    label = f"{first:%-d %b}" if len(days) <= 7 else f"{first:%b %Y}"
    return label, f"{first:%-d %b} to {last:%-d %b %Y}" if first.year == last.year else f"{first:%-d %b %Y} to {last:%-d %b %Y}"


def label_of_hour(begin: datetime, end: datetime) -> tuple[str, str]:
    """Return the label and the title of a bar for one hour. `begin` and `end` are local times."""
    label = f"{begin:%-d %b}" if begin.hour == 0 else f"{begin:%H:%M}"
    return label, f"{begin:%a %-d %b, %H:%M} to {end:%H:%M}"


def bar_chart(bars: Sequence[Bar], *, height: int = _HEIGHT) -> Markup:
    """Return the SVG of a bar chart. Raise ValueError for more than MAX_BARS bars."""
    if len(bars) > MAX_BARS:
        raise ValueError(f"a chart has at most {MAX_BARS} bars")
    highest = max((value for bar in bars for value in (bar.value, bar.before) if value is not None), default=0)
    top, step = _scale(highest)
    parts = [_pattern()]
    lines, numbers = _grid(top, step, height)
    parts += lines
    slot = 100 / max(len(bars), 1)
    width = slot * (1 - (_GAP_SHARE if len(bars) <= 120 else 0.1))
    for index, bar in enumerate(bars):
        left = index * slot + (slot - width) / 2
        parts.append(_bar(bar, left, width, index * slot, slot, top, height))
    parts += _labels(bars, slot, height)
    template = Markup(
        '<svg class="chart{}" height="{}" aria-hidden="true" focusable="false" xmlns="http://www.w3.org/2000/svg">{}</svg>'
    )
    whole = height + _TOP + _BOTTOM
    scale = template.format(" scale", whole, Markup("").join(numbers))
    return Markup('<div class="plot">{}{}</div>').format(scale, template.format("", whole, Markup("").join(parts)))


def _pattern() -> Markup:
    return Markup(
        '<defs><pattern id="gap" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<line x1="0" y1="0" x2="0" y2="6" class="hatch"/></pattern></defs>'
    )


def _scale(highest: float) -> tuple[float, float]:
    """Return the value at the top of the chart, and the step from one grid line to the next. The step is 1, 2 or 5 times a power
    of ten."""
    if highest <= 0:
        return 1, 1
    step = 10 ** math.floor(math.log10(highest))
    for factor in (0.2, 0.5, 1, 2, 5):
        if highest / (step * factor) <= 4.0001:
            step *= factor
            break
    step = max(step, 1) if highest >= 1 else step
    return math.ceil(highest / step - 1e-9) * step, step


def _grid(top: float, step: float, height: int) -> tuple[list[Markup], list[Markup]]:
    """Return the grid lines, and the numbers at these lines, beginning with zero."""
    lines, numbers = [], []
    for index in range(round(top / step) + 1):
        value = index * step
        y = _y(value, top, height)
        name = "axis" if index == 0 else "grid"
        lines.append(Markup('<line class="{}" x1="0" x2="100%" y1="{}" y2="{}"/>').format(name, y, y))
        text = short_number(int(value) if value == int(value) else value)
        numbers.append(Markup('<text x="100%" y="{}" text-anchor="end">{}</text>').format(y + 4, text))
    return lines, numbers


def _bar(bar: Bar, left: float, width: float, slot_left: float, slot: float, top: float, height: int) -> Markup:
    if bar.value is None:
        rect = Markup('<rect class="gap" x="{}%" width="{}%" y="{}" height="{}" fill="url(#gap)"><title>{}</title></rect>')
        return rect.format(_p(slot_left), _p(slot), _TOP, height, bar.title)
    y = _y(bar.value, top, height)
    if bar.value > 0:
        y = min(y, _TOP + height - _MIN_BAR)
    name = "bar partial" if bar.is_partial else "bar"
    shapes = Markup('<rect class="{}" x="{}%" width="{}%" y="{}" height="{}" rx="1.5"/>').format(
        name, _p(left), _p(width), y, round(_TOP + height - y, 1)
    )
    if bar.before:
        line = _y(bar.before, top, height)
        shapes += Markup('<line class="before" x1="{}%" x2="{}%" y1="{}" y2="{}"/>').format(_p(left), _p(left + width), line, line)
    # This transparent rectangle fills the whole height of the chart, so that the pointer can also select a bar that is only a few
    # pixels high.
    target = Markup('<rect class="target" x="{}%" width="{}%" y="{}" height="{}"/>').format(_p(slot_left), _p(slot), _TOP, height)
    title = Markup("<title>{}</title>").format("\n".join(_tooltip(bar)))
    if bar.href is None:
        return Markup("<g>{}{}{}</g>").format(title, target, shapes)
    return Markup('<a class="slot" href="{}" tabindex="-1">{}{}{}</a>').format(bar.href, title, target, shapes)


def _tooltip(bar: Bar) -> list[str]:
    """Return the lines of the tooltip of a bar."""
    lines = [f"{bar.title}: {number(bar.value)}"]
    if bar.before is not None:
        changed = f" ({change(bar.value, bar.before)})" if bar.before and not bar.is_partial else ""
        lines.append(f"The period before: {number(bar.before)}{changed}")
    if bar.is_partial:
        lines.append("Not over yet")
    return lines


def _labels(bars: Sequence[Bar], slot: float, height: int) -> list[Markup]:
    """Return the labels under the horizontal axis. The first and the last bar always have a label."""
    if not bars:
        return []
    every = math.ceil(len(bars) / _MAX_LABELS)
    # Narrow screens show only the labels in `narrow`. The others have the class `extra`, which narrow screens hide.
    narrow = _labelled(len(bars), 2 * every)
    labels = []
    for index in sorted({*_labelled(len(bars), every), *narrow}):
        anchor, x = "middle", (index + 0.5) * slot
        if index == 0 and slot < _WIDE_SLOT:
            anchor, x = "start", 0.0
        elif index == len(bars) - 1 and slot < _WIDE_SLOT:
            anchor, x = "end", 100.0
        text = Markup('<text class="{}" x="{}%" y="{}" text-anchor="{}">{}</text>')
        name = "label" if index in narrow else "label extra"
        labels.append(text.format(name, _p(x), _TOP + height + 16, anchor, bars[index].label))
    return labels


def _labelled(bars: int, every: int) -> list[int]:
    """Return the indexes of the bars that have a label: the first bar, the last bar, and bars at a distance of `every` bars. A
    bar that is too close to the last bar gets no label."""
    last = bars - 1
    return [*(index for index in range(0, last, every) if index == 0 or last - index >= 0.75 * every), last]


def _y(value: float, top: float, height: int) -> float:
    return round(_TOP + height * (1 - value / top), 1)


def _p(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")
