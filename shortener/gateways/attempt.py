"""This module makes one attempt to hand a claimed message on to its gateway, and computes the changes that follow from the result.

The changes depend on the outcome of the attempt:

- accepted: the message is SENT. It is never handed on again.
- rejected: the message is FAILED with the code and the text of the gateway.
- retry: the gateway has certainly not accepted the message. The next attempt follows on the schedule. After the last permitted
  attempt, the message is FAILED. An attempt that fails because of this host does not count. If the gateway limits its rate, the
  attempt does not count during the first `FREE_429_MS` milliseconds after the message was created.
- doubt: the gateway may have accepted the message, but its response is missing. The message is marked as doubtful. If the policy
  of the gateway is `resend`, the message is handed on again on the schedule. If the policy is `hold`, the message is held until
  an operator decides or a delivery report arrives.
- unreadable: a response arrived, but does not show whether the message was accepted. The message is held with either policy,
  because `resend` applies only if the response is missing.
"""
# Tested by tests/gateways/test_dispatcher.py

from __future__ import annotations

import asyncio
import random
from datetime import datetime

import structlog

from shortener.delivery.attempt import FREE_429_MS, LOCAL_FAILURE_PAUSE_MS, pause_after_429, to_storable_text
from shortener.delivery.claims import MIN_LEASE_LEFT_MS
from shortener.delivery.outcomes import next_delay
from shortener.gateways.connections import Connections
from shortener.gateways.finishing import SendChange, failure_report, row_after, row_of_returned_claim
from shortener.gateways.queries import ClaimedSend, FinishedSend
from shortener.gateways.submission import GatewayConfig, OutgoingMessage, SubmitOutcome, SubmitResult
from shortener.ids import IdGenerator, encode
from shortener.logs import mask_in
from shortener.messages.delivery_reports import DeliveryReport
from shortener.messages.sender_rules import visible_sender
from shortener.model import Clock, SendStatus, State, record
from shortener.storage.types import from_ms, to_ms

log = structlog.get_logger(__name__)

MAX_DETAIL_LENGTH = 500
MAX_GATEWAY_ID_LENGTH = 255
MAX_INTEGER = 2**31 - 1  # the largest number that a column of the type Integer stores in PostgreSQL


@record
class SendLimits:
    """The limits for messages that are handed on to one gateway: the number of attempts, the time limit of an attempt in seconds,
    and the delays between attempts in seconds."""

    max_attempts: int
    timeout: float
    schedule: tuple[float, ...]


@record
class SendInFlight:
    """An attempt that may start now. The claim of its message is committed. `config` is None if the gateway is unusable.

    `is_probe` is true if the attempt tests whether a gateway with an open circuit breaker works again."""

    claim: ClaimedSend
    config: GatewayConfig | None
    limits: SendLimits
    queue: str
    application_id: int
    is_probe: bool


@record
class EndedSend:
    """The result of a claimed message, which is not yet in the database.

    If `result` is None, no attempt was started, and the claim is given back. Times are milliseconds since 1970.
    `may_be_unclaimed` is true if it is unknown whether the claim is stored."""

    attempt: SendInFlight
    change: SendChange
    result: SubmitResult | None
    started: int
    at: int
    may_be_unclaimed: bool = False

    @property
    def is_local_failure(self) -> bool:
        return self.result is not None and self.result.is_local

    @property
    def is_response(self) -> bool:
        """Whether the gateway has shown that it works: it accepted or rejected the message."""
        return self.result is not None and self.result.outcome in (SubmitOutcome.ACCEPTED, SubmitOutcome.REJECTED)


