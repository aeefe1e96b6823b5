"""The commands `shortener balance`, `shortener prices` and `shortener opt-outs`."""
# Tested by tests/cli/test_gateways.py

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

import click

from shortener.cli.command_clock import current_time
from shortener.cli.common import (
    after_change,
    async_command,
    command_line_audit,
    confirm,
    confirm_write,
    describe_application,
    json_option,
    open_store,
    print_fields,
    print_result,
    print_table,
    reveal_option,
    yes_option,
)
from shortener.cli.parameters import ID, OPTIONAL_APPLICATION, ApplicationCommand


class _AmountType(click.ParamType[Decimal]):
    name = "amount"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Decimal:
        if isinstance(value, Decimal):
            return value
        try:
            amount = Decimal(value)
        except InvalidOperation:
            self.fail(f"{value!r} is not a decimal such as 100.00")
        exponent = amount.as_tuple().exponent
        if not amount.is_finite() or not isinstance(exponent, int) or not -8 <= exponent <= 12:
            self.fail("must have at most 12 digits before the decimal point and 8 after it")
        return amount


AMOUNT = _AmountType()


@click.group()
def balance() -> None:
    """Show, set or add to the balance of a prepaid application."""


@balance.command("show", cls=ApplicationCommand, application_help=OPTIONAL_APPLICATION)
@click.argument("application", type=ID, required=False)
@json_option
@async_command
async def show_balance(application: int | None, as_json: bool) -> None:
    """Show the balance of an application."""
    from shortener.cli.stats import find_application
    from shortener.messages.balances import read_balance

    async with open_store() as database:
        owner = await find_application(database, application)
        found = await database.read(read_balance, owner)
    _print_balance(owner, found, as_json)


@balance.command("set", cls=ApplicationCommand)
@click.argument("application", type=ID)
@click.argument("amount", type=AMOUNT)
@click.option(
    "--currency", help="ISO 4217 code of the currency. Default: the currency of the present balance, or USD if there is no balance."
)
@yes_option
@json_option
@async_command
async def set_balance(application: int, amount: Decimal, currency: str | None, yes: bool, as_json: bool) -> None:
    """Set the balance of an application. The application becomes prepaid: messages that cost more than the balance are rejected.

    Prices have no currency of their own: they are numbers in the currency of the balance. If a script changes the currency, it
    must add --yes."""
    from shortener.messages.balances import read_balance

    what = ""
    async with open_store() as database:
        present = await database.read(read_balance, application)
        if present is not None and currency is not None and currency.upper() != present.currency:
            owner = await describe_application(database, application)
            before, after = f"{present.amount:f} {present.currency}", f"{amount:f} {currency.upper()}"
            effect = "Its prices and the costs of its earlier messages stay the same numbers, as amounts in the new currency."
            what = f"The balance of {owner} changes from {before} to {after}. {effect}"
    await _change(application, as_json, what, yes, amount=amount, currency=currency)


@balance.command("add", cls=ApplicationCommand)
@click.argument("application", type=ID)
@click.argument("amount", type=AMOUNT)
@json_option
@async_command
async def add_to_balance(application: int, amount: Decimal, as_json: bool) -> None:
    """Add an amount to the balance of an application. A negative amount reduces the balance: write -- before the amount."""
    await _change(application, as_json, "", yes=False, added=amount)


@balance.command("remove", cls=ApplicationCommand)
@click.argument("application", type=ID)
@yes_option
@json_option
@async_command
async def remove_balance(application: int, yes: bool, as_json: bool) -> None:
    """Remove the balance of an application. The application is then not prepaid, and no balance limits its messages."""
    from shortener.messages import audited_billing
    from shortener.messages.balances import read_balance

    async with open_store(application) as database:
        found = await database.read(read_balance, application)
        if found is not None:
            amount, owner = f"{found.amount:f} {found.currency}", await describe_application(database, application)
            confirm(f"The balance of {owner}, {amount}, is removed. Then no balance limits its messages.", yes)
        audit = command_line_audit(database)
        removed = await database.write(audited_billing.remove_balance, audit, application, current_time())
    fields = {"application_id": application, "removed": removed}
    text = f"application {application} is not prepaid"
    print_result(fields, as_json, lambda: click.echo(text))


async def _change(application: int, as_json: bool, what: str, yes: bool, **change: Any) -> None:
    from shortener.messages.audited_billing import change_balance

    async with open_store() as database:
        audit = command_line_audit(database)
        found = await confirm_write(
            database, what, yes, change_balance, audit, application, current_time(), is_required=True, **change
        )
    _print_balance(application, found, as_json)


def _print_balance(application: int, found: Any, as_json: bool) -> None:
    fields = {
        "application_id": application,
        "prepaid": found is not None,
        "balance": None if found is None else format(found.amount, "f"),
        "currency": None if found is None else found.currency,
    }
    print_result(fields, as_json, lambda: print_fields(fields))


@click.group()
def prices() -> None:
    """Set, list and remove the prices of messages by the first digits of the recipient's number."""


_APPLICATION = click.option(
    "--application", type=ID, default=0, help="Application to which the price applies. Default: all applications."
)


