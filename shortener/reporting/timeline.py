"""This module returns the timeline of one message: its states, the attempts to hand it on to a gateway, its hits, its conversions
and the deliveries of its events."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from shortener.gateways.sends import send_attempt_fields
from shortener.model import DeliveryStatus, HitFlag, Topic, Verdict
from shortener.outbox.events import encode_event_id
from shortener.reporting.conversions import serialize_conversion
from shortener.reporting.hits import HitFilter, list_hits
from shortener.reporting.status import MessageStatus
from shortener.storage.schema import deliveries, events, events_of, trackers
from shortener.storage.types import AnyRow, to_iso
from shortener.times import parse_iso, to_utc

MAX_ENTRIES = 1000  # The maximum number of hits in a timeline, and also the maximum number of deliveries.


def message_timeline(
    connection: Connection, application_id: int, status: MessageStatus, click_id: Callable[[int], str]
) -> list[dict[str, Any]]:
    """Return the timeline of a message, oldest entry first. Each entry has a time (`at`), its kind (`what`), and the fields of
    this kind."""
    message = status.message
    entries: list[tuple[datetime, dict[str, Any]]] = [(message.created_at, {"what": "created"})]
    for state in ("sent", "delivered", "read", "failed"):
        if (at := getattr(message, f"{state}_at")) is not None:
            entries.append((at, {"what": state}))
    # `list_hits` returns the newest hit first. Add the oldest hit first: sorting by time does not change the order of hits of the
    # same millisecond.
    for hit in reversed(list_hits(connection, HitFilter(application_id, message=message.message_id), MAX_ENTRIES).rows):
        flags = HitFlag(hit.flags)
        entry = {
            "what": "hit",
            "verdict": Verdict(hit.verdict).api_name,
            "rule": hit.rule,
            "code": hit.code,
            "click_id": click_id(hit.id),
            "user_agent": hit.user_agent,
            "click_country": hit.click_country,
            "first_of_message": bool(flags & HitFlag.FIRST_FOR_MESSAGE),
            "late": bool(flags & HitFlag.LATE),
            "disabled": bool(flags & HitFlag.DISABLED),
        }
        if hit.first_verdict is not None:
            entry |= {"first_verdict": Verdict(hit.first_verdict).api_name, "first_rule": hit.first_rule}
        entries.append((hit.at, entry))
    for conversion in status.conversions:
        fields = serialize_conversion(conversion, status.revisions.get(conversion.id, ()), click_id, reveal=False)
        for revision in fields["revisions"]:
            shared = ("revision", "status", "disposition", "value", "currency")
            entry = {"what": "conversion", "action": fields["action"], **{name: revision[name] for name in shared}}
            at = revision["timestamp"] or revision["received_at"]
            entries.append((to_utc(parse_iso(at)), entry))
    if status.send is not None:
        for attempt in status.send.attempts:
            entries.append((attempt.at, {"what": "attempt", "gateway": status.send.row.gateway, **_attempt(attempt)}))
    entries += _deliveries(connection, message.id)
    return [{"at": to_iso(at), **entry} for at, entry in sorted(entries, key=lambda one: one[0])]


def _attempt(attempt: AnyRow) -> dict[str, Any]:
    return {name: value for name, value in send_attempt_fields(attempt).items() if name != "at"}


def _deliveries(connection: Connection, message: int) -> list[tuple[datetime, dict[str, Any]]]:
    statement = (
        select(deliveries, trackers.c.name.label("tracker"))
        .join_from(events, deliveries, deliveries.c.event_id == events.c.id)
        .outerjoin(trackers, trackers.c.id == deliveries.c.tracker_id)
        .where(events_of([message]))
        .order_by(deliveries.c.id)
        .limit(MAX_ENTRIES)
    )
    return [
        (
            row.finished_at or row.created_at,
            {
                "what": "delivery",
                "event_id": encode_event_id(row.event_id, Topic(row.topic)),
                "event": Topic(row.topic).api_name,
                "tracker": "callback URL" if row.tracker_id is None else row.tracker or "a deleted tracker",
                "state": DeliveryStatus(row.status).api_name,
                "attempts": row.attempt,
                "last_status": row.last_status,
                "last_error": row.last_error,
            },
        )
        for row in connection.execute(statement)
    ]
