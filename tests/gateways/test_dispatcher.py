"""Tests of the dispatcher of gateways: outcomes, retries, doubtful messages, crashes and concurrent processes."""

from __future__ import annotations

import asyncio
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import update

from shortener.container import Service
from shortener.gateways.submission import GatewayReport
from shortener.ids import encode
from shortener.messages.balances import change_balance, read_balance, remove_balance
from shortener.messages.prices import set_price
from shortener.model import State, Topic
from shortener.retention.erasure import erase_message
from shortener.storage import schema
from tests.conftest import NOON, Clock
from tests.factory import AUDIT, keep_sends, rows
from tests.gateways.conftest import MakeGateway, SendMessages, stored_message, stored_send, stored_sends
from tests.gateways.sending import FAILED, HELD, PENDING, SENT, BusyDatabase, kill, other_process, receive, start_attempts
from tests.receiver import Receiver, Reply

ACCEPTED = Reply(200, b'{"id":"gw-1"}')


async def test_a_message_that_the_gateway_accepts_becomes_sent_and_its_text_is_deleted(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    receiver.default_reply = ACCEPTED
    await make_gateway(receiver.url())
    [message] = await send_messages(text='Hello "you" \\ ñ')
    assert message["sent"] is True
    assert (await stored_send(service)).text == 'Hello "you" \\ ñ'
    await service.gateway_dispatcher.flush()

    [request] = receiver.requests
    send = await stored_send(service)
    assert request.json == {"to": "+14085550000", "text": 'Hello "you" \\ ñ', "reference": encode(send.id)}
    assert (send.status, send.text, send.gateway_message_id, send.lease_until) == (SENT, None, "gw-1", None)
    stored = await stored_message(service, message["message_id"])
    assert (stored.state, stored.telecom_message_id, stored.sent_at) == (State.SENT, "gw-1", NOON)
    [event] = await rows(service.database, schema.events)
    assert event.topics == Topic.STATE | Topic.DELIVERY
    assert event.data["new_state"] == "SENT"
    await service.gateway_dispatcher.flush()
    assert len(receiver.requests) == 1


async def test_a_message_that_the_gateway_rejects_becomes_failed_with_the_reason_and_its_cost_is_refunded(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal(10))
    await service.database.write(set_price, 0, "1", Decimal("0.25"))
    receiver.default_reply = Reply(400, b'{"code":"21211","error":"The number is not valid"}')
    await make_gateway(receiver.url())
    [message] = await send_messages()
    assert await service.database.read(read_balance, 1) == (Decimal("9.75"), "USD")
    await service.gateway_dispatcher.flush()

    send = await stored_send(service)
    assert (send.status, send.text, send.last_status, send.refunded) == (FAILED, None, 400, True)
    stored = await stored_message(service, message["message_id"])
    assert (stored.state, stored.reason_code, stored.reason_description) == (State.FAILED, "21211", "The number is not valid")
    assert await service.database.read(read_balance, 1) == (Decimal("10.00"), "USD")
    [event] = await rows(service.database, schema.events)
    assert event.topics & Topic.STATE
    [attempt] = await rows(service.database, schema.send_attempts)
    assert (attempt.outcome, attempt.status, attempt.detail) == ("rejected", 400, "The number is not valid")


async def test_a_failed_message_that_was_queued_before_the_application_was_prepaid_is_not_refunded(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    """Nothing was deducted for it, so a refund would create money."""
    await service.database.write(set_price, 0, "1", Decimal("0.25"))
    receiver.default_reply = Reply(400)
    await make_gateway(receiver.url())
    await send_messages()
    await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal(10))
    await send_messages()
    assert await service.database.read(read_balance, 1) == (Decimal("9.75"), "USD")
    await service.gateway_dispatcher.flush()
    assert [send.status for send in await stored_sends(service)] == [FAILED, FAILED]
    assert await service.database.read(read_balance, 1) == (Decimal(10), "USD")


@pytest.mark.parametrize("replacement", ["removed", "another currency", "another amount"])
async def test_a_failed_message_is_refunded_only_to_the_balance_from_which_its_cost_was_deducted(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, replacement: str
) -> None:
    async def set_balance(amount: int, currency: str = "USD") -> None:
        await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal(amount), currency=currency)

    await service.database.write(set_price, 0, "1", Decimal("0.25"))
    receiver.default_reply = Reply(400)
    await make_gateway(receiver.url())
    await set_balance(10)
    await send_messages()
    if replacement == "removed":
        await service.database.write(remove_balance, 1)
    await set_balance(5, "EUR" if replacement == "another currency" else "USD")
    await send_messages()
    await service.gateway_dispatcher.flush()
    assert [send.refunded for send in await stored_sends(service)] == [True, True]
    balance = await service.database.read(read_balance, 1)
    assert balance is not None
    assert balance.amount == (Decimal("5.25") if replacement == "another amount" else Decimal(5)), "the second message is refunded"


