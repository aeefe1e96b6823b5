"""This module makes one attempt to send a claimed delivery and computes the new state of the delivery from the response.

An attempt starts only if it will certainly end before the lease of the delivery ends. If the rest of the lease is too short, or if
the attempt is cancelled, the process gives the claim back, and the attempt does not count.

A delivery becomes dead after a maximum number of attempts. Not every failed attempt counts towards this maximum:

- A local failure does not count. A local failure means that the resolver or the sockets of this host failed, or that a stored row
  is unusable. The delivery then waits `LOCAL_FAILURE_PAUSE_MS` milliseconds. If local failures delay a delivery for longer than
  `expiry.MAX_HOLD`, the delivery becomes dead.
- If the service fails after it has sent the request, this counts as an attempt, because the receiver may have the event.
- A 429 response of a tracker does not count during the first `FREE_429_MS` milliseconds after the delivery was created or last
  replayed. The attempt number still increases.
- Every 429 response to a callback of a message counts. The service cannot send callbacks more slowly, because it learns rates
  only for trackers (pace.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from datetime import datetime, timedelta

import orjson
import structlog

from shortener.delivery.claims import MIN_LEASE_LEFT_MS
from shortener.delivery.dispatch_queries import FIRST_ATTEMPTS, RETRIES, ClaimedDelivery, FinishedDelivery
from shortener.delivery.expiry import MAX_HOLD
from shortener.delivery.http_exchange import SendResult
from shortener.delivery.outcomes import (
    ATTEMPTS_USED_UP,
    DEFAULT_SCHEDULE,
    LOCAL_FAILURE,
    MAX_LOST_OUTCOMES,
    OUTCOMES_LOST,
    RATE_LIMITED,
    UNPROCESSED,
    AttemptOutcome,
    OutcomeKind,
    classify_response,
    next_delay,
)
from shortener.delivery.request import DeliveryTarget, ForbiddenHost
from shortener.delivery.sender import Sender
from shortener.delivery.start_times import StartTimes
from shortener.ids import DELIVERY_IDS, IdGenerator
from shortener.model import Clock, DeliveryStatus, Topic, record
from shortener.storage.types import to_ms
from shortener.tracing import Tracer

log = structlog.get_logger(__name__)

#: After a local failure, the process claims no delivery of the same queue for this time.
LOCAL_FAILURE_PAUSE_MS = 15_000
MAX_DETAIL_LENGTH = 500
#: The text that is stored for an attempt whose response the service could not process.
FAULT_DETAIL = "the log of the service contains the cause (response_not_processed)"
#: A 429 response does not count as an attempt if the delivery was created or replayed less than this time ago.
FREE_429_MS = 86_400_000
#: An attempt waits at most this long for the attempt of an earlier event of the same message. After that, it waits at most this
#: long until the rate of the tracker permits its start.
MAX_WAIT_SECONDS = 2.0
#: The limits of the wait after a 429 response without `Retry-After`. Up to 10 % of random time is added.
MIN_429_PAUSE_MS, MAX_429_PAUSE_MS = 1000, 60_000


@record
class AttemptInFlight:
    """An attempt that may start now. The claim of its delivery is committed.

    `target` is None if the stored tracker or callback URL is unusable. `is_probe` is true if the attempt tests whether a tracker
    with an open circuit breaker works again. `is_paced` is true if the service has learned a rate for the tracker (pace.py). `rate`
    is the number of attempts per second that the tracker permits; None: no limit."""

    claim: ClaimedDelivery
    target: DeliveryTarget | None
    application_id: int | None
    is_probe: bool
    is_paced: bool = False
    rate: float | None = None

    @property
    def queue(self) -> str:
        return self.claim.queue


@record
class FinishedAttempt:
    """The result of a claimed delivery, which is not yet in the database.

    If `outcome` is None, the attempt was not started or was cancelled, and the claim is given back. `at` is the time of the
    result. If `attempt_row` is not None, `started` is the start of the attempt. Both times are milliseconds since 1970.
    `may_be_unclaimed` is true if it is unknown whether the claim is stored."""

    attempt: AttemptInFlight
    delivery: FinishedDelivery
    attempt_row: tuple[object, ...] | None
    outcome: AttemptOutcome | None
    started: int
    at: int
    may_be_unclaimed: bool = False

    @property
    def is_rate_limited(self) -> bool:
        return self.outcome is not None and self.outcome.reason == RATE_LIMITED

    @property
    def is_without_request(self) -> bool:
        """Whether the delivery became dead without a request, because it had too many attempts before."""
        return self.outcome is not None and self.outcome.reason in (OUTCOMES_LOST, ATTEMPTS_USED_UP)

    def with_reason(self, reason: str) -> FinishedAttempt:
        """Return a copy of this result with the failure reason `reason`."""
        assert self.outcome is not None  # only an attempt with an outcome has a reason
        outcome = dataclasses.replace(self.outcome, reason=reason)
        return dataclasses.replace(self, outcome=outcome, delivery=self.delivery._replace(last_error=reason))

    @property
    def is_local_failure(self) -> bool:
        return self.outcome is not None and not self.outcome.charged


class AttemptRunner:
    """A runner that sends claimed deliveries. It does not write to the database: `OutcomeWriter` records the results.

    Requests to trackers use `sender` and callbacks use `callback_sender`."""

    def __init__(
        self,
        sender: Sender,
        callback_sender: Sender,
        ids: IdGenerator,
        clock: Clock,
        rng: random.Random,
        *,
        allow_http: bool,
    ) -> None:
        self._sender = sender
        self._callback_sender = callback_sender
        self._ids = ids
        self._clock = clock
        self._rng = rng
        self._allow_http = allow_http
        self._starts = StartTimes()
        self.tracer: Tracer | None = None  # None if messages are not traced
        self.is_stopping = False  # if true, attempts that still wait do not begin

    async def run(self, attempt: AttemptInFlight, earlier: asyncio.Task[None] | None = None) -> FinishedAttempt:
        """Make one attempt and return its result. If the task is cancelled, return a result that gives the claim back.

        The attempt first waits until the task `earlier` has ended, for at most MAX_WAIT_SECONDS. Then it waits until the rate of
        the tracker permits its start. If the process stops during these waits, the attempt does not begin, and the claim is given
        back. If a fault of the service prevents the request, the result is a local failure."""
        try:
            return await self._run(attempt, earlier)
        except Exception:
            log.exception("attempt_failed", delivery=DELIVERY_IDS.encode(attempt.claim.id))
            failure = SendResult(None, b"", "internal_error", "the attempt failed unexpectedly", 0, is_local=True)
            return self._failed_locally(attempt, failure, to_ms(self._clock()))

    async def _run(self, attempt: AttemptInFlight, earlier: asyncio.Task[None] | None) -> FinishedAttempt:
        claim, target = attempt.claim, attempt.target
        try:
            has_waited = await self._wait(attempt, earlier)
        except asyncio.CancelledError:
            return self.give_back(attempt, "interrupted")
        if has_waited and self.is_stopping:
            return self.give_back(attempt, "interrupted")
        started = self._clock()
        timeout = target.timeout if target is not None else 0.0
        if claim.lease_until - to_ms(started) < round(timeout * 1000) + MIN_LEASE_LEFT_MS:
            # The lease could end during the attempt, and another process could then send the same delivery.
            log.warning("lease_too_short", delivery=DELIVERY_IDS.encode(claim.id))
            return self.give_back(attempt, "lease_too_short")
        if target is not None and claim.attempt - claim.base_attempt > target.max_attempts + MAX_LOST_OUTCOMES:
            return self._given_up(attempt, started)
        try:
            response = await self._send(claim, target, started)
        except asyncio.CancelledError:
            return self.give_back(attempt, "interrupted")
        try:
            finished = self._classify(attempt, response, started)
        except Exception:
            if target is None or response.is_local:
                raise
            log.exception("response_not_processed", delivery=DELIVERY_IDS.encode(claim.id))
            finished = self._unprocessed(attempt, target, response, started)
        if self.tracer is not None:
            try:
                _trace(self.tracer, claim, finished, response)
            except Exception:  # an error of the tracer must not discard the result of the attempt
                log.exception("attempt_not_traced", delivery=DELIVERY_IDS.encode(claim.id))
        return finished

    async def _wait(self, attempt: AttemptInFlight, earlier: asyncio.Task[None] | None) -> bool:
        """Wait until the attempt may begin. Return whether it had to wait."""
        if earlier is not None:
            await asyncio.wait([earlier], timeout=MAX_WAIT_SECONDS)
        if attempt.rate is None:
            return earlier is not None
        pause = self._starts.pause(attempt.claim.queue, attempt.rate, self._clock().timestamp())
        if pause > 0:
            await asyncio.sleep(min(pause, MAX_WAIT_SECONDS))
        return earlier is not None or pause > 0

    async def _send(self, claim: ClaimedDelivery, target: DeliveryTarget | None, at: datetime) -> SendResult:
        if target is None:
            return SendResult(None, b"", "internal_error", "the stored tracker is unusable", 0, is_local=True)
        try:
            facts = orjson.loads(claim.facts) if claim.facts else {}
            request = target.request(facts, claim.event, Topic(claim.topic), claim.attempt, at, allow_http=self._allow_http)
        except ForbiddenHost as error:
            return SendResult(None, b"", "blocked_address", str(error), 0)
        except Exception:
            log.exception("delivery_not_renderable", delivery=DELIVERY_IDS.encode(claim.id))
            return SendResult(None, b"", "internal_error", "the request could not be rendered", 0, is_local=True)
        if self.tracer is not None and (message_id := facts.get("message_id")) is not None:
            header = self.tracer.header(facts["application_id"], message_id)
            if header is not None:
                request = dataclasses.replace(request, headers={**request.headers, "traceparent": header})
        sender = self._callback_sender if claim.tracker_id is None else self._sender
        try:
            return await sender.send(request, target.timeout)
        except Exception:
            if not sender.is_open:  # the HTTP client could not be imported
                raise
            log.exception("response_not_processed", delivery=DELIVERY_IDS.encode(claim.id))
            return SendResult(None, b"", UNPROCESSED, FAULT_DETAIL, 0)

    def _classify(self, attempt: AttemptInFlight, response: SendResult, started: datetime) -> FinishedAttempt:
        claim, target = attempt.claim, attempt.target
        now = self._clock()
        now_ms = to_ms(now)
        if target is None or response.is_local:
            return self._failed_locally(attempt, response, now_ms)
        outcome = classify_response(response, target.success, now)
        base_attempt = claim.base_attempt
        is_free = (
            outcome.reason == RATE_LIMITED
            and claim.tracker_id is not None
            and now_ms - (claim.restarted_at or claim.created_at) < FREE_429_MS
        )
        if is_free:
            base_attempt += 1
        counted = claim.attempt - base_attempt
        status, next_at = DeliveryStatus.DEAD, claim.lease_until
        if outcome.kind is OutcomeKind.DELIVERED:
            status = DeliveryStatus.DELIVERED
        elif is_free or (is_retried(claim, outcome) and counted < target.max_attempts):
            status = DeliveryStatus.PENDING
            delay = pause_after_429(base_attempt, self._rng) if is_free else next_delay(counted, target.schedule, self._rng) * 1000
            next_at = now_ms + round(delay)
            if outcome.not_before is not None:
                next_at = max(next_at, to_ms(outcome.not_before))
        return self._finished(attempt, response, started, outcome, status, now_ms, next_at, base_attempt)

    def _unprocessed(
        self, attempt: AttemptInFlight, target: DeliveryTarget, response: SendResult, started: datetime
    ) -> FinishedAttempt:
        """Return the result of an attempt whose response the service could not process.
        The attempt counts. Of the response, the result contains only the status. The retry follows the default schedule, because
        the tracker's own schedule may have caused the fault."""
        claim, now = attempt.claim, to_ms(self._clock())
        counted = claim.attempt - claim.base_attempt
        status = DeliveryStatus.PENDING if counted < target.max_attempts else DeliveryStatus.DEAD
        next_at = now + round(next_delay(counted, DEFAULT_SCHEDULE, self._rng) * 1000)
        failed = SendResult(response.status, b"", UNPROCESSED, FAULT_DETAIL, response.milliseconds)
        outcome = AttemptOutcome(OutcomeKind.RETRY, UNPROCESSED)
        return self._finished(attempt, failed, started, outcome, status, now, next_at, claim.base_attempt)

    def _given_up(self, attempt: AttemptInFlight, started: datetime) -> FinishedAttempt:
        """Return the result for a delivery that already had too many attempts: it becomes dead, and no request is sent.

        The result adds no row to the table `attempts`. If the outcomes of the earlier attempts are known, `OutcomeWriter` replaces
        the reason."""
        claim, now = attempt.claim, to_ms(started)
        response = SendResult(None, b"", OUTCOMES_LOST, "", 0)
        outcome = AttemptOutcome(OutcomeKind.FINAL, OUTCOMES_LOST)
        result = self._finished(attempt, response, started, outcome, DeliveryStatus.DEAD, now, now, claim.base_attempt)
        return dataclasses.replace(result, attempt_row=None)

    def _finished(
        self,
        attempt: AttemptInFlight,
        response: SendResult,
        started: datetime,
        outcome: AttemptOutcome,
        status: DeliveryStatus,
        now_ms: int,
        next_at: int,
        base_attempt: int,
    ) -> FinishedAttempt:
        """Return the result of an attempt that counts, with the new column values of its delivery and the row of the attempt."""
        claim = attempt.claim
        error = None if status is DeliveryStatus.DELIVERED else response.error or outcome.reason
        delivery = FinishedDelivery(
            id=claim.id,
            claimed_attempt=claim.attempt,
            claimed_lease=claim.lease_until,
            status=int(status),
            attempt=claim.attempt,
            part=RETRIES,
            next_at=next_at,
            finished_at=None if status is DeliveryStatus.PENDING else now_ms,
            last_status=response.status,
            last_error=error,
            base_attempt=base_attempt,
            scheduled_at=now_ms,
            held_since=None,
        )
        row = (
            self._ids(),
            claim.id,
            claim.attempt,
            to_ms(started),
            response.milliseconds,
            response.status,
            error,
            to_storable_text(response.detail, MAX_DETAIL_LENGTH) or None,
            to_storable_text(response.excerpt),
        )
        return FinishedAttempt(attempt, delivery, row, outcome, to_ms(started), now_ms)

    def _failed_locally(self, attempt: AttemptInFlight, response: SendResult, now: int) -> FinishedAttempt:
        """Return the result of an attempt that failed because of this host.

        The result gives the claim back and stores the error as the last error of the delivery. It adds no row to the table
        `attempts`."""
        log.warning("local_failure", delivery=DELIVERY_IDS.encode(attempt.claim.id), error=response.error, detail=response.detail)
        held_since = attempt.claim.held_since
        if held_since is None or held_since > now:
            held_since = now
        delivery = _return_claim(attempt.claim, now, response.error)._replace(held_since=held_since)
        if now - held_since > MAX_HOLD // timedelta(milliseconds=1):
            delivery = delivery._replace(status=int(DeliveryStatus.DEAD), finished_at=now)
        else:
            delivery = delivery._replace(next_at=now + LOCAL_FAILURE_PAUSE_MS)
        return FinishedAttempt(attempt, delivery, None, LOCAL_FAILURE, now, now)

    def give_back(self, attempt: AttemptInFlight, error: str, *, may_be_unclaimed: bool = False) -> FinishedAttempt:
        """Return the result that gives a claim back, so that the delivery is claimed again. The claim does not count as an
        attempt."""
        now = to_ms(self._clock())
        return FinishedAttempt(attempt, _return_claim(attempt.claim, now, error), None, None, now, now, may_be_unclaimed)


