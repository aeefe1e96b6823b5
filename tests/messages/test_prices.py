"""Tests of prices: the longest matching prefix of the application has priority over the longest prefix for all applications."""

from __future__ import annotations

from decimal import Decimal

import pytest

from shortener.accounts.administration import create_application
from shortener.errors import ApiError, ErrorCode
from shortener.messages.prices import find_prices, list_prices, remove_price, set_price
from shortener.storage.database import Database
from tests.conftest import NOON
from tests.one_service import on_one_service


async def test_the_price_of_the_longest_prefix_applies_and_prices_of_the_application_have_priority_over_common_prices(
    database: Database,
) -> None:
    await database.write(create_application, "default", NOON)
    for application, prefix, price in (
        (0, "default", "0.10"),
        (0, "1", "0.01"),
        (0, "1408", "0.02"),
        (1, "+1", "0.005"),
        (0, "44", "0.04"),
    ):
        await database.write(set_price, application, prefix, Decimal(price))
    numbers = [(1, "+14085550100"), (2, "+14085550100"), (2, "+12125550100"), (1, "+447911123456"), (1, "+4915112345678")]
    assert await database.read(find_prices, numbers) == {
        (1, "+14085550100"): Decimal("0.005"),
        (2, "+14085550100"): Decimal("0.02"),
        (2, "+12125550100"): Decimal("0.01"),
        (1, "+447911123456"): Decimal("0.04"),
        (1, "+4915112345678"): Decimal("0.10"),
    }


async def test_find_prices_returns_no_price_for_a_phone_number_without_a_matching_prefix(database: Database) -> None:
    await database.write(set_price, 0, "44", Decimal("0.04"))
    assert await database.read(find_prices, [(1, "+14085550100")]) == {}


async def test_the_price_of_a_phone_number_prefix_is_replaced_listed_and_removed(database: Database) -> None:
    await database.write(set_price, 0, "44", Decimal("0.04"))
    await database.write(set_price, 0, "44", Decimal("0.05000001"))
    assert await database.read(list_prices) == [{"application_id": 0, "prefix": "44", "price": Decimal("0.05000001")}]
    assert await database.write(remove_price, 0, "+44") == "44"
    with pytest.raises(ApiError) as caught:
        await database.write(remove_price, 0, "44")
    assert caught.value.code is ErrorCode.NOT_FOUND


@on_one_service
@pytest.mark.parametrize(("prefix", "price"), [("0", "1"), ("abc", "1"), ("12345678901", "1"), ("1", "-1"), ("1", "1000000")])
async def test_invalid_prices_are_rejected(database: Database, prefix: str, price: str) -> None:
    with pytest.raises(ApiError) as caught:
        await database.write(set_price, 0, prefix, Decimal(price))
    assert caught.value.code is ErrorCode.INVALID_REQUEST
