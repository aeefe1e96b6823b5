"""This module makes the entries of the link cache from links that are stored in the database.

A disabled link and an erased link have no entry, so that no redirect uses them while the database is unavailable. A rewrite does
not use this module for its new links (messages/write.py), because their rows are not stored yet.
"""
# Tested by tests/clicks/test_cache_entries.py

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection

from shortener.clicks.queries import LinkRow, find_links
from shortener.redis.link_cache import CachedLink


def cache_entries(links: Iterable[LinkRow]) -> dict[str, CachedLink]:
    """Return the cache entry of each link, by code. Disabled and erased links are left out."""
    return {
        link.code: CachedLink(
            code=link.code,
            link_id=link.link_id,
            message=link.message,
            application_id=link.application_id,
            domain_id=link.domain_id,
            flags=link.flags,
            url=link.location or link.url,
            fallback_url=link.fallback_url,
            expires_at=link.expires_at,
        )
        for link in links
        if link.disabled_at is None and link.url
    }


def read_cache_entries(connection: Connection, codes: Iterable[str]) -> dict[str, CachedLink]:
    """Read the links with these codes, and return the cache entry of each link, by code. Unknown, disabled and erased links are
    left out."""
    return cache_entries(find_links(connection, codes).values())