def pause_after_429(free_attempts: int, rng: random.Random) -> float:
    """Return how many milliseconds a delivery or a message waits after a 429 response that did not count as an attempt.

    Each further 429 response makes the wait longer. Otherwise the retries of one delivery could use up all requests that the
    receiver accepts."""
    pause = min(MIN_429_PAUSE_MS << min(max(free_attempts - 3, 0), 10), MAX_429_PAUSE_MS)
    return pause * (1 + rng.random() / 10)


def _trace(tracer: Tracer, claim: ClaimedDelivery, finished: FinishedAttempt, response: SendResult) -> None:
    """Create the trace span of an attempt. For the first attempt, also create the span of the event, which begins when the event
    happened."""
    facts = orjson.loads(claim.facts) if claim.facts else {}
    message_id = facts.get("message_id")
    if message_id is None:
        return
    topic = Topic(claim.topic).api_name
    application, began = facts["application_id"], finished.started * 1_000_000
    if claim.attempt == 1:
        at = int(datetime.fromisoformat(facts["timestamp"]).timestamp() * 1000) * 1_000_000
        tracer.record(f"event {topic}", application, message_id, min(at, began), began, state=facts.get("new_state"))
    tracer.record(
        f"deliver {topic}",
        application,
        message_id,
        began,
        finished.at * 1_000_000,
        error=finished.delivery.last_error,
        is_request=True,
        tracker=claim.tracker_id,
        attempt=claim.attempt,
        status=response.status,
    )


