"""The limit of stored ignored hits. It prevents that HEAD requests and prefetches of one known link fill the disk.

In each minute, the first ignored hits of a link are stored and counted in the statistics. Later ones are redirected too, but they
are counted only in the metric `shortener_hits_not_stored`. Thus the statistics equal the stored rows. The limit does not apply to
clicks and suspected hits. Each process has its own limit.
"""

from __future__ import annotations

MAX_LINKS = 10_000  # maximum number of links in memory; when it is exceeded, all counts are deleted
_MINUTE_MS = 60_000


class IgnoredHitLimit:
    """Counts ignored hits by link and minute. `per_minute`: the maximum number of stored ignored hits of a link; 0 means no
    limit."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._counts: dict[str, tuple[int, int]] = {}  # by code: the minute, and the number of ignored hits in it

    def admit(self, code: str, at_ms: int) -> bool:
        """Count an ignored hit on the link with `code` and return whether the hit must be stored."""
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
