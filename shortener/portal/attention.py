"""This module finds the problems that an operator must look at: disabled or failing trackers, dead deliveries, failing gateways,
held messages, postback keys that expire soon, and late hits.

After a rotation of the tracker token, the previous token expires as planned. This is not a problem, so only the page of the keys
shows it.
"""

# Tested by tests/portal/test_overview.py

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, select

from shortener.accounts.directory import Application
from shortener.delivery.deliveries import MAX_COUNT
from shortener.model import record
from shortener.plurals import counted
from shortener.portal.operators import Role
from shortener.portal.page import Visit
from shortener.reporting.figures import Figures
from shortener.reporting.sends import MAX_COUNTED, GatewaySummary, count_held, read_gateway_summaries
from shortener.storage.schema import postback_keys
from shortener.storage.types import to_ms

SOON = timedelta(hours=48)  # A postback key that expires within this time is a problem.
MAX_ITEMS = 12


@record
class AttentionItem:
    """A problem that an operator must look at. `kind` is its severity, `warn` or `bad`. `href` is the URL of the page on which
    the operator can solve it.

    `text` may contain a number, such as the number of dead deliveries. If the page at `href` lists exactly the counted rows,
    `figure` is the name of this number and `value` is the number itself."""

    kind: str
    text: str
    href: str | None = None
    figure: str | None = None
    value: int = 0


async def attention(visit: Visit, figures: Figures) -> list[AttentionItem]:
    """Return the problems of the applications that a page shows, the most urgent ones first."""
    found: list[AttentionItem] = []
    for application in visit.applications:
        prefix = f"{application.name}: " if visit.application is None else ""
        base = f"/portal/{application.id}"
        if application.disabled:
            found.append(
                AttentionItem("bad", f"{prefix}{'the' if prefix else 'The'} application is disabled; its links do not redirect")
            )
        found += await _trackers(visit, application.id, prefix, base)
        found += await _gateways(visit, application, prefix, base)
        for at in await visit.service.database.read(_expiring, application.id, visit.now):
            left = max(int((at - visit.now).total_seconds() // 3600), 0)
            found.append(
                AttentionItem(
                    "warn",
                    f"{prefix}{'a' if prefix else 'A'} postback key expires in {counted(left, 'hour')}",
                    f"{base}/keys" if visit.may(Role.MANAGER) else None,
                )
            )
    late = figures["late_hits"]
    if late:
        href = visit.link("clicks", metric="late_hits", campaign=visit.get("campaign"), source=visit.get("source"))
        found.append(AttentionItem("warn", f"{counted(late, 'hit')} came after the link had expired", href, "late_hits", late))
    return sorted(found, key=lambda item: item.kind)[:MAX_ITEMS]


async def _trackers(visit: Visit, application_id: int, prefix: str, base: str) -> list[AttentionItem]:
    found = []
    for tracker in await visit.service.trackers.all(application_id):
        name = f"{prefix}tracker {tracker.name or tracker.id}" if prefix else f"Tracker {tracker.name or tracker.id}"
        # An operator whose role is too low for the page of a tracker sees the problem without a link.
        may_open = visit.may(Role.SUPPORT)
        href = f"{base}/trackers/{tracker.id}" if may_open else None
        backlog = await visit.service.deliveries.backlog(tracker.id, visit.now)
        if not tracker.enabled and tracker.disabled_reason:
            found.append(AttentionItem("bad", f"{name} was disabled: {tracker.disabled_reason}", href))
        elif tracker.enabled and tracker.health.breaker(to_ms(visit.now)) in ("open", "half_open"):
            found.append(AttentionItem("bad", f"{name} fails; its deliveries wait", href))
        elif tracker.enabled and tracker.health.failures_in_row:
            failures = tracker.health.failures_in_row
            text = "the last attempt failed" if failures == 1 else f"the last {failures:,} attempts failed"
            found.append(AttentionItem("warn", f"{name}: {text}", href))
        if backlog.dead:
            is_exact = backlog.dead < MAX_COUNT
            number = f"{backlog.dead:,}" if is_exact else f"{MAX_COUNT:,} or more"
            link = f"{base}/deliveries?period=365d&tracker={tracker.id}&status=dead" if may_open else None
            text = f"{name} has {number} dead {'delivery' if backlog.dead == 1 else 'deliveries'}"
            found.append(AttentionItem("bad", text, link, "dead" if is_exact else None, backlog.dead))
    return found


async def _gateways(visit: Visit, application: Application, prefix: str, base: str) -> list[AttentionItem]:
    """Return two kinds of problems of the application: gateways that fail, and messages that are held."""
    usable = [one.id for one in application.gateways]

    def read(connection: Connection) -> tuple[list[GatewaySummary], int]:
        return read_gateway_summaries(connection, usable, application.id), count_held(connection, application.id)

    states, held = await visit.service.database.read(read)
    found = []
    for one in states:
        if one.enabled and one.health.breaker(to_ms(visit.now)) in ("open", "half_open"):
            text = f"{prefix}{'gateway' if prefix else 'Gateway'} {one.name} fails; its messages wait"
            found.append(AttentionItem("bad", text, f"{base}/gateways"))
    if held:
        is_exact = held < MAX_COUNTED
        number = f"{held:,}" if is_exact else f"{held:,} or more"
        text = f"{prefix}{number} held {'message waits' if held == 1 else 'messages wait'} for a decision"
        link = f"{base}/sends?period=365d&state=held"
        found.append(AttentionItem("bad", text, link, "held" if is_exact else None, held))
    return found


def _expiring(connection: Connection, application_id: int, now: datetime) -> list[datetime]:
    """Return the expiry times of the application's postback keys that expire within SOON."""
    columns = postback_keys.c
    statement = select(columns.valid_until).where(
        columns.application_id == application_id, columns.valid_until > now, columns.valid_until <= now + SOON
    )
    return list(connection.scalars(statement))
