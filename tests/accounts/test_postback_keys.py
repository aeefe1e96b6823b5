"""Tests of postback keys in the database and in the directory of accounts."""

from datetime import timedelta

import pytest

from shortener.accounts import postback_keys
from shortener.container import Service
from shortener.errors import ApiError, ErrorCode
from tests.conftest import NOON
from tests.one_service import on_one_service


async def test_a_postback_key_is_accepted_until_it_is_revoked(service: Service) -> None:
    key_id, key = await service.database.write(postback_keys.create_postback_key, 1, " network ", NOON)
    await service.directory.refresh()
    found = service.directory.find_by_postback_key(key, NOON)
    assert found is not None
    assert (found.application.id, found.permissions, found.key_id) == (1, frozenset(), key_id)
    assert service.directory.find_by_api_key(key) is None
    assert service.directory.find_by_tracker_token(key, NOON) is None
    (listed,) = await service.database.read(postback_keys.list_postback_keys, 1)
    assert (listed["name"], "hash" in listed) == ("network", False)
    await service.database.write(postback_keys.revoke_postback_key, 1, key_id, NOON)
    await service.directory.refresh()
    assert service.directory.find_by_postback_key(key, NOON) is None


@on_one_service
@pytest.mark.parametrize("name", ["  ", "x" * 101, "a\nb"])
async def test_a_blank_too_long_or_unprintable_name_of_a_postback_key_is_rejected(service: Service, name: str) -> None:
    with pytest.raises(ApiError) as raised:
        await service.database.write(postback_keys.create_postback_key, 1, name, NOON)
    assert raised.value.details[0].field == "name"


async def test_the_number_of_postback_keys_of_an_application_is_limited(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postback_keys, "MAX_KEYS", 1)
    key_id, _ = await service.database.write(postback_keys.create_postback_key, 1, "one", NOON)
    with pytest.raises(ApiError) as raised:
        await service.database.write(postback_keys.create_postback_key, 1, "two", NOON)
    assert raised.value.code is ErrorCode.CONFLICT
    await service.database.write(postback_keys.revoke_postback_key, 1, key_id, NOON)
    await service.database.write(postback_keys.create_postback_key, 1, "two", NOON)


@on_one_service
@pytest.mark.parametrize("overlap", [timedelta(seconds=-1), timedelta(days=91)])
async def test_a_rotation_overlap_outside_0_to_90_days_is_rejected_for_a_postback_key(service: Service, overlap: timedelta) -> None:
    key_id, _ = await service.database.write(postback_keys.create_postback_key, 1, "one", NOON)
    with pytest.raises(ApiError) as raised:
        await service.database.write(postback_keys.rotate_postback_key, None, key_id, NOON, overlap)
    assert raised.value.details[0].field == "overlap"


@on_one_service
@pytest.mark.parametrize("key_id", [0, 7, 2**31, 2**62])
async def test_rotating_or_revoking_an_unknown_postback_key_raises_not_found(service: Service, key_id: int) -> None:
    for change in (
        service.database.write(postback_keys.revoke_postback_key, 1, key_id, NOON),
        service.database.write(postback_keys.rotate_postback_key, 1, key_id, NOON, timedelta()),
    ):
        with pytest.raises(ApiError) as raised:
            await change
        assert raised.value.code is ErrorCode.NOT_FOUND
