"""Tests that the link cache gets the same entries from a rewrite and from the stored links."""

from __future__ import annotations

import pytest

from shortener.clicks.cache_entries import read_cache_entries
from shortener.container import Service
from shortener.retention.erasure import erase_message
from tests.clicks.helpers import change_link, change_settings, create_codes
from tests.conftest import MakeService
from tests.factory import AUDIT, keep_sends
from tests.servers import RedisProcess


@pytest.mark.parametrize(
    ("body", "fallback_url"),
    [
        ('#track("https://x.example/a")', None),
        ('#track("https://x.example/é?to={phone_sha256}&m={message_id}")', "https://x.example/over?{code}"),
        ('#track("https://x.example/a?c={click_id}") STOP #track("https://x.example/b")', None),
    ],
)
async def test_a_rewrite_caches_the_entries_that_are_read_from_the_stored_links(
    make_service: MakeService, redis_server: RedisProcess, body: str, fallback_url: str | None
) -> None:
    service = await make_service(redis_url=redis_server.url, redis_timeout=5)
    await change_settings(service, click_id_param="cid", fallback_url=fallback_url)
    codes = await create_codes(service, body)
    cached = await service.cache.find(codes)
    assert cached.keys() == set(codes)
    assert await service.database.read(read_cache_entries, codes) == cached


async def test_unknown_disabled_and_erased_links_have_no_entry(service: Service) -> None:
    (enabled,), (disabled,), (erased,) = [await create_codes(service, message_ids=(f"m-{number}",)) for number in range(3)]
    await change_link(service, disabled, {"enabled": False})
    await service.database.write(erase_message, 1, "m-2", service.clock(), AUDIT, keep_sends)
    codes = [enabled, disabled, erased, "nosuchcode"]
    assert (await service.database.read(read_cache_entries, codes)).keys() == {enabled}
