"""The rows of the audit log about balances, prices and opt-out lists."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from shortener.accounts.audit import Actor, AuditWriter
from shortener.container import Service
from shortener.ids import IdGenerator
from shortener.messages import audited_billing as billing
from shortener.messages.balances import read_balance
from tests.conftest import NOON
from tests.factory import audited_rows

KEY = AuditWriter(Actor(name="key 5"), IdGenerator(1))
PHONE = "+14085550100"


async def test_changes_of_balances_and_prices_have_audit_rows_with_their_values(service: Service) -> None:
    write = service.database.write
    for amount, price in (("10.50", "0.04"), ("10.5", "0.040")):
        await write(billing.change_balance, KEY, 1, NOON, amount=Decimal(amount), currency="EUR")
        await write(billing.set_price, KEY, 0, "+44", Decimal(price), NOON)
    await write(billing.change_balance, KEY, 1, NOON, added=Decimal("-0.25"))
    assert await write(billing.remove_balance, KEY, 1, NOON)
    assert not await write(billing.remove_balance, KEY, 1, NOON)
    await write(billing.set_price, KEY, 1, "default", Decimal("0.1"), NOON)
    await write(billing.remove_price, KEY, 0, "44", NOON)
    rows = await audited_rows(service.database)
    assert [(row.action, row.object, row.application_id, row.before, row.after) for row in rows] == [
        ("balance_changed", "balance", 1, {"balance": None, "currency": None}, {"balance": "10.50", "currency": "EUR"}),
        ("price_set", "price for 44", None, {"price": None}, {"price": "0.04"}),
        ("balance_changed", "balance", 1, {"balance": "10.50"}, {"balance": "10.25"}),
        ("balance_removed", "balance", 1, {"balance": "10.25", "currency": "EUR"}, None),
        ("price_set", "price for default", 1, {"price": None}, {"price": "0.10"}),
        ("price_removed", "price for 44", None, {"price": "0.04"}, None),
    ]


async def test_concurrent_top_ups_of_an_application_without_a_balance_add_up(service: Service) -> None:
    top_ups = (service.database.write(billing.change_balance, KEY, 1, NOON, added=Decimal(1)) for _ in range(8))
    assert sorted(await asyncio.gather(*top_ups)) == [(Decimal(number), "USD") for number in range(1, 9)]
    assert await service.database.read(read_balance, 1) == (Decimal(8), "USD")
    rows = await audited_rows(service.database)
    assert [row.before["balance"] for row in rows] == [None, *(f"{number}.00" for number in range(1, 8))]


@pytest.mark.parametrize(("amount", "shown"), [("10000000", "10000000.00"), ("123456789.5", "123456789.50")])
async def test_a_large_balance_in_the_audit_log_is_not_masked_as_a_phone_number(service: Service, amount: str, shown: str) -> None:
    await service.database.write(billing.change_balance, KEY, 1, NOON, amount=Decimal(amount), currency="IDR")
    await service.database.write(billing.remove_balance, KEY, 1, NOON)
    changed, removed = await audited_rows(service.database)
    assert changed.after == removed.before == {"balance": shown, "currency": "IDR"}


async def test_the_audit_rows_of_the_opt_out_list_contain_only_masked_numbers(service: Service) -> None:
    for _ in range(2):
        await service.database.write(billing.add_opt_out, KEY, 1, PHONE, NOON, "operator")
    for _ in range(2):
        await service.database.write(billing.remove_opt_out, KEY, 1, PHONE, NOON)
    rows = await audited_rows(service.database)
    assert [(row.action, row.object) for row in rows] == [("opt_out_added", "+14…00"), ("opt_out_removed", "+14…00")]