class SendRunner:
    """A runner of attempts to hand messages on to gateways. It does not write to the database."""

    def __init__(self, connections: Connections, ids: IdGenerator, clock: Clock, rng: random.Random) -> None:
        self._connections = connections
        self._ids = ids
        self._clock = clock
        self._rng = rng

    async def run(self, attempt: SendInFlight) -> EndedSend:
        """Make one attempt and return its result with the changes to store. If the task is cancelled, the message becomes
        doubtful."""
        claim, config = attempt.claim, attempt.config
        started = self._clock()
        if claim.lease_until - to_ms(started) < round(attempt.limits.timeout * 1000) + MIN_LEASE_LEFT_MS:
            # The lease could end during the attempt, and another process could then hand on the same message.
            log.warning("lease_too_short", send=encode(claim.id))
            return self.give_back(attempt, "lease_too_short")
        if config is None:
            return self._end(attempt, _local("unusable_gateway", "the stored gateway is unusable"), started)
        try:
            async with self._connections.use(config) as connection:
                result = await connection.submit(_outgoing(claim, config), attempt.limits.timeout)
        except asyncio.CancelledError:
            result = SubmitResult(SubmitOutcome.DOUBT, "interrupted", "the service was stopped during the attempt", is_local=True)
        except Exception:
            log.exception("gateway_failed", gateway=config.name, send=encode(claim.id))
            result = SubmitResult(SubmitOutcome.DOUBT, "internal_error", "the attempt failed unexpectedly")
        return self._end(attempt, result, started)

    def _end(self, attempt: SendInFlight, result: SubmitResult, started: datetime) -> EndedSend:
        claim = attempt.claim
        now = to_ms(self._clock())
        row, report = self._decide(attempt, result, now)
        attempt_row = (
            self._ids(),
            claim.id,
            claim.attempt,
            to_ms(started),
            min(result.milliseconds or max(now - to_ms(started), 0), MAX_INTEGER),
            result.reason,
            _stored_status(result),
            _stored_detail(claim, result)[:MAX_DETAIL_LENGTH] or None,
        )
        return EndedSend(attempt, SendChange(claim, row, attempt_row, report), result, to_ms(started), now)

    def _decide(self, attempt: SendInFlight, result: SubmitResult, now: int) -> tuple[FinishedSend, DeliveryReport | None]:
        claim = attempt.claim
        doubtful = claim.doubtful or result.is_repeated or result.outcome in (SubmitOutcome.DOUBT, SubmitOutcome.UNREADABLE)
        base_attempt, status, next_at = claim.base_attempt, SendStatus.PENDING, now
        if result.outcome is SubmitOutcome.ACCEPTED:
            status = SendStatus.SENT
        elif result.outcome is SubmitOutcome.REJECTED:
            status = SendStatus.FAILED
        elif result.outcome is SubmitOutcome.UNREADABLE or (result.outcome is SubmitOutcome.DOUBT and _holds(attempt)):
            status = SendStatus.HELD
        else:
            is_free = result.is_local or (result.is_throttled and now - claim.created_at < FREE_429_MS)
            base_attempt += is_free
            counted = claim.attempt - base_attempt
            if not is_free and counted >= attempt.limits.max_attempts:
                status = SendStatus.FAILED
            next_at = now + self._pause(attempt, result, counted, base_attempt)
        error = None if status is SendStatus.SENT else result.reason
        gateway_id = to_storable_text(result.gateway_message_id or "", MAX_GATEWAY_ID_LENGTH) or None
        row = row_after(claim, status, now, error)._replace(
            base_attempt=base_attempt,
            next_at=next_at,
            doubtful=doubtful,
            gateway_message_id=gateway_id,
            last_status=_stored_status(result),
            refunded=status is SendStatus.FAILED and claim.cost is not None and not doubtful,
        )
        if status is SendStatus.SENT:
            return row, DeliveryReport(claim.message_id, State.SENT, from_ms(now), telecom_message_id=gateway_id)
        if status is SendStatus.FAILED:
            code = to_storable_text(result.error_code or result.reason)
            return row, failure_report(claim, now, code, _stored_detail(claim, result))
        return row, None

    def _pause(self, attempt: SendInFlight, result: SubmitResult, counted: int, free: int) -> int:
        """Return the milliseconds between this failed attempt and the next attempt."""
        if result.is_local:
            pause = 0.0 if result.reason == "interrupted" else LOCAL_FAILURE_PAUSE_MS
        elif result.is_throttled:
            pause = pause_after_429(free, self._rng)
        else:
            pause = next_delay(max(counted, 1), attempt.limits.schedule, self._rng) * 1000
        return round(max(pause, (result.retry_after or 0) * 1000))

    def give_back(self, attempt: SendInFlight, error: str | None, *, may_be_unclaimed: bool = False) -> EndedSend:
        """Return the changes that give a claim back, so that the message is claimed again. The claim does not count as an
        attempt."""
        claim, now = attempt.claim, to_ms(self._clock())
        row = row_of_returned_claim(claim, now, error)
        return EndedSend(attempt, SendChange(claim, row), None, now, now, may_be_unclaimed)


def _holds(attempt: SendInFlight) -> bool:
    return attempt.config is not None and not attempt.config.repeats_doubtful


def _stored_status(result: SubmitResult) -> int | None:
    """Return the status of a response, or None if the status is too large for the database column. Nothing is lost: the stored
    error text also contains the command status of SMPP."""
    return result.status if result.status is None or result.status <= MAX_INTEGER else None


def _stored_detail(claim: ClaimedSend, result: SubmitResult) -> str:
    """Return the error text of a gateway for the database. The phone number of the recipient is masked in it, because callers who
    may not see phone numbers can read this text."""
    return mask_in(to_storable_text(result.detail), claim.to_address)


def _local(reason: str, detail: str) -> SubmitResult:
    return SubmitResult(SubmitOutcome.RETRY, reason, detail, is_local=True)


def _outgoing(claim: ClaimedSend, config: GatewayConfig) -> OutgoingMessage:
    reference = encode(claim.id)
    return OutgoingMessage(
        reference=reference,
        message_id=claim.message_id,
        phone=claim.to_address,
        text=claim.text or "",
        sender_id=visible_sender(claim.from_address, claim.sender_id_alias),
        encoding=claim.encoding,
        segments=claim.segments,
        report_url=f"{config.report_url}/{reference}",
    )
