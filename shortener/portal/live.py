"""/portal/{app}/live: the page that shows clicks, conversions and deliveries as soon as they arrive. It receives them as
server-sent events.

The page shows the newest rows at the time of the request. The query parameter `show` selects one kind of rows. If the browser
runs scripts, it opens a stream of new rows and adds each row to the page. A stream ends when its session ends, when the process
stops, or when the browser closes it.

If a stream ends early, the browser connects again by itself. The id of each event is the highest row id that was sent so far. The
browser sends this id when it connects again (`Last-Event-ID`), and the new stream begins with the rows that the browser has
missed.
"""
# Tested by tests/portal/test_live.py

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import TYPE_CHECKING

from starlette.responses import Response

from shortener.errors import ApiError, ErrorCode, StoreUnavailable
from shortener.ids import MAX_ROW_ID, ms_of
from shortener.portal.live_feed import LiveBatch, LiveRow, read_rows
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.portal.sessions import find_session
from shortener.portal.verdict_texts import RESULTS
from shortener.storage.types import from_ms
from shortener.web.streams import ClosingResponse

if TYPE_CHECKING:
    from shortener.portal.parts import PortalParts

# If a stream has no rows for this number of seconds, it sends a comment, so that proxies do not close the connection.
HEARTBEAT = 15.0
STOP_CHECK = 1.0  # the interval in seconds at which a stream checks whether the process is about to stop
MAX_STREAMS = 3  # the maximum number of open streams of one session
RECENT = timedelta(minutes=15)
SHOWN = 50
#: The kinds of rows, by the value of the query parameter `show` that selects the kind. Every other value selects all rows.
KINDS = {"clicks": "hit", "conversions": "conversion", "deliveries": "delivery"}

_streams: Counter[int] = Counter()  # The number of open streams in this process, by session id.


async def live(visit: Visit) -> Response:
    """Show the newest rows of the last 15 minutes. A script of the page then opens the stream of new rows."""
    rows = await visit.service.database.read(read_rows, visit.now - RECENT, _applications(visit))
    kind = _selected_kind(visit)
    shown = (row for row in rows if kind in (None, row.kind))
    newest = sorted(shown, key=lambda row: row.at, reverse=True)[:SHOWN]
    return visit.render("live.html", title="Live", batch=LiveBatch(newest, 0), results=RESULTS, kinds=tuple(KINDS))


def _applications(visit: Visit) -> frozenset[int]:
    """Return the ids of the applications that the page shows."""
    return frozenset(application.id for application in visit.applications)


def _selected_kind(visit: Visit) -> str | None:
    """Return the kind of rows that the query parameter `show` selects, or None for all rows."""
    return KINDS.get(visit.get("show") or "")


async def stream(visit: Visit) -> Response:
    """Open the stream that sends new rows as server-sent events. Raise ApiError RATE_LIMITED if the session has MAX_STREAMS
    streams."""
    session_id = visit.current_session.id
    if _streams[session_id] >= MAX_STREAMS:
        raise ApiError(ErrorCode.RATE_LIMITED, f"This session has {MAX_STREAMS} live pages open.", retry_after=5)
    headers = {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}
    last_id = _last_id(visit.request.headers.get("last-event-id", ""))
    events = event_stream(visit, visit.portal, session_id, last_id, _selected_kind(visit))
    return ClosingResponse(events, media_type="text/event-stream", headers=headers)


def _last_id(text: str) -> int | None:
    """Return the row id in the header `Last-Event-ID`. Return None if the header is absent or contains no row id."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= 19
    return int(text) if is_number and int(text) <= MAX_ROW_ID else None


async def event_stream(
    visit: Visit, portal: PortalParts, session_id: int, last_id: int | None = None, kind: str | None = None
) -> AsyncGenerator[str, None]:
    """Yield the events of a stream. If `last_id` is not None, begin with the rows of the last 15 minutes whose ids are higher. If
    `kind` is not None, send only rows of this kind."""
    _streams[session_id] += 1
    checked = time.monotonic()
    try:
        async with portal.live.subscribe([application.id for application in visit.applications]) as batches:
            highest = visit.service.ids() if last_id is None else last_id
            yield f"id: {highest}\nretry: 2000\n\n"
            missed = [] if last_id is None else [row for row in await _rows_above(visit, last_id) if kind in (None, row.kind)]
            if missed:
                highest = max(row.id for row in missed)
                batch = LiveBatch(missed[:SHOWN], max(len(missed) - SHOWN, 0))
                yield _event(visit, portal, batch, highest)
            sent = {(row.kind, row.id) for row in missed}
            while not visit.service.is_stopping:
                # Check the session at fixed intervals, even while rows arrive. A busy application has new rows all the time, so
                # the stream would otherwise never check the session.
                if time.monotonic() - checked >= HEARTBEAT:
                    if not await _is_signed_in(visit, portal):
                        return
                    checked = time.monotonic()
                    yield ": still here\n\n"
                try:
                    async with asyncio.timeout(STOP_CHECK):
                        batch = await batches.get()
                except TimeoutError:
                    continue
                # Leave out the rows of `missed`, which were already sent. The feed returns those of them that were stored after
                # the subscription began.
                rows = [row for row in batch.rows if kind in (None, row.kind) and (row.kind, row.id) not in sent]
                batch = LiveBatch(rows, batch.more)
                if not batch.rows and not batch.more:
                    continue
                highest = max([highest, *(row.id for row in batch.rows)])
                yield _event(visit, portal, batch, highest)
    finally:
        _streams[session_id] -= 1
        if not _streams[session_id]:
            del _streams[session_id]


def _event(visit: Visit, portal: PortalParts, batch: LiveBatch, highest: int) -> str:
    """Return a batch of rows as a server-sent event. Its id is `highest`, the highest row id that was sent so far."""
    html = portal.renderer.template("live_rows.html").render(visit=visit, batch=batch, results=RESULTS)
    return f"id: {highest}\n" + "".join(f"data: {line}\n" for line in html.splitlines() if line.strip()) + "\n"


async def _rows_above(visit: Visit, row_id: int) -> list[LiveRow]:
    """Return the rows of the last 15 minutes whose ids are higher than `last_id`, newest first. Return no rows if the database is
    unavailable."""
    since = max(from_ms(ms_of(row_id)), visit.now - RECENT)
    try:
        rows = await visit.service.database.read(read_rows, since, _applications(visit))
    except StoreUnavailable:
        return []
    return sorted((row for row in rows if row.id > row_id), key=lambda row: row.at, reverse=True)


async def _is_signed_in(visit: Visit, portal: PortalParts) -> bool:
    """Return whether the session of the stream is still valid, and whether its operator still has a role in each application of
    the stream."""
    token = visit.request.cookies.get(portal.cookie_name, "")
    now = visit.service.clock()
    session = await visit.service.database.read(find_session, token, now, portal.limits)
    return session is not None and all(session.operator.role_in(one.id) is not None for one in visit.applications)


PAGES = [
    PortalPage("/portal/{app}/live", live, navigation=NavigationItem("Live", "radio", 60, key="l", phone=3)),
    PortalPage("/portal/{app}/live/stream", stream),
]
