"""This module limits CSV exports: each session has at most one export at a time, because an export reads a whole list.

An export begins before its first row is read. It ends when its last byte is passed to the server, when the client disconnects, or
when it fails.
"""
# Tested by tests/portal/test_exports.py

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from shortener.errors import ApiError, ErrorCode

RETRY_AFTER = 5  # The Retry-After header in seconds of the response to a second export.

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiResponse = Callable[[Scope, Receive, Send], Awaitable[None]]


class Exports:
    """The CSV exports that run in this process, by session.

    They are counted in memory, so the limit applies to each process: with several processes, a session can have one export in each.
    """

    def __init__(self) -> None:
        self._running: dict[int, object] = {}

    def begin(self, session_id: int) -> Export:
        """Begin an export of a session. Raise ApiError EXPORT_IN_PROGRESS if the session already has an export."""
        if session_id in self._running:
            raise ApiError(
                ErrorCode.EXPORT_IN_PROGRESS,
                "Another CSV export that you started is still running. Wait until its download is complete, or cancel it. Then "
                "download this list again.",
                retry_after=RETRY_AFTER,
            )
        export = Export(self, session_id)
        self._running[session_id] = export
        return export

    def end(self, export: Export) -> None:
        """End an export. A second call for the same export has no effect, even if the session has begun another export since the
        first call."""
        if self._running.get(export.session_id) is export:
            del self._running[export.session_id]


class Export:
    """A running CSV export of a session."""

    def __init__(self, exports: Exports, session_id: int) -> None:
        self._exports = exports
        self.session_id = session_id

    def end(self) -> None:
        """End the export, so that the session may begin another one."""
        self._exports.end(self)

    def wrap(self, response: AsgiResponse) -> AsgiResponse:
        """Return a response with the same content as `response`. The export ends after the last byte of the response."""

        async def send_export(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_part(message: MutableMapping[str, Any]) -> None:
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    self.end()  # A client may request its next export as soon as it has the last byte.
                await send(message)

            try:
                await response(scope, receive, send_part)
            finally:
                self.end()

        return send_export
