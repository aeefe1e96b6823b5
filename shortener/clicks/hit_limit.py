"""This module limits how many ignored and suspected hits are stored. Without a limit, programs that request one link again and
again would fill the disk.

In each minute, ignored and suspected hits of a link are stored and counted in the statistics until the link has reached the
limit. The clients of further hits are redirected too, but these hits are counted only in the metric `shortener_hits_not_stored`.
The statistics therefore agree with the stored rows. The limits do not apply to clicks. They also do not apply to suspected hits
on opt-out links, because these hits create events. Each process has its own limits.
"""

from __future__ import annotations

MAX_LINKS = 10_000  # maximum number of links in memory; if more links get hits, all counts are deleted
_MINUTE_MS = 60_000


class HitLimit:
    """A counter of hits with the same verdict, by link and minute. `per_minute` is the maximum number of hits of one link that are
    stored per minute; 0 means no limit."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._counts: dict[str, tuple[int, int]] = {}  # the current minute and the number of hits in it, by code of the link

    def admit(self, code: str, at_ms: int) -> bool:
        """Count a hit on the link with `code`, and return whether the hit is below the limit and must be stored."""
        if not self._per_minute:
            return True
        minute = at_ms // _MINUTE_MS
        known, count = self._counts.get(code, (minute, 0))
        if known != minute:
            count = 0
        elif count >= self._per_minute:
            return False
        elif not count and len(self._counts) >= MAX_LINKS:
            self._counts.clear()
        self._counts[code] = minute, count + 1
        return True
