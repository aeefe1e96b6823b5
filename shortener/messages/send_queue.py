"""This module queues messages for gateways, in the transaction of the rewrite. One transaction stores a message, deducts its cost
and adds its row to `sends`. Therefore a message that a gateway must send is never stored without being queued, or queued without
being stored. `gateways/dispatcher.py` hands the queued messages to the gateways.

A message is not sent to a recipient on the opt-out list of the application. A prepaid application sends only to numbers with a
price, and only if its balance covers the cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import Connection, select

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.messages.balances import Balance, find_balances, write_balances
from shortener.messages.item_plan import Problem
from shortener.messages.opt_outs import find_opt_outs
from shortener.messages.plan import PlannedMessage, PlannedRequest
from shortener.messages.prices import find_prices
from shortener.messages.queries import MAX_KEYS_PER_QUERY
from shortener.model import SendStatus
from shortener.storage import schema
from shortener.storage.bulk import BulkInsert
from shortener.storage.types import from_ms

#: Inserts rows into the table `sends`. A row is the result of `SendBatch.row`.
insert_sends = BulkInsert(
    schema.sends, "id", "application_id", "gateway_id", "status", "text", "next_at", "created_at", "cost", "deducted"
)


class QueuedSend(NamedTuple):
    """A message that was queued for a gateway, and its cost. The cost is None if the number has no price."""

    gateway_id: int
    cost: Decimal | None


class SendBatch:
    """The messages that one transaction queues, with the balances, prices and opt-outs that decide whether they are sent.

    The object locks the balances of prepaid applications when it is created, unless `locks` is false. `write` stores the reduced
    balances."""

    def __init__(self, connection: Connection, requests: Sequence[PlannedRequest], *, locks: bool = True) -> None:
        self._connection = connection
        recipients = {
            (request.application.id, message.number.e164)
            for request in requests
            for message in request.messages
            if message.item.gateway is not None
        }
        self._balances: dict[int, Balance] = {}
        self._prices: dict[tuple[int, str], Decimal] = {}
        self._opt_outs: set[tuple[int, str]] = set()
        self._changed: dict[int, Decimal] = {}
        if recipients:
            self._balances = find_balances(connection, (application for application, _ in recipients), locks=locks)
            self._prices = find_prices(connection, recipients)
            self._opt_outs = find_opt_outs(connection, recipients)

    def find_problems(self, request: PlannedRequest, new: Iterable[PlannedMessage]) -> list[Problem]:
        """Return the reasons why new messages of a request must not be sent."""
        problems = []
        application = request.application.id
        for message in new:
            if message.item.gateway is None:
                continue
            key = (application, message.number.e164)
            code = None
            if key in self._opt_outs:
                code, reason = ErrorCode.OPTED_OUT, "has refused further messages of this application"
            elif message.plan.gateway_id is not None and application in self._balances and key not in self._prices:
                code, reason = ErrorCode.NO_PRICE, "has no price, and the application is prepaid"
            if code is not None:
                detail = Detail(message.item.field_path("to", message.recipient), reason)
                problems.append(Problem(message.item_index, code, detail, message.recipient))
        return problems

    def cost_of(self, request: PlannedRequest, message: PlannedMessage, segments: int) -> Decimal | None:
        """Return the cost of a message with this number of segments. Return None if the message is not sent or its number has no
        price."""
        if message.plan.gateway_id is None:
            return None
        price = self._prices.get((request.application.id, message.number.e164))
        return None if price is None else price * segments

    def deduct(self, request: PlannedRequest, costs: Iterable[Decimal | None]) -> None:
        """Deduct the costs of new messages from the balance of the application, if it is prepaid.

        Raise ApiError INSUFFICIENT_BALANCE, and deduct nothing, if the balance is too low."""
        application = request.application.id
        balance = self._balances.get(application)
        if balance is None:
            return
        total = sum((cost for cost in costs if cost is not None), Decimal())
        if not total:
            return
        if total > balance.amount:
            fields = {"cost": format(total, "f"), "balance": format(balance.amount, "f"), "currency": balance.currency}
            reason = f"The request costs {total:f} {balance.currency}; the balance is {balance.amount:f} {balance.currency}."
            details = [Detail("cost", format(total, "f")), Detail("balance", format(balance.amount, "f"))]
            raise ApiError(ErrorCode.INSUFFICIENT_BALANCE, reason, details, fields=fields)
        self._balances[application] = balance._replace(amount=balance.amount - total)
        self._changed[application] = balance.amount - total

    def row(
        self, request: PlannedRequest, message: PlannedMessage, row_id: int, text: str, cost: Decimal | None
    ) -> tuple[object, ...]:
        """Return the row of a message in the table `sends`. `row_id` is the row id of the message."""
        shown = None if cost is None else format(cost, "f")
        return (
            row_id,
            request.application.id,
            message.plan.gateway_id,
            int(SendStatus.PENDING),
            text,
            request.now,
            request.now,
            shown,
            cost is not None and request.application.id in self._balances,
        )

    def write(self, now: int) -> None:
        """Write the balances from which costs were deducted. `now` is in milliseconds since 1970."""
        write_balances(self._connection, self._changed, from_ms(now))


def find_sends(connection: Connection, message_rows: Sequence[int]) -> dict[int, QueuedSend]:
    """Return which of the messages with these row ids were queued for a gateway, by row id. Other messages are missing in the
    result."""
    table = schema.sends
    found: dict[int, QueuedSend] = {}
    for start in range(0, len(message_rows), MAX_KEYS_PER_QUERY):
        some = message_rows[start : start + MAX_KEYS_PER_QUERY]
        for row in connection.execute(select(table.c.id, table.c.gateway_id, table.c.cost).where(table.c.id.in_(some))):
            found[row.id] = QueuedSend(row.gateway_id, row.cost)
    return found
