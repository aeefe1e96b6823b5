"""/portal/{app}/live: the page that shows clicks, conversions and deliveries as they arrive, by server-sent events.

The page contains the newest rows at the time of the request. If the browser runs scripts, new rows are added as they arrive. A
stream ends when its session ends, when the process stops, or when the browser closes it; the browser connects again by itself.
"""
# Tested by tests/portal/test_live.py

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING

from starlette.responses import Response, StreamingResponse

from shortener.errors import ApiError, ErrorCode
from shortener.portal.live_feed import LiveBatch, read_rows
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.portal.sessions import find_session
from shortener.portal.verdict_texts import RESULTS

if TYPE_CHECKING:
    from shortener.portal.parts import PortalParts

HEARTBEAT = 15.0  # Seconds after which a stream without rows sends a comment, so that proxies keep the connection.
STOP_CHECK = 1.0  # A stream checks once in this number of seconds whether the process is about to stop.
MAX_STREAMS = 3  # The maximum number of streams that one session can have open.
RECENT = timedelta(minutes=15)
SHOWN = 50

_streams: Counter[int] = Counter()  # The number of open streams in this process, by session id.


async def live(visit: Visit) -> Response:
    """Show the newest rows of the last 15 minutes. The page's script, if the browser runs it, then opens the stream of new rows."""
    rows = await visit.service.database.read(read_rows, visit.now - RECENT)
    own = {application.id for application in visit.applications}
    newest = sorted((row for row in rows if row.application_id in own), key=lambda row: row.at, reverse=True)[:SHOWN]
    return visit.render("live.html", title="Live", batch=LiveBatch(newest, 0), results=RESULTS, recent=RECENT)


async def stream(visit: Visit) -> Response:
    """Open the stream that sends new rows as server-sent events. Raise ApiError RATE_LIMITED if the session has MAX_STREAMS
    streams."""
    assert visit.session is not None
    if _streams[visit.session.id] >= MAX_STREAMS:
        raise ApiError(ErrorCode.RATE_LIMITED, f"This session has {MAX_STREAMS} live pages open.", retry_after=5)
    headers = {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}
    return StreamingResponse(event_stream(visit, visit.portal, visit.session.id), media_type="text/event-stream", headers=headers)


async def event_stream(visit: Visit, portal: PortalParts, session_id: int) -> AsyncIterator[str]:
    _streams[session_id] += 1
    checked = time.monotonic()
    try:
        async with portal.live.subscribe([application.id for application in visit.applications]) as batches:
            yield "retry: 2000\n\n"
            while not visit.service.is_stopping:
                # The session is checked again after a fixed time, and not only when no rows arrive, because a busy stream always
                # has rows.
                if time.monotonic() - checked >= HEARTBEAT:
                    if not await _is_signed_in(visit, portal):
                        return
                    checked = time.monotonic()
                    yield ": still here\n\n"
                try:
                    batch = await asyncio.wait_for(batches.get(), STOP_CHECK)
                except TimeoutError:
                    continue
                html = portal.renderer.template("live_rows.html").render(visit=visit, batch=batch, results=RESULTS)
                yield "".join(f"data: {line}\n" for line in html.splitlines() if line.strip()) + "\n"
    finally:
        _streams[session_id] -= 1
        if not _streams[session_id]:
            del _streams[session_id]


async def _is_signed_in(visit: Visit, portal: PortalParts) -> bool:
    """Return whether the session that opened the stream is still valid, and its operator still has a role in each application."""
    token = visit.request.cookies.get(portal.cookie_name, "")
    now = visit.service.clock()
    session = await visit.service.database.read(find_session, token, now, portal.limits)
    return session is not None and all(session.operator.role_in(one.id) is not None for one in visit.applications)


PAGES = [
    PortalPage("/portal/{app}/live", live, navigation=NavigationItem("Live", "radio", 60, key="l", phone=3)),
    PortalPage("/portal/{app}/live/stream", stream),
]
