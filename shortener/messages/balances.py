"""Balances of prepaid applications.

The transaction that stores messages deducts their cost. The transaction that records that a gateway rejected a message refunds
its cost. Each transaction first locks the rows of the balances that it changes, so concurrent requests never spend an amount
twice. It locks them in the order of the application ids, so transactions do not deadlock. Amounts are exact decimals. An
application without a row in `balances` is not prepaid: its messages are never rejected because of their cost.

A refund belongs to the balance from which the cost was deducted. If a balance is removed, or replaced by one in another currency,
the messages that were not sent yet are no longer refunded: their former balance does not exist any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import Connection, insert, select, update

from shortener.accounts.directory import require_application
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.ids import IdGenerator
from shortener.storage import schema
from shortener.storage.database import upsert
from shortener.storage.send_conditions import IS_UNFINISHED

DEFAULT_CURRENCY = "USD"
MAX_AMOUNT = Decimal(10) ** 12


class Balance(NamedTuple):
    """The balance of an application, in `currency` (an ISO 4217 code)."""

    amount: Decimal
    currency: str


def lock_application(connection: Connection, application_id: int) -> None:
    """Lock an application until the transaction ends, for a change of its balance. Raise ApiError NOT_FOUND.

    An application that is not prepaid has no row in `balances`. Without this lock, two top-ups at the same time could both create
    the row, and one would replace the other."""
    require_application(connection, application_id)
    table = schema.applications
    connection.execute(select(table.c.id).where(table.c.id == application_id).with_for_update(key_share=True))


def lock_balances(connection: Connection, applications: Iterable[int]) -> dict[int, Balance]:
    """Lock the balances of applications until the transaction ends. Return them by application id."""
    return find_balances(connection, applications, locks=True)


def find_balances(connection: Connection, applications: Iterable[int], *, locks: bool = False) -> dict[int, Balance]:
    """Return the balances of applications by application id. If `locks` is true, lock them until the transaction ends."""
    table = schema.balances
    ids = sorted(set(applications))
    if not ids:
        return {}
    statement = (
        select(table.c.application_id, table.c.amount, table.c.currency)
        .where(table.c.application_id.in_(ids))
        .order_by(table.c.application_id)
    )
    statement = statement.with_for_update() if locks else statement
    return {row.application_id: Balance(row.amount, row.currency) for row in connection.execute(statement)}


def write_balances(connection: Connection, amounts: Mapping[int, Decimal], now: datetime) -> None:
    """Write new amounts of balances that this transaction has locked, by application id."""
    table = schema.balances
    for application_id, amount in sorted(amounts.items()):
        connection.execute(update(table).where(table.c.application_id == application_id).values(amount=amount, updated_at=now))


def refund(connection: Connection, amounts: Mapping[int, Decimal], now: datetime) -> None:
    """Add amounts to balances, by application id. Ignore applications that are not prepaid."""
    stored = lock_balances(connection, amounts)
    write_balances(connection, {one: balance.amount + amounts[one] for one, balance in stored.items()}, now)


def read_balance(connection: Connection, application_id: int) -> Balance | None:
    """Return the balance of an application. Return None if it is not prepaid."""
    table = schema.balances
    row = connection.execute(select(table.c.amount, table.c.currency).where(table.c.application_id == application_id)).first()
    return None if row is None else Balance(row.amount, row.currency)


def change_balance(
    connection: Connection,
    ids: IdGenerator,
    application_id: int,
    now: datetime,
    actor: str,
    *,
    amount: Decimal | None = None,
    added: Decimal | None = None,
    currency: str | None = None,
) -> Balance:
    """Set the balance of an application to `amount`, or add `added` to the balance. Return the new balance.

    An application that is not prepaid becomes prepaid. The change is listed in `balance_changes`. Raise ApiError with the code
    NOT_FOUND or INVALID_REQUEST."""
    lock_application(connection, application_id)
    code = _check_currency(currency) if currency else None
    present = read_balance(connection, application_id)
    if present is not None and code not in (None, present.currency):
        # Messages are locked before the balance, as in the transaction that ends a message. Another order could cause a deadlock.
        _end_refunds(connection, application_id)
    before = lock_balances(connection, [application_id]).get(application_id)
    new = added + (before.amount if before else Decimal()) if added is not None else amount
    if new is None or not -MAX_AMOUNT < new < MAX_AMOUNT:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("amount", f"must be below {MAX_AMOUNT:f}")])
    code = code or (before.currency if before else DEFAULT_CURRENCY)
    if before is not None and code != before.currency:
        # Between the first call and the lock on the balance, another transaction may have queued messages.
        _end_refunds(connection, application_id)
    row = {"application_id": application_id, "amount": new, "currency": code, "updated_at": now}
    statement = upsert(connection, schema.balances).values(row)
    connection.execute(statement.on_conflict_do_update(index_elements=["application_id"], set_=row))
    change = {"amount": new - (before.amount if before else Decimal()), "balance": new, "actor": actor}
    connection.execute(insert(schema.balance_changes).values(id=ids(), application_id=application_id, at=now, **change))
    return Balance(new, code)


def remove_balance(connection: Connection, application_id: int) -> bool:
    """Remove the balance of an application. The application is then no longer prepaid. Return whether it was prepaid before."""
    table = schema.balances
    _end_refunds(connection, application_id)  # locks the messages before the balance, as `change_balance` does
    removed = connection.execute(table.delete().where(table.c.application_id == application_id)).rowcount > 0
    if removed:
        # Between the first call and the deletion, another transaction may have queued messages.
        _end_refunds(connection, application_id)
    return removed


def _end_refunds(connection: Connection, application_id: int) -> None:
    """Prevent refunds for the messages that wait for a gateway, because the balance from which their cost was deducted is removed
    or replaced."""
    c = schema.sends.c
    was_deducted = c.deducted.is_distinct_from(False)
    statement = update(schema.sends).where(IS_UNFINISHED, c.application_id == application_id, was_deducted)
    connection.execute(statement.values(deducted=False))


def _check_currency(currency: str) -> str:
    if len(currency) != 3 or not (currency.isascii() and currency.isalpha()):
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("currency", "must be an ISO 4217 code such as USD")])
    return currency.upper()
