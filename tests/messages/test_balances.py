"""Tests of balances: concurrent requests never spend an amount twice, and refunds add up."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from shortener.container import Service
from shortener.errors import ApiError, ErrorCode
from shortener.messages.balances import change_balance, read_balance, refund, remove_balance
from shortener.messages.prices import set_price
from shortener.messages.rewrite_item import RewriteItem
from shortener.storage import schema
from tests.conftest import NOON, MakeService
from tests.databases import someone_at, until_it_waits
from tests.factory import rows


async def set_up(service: Service, amount: str) -> None:
    await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal(amount))
    await service.database.write(set_price, 0, "1", Decimal("0.01"))


async def send_batches(service: Service, count: int) -> list[str]:
    """Send batches of ten messages at the same time. Return the error code of each batch, or "" for an accepted batch."""
    application = service.directory.application(1)
    assert application is not None
    to = tuple(f"+1408555{number:04}" for number in range(10))

    async def send() -> str:
        try:
            await service.rewriter.rewrite(application, [RewriteItem(to, "hello", gateway="simulator")])
        except ApiError as error:
            return error.code.name
        return ""

    return list(await asyncio.gather(*(send() for _ in range(count))))


async def test_a_hundred_concurrent_batches_never_overdraw_the_balance(service: Service) -> None:
    await set_up(service, "3.05")
    results = await send_batches(service, 100)
    assert results.count("") == 30
    assert results.count("INSUFFICIENT_BALANCE") == 70
    assert await service.database.read(read_balance, 1) == (Decimal("0.05"), "USD")
    assert len(await rows(service.database, schema.sends)) == 300
    assert len(await rows(service.database, schema.messages)) == 300


async def test_two_nodes_never_overdraw_the_balance(make_service: MakeService) -> None:
    first = await make_service()
    if first.database.dialect == "sqlite":
        pytest.skip("SQLite belongs to one process; two nodes need PostgreSQL")
    second = await make_service()
    await set_up(first, "3.05")
    results = [code for codes in await asyncio.gather(send_batches(first, 50), send_batches(second, 50)) for code in codes]
    assert results.count("") == 30
    assert await first.database.read(read_balance, 1) == (Decimal("0.05"), "USD")


async def test_the_balance_after_several_refunds_is_exact(service: Service) -> None:
    await set_up(service, "1")
    for _ in range(3):
        await service.database.write(refund, {1: Decimal("0.1"), 99: Decimal(1)}, NOON)
    assert await service.database.read(read_balance, 1) == (Decimal("1.3"), "USD")


async def test_a_balance_in_another_currency_is_locked_after_the_messages_as_in_a_transaction_that_ends_a_message(
    service: Service,
) -> None:
    if service.database.dialect == "sqlite":
        return  # SQLite runs one write transaction after the other.
    await set_up(service, "10")
    assert await send_batches(service, 1) == [""]
    [send, *_] = await rows(service.database, schema.sends)
    async with someone_at(service, "SELECT id FROM sends WHERE id = $1 FOR UPDATE", send.id) as other:
        change = asyncio.create_task(
            service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal(5), currency="EUR")
        )
        await until_it_waits(other, change)
        # The change waits for the message and has not locked the balance. If it had, two such transactions could deadlock.
        await other.execute("SELECT amount FROM balances WHERE application_id = 1 FOR UPDATE NOWAIT")
    assert await change == (Decimal(5), "EUR")
    assert {send.deducted for send in await rows(service.database, schema.sends)} == {False}


async def test_balance_changes_by_an_operator_are_listed(service: Service) -> None:
    change = service.database.write
    await change(change_balance, service.ids, 1, NOON, "test", amount=Decimal(10), currency="eur")
    balance = await change(change_balance, service.ids, 1, NOON, "test", added=Decimal("-2.5"))
    assert balance == (Decimal("7.5"), "EUR")
    found = await rows(service.database, schema.balance_changes)
    assert [(row.amount, row.balance) for row in sorted(found, key=lambda row: row.id)] == [
        (Decimal(10), Decimal(10)),
        (Decimal("-2.5"), Decimal("7.5")),
    ]
    assert await change(remove_balance, 1)
    assert await service.database.read(read_balance, 1) is None


async def test_a_balance_change_with_an_unknown_application_or_currency_is_rejected(service: Service) -> None:
    for application, currency, code in ((99, None, ErrorCode.NOT_FOUND), (1, "dollars", ErrorCode.INVALID_REQUEST)):
        with pytest.raises(ApiError) as caught:
            await service.database.write(
                change_balance, service.ids, application, NOON, "test", amount=Decimal(1), currency=currency
            )
        assert caught.value.code is code
