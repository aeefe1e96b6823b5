"""The cache restorer stores links in the link cache again after Redis has lost them.

Redis loses links when it is emptied, restarts without its data, or runs out of memory. A redirect then finds the link in the
database and passes it to the restorer. Without the restorer, such a link would have no destination while the database is
unavailable.

The restorer works in the background, and no redirect waits for it. One round trip to Redis checks all links that have arrived since
the previous round trip. If more than MAX_WAITING links wait, further links are skipped until their next hit.
"""
# Tested by tests/messages/test_rewriter_cache.py

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping

from shortener.clicks.cache_entries import cache_entries
from shortener.clicks.queries import LinkRow
from shortener.redis.link_cache import LinkCache

MAX_WAITING = 4000  # maximum number of links that wait for a check
MAX_LINKS_PER_CHECK = 1000


class CacheRestorer:
    """A job that checks whether Redis has lost links, and stores lost links in the link cache again. `spawn` is a function that
    runs a coroutine in the background."""

    def __init__(self, cache: LinkCache, spawn: Callable[[Coroutine[None, None, None]], None]) -> None:
        self._cache = cache
        self._spawn = spawn
        self._waiting: dict[str, LinkRow] = {}
        self._is_running = False

    def add(self, links: Mapping[str, LinkRow]) -> None:
        """Queue links for the check in the background. The check stores the links that are missing in the cache."""
        if len(self._waiting) < MAX_WAITING:
            self._waiting.update(links)
            if not self._is_running:
                self._is_running = True
                self._spawn(self._run())

    async def _run(self) -> None:
        try:
            while self._waiting:
                codes = list(self._waiting)[:MAX_LINKS_PER_CHECK]
                links = {code: self._waiting.pop(code) for code in codes}
                missing = [links[code] for code in await self._cache.find_missing(codes)]
                await self._cache.put(list(cache_entries(missing).values()))
        finally:
            self._is_running = False
