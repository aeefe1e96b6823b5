"""This module examines an open page of the portal with axe, at two window widths and in both themes. It also checks whether the
page fits all window widths.

axe takes most of the time of the portal's tests, so no part of a page is examined twice:
- If siblings have the same tags, classes and attributes, such as the rows of a table, only the first three and the last of them are
  examined.
- The frame of the page (header, navigation, list of shortcuts) is examined only if the caller says so.
- Only the contrast of texts depends on the theme. Therefore each width has one complete examination in one theme. In the other
  theme, only the contrast is measured, and only of some elements: those that are visible at one width only, or that look different
  at the two widths. The examination at the other width has already measured the contrast of all other elements.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from tests.acceptance.portal.browser import WIDTHS, Visitor

_WIDE_COMPARISONS = (
    "[...document.querySelectorAll('.table-frame:has(.compare)')].filter(one => one.scrollWidth > one.clientWidth).length"
)
# Rules of WCAG 2.2 up to level AA. axe does not collect details about rules that passed, because collecting them would double the
# time.
_AXE_OPTIONS = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]},
    "resultTypes": ["violations", "incomplete"],
}
_CONTRAST_OPTIONS = {"runOnly": {"type": "rule", "values": ["color-contrast"]}, "resultTypes": ["violations", "incomplete"]}

EVERYTHING = "html"
_FRAME = "body > header, body > nav, body > dialog, .frame > nav"
_REPEATED = "[data-repeated]"
_DIFFERENT = "[data-different]"

# Marks elements that repeat their siblings: three siblings before them have the same tags, classes and attributes, also in all
# inner elements. Their texts, and the values of other attributes such as links, may differ.
_MARK_REPEATED = """() => {
    const compared = new Set(['class', 'role', 'type', 'style', 'scope', 'tabindex', 'colspan', 'fill', 'stroke', 'aria-current',
        'aria-hidden', 'aria-invalid', 'aria-live', 'aria-expanded']);
    const shapes = new Map();
    const shape = one => {
        if (!shapes.has(one)) {
            const attributes = [...one.attributes].map(({name, value}) => compared.has(name) ? `${name}=${value}` : name).sort();
            const isText = node => node.nodeType == Node.TEXT_NODE && node.data.trim() != '';
            const content = [...one.childNodes].map(node => node.nodeType == Node.ELEMENT_NODE ? shape(node) : isText(node));
            shapes.set(one, `${one.tagName}[${attributes}](${content})`);
        }
        return shapes.get(one);
    };
    const mark = parent => {
        const numbers = new Map();
        for (const one of parent.children) {
            const number = (numbers.get(shape(one)) ?? 0) + 1;
            numbers.set(shape(one), number);
            if (number > 3 && one !== parent.lastElementChild) one.dataset.repeated = '';
            else mark(one);
        }
    };
    mark(document.body);
}"""

# Stores how each element looks: whether it is visible, and all styles on which the contrast of its text depends.
_STORE_LOOKS = """() => {
    window.looksBefore = window.looks;
    window.looks = new Map([...document.body.querySelectorAll('*')].map(one => {
        const style = getComputedStyle(one), size = parseFloat(style.fontSize);
        const look = [one.checkVisibility(), style.color, style.backgroundColor, style.backgroundImage, style.opacity, style.filter,
            style.fontWeight, style.textShadow, style.fill, style.mixBlendMode, size >= 24, size >= 18.66];
        return [one, look.join()];
    }));
}"""
# Compares the last two stored looks of each element. Marks the elements whose looks differ, and returns their number.
_MARK_DIFFERENT = """([frame, skipFrame]) => {
    document.querySelectorAll('[data-different]').forEach(one => delete one.dataset.different);
    let found = 0;
    const mark = one => {
        if (skipFrame && one.matches(frame) || 'repeated' in one.dataset || !one.checkVisibility()) return;
        if (looks.get(one) === looksBefore.get(one)) [...one.children].forEach(mark);
        else {
            one.dataset.different = '';
            found += 1;
        }
    };
    [...document.body.children].forEach(mark);
    return found;
}"""
_RUN = """([include, exclude, options]) => axe.run({include: [[include]], exclude: exclude.map(one => [one])}, options).then(
    found => [...found.violations, ...found.incomplete.filter(one => one.id == "color-contrast")])"""


@functools.cache
def _axe() -> str:
    import axe_playwright_python

    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()


def axe_violations(
    visit: Visitor, options: dict[str, Any] = _AXE_OPTIONS, *, include: str = EVERYTHING, exclude: tuple[str, ...] = ()
) -> list[str]:
    """Return the violations that axe finds, and the texts whose contrast axe cannot measure, for example because of a picture
    behind them. A text in a chart is left out if its contrast cannot be measured, because it has the same colours as other
    secondary texts on a card.

    The script of axe is evaluated, because the Content-Security-Policy of the page would block a script tag."""
    if not visit.page.evaluate("'axe' in window"):
        visit.page.evaluate(_axe())
    found = visit.page.evaluate(_RUN, [include, list(exclude), options])
    return [
        f"{violation['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
        for violation in found
        for node in violation["nodes"]
        if not (node["html"].startswith("<text ") and "insufficient" not in node["failureSummary"])
    ]


def examine(visit: Visitor, *, with_frame: bool = True) -> None:
    """Fail if the open page is not accessible, or if it does not fit a window width."""
    for width in (*WIDTHS, 1440):
        visit.page.set_viewport_size({"width": width, "height": 900})
        assert visit.overflow() == 0, width
        assert visit.page.evaluate(_WIDE_COMPARISONS) == 0, width
    exclude = (_REPEATED,) if with_frame else (_REPEATED, _FRAME)
    visit.page.evaluate(_MARK_REPEATED)
    for first, second, theme in ((390, 1280, "light"), (1280, 390, "dark")):
        visit.page.emulate_media(color_scheme=theme)
        visit.page.set_viewport_size({"width": first, "height": 900})
        assert axe_violations(visit, exclude=exclude) == [], (first, theme)
        visit.page.evaluate(_STORE_LOOKS)
        visit.page.set_viewport_size({"width": second, "height": 900})
        visit.page.evaluate(_STORE_LOOKS)
        if visit.page.evaluate(_MARK_DIFFERENT, [_FRAME, not with_frame]):
            found = axe_violations(visit, _CONTRAST_OPTIONS, include=_DIFFERENT, exclude=exclude)
            assert found == [], (second, theme)
