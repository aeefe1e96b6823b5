"""This module sends a test delivery: one invented event that is sent to one tracker at once, even if the tracker is disabled.

The request is built and signed like every other request. There is exactly one attempt, which takes at most `MAX_TEST_SECONDS`. The
service stores the delivery with its event and its attempt. A test delivery changes neither the circuit breaker nor the queue of the
tracker.
"""
# Tested by tests/web/test_trackers.py

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert

from shortener.accounts.audit import AuditWriter
from shortener.delivery.attempt import to_storable_text
from shortener.delivery.http_exchange import SendResult
from shortener.delivery.outcomes import OutcomeKind, classify_response
from shortener.delivery.queue_names import tracker_queue
from shortener.delivery.request import ForbiddenHost
from shortener.delivery.sample_facts import sample_facts
from shortener.delivery.sender import Sender
from shortener.delivery.trackers import Trackers
from shortener.errors import ApiError, ErrorCode
from shortener.ids import IdGenerator
from shortener.model import Clock, DeliveryStatus, Topic, record
from shortener.outbox.events import encode_event_id
from shortener.storage import schema
from shortener.storage.database import Database

#: The maximum numbers of test deliveries that run at the same time: for all applications together, and for one application.
MAX_TESTS, MAX_TESTS_PER_APPLICATION = 64, 8
#: The time limit of a test delivery is the time limit of the tracker, but at most this number of seconds.
MAX_TEST_SECONDS = 15.0


class TestSlots:
    """The limit on test deliveries that run at the same time. They use their own sender and not the slots of other deliveries."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self._running: Counter[int] = Counter()

    @contextmanager
    def take(self, application_id: int) -> Iterator[Sender]:
        """Return a context manager that provides the sender. Raise ApiError RATE_LIMITED if too many test deliveries run."""
        running = self._running
        if running[application_id] >= MAX_TESTS_PER_APPLICATION or running.total() >= MAX_TESTS:
            reason = f"At most {MAX_TESTS_PER_APPLICATION} test deliveries of an application run at a time."
            raise ApiError(ErrorCode.RATE_LIMITED, reason, retry_after=round(MAX_TEST_SECONDS))
        running[application_id] += 1
        try:
            yield self.sender
        finally:
            running[application_id] -= 1
            if not running[application_id]:
                del running[application_id]


@record
class SampleDelivery:
    """The result of a test delivery.

    `reason` is the name of a row in outcomes.OUTCOME_TABLE. `answer` is the first KiB of the response body."""

    delivery_id: int
    event_id: str
    delivered: bool
    reason: str
    http_status: int | None
    error: str | None
    detail: str
    milliseconds: int
    answer: str


async def send_test(
    database: Database,
    audit: AuditWriter,
    trackers: Trackers,
    sender: Sender,
    ids: IdGenerator,
    clock: Clock,
    tracker_id: int,
    *,
    allow_http: bool,
    application_id: int | None = None,
    event_name: str | None = None,
) -> SampleDelivery:
    """Send a test event to a tracker, store the delivery and an audit row, and return the result.

    If `event_name` is given, the event has this name and the sample values of such an event. If `event_name` is None, the event
    has the name `test` and the sample values of the first event to which the tracker subscribes. Raise ApiError NOT_FOUND if the
    tracker does not exist, and StoreUnavailable if the database is unavailable."""
    tracker, target = await trackers.load(tracker_id, application_id)
    event, at = ids(), clock()
    name = event_name or tracker.events[0]
    facts = sample_facts(tracker.application_id, at, name, tracker.conversion_actions, tracker.conversion_dispositions)
    if event_name is not None:
        facts["topic"] = facts["sample_of"]
    for metadata_name in target.metadata_names:
        facts.setdefault("metadata", {}).setdefault(metadata_name, "test")
    try:
        request = target.request(facts, event, Topic.TEST, 1, at, allow_http=allow_http)
    except ForbiddenHost as error:
        response = SendResult(None, b"", "blocked_address", str(error), 0)
    else:
        response = await sender.send(request, min(target.timeout, MAX_TEST_SECONDS))
    outcome = classify_response(response, target.success, clock())
    delivered = outcome.kind is OutcomeKind.DELIVERED
    sample = SampleDelivery(
        delivery_id=ids(),
        event_id=encode_event_id(event, Topic.TEST),
        delivered=delivered,
        reason=outcome.reason,
        http_status=response.status,
        error=None if delivered else response.error or outcome.reason,
        detail=to_storable_text(response.detail),
        milliseconds=response.milliseconds,
        answer=to_storable_text(response.excerpt),
    )
    await database.write(_store, audit, sample, event, tracker.application_id, tracker_id, facts, at, clock(), ids())
    return sample


def _store(
    connection: Connection,
    audit: AuditWriter,
    sample: SampleDelivery,
    event: int,
    application_id: int,
    tracker_id: int,
    facts: Mapping[str, Any],
    at: datetime,
    finished_at: datetime,
    attempt_id: int,
) -> None:
    """Store the event, the delivery and the attempt of a test delivery, and add the audit row."""
    connection.execute(
        insert(schema.events).values(
            id=event, application_id=application_id, topics=Topic.TEST.value, at=at, facts=facts, fanned_out=True
        )
    )
    status = DeliveryStatus.DELIVERED if sample.delivered else DeliveryStatus.DEAD
    connection.execute(
        insert(schema.deliveries).values(
            id=sample.delivery_id,
            event_id=event,
            topic=Topic.TEST.value,
            application_id=application_id,
            tracker_id=tracker_id,
            lane=tracker_queue(tracker_id),
            status=status.value,
            attempt=1,
            next_at=at,
            created_at=at,
            finished_at=finished_at,
            last_status=sample.http_status,
            last_error=sample.error,
        )
    )
    connection.execute(
        insert(schema.attempts).values(
            id=attempt_id,
            delivery_id=sample.delivery_id,
            attempt=1,
            at=at,
            milliseconds=sample.milliseconds,
            status=sample.http_status,
            error=sample.error,
            detail=sample.detail or None,
            answer=sample.answer,
        )
    )
    after = {"delivered": sample.delivered, "reason": sample.reason}
    subject = f"tracker {tracker_id}"
    audit.add(connection, finished_at, "test_delivery_sent", subject, application_id=application_id, after=after)
