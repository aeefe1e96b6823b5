"""Prices of one SMS segment by the first digits of the recipient's number.

The longest prefix that matches a number decides. A price of the application always has priority over a price for all applications,
even over a price with a longer prefix. The prefix "" matches every number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Integer, Text, and_, delete, select

from shortener.accounts.directory import require_application
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.model import ALL_APPLICATIONS
from shortener.storage import schema
from shortener.storage.database import upsert
from shortener.storage.values_table import values_table

MAX_PREFIX_DIGITS = 10
MAX_PRICE = Decimal(10) ** 6


def find_prices(connection: Connection, recipients: Iterable[tuple[int, str]]) -> dict[tuple[int, str], Decimal]:
    """Return the price of a segment by (application id, number in E.164). Numbers without a price are missing in the result."""
    wanted = set(recipients)
    keys = {
        (owner, prefix)
        for application, number in wanted
        for prefix in _prefixes(number)
        for owner in (application, ALL_APPLICATIONS)
    }
    if not keys:
        return {}
    table = schema.prices
    chosen = values_table(connection, sorted(keys), application_id=Integer, prefix=Text)
    statement = select(table.c.application_id, table.c.prefix, table.c.price).join_from(
        chosen, table, and_(table.c.application_id == chosen.c.application_id, table.c.prefix == chosen.c.prefix)
    )
    stored = {(row.application_id, row.prefix): row.price for row in connection.execute(statement)}
    if not stored:
        return {}
    found = {}
    for application, number in wanted:
        candidates = ((owner, prefix) for owner in (application, ALL_APPLICATIONS) for prefix in _prefixes(number))
        price = next((stored[key] for key in candidates if key in stored), None)
        if price is not None:
            found[application, number] = price
    return found


def _prefixes(number: str) -> list[str]:
    """Return the prefixes of a number in E.164, the longest first."""
    digits = number.removeprefix("+")[:MAX_PREFIX_DIGITS]
    return [digits[:end] for end in range(len(digits), -1, -1)]


def set_price(connection: Connection, application_id: int, prefix: str, price: Decimal) -> str:
    """Set the price of a segment for numbers with a prefix. Return the prefix as stored: digits without a plus sign.

    `application_id` 0 sets the price for all applications. Raise ApiError with the code INVALID_REQUEST or NOT_FOUND."""
    digits = _check_prefix(prefix)
    if application_id != ALL_APPLICATIONS:
        require_application(connection, application_id)
    if not 0 <= price < MAX_PRICE:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("price", f"must be at least 0 and less than {MAX_PRICE:f}")])
    row = {"application_id": application_id, "prefix": digits, "price": price}
    statement = upsert(connection, schema.prices).values(row)
    connection.execute(statement.on_conflict_do_update(index_elements=["application_id", "prefix"], set_={"price": price}))
    return digits


def remove_price(connection: Connection, application_id: int, prefix: str) -> str:
    """Remove a price. Return its prefix as stored. Raise ApiError NOT_FOUND."""
    digits = _check_prefix(prefix)
    table = schema.prices
    done = connection.execute(delete(table).where(table.c.application_id == application_id, table.c.prefix == digits))
    if not done.rowcount:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no price for the prefix {digits or 'default'}.")
    return digits


def list_prices(connection: Connection, application_id: int | None = None) -> Sequence[dict[str, Any]]:
    """Return the prices of an application and the prices for all applications. If `application_id` is None, return all prices."""
    table = schema.prices
    statement = select(table).order_by(table.c.application_id, table.c.prefix)
    if application_id is not None:
        statement = statement.where(table.c.application_id.in_([ALL_APPLICATIONS, application_id]))
    return [row._asdict() for row in connection.execute(statement)]


def _check_prefix(prefix: str) -> str:
    digits = "" if prefix == "default" else prefix.removeprefix("+")
    is_number = digits.isascii() and digits.isdecimal() and not digits.startswith("0") and len(digits) <= MAX_PREFIX_DIGITS
    if digits and not is_number:
        reason = f"must be the first 1 to {MAX_PREFIX_DIGITS} digits of an international number, such as 49, or default"
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("prefix", reason)])
    return digits
