"""Tests of queueing messages for a gateway: in the transaction of the rewrite, completely or not at all."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from shortener.container import Service
from shortener.errors import ApiError, ErrorCode
from shortener.messages.balances import change_balance, read_balance
from shortener.messages.opt_outs import add_opt_out
from shortener.messages.prices import set_price
from shortener.messages.rewrite_item import RewriteItem
from shortener.storage import schema
from tests.conftest import NOON
from tests.factory import rows

TO = ("+14085550100", "+14085550101")


async def rewrite(service: Service, *items: RewriteItem) -> list[dict[str, Any]]:
    application = service.directory.application(1)
    assert application is not None
    return await service.rewriter.rewrite(application, items)


def item(**fields: Any) -> RewriteItem:
    return RewriteItem(**{"to": TO, "body": 'Hi #track("https://shop.example/")', "gateway": "simulator", **fields})


async def test_the_text_that_is_queued_for_the_gateway_is_the_rewritten_text(service: Service) -> None:
    messages = await rewrite(service, item())
    sends = sorted(await rows(service.database, schema.sends), key=lambda row: row.id)
    assert [send.text for send in sends] == [message["body"] for message in messages]
    assert {(send.status, send.attempt, send.next_at) for send in sends} == {(0, 0, NOON)}


async def test_one_recipient_who_opted_out_rejects_the_request_unless_invalid_recipients_are_skipped(service: Service) -> None:
    await service.database.write(add_opt_out, 1, TO[1], NOON, "STOP")
    with pytest.raises(ApiError) as caught:
        await rewrite(service, item())
    assert caught.value.code is ErrorCode.OPTED_OUT
    assert (caught.value.details[0].index, caught.value.details[0].recipient) == (0, 1)
    assert await rows(service.database, schema.messages) == []
    accepted, refused = await rewrite(service, item(skip_invalid=True))
    assert (accepted["sent"], refused["error_code"]) == (True, "OPTED_OUT")


async def test_a_request_that_the_balance_does_not_cover_stores_nothing_and_deducts_nothing(service: Service) -> None:
    await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal("0.03"))
    await service.database.write(set_price, 1, "1", Decimal("0.02"))
    with pytest.raises(ApiError) as caught:
        await rewrite(service, item())
    assert caught.value.fields == {"cost": "0.04", "balance": "0.03", "currency": "USD"}
    assert await rows(service.database, schema.messages) == []
    assert await rows(service.database, schema.links) == []
    assert await service.database.read(read_balance, 1) == (Decimal("0.03"), "USD")


async def test_the_cost_of_a_message_is_the_price_of_all_its_segments_and_is_stored_as_mt_price(service: Service) -> None:
    await service.database.write(set_price, 0, "1", Decimal("0.02"))
    [first, _] = await rewrite(service, item(body="x" * 161))
    assert (first["segments"], first["cost"]) == (2, "0.04")
    [own, _] = await rewrite(service, item(mt_price=Decimal("0.5")))
    stored = {row.message_id: row.mt_price for row in await rows(service.database, schema.messages)}
    assert stored[first["message_id"]] == Decimal("0.04")
    assert stored[own["message_id"]] == Decimal("0.5")


async def test_a_repeated_message_is_not_queued_again(service: Service) -> None:
    once = item(message_ids=("a", "b"))
    assert await rewrite(service, once) == await rewrite(service, once)
    assert len(await rows(service.database, schema.sends)) == 2
    with pytest.raises(ApiError) as caught:
        await rewrite(service, item(message_ids=("a", "b"), gateway=None))
    assert caught.value.code is ErrorCode.MESSAGE_ID_CONFLICT


async def test_a_message_without_a_gateway_costs_nothing(service: Service) -> None:
    await service.database.write(set_price, 0, "1", Decimal("0.02"))
    await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal(0))
    [message, _] = await rewrite(service, item(gateway=""))
    assert (message["sent"], message["cost"]) == (False, None)
    assert await rows(service.database, schema.sends) == []
