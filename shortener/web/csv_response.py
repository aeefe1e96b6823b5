"""Responses that stream a CSV file page by page, so that a long file needs no more memory than a short one."""

# Tested by tests/web/test_lists.py

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.responses import Response

from shortener.web.endpoint import Call
from shortener.web.streams import ClosingResponse


async def read_first_page(pages: AsyncIterator[bytes]) -> list[bytes]:
    """Read the CSV header, and the first page of rows if there are rows. Call this before the response starts, because the client
    cannot get an error status later. Raise StoreUnavailable if the database is unavailable."""
    first = [await anext(pages)]
    async for page in pages:
        first.append(page)
        break
    return first


async def csv_response(call: Call[Any, None], name: str, pages: AsyncIterator[bytes]) -> Response:
    """Return a response that the browser saves as a CSV file. The name of the file begins with `name`. While many hits arrive, the
    response pauses between the pages, so that clicks are not delayed.

    `pages` yields the CSV header and then pages of rows. Raise StoreUnavailable if the first page cannot be read, so that the
    client gets an error."""
    first = await read_first_page(pages)
    headers = {"Content-Disposition": f'attachment; filename="{name}-{call.service.clock():%Y-%m-%d}.csv"'}

    async def body() -> AsyncGenerator[bytes, None]:
        for page in first:
            yield page
        if call.request.method == "GET":
            async for page in call.service.throttle.slow_down(pages):
                yield page

    return ClosingResponse(body(), media_type="text/csv", headers=headers)
