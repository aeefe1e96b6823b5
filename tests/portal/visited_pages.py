"""This module finds the portal pages that a list of paths does not visit. A test that must visit every page uses it, and fails
for a new page."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from shortener.portal.page import PortalPage
from shortener.portal.pages import all_pages


def unvisited_pages(paths: Iterable[str], left_out: Collection[str]) -> list[str]:
    """Return the path patterns of the pages that none of `paths` opens, except the patterns in `left_out`."""
    pages = [page for page in all_pages() if page.get is not None]
    opened = {found.get for path in paths if (found := _page_of(path, pages)) is not None}
    opened |= {page.get for page in pages if page.path in left_out}
    return [page.path for page in pages if page.get not in opened]


def _page_of(path: str, pages: Iterable[PortalPage]) -> PortalPage | None:
    """Return the page at a path. If several patterns match, choose the one with the most fixed segments."""
    parts = path.partition("?")[0].removesuffix(".csv").split("/")
    found, fixed_parts = None, -1
    for page in pages:
        pattern = page.path.split("/")
        fixed = [(want, have) for want, have in zip(pattern, parts, strict=False) if not want.startswith("{")]
        if len(pattern) == len(parts) and all(want == have for want, have in fixed) and len(fixed) > fixed_parts:
            found, fixed_parts = page, len(fixed)
    return found