def is_retried(claim: ClaimedDelivery, outcome: AttemptOutcome) -> bool:
    """Return whether a failed delivery that has attempts left is attempted again. Return True for every callback of a message."""
    return outcome.kind is OutcomeKind.RETRY or claim.tracker_id is None


def _return_claim(claim: ClaimedDelivery, now: int, error: str | None) -> FinishedDelivery:
    """Return the new column values of a delivery whose claim is given back. With these values, the delivery is due at once."""
    return FinishedDelivery(
        id=claim.id,
        claimed_attempt=claim.attempt,
        claimed_lease=claim.lease_until,
        status=int(DeliveryStatus.PENDING),
        attempt=claim.attempt - 1,
        part=RETRIES if claim.attempt > 1 else FIRST_ATTEMPTS,
        next_at=now,
        finished_at=None,
        last_status=None,
        last_error=error,
        base_attempt=claim.base_attempt,
        scheduled_at=now,
        held_since=claim.held_since,
    )


def to_storable_text(raw: str | bytes, limit: int | None = None) -> str:
    """Convert text or bytes from a receiver to text that a database can store: valid UTF-8 without NUL characters.

    The result has at most `limit` characters."""
    text = (raw if isinstance(raw, bytes) else raw.encode("utf-8", "replace")).decode("utf-8", "replace")
    return text.replace("\x00", "\ufffd")[:limit]