@prices.command("set")
@click.argument("prefix")
@click.argument("price", type=AMOUNT)
@_APPLICATION
@json_option
@async_command
async def set_price(prefix: str, price: Decimal, application: int, as_json: bool) -> None:
    """Set the price of one segment for numbers that begin with PREFIX, such as 49 or 1408.

    PREFIX is the beginning of phone numbers with the country code, not the id of an application: the price applies to all
    applications, unless --application names one. The PREFIX `default` means all other numbers. Each application
    pays the price in the currency of its balance.

    \b
    For numbers in North America:    shortener prices set 1 0.0075
    For all numbers without a price: shortener prices set default 0.09 --application 3
    """
    from shortener.messages import audited_billing

    async with open_store(application) as database:
        audit = command_line_audit(database)
        digits = await database.write(audited_billing.set_price, audit, application, prefix, price, current_time())
        with after_change():
            currency = await _currency(database, application)
    fields = {
        "application_id": application or None,
        "prefix": digits or "default",
        "price": format(price, "f"),
        "currency": currency,
    }
    print_result(fields, as_json, lambda: print_fields(fields))


@prices.command("list", cls=ApplicationCommand)
@click.argument("application", type=ID, required=False)
@json_option
@async_command
async def list_prices(application: int | None, as_json: bool) -> None:
    """List the prices that apply to an application, or all prices. The currency is the currency of the application's balance."""
    from shortener.messages import prices as stored

    async with open_store(application) as database:
        found = await database.read(stored.list_prices, application)
        owners = {row["application_id"] or application or 0 for row in found}
        currencies = {owner: await _currency(database, owner) for owner in owners}
    rows = [
        {
            "application_id": row["application_id"] or None,
            "prefix": row["prefix"] or "default",
            "price": format(row["price"], "f"),
            "currency": currencies[row["application_id"] or application or 0],
        }
        for row in found
    ]
    print_result(rows, as_json, lambda: print_table(rows, "application_id", "prefix", "price", "currency"))


async def _currency(database: Any, application: int) -> str | None:
    """Return the currency of an application's balance. Return None if there is no balance, or if the id is 0 (all
    applications)."""
    from shortener.messages.balances import read_balance

    found = await database.read(read_balance, application) if application else None
    return None if found is None else found.currency


@prices.command("remove")
@click.argument("prefix")
@_APPLICATION
@yes_option
@json_option
@async_command
async def remove_price(prefix: str, application: int, yes: bool, as_json: bool) -> None:
    """Remove the price for numbers that begin with PREFIX, or for all other numbers (`default`)."""
    from shortener.messages import audited_billing

    async with open_store(application) as database:
        owner = await describe_application(database, application) if application else "all applications"
        effect = "Prepaid applications can then send to these numbers only if another price matches."
        what = f"The price for {prefix} of {owner} is removed. {effect}"
        audit = command_line_audit(database)
        digits = await confirm_write(database, what, yes, audited_billing.remove_price, audit, application, prefix, current_time())
    fields = {"application_id": application or None, "prefix": digits or "default", "removed": True}
    print_result(fields, as_json, lambda: click.echo(f"the price for {digits or 'default'} is removed"))


@click.group()
def opt_outs() -> None:
    """List, add and remove recipients who refused further messages of an application."""


@opt_outs.command("list", cls=ApplicationCommand, application_help=OPTIONAL_APPLICATION)
@click.argument("application", type=ID, required=False)
@reveal_option
@json_option
@async_command
async def list_opt_outs(application: int | None, reveal: bool, as_json: bool) -> None:
    """List the opt-outs of an application."""
    from shortener.cli.stats import find_application
    from shortener.messages import opt_outs as stored
    from shortener.reporting.messages import shown_number

    async with open_store() as database:
        owner = await find_application(database, application)
        rows: list[dict[str, Any]] = []
        after = ""
        while page := await database.read(stored.list_opt_outs, owner, after):
            for row in page:
                rows.append({"phone": shown_number(row["phone"], reveal=reveal), "at": row["at"], "source": row["source"]})
            after = page[-1]["phone"]
    print_result(rows, as_json, lambda: print_table(rows, "phone", "at", "source"))


@opt_outs.command("add", cls=ApplicationCommand)
@click.argument("application", type=ID)
@click.argument("phone")
@reveal_option
@json_option
@async_command
async def add_opt_out(application: int, phone: str, reveal: bool, as_json: bool) -> None:
    """Add a number to the opt-out list of an application."""
    from shortener.messages import audited_billing
    from shortener.reporting.messages import shown_number

    number = _parse_phone(phone)
    shown = shown_number(number, reveal=reveal)
    async with open_store(application) as database:
        audit = command_line_audit(database)
        added = await database.write(audited_billing.add_opt_out, audit, application, number, current_time(), "operator")
    print_result({"phone": shown, "added": added}, as_json, lambda: click.echo(f"{shown} is on the opt-out list"))


@opt_outs.command("remove", cls=ApplicationCommand)
@click.argument("application", type=ID)
@click.argument("phone")
@reveal_option
@yes_option
@json_option
@async_command
async def remove_opt_out(application: int, phone: str, reveal: bool, yes: bool, as_json: bool) -> None:
    """Remove a number from the opt-out list of an application, after the recipient has agreed to messages again."""
    from shortener.messages import audited_billing
    from shortener.messages.opt_outs import find_opt_outs
    from shortener.reporting.messages import shown_number

    number = _parse_phone(phone)
    shown = shown_number(number, reveal=reveal)
    async with open_store(application) as database:
        owner = await describe_application(database, application)
        if await database.read(find_opt_outs, [(application, number)]):
            confirm(f"{shown} is removed from the opt-out list of {owner}, which can then send messages to this number again.", yes)
        audit = command_line_audit(database)
        removed = await database.write(audited_billing.remove_opt_out, audit, application, number, current_time())
    print_result({"phone": shown, "removed": removed}, as_json, lambda: click.echo(f"{shown} is not on the opt-out list"))


def _parse_phone(phone: str) -> str:
    from shortener.messages.phone_numbers import PhoneNumberError, parse_number

    try:
        return parse_number(phone).e164
    except PhoneNumberError as error:
        raise click.BadParameter(error.reason) from None
