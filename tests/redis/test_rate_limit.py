"""Tests of rate limits, in one process and shared by several processes through Redis."""

from collections.abc import AsyncIterator

import pytest

from shortener.redis import rate_limit
from shortener.redis.client import RedisServer, open_redis
from shortener.redis.rate_limit import RateLimiter
from tests.servers import PATIENCE, RedisProcess

MINUTE = 60_000


class Time:
    def __init__(self) -> None:
        self.now = 1_795_176_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
async def redis(redis_server: RedisProcess) -> AsyncIterator[RedisServer]:
    redis = open_redis(redis_server.url, timeout=PATIENCE)
    yield redis
    await redis.close()


def test_a_rate_limiter_allows_the_burst_size_at_once_and_then_the_rate_per_minute(time: Time) -> None:
    limiter = RateLimiter("x", 60, time)
    assert [limiter.take(1) for _ in range(61)] == [0] * 60 + [1]
    assert limiter.take(2) == 0, "another client has its own limit"
    assert [limiter.take(3, cost=40) for _ in range(2)] == [0, 20], "20 tokens are missing, and a token takes a second"
    assert limiter.take(4, cost=1000) == 0, "a request that costs more than the limit needs a whole minute"
    assert limiter.take(4) == 1
    time.now += 500
    assert limiter.take(1) == 1
    time.now += 500
    assert [limiter.take(1), limiter.take(1)] == [0, 1]
    time.now += 10 * MINUTE
    assert [limiter.take(1) for _ in range(61)] == [0] * 60 + [1]
    assert limiter.limited == 6


def test_a_rate_limiter_returns_the_seconds_until_the_next_request_is_allowed(time: Time) -> None:
    limiter = RateLimiter("x", 2, time)
    assert [limiter.take(1) for _ in range(3)] == [0, 0, 30]
    time.now += 29_000
    assert limiter.take(1) == 1


def test_a_rate_limiter_refills_after_the_clock_was_set_back(time: Time) -> None:
    limiter = RateLimiter("x", 2, time)
    assert [limiter.take(1) for _ in range(3)] == [0, 0, 30]
    time.now -= 60 * MINUTE
    assert limiter.take(1) == 30
    time.now += MINUTE
    assert [limiter.take(1) for _ in range(3)] == [0, 0, 30]


def test_seconds_to_wait_takes_no_token_of_the_rate_limit(time: Time) -> None:
    limiter = RateLimiter("x", 2, time)
    assert [limiter.seconds_to_wait(1) for _ in range(5)] == [0] * 5
    assert [limiter.take(1), limiter.seconds_to_wait(1), limiter.take(1)] == [0, 0, 0]
    assert (limiter.seconds_to_wait(1), limiter.limited) == (30, 1)
    time.now += MINUTE
    assert [limiter.seconds_to_wait(1), limiter.take(1)] == [0, 0]
    assert RateLimiter("x", 0, time).seconds_to_wait(1) == 0


def test_a_rate_limit_of_zero_allows_any_number_of_requests(time: Time) -> None:
    limiter = RateLimiter("x", 0, time)
    assert not any(limiter.take(1) for _ in range(1000))


def test_a_full_rate_limiter_forgets_the_client_whose_last_request_is_the_oldest(
    time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit, "MAX_CLIENTS", 2)
    limiter = RateLimiter("x", 1, time)
    assert [limiter.take(client) for client in (1, 2, 1, 3)] == [0, 0, 60, 0]
    assert limiter.take(1), "client 1 was used after client 2, so it is not forgotten"
    assert not limiter.take(2)


async def test_processes_share_a_rate_limit_through_redis(redis: RedisServer, time: Time) -> None:
    one, two = (RateLimiter("x", 10, time, redis, "sms:test:") for _ in range(2))
    assert [one.take(5) for _ in range(8)] == [0] * 8
    assert await one.share() == 1
    assert two.take(5) == 0
    assert await two.share() == 1
    assert [two.take(5) for _ in range(2)] == [0, 6], "8 by the other process, 2 of its own"
    assert [await two.share(), await one.share()] == [1, 0]
    assert one.take(5) == 0
    await one.share()
    assert one.take(5), "the other process used the rest"


async def test_each_process_enforces_the_rate_limit_alone_without_redis_or_while_redis_is_down(
    redis: RedisServer, redis_server: RedisProcess, time: Time
) -> None:
    limiter = RateLimiter("x", 2, time, redis, "sms:test:")
    redis_server.kill()
    assert [limiter.take(1), limiter.take(1)] == [0, 0]
    assert await limiter.share() == 0
    assert limiter.take(1) == 30
    assert await RateLimiter("x", 2, time).share() == 0


async def test_a_rate_limiter_counts_a_bounded_number_of_clients_while_redis_is_down(
    redis: RedisServer, redis_server: RedisProcess, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit, "MAX_CLIENTS", 2)
    limiter = RateLimiter("x", 10, time, redis, "sms:test:")
    redis_server.kill()
    assert [limiter.take(client) for client in (1, 2, 3, 1)] == [0] * 4
    redis_server.start()
    assert await limiter.share() == 2
