"""This module reads the state of the queue of each gateway: the number and the age of waiting messages, the number of held
messages, and the state of the circuit breaker.

`read_gateway_queues` reads one row for each gateway. For a gateway with waiting messages, it also reads at most 2 * MAX_COUNTED
messages. The background job of queues.py calls it for /metrics, and `shortener doctor` calls it too. All processes of an
installation report the same values. A Prometheus query must therefore use the maximum over all processes, and not the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

from sqlalchemy import Connection, func, literal_column, select

from shortener.gateways.queries import find_waiting
from shortener.metrics import Metrics
from shortener.model import record
from shortener.storage.schema import applications, gateways, sends
from shortener.storage.send_conditions import IS_HELD, IS_PENDING

#: At most this number of messages without an attempt, and at most this number of retries, are counted, so that a read stays fast.
MAX_COUNTED = 10_000


@record
class GatewayQueue:
    """The state of the queue of a gateway that is not removed.

    `waiting` is the number of messages that were not accepted yet, at most 2 * MAX_COUNTED. `oldest_seconds` is the age of the
    oldest of them. It is 0 for a disabled gateway, and it ignores messages of disabled applications, because these messages wait
    on purpose. `held` is the number of doubtful messages that wait for a decision. At most MAX_COUNTED held messages of all
    gateways are counted.

    `is_open` is true while the circuit breaker of an enabled gateway is open. It stays true after the pause until a probe
    succeeds, even if there is no message to send as the probe."""

    id: int
    name: str
    enabled: bool
    disabled_reason: str | None
    waiting: int = 0
    oldest_seconds: float = 0.0
    held: int = 0
    is_open: bool = False
    failures_in_row: int = 0
    last_success_at: datetime | None = None


def read_gateway_queues(connection: Connection, now: datetime) -> list[GatewayQueue]:
    """Return the state of the queue of each gateway at the time `now`, ordered by the id of the gateway."""
    g = gateways.c
    columns = g.id, g.name, g.enabled, g.disabled_reason, g.open_until, g.failures_in_row, g.last_success_at
    busy = set(find_waiting(connection))
    held = _held(connection)
    found = []
    for row in connection.execute(select(*columns).where(g.removed_at.is_(None)).order_by(g.id)).all():
        waiting, oldest = _waiting(connection, row.id) if row.id in busy else (0, None)
        age = 0.0 if oldest is None or not row.enabled else max((now - oldest).total_seconds(), 0.0)
        found.append(
            GatewayQueue(
                row.id,
                row.name,
                row.enabled,
                row.disabled_reason,
                waiting=waiting,
                oldest_seconds=age,
                held=held.get(row.id, 0),
                is_open=row.enabled and row.open_until is not None,
                failures_in_row=row.failures_in_row,
                last_success_at=row.last_success_at,
            )
        )
    return found


def _waiting(connection: Connection, gateway_id: int) -> tuple[int, datetime | None]:
    """Return the number of messages that wait for a gateway, and the time at which the oldest of them was created. This time
    ignores the messages of disabled applications."""
    off = select(applications.c.id).where(applications.c.disabled_at.is_not(None))
    count, times = 0, []
    for part in (0, 1):
        chosen = (
            select(sends.c.application_id, sends.c.created_at)
            .where(sends.c.gateway_id == gateway_id, IS_PENDING, sends.c.queue == literal_column(str(part)))
            .order_by(sends.c.next_at)
            .limit(MAX_COUNTED)
            .subquery()
        )
        oldest = func.min(chosen.c.created_at).filter(chosen.c.application_id.not_in(off))
        counted = connection.execute(select(func.count(), oldest).select_from(chosen)).one()
        count += counted[0]
        times.append(counted[1])
    return count, min((one for one in times if one is not None), default=None)


def _held(connection: Connection) -> dict[int, int]:
    """Return the number of held messages by gateway."""
    chosen = select(sends.c.gateway_id).where(IS_HELD).limit(MAX_COUNTED).subquery()
    counted = select(chosen.c.gateway_id, func.count().label("held")).group_by(chosen.c.gateway_id)
    return {row.gateway_id: row.held for row in connection.execute(counted)}


def register_gateway_metrics(metrics: Metrics, read: Callable[[], Sequence[GatewayQueue]]) -> None:
    """Register the gauges of the gateways. `read` returns the state that was read last."""
    for name, field, help in (
        ("waiting", "waiting", f"Messages that wait for the gateway (counted up to {2 * MAX_COUNTED})."),
        (
            "oldest_waiting_seconds",
            "oldest_seconds",
            "Age of the oldest message that waits for the gateway, without disabled gateways and applications.",
        ),
        ("messages_held", "held", "Doubtful messages that are held until a delivery report arrives or an operator decides."),
        (
            "breaker_open",
            "is_open",
            "1 if the circuit breaker of the enabled gateway is open, so that its messages wait; otherwise 0.",
        ),
    ):
        metrics.gauge(f"shortener_gateway_{name}", help, partial(_values, read, field), "gateway", "name")


def _values(read: Callable[[], Sequence[GatewayQueue]], field: str) -> dict[tuple[str, ...], float]:
    return {(str(one.id), one.name): float(getattr(one, field)) for one in read()}
