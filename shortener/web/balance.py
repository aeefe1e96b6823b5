"""The endpoints that return the balance and the prices of the caller's application. The operator sets both on the command line."""
# Tested by tests/web/test_inbound.py

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from shortener.messages.balances import read_balance
from shortener.messages.prices import list_prices
from shortener.web.endpoint import Call, Endpoint, ResponseModel

_TAG = "Send pipeline"


class BalanceResponse(ResponseModel):
    """The balance of the application."""

    status: Literal[True] = True
    application_id: int
    prepaid: bool = Field(description="Whether the balance limits what the application can send.")
    balance: str | None = Field(description="The balance as a decimal string. null: the application is not prepaid.")
    currency: str | None = Field(description="Currency of the balance (ISO 4217). null: the application is not prepaid.")


class PriceFields(ResponseModel):
    """The price of one SMS segment."""

    prefix: str = Field(
        description=("First digits of the phone numbers to which the price applies. Empty: all numbers that match no other prefix.")
    )
    price: str = Field(description="Price of one segment as a decimal string.")


class PricesResponse(ResponseModel):
    """The prices that apply to the application."""

    status: Literal[True] = True
    currency: str | None = Field(
        description=(
            "Currency of the prices (ISO 4217): the currency of the application's balance. null: the application has no balance, "
            "and the prices are in the currency of the operator."
        )
    )
    prices: list[PriceFields] = Field(description="Prices by prefix. The longest matching prefix determines the price of a number.")


async def show(call: Call[None, None]) -> Mapping[str, Any]:
    """Return the balance of the application."""
    found = await call.service.database.read(read_balance, call.application_id)
    return {
        "status": True,
        "application_id": call.application_id,
        "prepaid": found is not None,
        "balance": None if found is None else format(found.amount, "f"),
        "currency": None if found is None else found.currency,
    }


async def prices(call: Call[None, None]) -> Mapping[str, Any]:
    """Return one price for each prefix: the price of the application if there is one, otherwise the price for all
    applications."""
    rows = await call.service.database.read(list_prices, call.application_id)
    balance = await call.service.database.read(read_balance, call.application_id)
    # `rows` has the prices for all applications first. The prices of the application come later and replace them.
    by_prefix = {row["prefix"]: format(row["price"], "f") for row in rows}
    return {
        "status": True,
        "currency": None if balance is None else balance.currency,
        "prices": [{"prefix": prefix, "price": price} for prefix, price in sorted(by_prefix.items())],
    }


ENDPOINTS = [
    Endpoint(
        "GET",
        "/api/v1/balance",
        show,
        "Show the balance",
        _TAG,
        permission="sms.read",
        response=BalanceResponse,
        description="If a call that sends messages would cost more than the balance, it gets `INSUFFICIENT_BALANCE` and "
        "sends nothing.",
    ),
    Endpoint("GET", "/api/v1/prices", prices, "List prices", _TAG, permission="sms.read", response=PricesResponse),
]
