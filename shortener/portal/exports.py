"""This module limits CSV exports: each session has at most one export at a time, because an export reads a whole list.

An export begins before its first row is read. It ends when it fails, when the client disconnects, or when its last byte is passed
to the server that sends the response.
"""
# Tested by tests/portal/test_exports.py

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from shortener.errors import ApiError, ErrorCode

# The Retry-After header, in seconds, of the error response to an export that is refused because another one is running.
RETRY_AFTER = 5

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiResponse = Callable[[Scope, Receive, Send], Awaitable[None]]


class Exports:
    """The CSV exports that run in this process, by session.

    The exports are counted in the memory of the process. If there are several processes, a session can therefore have one export
    in each of them.
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
        """End this export. A second call for the same export does nothing: it must not end an export that the session has begun
        in the meantime."""
        if self._running.get(export.session_id) is export:
            del self._running[export.session_id]


class Export:
    """A running CSV export of a session."""

    def __init__(self, exports: Exports, session_id: int) -> None:
        self._exports = exports
        self.session_id = session_id

    def end(self) -> None:
        """End the export, so that its session may begin another one."""
        self._exports.end(self)

    def wrap(self, response: AsgiResponse) -> AsgiResponse:
        """Return a response with the same content. When its last byte is sent, the export ends."""

        async def send_export(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_part(message: MutableMapping[str, Any]) -> None:
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    # End before the last byte is sent, because the client may begin its next export as soon as it has this byte.
                    self.end()
                await send(message)

            try:
                await response(scope, receive, send_part)
            finally:
                self.end()

        return send_export
