"""/portal/{app}/deliveries/replays/new and /portal/{app}/deliveries/replays/{id}: the pages that replay the dead deliveries of a
tracker. On the first page, an operator sees how many deliveries a replay would send again, and starts it. The second page shows
the progress of a replay, and the operator can stop it there.

A background job performs the replay (delivery/replays.py), so the replay continues when the page is closed. htmx loads the
progress at intervals. In a browser without scripts, the operator reloads the page to see it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response

from shortener.accounts.audit import AuditWriter
from shortener.delivery.deliveries import MAX_REPLAYED_PER_TRANSACTION, Delivery, DeliveryFilter, count_dead
from shortener.delivery.replays import (
    MAX_UNATTEMPTED,
    Replay,
    ReplayOutcomes,
    StopReason,
    count_outcomes,
    create_replay,
    find_newest,
    find_obstacle,
    find_replay,
    find_running,
    start_replay,
    stop_replay,
)
from shortener.delivery.trackers import Tracker
from shortener.errors import ApiError, ErrorCode
from shortener.ids import parse_counted_id
from shortener.model import DeliveryStatus
from shortener.portal.listing import slots_of
from shortener.portal.operators import Role
from shortener.portal.page import PortalPage, Visit
from shortener.portal.repeats import FormRepeated, perform_once
from shortener.portal.trackers import BREAKERS, tracker_health
from shortener.storage.types import to_ms

PATH = "deliveries/replays"
#: The number of seconds after which htmx loads the progress again. For a replay with more than MANY deliveries, the number is
#: SLOW_REFRESH_SECONDS, because counting so many deliveries takes longer.
REFRESH_SECONDS, SLOW_REFRESH_SECONDS, MANY = 2, 10, 100_000

#: The confirmation page shows the last outcome of a tracker. It searches only this number of newest deliveries for an outcome.
RECENT = 20


async def confirm(visit: Visit) -> Response:
    """Show how many dead deliveries of a tracker a replay would send again."""
    return await _confirm(visit, None)


async def start(visit: Visit) -> Response:
    """Start a replay of the dead deliveries of a tracker. A form that was sent before leads to the newest replay of the tracker."""
    tracker = await _tracker(visit)
    since, until = _limits(visit)
    service = visit.service

    def create_once(connection: Connection, audit: AuditWriter, values: dict[str, Any]) -> Replay:
        return perform_once(connection, visit, create_replay, audit, values)

    args = service.database, visit.audit_writer, visit.application_id, tracker.id, since, until, visit.now
    try:
        replay = await start_replay(*args, create_once)
    except FormRepeated:
        newest = await service.database.read(find_newest, tracker.id)
        if newest is None:
            raise
        replay = newest
    except ApiError as error:
        if error.code is not ErrorCode.CONFLICT:
            raise
        return await _confirm(visit, error)
    service.replays.wake_up.notify()
    return visit.redirect(visit.link(f"{PATH}/{replay.public_id}"))


async def _confirm(visit: Visit, error: ApiError | None) -> Response:
    tracker = await _tracker(visit)
    since, until = _limits(visit)
    criteria = DeliveryFilter(tracker_id=tracker.id, since=since, until=until)

    def read(connection: Connection) -> tuple[int, Replay | None, StopReason | None]:
        return count_dead(connection, criteria), find_running(connection, tracker.id), find_obstacle(connection, tracker.id)

    total, running, obstacle = await visit.service.database.read(read)
    rate = _rate(visit, tracker)
    backlog = await visit.service.deliveries.backlog(tracker.id, visit.now)
    return visit.render(
        "replay_new.html",
        200 if error is None else error.code.http_status,
        title="Replay dead deliveries",
        tracker=tracker,
        since=since,
        until=until,
        total=total,
        running=running,
        obstacle=obstacle,
        health=tracker_health(tracker, backlog, visit),
        breakers=BREAKERS,
        last=await _last_outcome(visit, tracker),
        rate=rate,
        seconds=total / rate,
        batch=MAX_REPLAYED_PER_TRANSACTION,
        max_waiting=MAX_UNATTEMPTED,
        error=error,
    )


async def _last_outcome(visit: Visit, tracker: Tracker) -> Delivery | None:
    """Return the newest delivery of a tracker that has an outcome, or None. If none of the newest RECENT deliveries has an outcome,
    return the newest dead delivery."""
    read = visit.service.deliveries.page
    page = await read(DeliveryFilter(visit.application_id, tracker.id), RECENT)
    dead = await read(DeliveryFilter(visit.application_id, tracker.id, status=DeliveryStatus.DEAD), 1)
    return next((one for one in (*page.deliveries, *dead.deliveries) if one.last_status or one.last_error), None)


def _badge(replay: Replay, outcomes: ReplayOutcomes) -> tuple[str, str]:
    """Return the label and the kind of the badge of a replay. The badge is green only if every delivery of the replay
    succeeded."""
    if replay.is_running:
        return "Running", "accent"
    if replay.stop_reason:
        return "Stopped", "warn"
    if outcomes.waiting:
        return "All are queued again", "accent"
    return ("Finished, some failed again", "warn") if outcomes.dead else ("Finished", "good")


def _rate(visit: Visit, tracker: Tracker) -> float:
    """Return how many replayed deliveries per second the tracker gets at most."""
    limit = tracker.pace.limit(to_ms(visit.now))
    recovery = visit.service.settings.delivery_recovery_rate
    return recovery if limit is None else min(limit, recovery)


async def progress(visit: Visit) -> Response:
    """Show the progress of a replay. While the numbers can still change, htmx requests only the part of the page that contains
    them."""

    def read(connection: Connection) -> tuple[Replay, ReplayOutcomes]:
        found = find_replay(connection, visit.path["id"], visit.application_id)
        return found, count_outcomes(connection, found)

    replay, outcomes = await visit.service.database.read(read)
    phase = f"{replay.state} {'waiting' if outcomes.waiting else 'complete'}"
    if visit.is_fragment and visit.get("phase") != phase:
        # Other parts of the page also depend on the phase of the replay, which has changed. Let htmx load the whole page.
        return visit.redirect(visit.here(phase=None))
    trackers = {one.id: one for one in await visit.service.trackers.all(visit.application_id)}
    tracker = trackers.get(replay.tracker_id)
    is_sent = tracker is not None and tracker.enabled and visit.application is not None and not visit.application.disabled
    return visit.render(
        "replay_progress.html" if visit.is_fragment else "replay.html",
        title="Replay of dead deliveries",
        replay=replay,
        outcomes=outcomes,
        tracker=tracker,
        waiting_status="pending" if is_sent else "parked",
        is_failing=tracker is not None and tracker.health.open_until is not None,
        phase=phase,
        changes=replay.is_running or outcomes.waiting > 0,
        refresh=REFRESH_SECONDS if replay.total <= MANY else SLOW_REFRESH_SECONDS,
        badge=_badge(replay, outcomes),
    )


async def stop(visit: Visit) -> Response:
    """Stop a replay. If it has already ended, do nothing."""
    service = visit.service

    def write(connection: Connection) -> None:
        found = find_replay(connection, visit.path["id"], visit.application_id)
        stop_replay(connection, visit.audit_writer, found, StopReason.OPERATOR, visit.now)

    await service.database.write(write)
    return visit.redirect(visit.link(f"{PATH}/{visit.path['id']}"))


def _limits(visit: Visit) -> tuple[datetime, datetime | None]:
    """Return the start and the end of the period of the page. The end is None if it is not in the past."""
    since, until = slots_of(visit)
    return since, until if until < visit.now else None


async def _tracker(visit: Visit) -> Tracker:
    """Return the tracker that the query selects. Raise ApiError NOT_FOUND if there is none."""
    tracker_id = parse_counted_id(visit.get("tracker") or "")
    if tracker_id is None:
        raise ApiError(ErrorCode.NOT_FOUND, "There is no such tracker.")
    return await visit.service.trackers.get(tracker_id, visit.application_id)


PAGES = [
    PortalPage("/portal/{app}/deliveries/replays/new", confirm, start, Role.SUPPORT, all_applications=False),
    PortalPage("/portal/{app}/deliveries/replays/{id}", progress, stop, Role.SUPPORT, all_applications=False),
]
