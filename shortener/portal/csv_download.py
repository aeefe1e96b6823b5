"""This module creates the responses that download lists of the portal as CSV."""
# Tested by tests/portal/test_exports.py

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import Response

from shortener.portal.page import BOM_QUERY, Visit
from shortener.reporting.export import BYTE_ORDER_MARK
from shortener.web.csv_response import read_first_page
from shortener.web.streams import ClosingResponse


async def csv_download(visit: Visit, pages: AsyncIterator[bytes], noun: str) -> Response:
    """Return a response that downloads a CSV file. Its file name consists of the application, `noun` and the date. While many
    hits arrive, the response pauses between its pages, so that clicks are not delayed. With `bom=true` in the query, the CSV
    begins with a byte order mark.

    `pages` yields the header and then pages of rows. Raise StoreUnavailable if the first page cannot be read, so that the browser
    gets an error page instead of a file."""
    first = await read_first_page(pages)
    if visit.get(BOM_QUERY) == "true":
        first.insert(0, BYTE_ORDER_MARK)

    async def everything() -> AsyncIterator[bytes]:
        for page in first:
            yield page
        async for page in pages:
            yield page

    name = f"{visit.app_name}-{noun}-{visit.now.astimezone(visit.period.zone):%Y-%m-%d}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    paced = visit.service.throttle.slow_down(everything())
    return ClosingResponse(paced, media_type="text/csv; charset=utf-8", headers=headers)