async def test_a_message_is_sent_again_after_a_temporary_failure_on_schedule_and_with_the_same_reference(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [500, ACCEPTED]
    await make_gateway(receiver.url(), schedule=[60.0])
    await send_messages()
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert (send.status, send.attempt, send.doubtful, send.last_error) == (PENDING, 1, False, "gateway_error")
    clock.forward(seconds=59)
    await service.gateway_dispatcher.flush()
    assert len(receiver.requests) == 1
    clock.forward(seconds=10)
    await service.gateway_dispatcher.flush()
    assert (await stored_send(service)).status == SENT
    first, second = receiver.requests
    assert first.json["reference"] == second.json["reference"]


async def test_a_message_becomes_failed_after_its_last_attempt(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = 500
    await make_gateway(receiver.url(), max_attempts=3, schedule=[1.0])
    [message] = await send_messages()
    for _ in range(5):
        await service.gateway_dispatcher.flush()
        clock.forward(seconds=10)
    assert len(receiver.requests) == 3
    assert (await stored_send(service)).status == FAILED
    stored = await stored_message(service, message["message_id"])
    assert (stored.state, stored.reason_code) == (State.FAILED, "gateway_error")


async def test_a_429_response_of_a_gateway_does_not_count_as_an_attempt_and_lowers_the_send_rate(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [Reply(429, b"", {"retry-after": "30"})] * 3
    receiver.default_reply = ACCEPTED
    gateway = await make_gateway(receiver.url(), max_attempts=1)
    await send_messages()
    for _ in range(3):
        await service.gateway_dispatcher.flush()
        assert (await stored_send(service)).status == PENDING
        clock.forward(seconds=40)
    await service.gateway_dispatcher.flush()
    assert (await stored_send(service)).status == SENT
    assert (await service.gateways.get(gateway.id)).pace.rate is not None


@pytest.mark.parametrize("policy", ["resend", "hold"])
async def test_a_message_is_doubtful_if_the_gateway_does_not_respond(
    policy: str, service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [Reply(hang=True)]
    receiver.default_reply = ACCEPTED
    await make_gateway(receiver.url(), timeout=0.3, on_doubt=policy, schedule=[1.0])
    await send_messages()
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert (send.doubtful, send.last_error) == (True, "timeout")
    assert send.status == (PENDING if policy == "resend" else HELD)
    clock.forward(seconds=5)
    await service.gateway_dispatcher.flush()
    assert len(receiver.requests) == (2 if policy == "resend" else 1)
    send = await stored_send(service)
    assert send.status == (SENT if policy == "resend" else HELD)
    assert (send.text is None) == (policy == "resend")


async def test_a_message_is_not_doubtful_if_the_gateway_refuses_the_connection(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages
) -> None:
    await make_gateway("http://127.0.0.1:9/", on_doubt="hold")
    await send_messages()
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert (send.status, send.doubtful, send.last_error) == (PENDING, False, "connection_refused")


async def test_a_message_is_held_whenever_the_gateway_response_cannot_be_parsed(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = Reply(200, b"<html>Welcome to the hotel</html>")
    await make_gateway(receiver.url(), settings={"success_path": "$.status", "success_values": ["0"]})
    await send_messages()
    await service.gateway_dispatcher.flush()
    clock.forward(hours=2)
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert (send.status, send.doubtful, send.last_error) == (HELD, True, "unreadable_response")
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("policy", ["resend", "hold"])
async def test_a_message_is_doubtful_after_its_process_was_killed_during_the_attempt(
    policy: str, service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [Reply(hang=True)]
    receiver.default_reply = ACCEPTED
    # With a concurrency of 1, the lease of the killed process must not count as a running attempt after the end of the lease.
    await make_gateway(receiver.url(), timeout=5, on_doubt=policy, concurrency=1)
    await send_messages()
    first, second = other_process(service), other_process(service)
    await start_attempts(first, receiver, 1)
    kill(first)
    await second.flush()
    assert len(receiver.requests) == 1, "the lease of the killed process has not ended"
    clock.forward(seconds=16)
    await second.flush()
    send = await stored_send(service)
    assert send.doubtful is True
    assert (send.status, len(receiver.requests)) == ((SENT, 2) if policy == "resend" else (HELD, 1))


async def test_a_late_outcome_of_a_process_that_lost_its_lease_is_ignored(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    second_has_sent = asyncio.Event()
    receiver.replies = [Reply(close=True, after=second_has_sent), Reply(200, b'{"id":"second"}')]
    await make_gateway(receiver.url(), timeout=1)
    await send_messages()
    first, second = other_process(service), other_process(service)
    await start_attempts(first, receiver, 1)
    clock.forward(seconds=12)
    await second.flush()
    second_has_sent.set()
    if first.attempts.tasks:  # the attempt of the first process may have timed out already
        await asyncio.wait(first.attempts.tasks)
    await first.flush()
    assert first.totals.leases_lost == 1
    send = await stored_send(service)
    assert (send.status, send.gateway_message_id) == (SENT, "second")


@pytest.mark.parametrize(("word", "status", "state"), [("DELIVRD", SENT, State.DELIVERED), ("UNDELIV", FAILED, State.FAILED)])
async def test_a_doubtful_message_with_a_delivery_report_is_not_sent_again(
    word: str,
    status: int,
    state: State,
    service: Service,
    make_gateway: MakeGateway,
    send_messages: SendMessages,
    receiver: Receiver,
    clock: Clock,
) -> None:
    receiver.default_reply = Reply(close=True)
    gateway = await make_gateway(receiver.url(), schedule=[1.0])
    [message] = await send_messages()
    await service.gateway_dispatcher.flush()
    reference = encode((await stored_send(service)).id)
    assert await receive(service, gateway.id, GatewayReport(word, reference=reference))
    clock.forward(minutes=1)
    await service.gateway_dispatcher.flush()
    assert len(receiver.requests) == 1
    send = await stored_send(service)
    assert (send.status, send.text) == (status, None)
    assert (await stored_message(service, message["message_id"])).state == state


async def test_two_processes_send_each_message_to_the_gateway_once(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    receiver.default_reply = ACCEPTED
    await make_gateway(receiver.url(), concurrency=128)
    for _ in range(10):
        await send_messages(10)
    processes = [other_process(service) for _ in range(3)]
    for process in processes:
        process.attempts.usage.total = 32  # fewer slots than messages, so that one process cannot claim all of them
        assert await process.step() > 0
    await asyncio.gather(*(process.flush() for process in processes))
    assert all(process.totals.sent > 0 for process in processes)
    while any(send.status == PENDING for send in await stored_sends(service)):
        await other_process(service).flush()
    references = Counter(request.json["reference"] for request in receiver.requests)
    assert len(references) == 100
    assert set(references.values()) == {1}


async def test_the_concurrency_of_a_gateway_applies_to_all_processes_together(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    receiver.default_reply = Reply(hang=True)
    await make_gateway(receiver.url(), concurrency=3, timeout=5)
    await send_messages(10)
    first, second = other_process(service), other_process(service)
    await start_attempts(first, receiver, 3)
    assert await second.step() == 0
    kill(first)


async def test_the_rate_of_a_gateway_limits_the_number_of_messages_per_second(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = ACCEPTED
    await make_gateway(receiver.url(), max_per_second=2)
    await send_messages(10)
    await service.gateway_dispatcher.flush()
    receiver.take()
    for _ in range(20):
        clock.forward(seconds=0.1)
        await service.gateway_dispatcher.flush()
    assert len(receiver.take()) == 4


async def test_the_circuit_breaker_opens_after_failures_and_a_probe_closes_it(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = 500
    gateway = await make_gateway(receiver.url(), max_attempts=50, schedule=[1.0])
    await send_messages(10)
    for _ in range(4):
        await service.gateway_dispatcher.flush()
        clock.forward(seconds=2)
    assert service.gateway_dispatcher.totals.breakers_opened == 1
    assert (await service.gateways.get(gateway.id)).health.open_until is not None
    receiver.take()
    receiver.default_reply = ACCEPTED
    clock.forward(seconds=60)
    await service.gateway_dispatcher.flush()
    clock.forward(seconds=1)
    await service.gateway_dispatcher.flush()
    assert {send.status for send in await stored_sends(service)} == {SENT}
    assert (await service.gateways.get(gateway.id)).health.open_until is None


async def test_messages_of_a_removed_gateway_become_failed(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages
) -> None:
    gateway = await make_gateway("http://127.0.0.1:9/")
    [message] = await send_messages()
    await service.gateways.remove(AUDIT, gateway.id)
    await service.gateway_dispatcher.flush()
    stored = await stored_message(service, message["message_id"])
    assert (stored.state, stored.reason_code) == (State.FAILED, "gateway_removed")


async def test_a_message_that_is_erased_while_it_waits_is_not_sent(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    receiver.default_reply = ACCEPTED
    await make_gateway(receiver.url())
    erased, other = await send_messages(2)
    await service.database.write(erase_message, 1, erased["message_id"], NOON, AUDIT, keep_sends)
    await service.gateway_dispatcher.flush()
    assert [request.json["to"] for request in receiver.requests] == [other["to"]]


async def test_messages_of_a_disabled_gateway_are_not_sent_until_it_is_enabled(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    receiver.default_reply = ACCEPTED
    gateway = await make_gateway(receiver.url())
    await send_messages()
    await service.gateways.update(AUDIT, gateway.id, {"enabled": False})
    await service.gateway_dispatcher.flush()
    assert receiver.requests == []
    await service.gateways.update(AUDIT, gateway.id, {"enabled": True})
    await service.gateway_dispatcher.flush()
    assert (await stored_send(service)).status == SENT


async def test_messages_of_a_disabled_application_are_not_sent_until_it_is_enabled(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = ACCEPTED
    await make_gateway(receiver.url(), max_attempts=1)
    await send_messages()

    async def set_disabled(at: Any) -> None:
        statement = update(schema.applications).values(disabled_at=at)
        await service.database.write(lambda connection: connection.execute(statement).rowcount)
        service.directory._snapshot.version = ""
        await service.directory.refresh()

    await set_disabled(NOON)
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert (send.status, send.attempt, receiver.requests) == (PENDING, 0, [])
    await set_disabled(None)
    clock.forward(minutes=2)
    await service.gateway_dispatcher.flush()
    assert (await stored_send(service)).status == SENT


async def test_a_message_that_the_gateway_does_not_accept_in_time_becomes_failed_and_its_text_is_deleted(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, clock: Clock
) -> None:
    gateway = await make_gateway("http://127.0.0.1:9/")
    [message] = await send_messages()
    await service.gateways.update(AUDIT, gateway.id, {"enabled": False})
    clock.forward(hours=23)
    await service.gateway_dispatcher.flush()
    assert (await stored_send(service)).text is not None
    clock.forward(hours=2)
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert (send.status, send.text, send.last_error) == (FAILED, None, "expired")
    stored = await stored_message(service, message["message_id"])
    assert (stored.state, stored.reason_code) == (State.FAILED, "expired")


async def test_a_held_message_becomes_failed_without_a_refund_after_its_validity_period(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal(1))
    await service.database.write(set_price, 0, "", Decimal("0.1"))
    receiver.default_reply = Reply(close=True)
    await make_gateway(receiver.url(), on_doubt="hold")
    await send_messages()
    await service.gateway_dispatcher.flush()
    clock.forward(hours=25)
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert (send.status, send.text, send.refunded) == (FAILED, None, False)
    assert await service.database.read(read_balance, 1) == (Decimal("0.9"), "USD")


async def test_a_send_attempt_that_a_server_stop_interrupts_is_recorded_as_doubtful(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts: list[float] = []

    async def wait(tasks: Any, *, timeout: float | None = None, return_when: str = asyncio.ALL_COMPLETED) -> Any:
        """Wait like asyncio.wait, but replace each timeout by 0, so that the time for the attempts ends at once."""
        if timeout is not None:
            timeouts.append(timeout)
            timeout = 0
        return await original(tasks, timeout=timeout, return_when=return_when)

    original = asyncio.wait
    receiver.default_reply = Reply(hang=True)
    await make_gateway(receiver.url(), timeout=30)
    await send_messages()
    dispatcher = other_process(service)
    await start_attempts(dispatcher, receiver, 1)
    monkeypatch.setattr(asyncio, "wait", wait)
    await dispatcher.stop(60)
    send = await stored_send(service)
    assert (send.status, send.doubtful, send.lease_until, send.last_error) == (PENDING, True, None, "interrupted")
    [timeout] = timeouts
    assert timeout <= 48, "the last fifth of the time is left to record the attempts"


async def test_a_cycle_that_waits_for_other_transactions_claims_messages_for_the_whole_time_of_an_attempt(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = ACCEPTED
    await make_gateway(receiver.url())
    await send_messages()
    await other_process(service, BusyDatabase(service.database, clock, 30)).step()
    await receiver.wait_for(1)


async def test_unusable_gateway_settings_count_as_a_local_failure(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages
) -> None:
    gateway = await make_gateway("http://127.0.0.1:9/")
    await send_messages()
    table = schema.gateways
    broken = update(table).where(table.c.id == gateway.id).values(settings="not encrypted", revision=99)
    await service.database.write(lambda connection: connection.execute(broken).rowcount)
    await service.gateway_dispatcher.flush()
    send = await stored_send(service)
    assert (send.status, send.last_error, send.base_attempt) == (PENDING, "unusable_gateway", 1)


async def test_after_a_change_of_the_gateway_url_messages_are_sent_to_the_new_url(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    receiver.default_reply = ACCEPTED
    gateway = await make_gateway(receiver.url("/old"))
    await send_messages()
    await service.gateway_dispatcher.flush()
    await service.gateways.update(AUDIT, gateway.id, {"settings": {"url": receiver.url("/new")}}, is_operator=True)
    await send_messages()
    await service.gateway_dispatcher.flush()
    assert [request.target for request in receiver.requests] == ["/old", "/new"]


async def test_late_failures_of_an_old_gateway_url_do_not_open_the_circuit_breaker_of_the_new_url(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    url_is_new = asyncio.Event()
    receiver.default_reply = Reply(close=True, after=url_is_new)
    gateway = await make_gateway(receiver.url("/old"), concurrency=12)
    await send_messages(12)
    await start_attempts(service.gateway_dispatcher, receiver, 12)
    await service.gateways.update(AUDIT, gateway.id, {"settings": {"url": receiver.url("/new")}})
    url_is_new.set()
    await service.gateway_dispatcher.flush()
    assert {send.last_error for send in await stored_sends(service)} == {"connection_reset"}
    health = (await service.gateways.get(gateway.id)).health
    assert (health.failures_in_row, health.open_until, health.last_failure_at) == (0, None, None)


async def test_new_settings_of_a_gateway_close_its_circuit_breaker(
    service: Service, make_gateway: MakeGateway, send_messages: SendMessages, receiver: Receiver
) -> None:
    receiver.default_reply = 401
    gateway = await make_gateway(receiver.url(), settings={"variables": {"password": "old"}})
    await send_messages(12)
    await service.gateway_dispatcher.flush()
    assert (await service.gateways.get(gateway.id)).health.open_until is not None
    receiver.default_reply = ACCEPTED
    await service.gateways.update(AUDIT, gateway.id, {"settings": {"variables": {"password": "new"}}})
    await send_messages(1, text="after the change")
    await service.gateway_dispatcher.flush()
    assert (await stored_sends(service))[-1].status == SENT
