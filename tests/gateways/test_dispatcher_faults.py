"""Tests of the dispatcher of gateways with values that cannot be stored or computed: they do not delay other messages and
gateways."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from shortener.container import Service
from shortener.errors import CommitUncertain
from shortener.gateways import dispatcher as dispatcher_module
from shortener.gateways.attempt import EndedSend, SendInFlight, SendRunner
from shortener.gateways.submission import OutgoingMessage, SubmitOutcome, SubmitResult
from shortener.ids import encode
from shortener.storage import schema
from tests.conftest import Clock
from tests.databases import Cut, CutCommits
from tests.delivery.receiver import receiver as tcp_receiver
from tests.delivery.receiver import reset, respond
from tests.factory import AUDIT, rows
from tests.gateways.conftest import MakeGateway, SendMessages, stored_sends
from tests.gateways.sending import FAILED, HELD, PENDING, SENT, other_process, start_attempts
from tests.gateways.smpp.smsc import running_smsc
from tests.receiver import Receiver, Reply

ACCEPTED = Reply(200, b'{"id":"gw-1"}')


@pytest.mark.parametrize(("column", "value"), [("max_per_second", 1e-310), ("max_per_second", math.inf), ("timeout", math.inf)])
async def test_a_gateway_with_an_unusable_limit_does_not_stop_the_messages_of_other_gateways(
    column: str, value: float, service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    receiver.default_reply = ACCEPTED
    bad = await make_gateway(receiver.url(), name="bad")
    await send_messages()
    table = schema.gateways
    await service.database.write(
        lambda connection: connection.execute(update(table).where(table.c.id == bad.id).values({column: value})).rowcount
    )
    good = await make_gateway(receiver.url(), name="good")
    await send_messages(3)
    await service.gateway_dispatcher.flush()
    statuses = [send.status for send in await stored_sends(service) if send.gateway_id == good.id]
    assert statuses == [SENT] * 3


@pytest.mark.parametrize(("part", "requests"), [("the row of the attempt", 3), ("the message", 4)])
async def test_an_outcome_that_cannot_be_stored_does_not_stop_other_outcomes(
    part: str,
    requests: int,
    service: Service,
    make_gateway: MakeGateway,
    send_messages: SendMessages,
    receiver: Receiver,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receiver.default_reply = ACCEPTED
    await make_gateway(receiver.url(), timeout=5)
    await send_messages(3)
    run = SendRunner.run

    async def run_with_unstorable_time(runner: SendRunner, attempt: SendInFlight) -> EndedSend:
        ended = await run(runner, attempt)
        if attempt.claim.to_address.endswith("1") and attempt.claim.attempt == 1:
            assert ended.change.attempt_row is not None
            if part == "the message":
                return replace(ended, change=replace(ended.change, row=ended.change.row._replace(last_status=2**80)))
            return replace(ended, change=replace(ended.change, attempt_row=(*ended.change.attempt_row[:4], 2**80, "", None, None)))
        return ended

    monkeypatch.setattr(SendRunner, "run", run_with_unstorable_time)
    dispatcher = other_process(service)
    await dispatcher.flush()
    assert [send.status for send in await stored_sends(service)] == [SENT, SENT if requests == 3 else PENDING, SENT]
    assert dispatcher.attempts.usage.busy == 0
    clock.forward(seconds=16)
    await dispatcher.flush()
    assert [send.status for send in await stored_sends(service)] == [SENT] * 3
    assert len(receiver.requests) == requests


@pytest.mark.parametrize("policy", ["resend", "hold"])
async def test_a_fault_after_the_response_leaves_no_slot_in_use_and_makes_the_message_doubtful(
    policy: str,
    service: Service,
    make_gateway: MakeGateway,
    send_messages: SendMessages,
    receiver: Receiver,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receiver.default_reply = ACCEPTED
    await make_gateway(receiver.url(), timeout=5, on_doubt=policy)
    await send_messages()
    dispatcher = other_process(service)
    with monkeypatch.context() as patch:
        patch.setattr(dispatcher._runner, "_decide", None)
        await dispatcher.flush()
    assert (dispatcher.attempts.usage.busy, len(receiver.requests)) == (0, 1)
    clock.forward(seconds=16)
    await dispatcher.flush()
    (send,) = await stored_sends(service)
    assert send.doubtful is True
    assert (send.status, len(receiver.requests)) == ((SENT, 2) if policy == "resend" else (HELD, 1))


async def test_a_command_status_of_smpp_that_the_database_cannot_store_is_left_out(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages
) -> None:
    async with running_smsc(decide=lambda pdu: 0xFFFFFFFF) as smsc:
        settings = {"url": f"smpp://127.0.0.1:{smsc.port}", "system_id": "x"}
        await make_gateway(kind="smpp", settings=settings)
        await send_messages()
        await service.gateway_dispatcher.flush()
        await service.gateway_connections.close()
    [send] = await stored_sends(service)
    assert (send.status, send.last_status, send.last_error) == (FAILED, None, "rejected")
    [attempt] = await rows(service.database, schema.send_attempts)
    assert (attempt.status, "0xFFFFFFFF" in attempt.detail) == (None, True)


async def test_the_duration_of_an_attempt_during_which_the_clock_is_set_forward_by_a_year_is_storable(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_gateway(settings={"report": "none"})

    class SlowConnection:
        async def submit(self, message: OutgoingMessage, timeout: float) -> SubmitResult:
            clock.forward(days=365)
            return SubmitResult(SubmitOutcome.ACCEPTED, "accepted")

        async def close(self) -> None: ...

    monkeypatch.setattr(service.gateway_connections.kinds["simulator"], "open", lambda config, context: SlowConnection())
    await send_messages()
    await service.gateway_dispatcher.flush()
    [attempt] = await rows(service.database, schema.send_attempts)
    assert attempt.milliseconds == 2**31 - 1


async def test_after_a_long_outage_of_the_database_all_outcomes_are_recorded_before_a_message_is_claimed_again(
    service: Service,
    make_gateway: MakeGateway,
    send_messages: SendMessages,
    receiver: Receiver,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatcher_module, "MAX_OUTCOMES", 1)
    receiver.default_reply = ACCEPTED
    await make_gateway(receiver.url())
    await send_messages(3)
    dispatcher = other_process(service)
    await dispatcher.step()
    await asyncio.wait(dispatcher.attempts.tasks)
    clock.forward(minutes=1)  # the leases end during the outage
    await dispatcher.flush()
    assert [send.status for send in await stored_sends(service)] == [SENT] * 3
    assert len(receiver.requests) == 3


async def set_state(service: Service, send_id: int, state: int) -> None:
    """Store a number as the state of a message. If no state has this number, no report can be applied to the message."""
    statement = update(schema.messages).where(schema.messages.c.id == send_id).values(state=state)
    await service.database.write(lambda connection: connection.execute(statement).rowcount)


@pytest.mark.parametrize("moved_ms", [dispatcher_module.UNWRITABLE_PAUSE_MS, -1], ids=["later", "clock set back"])
@pytest.mark.parametrize("reason", ["too old", "gateway removed"])
async def test_one_message_that_cannot_be_given_up_does_not_stop_the_expiry_of_other_messages(
    reason: str, moved_ms: int, service: Service, make_gateway: MakeGateway, send_messages: SendMessages, clock: Clock
) -> None:
    gateway = await make_gateway("http://127.0.0.1:9/", enabled=False)
    await send_messages(3)
    first = (await stored_sends(service))[0]
    await set_state(service, first.id, 99)
    if reason == "too old":
        clock.forward(hours=service.settings.gateway_validity_hours + 1)
    else:
        await service.gateways.remove(AUDIT, gateway.id)
    dispatcher = other_process(service)
    with capture_logs() as logs:
        await dispatcher.flush()
        await dispatcher.step()
    assert [send.status for send in await stored_sends(service)] == [PENDING, FAILED, FAILED]
    assert dispatcher.totals.failed == 2
    assert [line["send"] for line in logs if line["event"] == "send_not_finished"] == [encode(first.id)]
    await set_state(service, first.id, 0)
    await dispatcher.flush()
    assert (await stored_sends(service))[0].status == PENDING
    clock.forward(milliseconds=moved_ms)
    await dispatcher.flush()
    assert [send.status for send in await stored_sends(service)] == [FAILED] * 3


async def test_an_error_after_the_commit_neither_repeats_an_outcome_nor_drops_a_claimed_message(
    service: Service,
    make_gateway: MakeGateway,
    send_messages: SendMessages,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receiver.default_reply = ACCEPTED
    await make_gateway(receiver.url(), concurrency=1)
    await send_messages(3)
    dispatcher = other_process(service)

    def fail(events: int) -> None:
        raise ValueError("a fault after the commit")

    monkeypatch.setattr(dispatcher.writer, "published", fail)
    with capture_logs() as logs:
        await dispatcher.flush()
    assert [(send.status, send.attempt) for send in await stored_sends(service)] == [(SENT, 1)] * 3
    assert (len(receiver.requests), dispatcher.totals.leases_lost, dispatcher.attempts.usage.busy) == (3, 0, 0)
    assert {line["event"] for line in logs if line["log_level"] == "error"} == {"after_commit_failed"}


@pytest.mark.parametrize("cut", ["stored", "rolled back"])
async def test_messages_are_handed_on_once_and_are_not_doubtful_if_the_commit_of_their_claim_was_interrupted(
    cut: Cut, service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    receiver.default_reply = ACCEPTED
    await make_gateway(receiver.url(), on_doubt="hold")
    await send_messages(3)
    dispatcher = other_process(service, CutCommits(service.database, [cut]))
    with pytest.raises(CommitUncertain):
        await dispatcher.step()
    with capture_logs() as logs:
        await dispatcher.flush()
    assert [(send.status, send.attempt, send.doubtful) for send in await stored_sends(service)] == [(SENT, 1, False)] * 3
    assert (len(receiver.requests), dispatcher.totals.leases_lost, dispatcher.attempts.usage.busy) == (3, 0, 0)
    assert logs == []


async def test_an_interrupted_claim_is_not_given_back_after_another_process_has_claimed_the_message_in_the_same_millisecond(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    if service.database.dialect == "sqlite":
        pytest.skip("several processes need PostgreSQL")
    receiver.default_reply = Reply(hang=True)
    await make_gateway(receiver.url(), on_doubt="hold", timeout=1)
    await send_messages()
    first, second = other_process(service, CutCommits(service.database, ["rolled back"])), other_process(service)
    with pytest.raises(CommitUncertain):
        await first.step()
    await start_attempts(second, receiver, 1)
    leased = (await stored_sends(service))[0]
    await first.step()
    assert await stored_sends(service) == [leased]
    assert first.attempts.usage.busy == 0
    await second.flush()
    assert [(send.status, send.doubtful) for send in await stored_sends(service)] == [(HELD, True)]
    assert len(receiver.requests) == 1


async def test_a_cut_commit_of_an_outcome_and_of_the_next_claim_of_its_message_is_not_an_error(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies, receiver.default_reply = [503], ACCEPTED
    await make_gateway(receiver.url(), schedule=[1])
    await send_messages()
    dispatcher = other_process(service, CutCommits(service.database, ["committed", "stored"]))
    await dispatcher.step()
    await asyncio.wait(dispatcher.attempts.tasks)
    clock.forward(seconds=5)  # when the retry is due, one transaction records the outcome and claims the message again
    with pytest.raises(CommitUncertain):
        await dispatcher.step()
    with capture_logs() as logs:
        await dispatcher.flush()
    assert [(send.status, send.attempt) for send in await stored_sends(service)] == [(SENT, 2)]
    assert sorted(attempt.attempt for attempt in await rows(service.database, schema.send_attempts)) == [1, 2]
    assert [line["event"] for line in logs if line["log_level"] == "error"] == []
    assert (len(receiver.requests), dispatcher.attempts.usage.busy) == (2, 0)


async def test_a_message_that_was_sent_again_because_an_idle_connection_ended_is_doubtful(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages
) -> None:
    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(peer.requests) == 2 and peer.connections == 1:  # the gateway has accepted the message, and its process is killed
            await reset(reader, writer)
        else:
            await respond(200, ACCEPTED.body)(reader, writer)

    async with tcp_receiver(behaviour) as peer:
        await make_gateway(peer.url(), concurrency=1)
        await send_messages(2)
        dispatcher = other_process(service)
        await dispatcher.flush()
        await dispatcher.flush()
    sends = await stored_sends(service)
    assert [send.status for send in sends] == [SENT, SENT]
    assert (len(peer.requests), sorted(send.doubtful for send in sends)) == (3, [False, True])
