"""Changes of balances, prices and opt-out lists that people make with the API or on the command line. Each change adds a row to the
audit log, in the same transaction. A request that changes no value adds no row. Messages and replies also change balances and
opt-out lists. These changes are not in the audit log, so the code of messages and replies calls the functions of `balances` and
`opt_outs` directly.
"""
# Tested by tests/test_audit_complete.py and tests/messages/test_audited_billing.py

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, select

from shortener.accounts.audit import AuditWriter
from shortener.messages import balances, opt_outs, prices
from shortener.messages.balances import Balance
from shortener.storage import schema


def change_balance(
    connection: Connection,
    audit: AuditWriter,
    application_id: int,
    now: datetime,
    *,
    amount: Decimal | None = None,
    added: Decimal | None = None,
    currency: str | None = None,
) -> Balance:
    """Set a balance, or add to it, as `balances.change_balance` does."""
    balances.lock_application(connection, application_id)
    old = balances.lock_balances(connection, [application_id]).get(application_id)
    ids, actor = audit.ids, audit.actor.name
    new = balances.change_balance(connection, ids, application_id, now, actor, amount=amount, added=added, currency=currency)
    before, after = _balance_fields(old), _balance_fields(new)
    audit.add_differences(connection, now, "balance_changed", "balance", before, after, application_id=application_id)
    return new


def remove_balance(connection: Connection, audit: AuditWriter, application_id: int, now: datetime) -> bool:
    """Remove a balance, as `balances.remove_balance` does."""
    old = balances.lock_balances(connection, [application_id]).get(application_id)
    removed = balances.remove_balance(connection, application_id)
    if removed:
        audit.add(connection, now, "balance_removed", "balance", application_id=application_id, before=_balance_fields(old))
    return removed


def _balance_fields(balance: Balance | None) -> dict[str, Any]:
    return {
        "balance": None if balance is None else _text(balance.amount),
        "currency": None if balance is None else balance.currency,
    }


def _text(amount: Decimal) -> str:
    """Return an amount as text with at least two decimals. Equal amounts have the same text. The text always has a decimal point,
    because the audit log would otherwise mask a long number as a phone number."""
    whole, _, fraction = format(amount.normalize(), "f").partition(".")
    return f"{whole}.{fraction:0<2}"


def set_price(connection: Connection, audit: AuditWriter, application_id: int, prefix: str, price: Decimal, now: datetime) -> str:
    """Set a price, as `prices.set_price` does. Return the stored prefix."""
    found = _prices(connection, application_id)
    digits = prices.set_price(connection, application_id, prefix, price)
    before, after = ({"price": one} for one in (found.get(digits), _text(price)))
    audit.add_differences(connection, now, "price_set", _subject(digits), before, after, application_id=application_id)
    return digits


def remove_price(connection: Connection, audit: AuditWriter, application_id: int, prefix: str, now: datetime) -> str:
    """Remove a price, as `prices.remove_price` does. Return the stored prefix."""
    found = _prices(connection, application_id)
    digits = prices.remove_price(connection, application_id, prefix)
    before = {"price": found[digits]}
    audit.add(connection, now, "price_removed", _subject(digits), application_id=application_id, before=before)
    return digits


def _prices(connection: Connection, application_id: int) -> Mapping[str, str]:
    """Return the prices of an application as texts, by prefix."""
    table = schema.prices
    rows = connection.execute(select(table).where(table.c.application_id == application_id))
    return {row.prefix: _text(row.price) for row in rows}


def _subject(digits: str) -> str:
    return f"price for {digits or 'default'}"


def add_opt_out(connection: Connection, audit: AuditWriter, application_id: int, phone: str, now: datetime, source: str) -> bool:
    """Add a number in E.164 to an opt-out list, as `opt_outs.add_opt_out` does. The audit row contains the masked number."""
    added = opt_outs.add_opt_out(connection, application_id, phone, now, source)
    if added:
        audit.add(connection, now, "opt_out_added", phone, application_id=application_id)
    return added


def remove_opt_out(connection: Connection, audit: AuditWriter, application_id: int, phone: str, now: datetime) -> bool:
    """Remove a number in E.164 from an opt-out list, as `opt_outs.remove_opt_out` does. The audit row contains the masked
    number."""
    removed = opt_outs.remove_opt_out(connection, application_id, phone)
    if removed:
        audit.add(connection, now, "opt_out_removed", phone, application_id=application_id)
    return removed
