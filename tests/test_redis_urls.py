import pytest

from shortener.redis_urls import RedisUrl, parse_redis_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://me:pw@h:1/3", RedisUrl("", False, (("h", 1),), "3")),
        ("rediss://h", RedisUrl("", True, (("h", 6379),), "")),
        ("unix:///run/redis.sock", RedisUrl("", False, (), "/run/redis.sock")),
        ("redis+sentinel://a,b:2/main/0", RedisUrl("sentinel", False, (("a", 26379), ("b", 2)), "main/0")),
        ("rediss+cluster://a:1,b", RedisUrl("cluster", True, (("a", 1), ("b", 6379)), "")),
    ],
)
def test_a_redis_url_is_split_into_its_parts(url: str, expected: RedisUrl) -> None:
    assert parse_redis_url(url) == expected


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://x", "must begin with one of"),
        ("redis+sentinel://h:1", "must name a service"),
        ("redis+cluster://", "must name a host"),
        ("localhost:6379", "must begin with one of"),
    ],
)
def test_a_redis_url_that_is_not_valid_is_rejected_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_redis_url(url)
