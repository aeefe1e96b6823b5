"""This module opens the connections of the service: to Redis, to its other processes, and for HTTP requests. Commands also use
some of these functions, without a `Service`.
"""

# Tested by tests/container/test_build.py

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shortener.delivery.guard import Guard
from shortener.delivery.sender import USER_AGENT, Sender
from shortener.jobs import WakeUp
from shortener.model import Clock
from shortener.redis.client import RedisServer, open_redis
from shortener.redis.link_cache import LinkCache, NoLinkCache, RedisLinkCache
from shortener.secret import Secret
from shortener.settings import Settings

if TYPE_CHECKING:
    from shortener.storage.notifier import PostgresNotifier


def open_sender(guard: Guard, settings: Settings, clock: Clock, limit: int | None = None, *, uses_proxy: bool = True) -> Sender:
    """Return a sender of HTTP requests, which sends at most `limit` requests at a time (default: DELIVERY_SLOTS). If `uses_proxy`
    is true, it sends through DELIVERY_PROXY. The call requires a running event loop. The caller must close the sender."""
    return Sender(
        guard,
        user_agent=USER_AGENT,
        limit=limit or settings.delivery_slots,
        clock=clock,
        proxy=settings.delivery_proxy if uses_proxy else "",
    )


def open_link_cache(settings: Settings, secret: Secret, now_ms: Callable[[], int]) -> tuple[RedisServer | None, LinkCache]:
    """Return the Redis client and its link cache. Without REDIS_URL, return None and a cache that is always empty. The caller must
    close the client."""
    if not settings.redis_url:
        return None, NoLinkCache()
    redis = open_redis(settings.redis_url, timeout=settings.redis_timeout, connections=settings.redis_connections)
    return redis, RedisLinkCache(redis, key_prefix(secret), now_ms)


def key_prefix(secret: Secret) -> str:
    """Return the prefix of all Redis keys of this installation. With it, several installations can share one Redis."""
    return key_prefix_of(secret.fingerprint)


def key_prefix_of(fingerprint: str) -> str:
    """Return the prefix of all Redis keys of an installation. `fingerprint` is the fingerprint of its secret."""
    return f"sms:{fingerprint[:8]}:"


def open_notifier(settings: Settings) -> PostgresNotifier | None:
    """Return a notifier, which sends wake-up events to other processes. Return None with SQLite. Also return None with a
    connection pooler in which a session has no server connection of its own."""
    if not settings.is_postgresql:
        return None
    from shortener.storage.notifier import PostgresNotifier  # imported here, because SQLite does not need asyncpg
    from shortener.storage.postgres import split_url

    dsn, has_session = split_url(settings.database_url)
    return PostgresNotifier(dsn) if has_session else None


def notify_everywhere(notifier: PostgresNotifier | None, name: str, wake_up: WakeUp) -> Callable[[], None]:
    """Return a function that sets `wake_up` in this process. The function also sets the wake-up event with the name `name` in all
    other processes."""
    if notifier is None:
        return wake_up.notify
    notifier.on(name, wake_up.notify)

    def notify() -> None:
        wake_up.notify()
        notifier.notify(name)

    return notify
