"""/portal/{app}/gateways: the page with the gateways that an application may use. It shows for each gateway whether it works, how
many messages it has sent, and how many messages wait for it. The page shows no settings of a gateway, because settings contain
credentials."""
# Tested by tests/portal/test_gateways.py

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response

from shortener.gateways.unrecorded_reports import LossReason
from shortener.messages.balances import Balance, read_balance
from shortener.model import ALL_APPLICATIONS, record
from shortener.portal.listing import download_short_list, slots_of
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.portal.periods import parse_period
from shortener.portal.trackers import BREAKERS
from shortener.reporting.counts import slot_edges
from shortener.reporting.sends import GatewayCounts, GatewaySummary, SendCounts, count_sends, read_gateway_summaries
from shortener.storage.types import from_ms, to_iso, to_ms

_CSV_COLUMNS = (
    *("gateway_id", "name", "kind", "selected", "enabled", "disabled_reason", "removed", "breaker", "breaker_open_since"),
    *("next_attempt_at", "failures_in_row", "last_success_at", "last_failure_at", "last_error", "link"),
    *("waiting", "oldest_waiting_at", "held", "sent", "failed", "doubtful"),
)
#: The period of the lists of waiting and held messages. The period that is selected on the page does not apply to them.
WAITING_PERIOD = "365d"
#: The label, and the kind of badge, of a gateway that has not been used yet.
_UNUSED = ("not used yet", "")
#: The reasons why delivery reports were not recorded, as the page shows them.
_LOSS_REASONS = {
    LossReason.NO_LIST: "report_items names no list",
    LossReason.NO_STATUS: "no status",
    LossReason.NO_ID: "no id of a message",
    LossReason.TOO_MANY: "too many in one call",
    LossReason.UNREADABLE_RECEIPT: "no id or no state in the SMPP receipt",
    LossReason.UNKNOWN_MESSAGE: "unknown message",
    LossReason.UNKNOWN_WORD: "unknown word for the state",
}


@record
class ShownGateway:
    """A gateway as the page shows it. `breaker` is the state of the circuit breaker, a key of BREAKERS or `unused`. `link` says
    whether the permanent connection of this process to the gateway is open. It is None without such a connection, and if the
    gateway is disabled or removed. `lost_reports` counts, by reason, the delivery reports that this process has not recorded
    since its start."""

    gateway: GatewaySummary
    counts: SendCounts
    is_selected: bool
    breaker: str
    link: bool | None
    lost_reports: Mapping[LossReason, int]

    @property
    def opened_at(self) -> datetime | None:
        """The time at which the circuit breaker opened; None if it is closed."""
        return _time(self.gateway.health.opened_at)

    @property
    def next_attempt_at(self) -> datetime | None:
        """The time from which the next attempt is allowed; None if the circuit breaker is closed."""
        return _time(self.gateway.health.open_until)

    @property
    def last_success_at(self) -> datetime | None:
        return _time(self.gateway.health.last_success_at)

    @property
    def last_failure_at(self) -> datetime | None:
        return _time(self.gateway.health.last_failure_at)


@record
class _Overview:
    """What the page reads from the database in one transaction."""

    states: list[GatewaySummary]
    counts: GatewayCounts
    balance: Balance | None


async def gateways(visit: Visit) -> Response:
    """Show the gateways of an application and how many messages each has sent, or return this list as CSV."""
    application = visit.one_application
    since, until = slots_of(visit)
    usable = [one.id for one in application.gateways]
    found = await visit.service.database.read(_read, application.id, usable, since, until, _waiting_since(visit))
    selected = None if application.gateway is None else application.gateway.id
    shown = [_shown(visit, state, found.counts.by_gateway, is_selected=state.id == selected) for state in found.states]
    shown.sort(key=lambda one: (not one.is_selected, one.gateway.is_removed, one.gateway.application_id == ALL_APPLICATIONS))
    if visit.is_csv:
        return await download_short_list(visit, "gateways", _CSV_COLUMNS, [_serialize(one) for one in shown])
    return visit.render(
        "gateways.html",
        title="Gateways",
        gateways=shown,
        counts=found.counts,
        balance=found.balance,
        breakers={**BREAKERS, "unused": _UNUSED},
        loss_reasons=_LOSS_REASONS,
        all_applications=ALL_APPLICATIONS,
        waiting_period=WAITING_PERIOD,
    )


def _waiting_since(visit: Visit) -> datetime:
    """Return the start of WAITING_PERIOD. The page counts the waiting and held messages since this time. The lists to which these
    numbers link have the same period, so they contain the same number of rows."""
    since, _ = slot_edges(parse_period(visit.now, period=WAITING_PERIOD, zone_name=visit.zone_name).since, None)
    assert since is not None
    return since


def _read(
    connection: Connection, application_id: int, usable: list[int], since: datetime, until: datetime, waiting_since: datetime
) -> _Overview:
    counts = count_sends(connection, application_id, since, until, waiting_since)
    ids = sorted({*usable, *counts.by_gateway})
    return _Overview(read_gateway_summaries(connection, ids, application_id), counts, read_balance(connection, application_id))


def _shown(visit: Visit, state: GatewaySummary, counts: Mapping[int, SendCounts], *, is_selected: bool) -> ShownGateway:
    link = visit.service.gateway_connections.is_open(state.id) if state.enabled and not state.is_removed else None
    lost = visit.service.gateway_reports.unrecorded.of_gateway(state.id)
    return ShownGateway(state, counts.get(state.id, SendCounts()), is_selected, breaker_of(state, visit.now), link, lost)


def breaker_of(state: GatewaySummary, now: datetime) -> str:
    """Return the state of the circuit breaker of a gateway. Besides the breaker's own states, it can be `failing` (the breaker is
    closed, but the last attempts failed) or `unused` (there was no attempt yet)."""
    health = state.health
    breaker = health.breaker(to_ms(now))
    if breaker != "closed":
        return breaker
    if health.failures_in_row:
        return "failing"
    return "closed" if health.last_success_at is not None or health.last_failure_at is not None else "unused"


def _serialize(one: ShownGateway) -> dict[str, Any]:
    state, counts = one.gateway, one.counts
    return {
        "gateway_id": state.id,
        "name": state.name,
        "kind": state.kind,
        "selected": one.is_selected,
        "enabled": state.enabled,
        "disabled_reason": state.disabled_reason,
        "removed": state.is_removed,
        "breaker": "closed" if one.breaker in ("failing", "unused") else one.breaker,
        "breaker_open_since": to_iso(one.opened_at),
        "next_attempt_at": to_iso(one.next_attempt_at),
        "failures_in_row": state.health.failures_in_row,
        "last_success_at": to_iso(one.last_success_at),
        "last_failure_at": to_iso(one.last_failure_at),
        "last_error": counts.last_error,
        "link": None if one.link is None else "open" if one.link else "closed",
        "waiting": counts.pending,
        "oldest_waiting_at": to_iso(counts.oldest_pending),
        "held": counts.held,
        "sent": counts.sent,
        "failed": counts.failed,
        "doubtful": counts.doubtful,
    }


def _time(ms: int | None) -> datetime | None:
    return None if ms is None else from_ms(ms)


PAGES = [
    PortalPage(
        "/portal/{app}/gateways",
        gateways,
        csv=True,
        all_applications=False,
        needs_gateway=True,
        navigation=NavigationItem("Gateways", "radio-tower", 15, "delivery", "w"),
    )
]
