"""A limit of stored ignored hits, so that HEAD requests and prefetches of one known link cannot fill the disk.

The first hits of a link in each minute are stored and counted in the statistics. Later ones get the same redirect and are only
counted in the metric `shortener_hits_not_stored`, so that the figures remain equal to the rows. Clicks and suspected hits have no
such limit. Each process counts for itself.
"""

from __future__ import annotations

MAX_LINKS = 10_000  # links that are remembered; then all are forgotten
_MINUTE_MS = 60_000


class IgnoredHitLimit:
    """Counts ignored hits by link and minute. `per_minute`: hits of a link that are stored; 0: no limit."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._counts: dict[str, tuple[int, int]] = {}  # code -> minute, hits

    def admit(self, code: str, at_ms: int) -> bool:
        """Return whether a hit at this time is stored."""
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
