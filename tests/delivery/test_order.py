"""Tests that events of one message are sent in order, if the receiver answers (shortener/delivery/message_order.py)."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from shortener.container import Service
from shortener.delivery import attempt
from shortener.delivery.dispatcher import Dispatcher
from shortener.delivery.http_exchange import SendResult
from shortener.delivery.message_order import MAX_WAITING
from shortener.messages.delivery_reports import DeliveryReport
from shortener.model import State, Topic
from tests.conftest import NOON, Clock
from tests.delivery.conftest import MakeTracker, Story
from tests.delivery.dispatching import DELIVERED, PENDING, deliveries, other_dispatcher, statuses
from tests.servers import PATIENCE


class SlowSender:
    """A sender whose receiver needs 0.06 s to answer DELIVERED, 0.03 s for READ and no time for CLICKTHRU. If the receiver gets
    them at the same time, it answers in the wrong order."""

    def __init__(self) -> None:
        self.answered: list[tuple[str, str]] = []
        self.most_at_once = 0
        self._at_once = 0
        self.never_answers = False

    async def send(self, request: Any, timeout: float) -> SendResult:
        event = orjson.loads(request.body)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        if self.never_answers:
            await asyncio.Event().wait()
        await asyncio.sleep({"DELIVERED": 0.06, "READ": 0.03, "CLICKTHRU": 0}[event["new_state"]])
        self._at_once -= 1
        self.answered.append((event["message_id"], event["new_state"]))
        return SendResult(200, b"", None, "", 1)


@pytest.fixture
def sender() -> SlowSender:
    return SlowSender()


@pytest.fixture
async def dispatcher(service: Service, make_tracker: MakeTracker, sender: Any) -> Dispatcher:
    """A dispatcher with the slow sender, and a tracker for new states and conversions."""
    await make_tracker("http://127.0.0.1:9/", "state", "conversion", concurrency=16)
    return other_dispatcher(service, sender=sender)


async def report(service: Service, message_id: str, state: State) -> None:
    assert await service.delivery_reports.record(1, [DeliveryReport(message_id, state, NOON)])


async def start_two_states(service: Service, story: Story, dispatcher: Dispatcher) -> None:
    """Start the attempts for DELIVERED and CLICKTHRU of one message. The attempt for CLICKTHRU waits for the other attempt."""
    message = await story.message()
    await report(service, message.message_id, State.DELIVERED)
    await story.first_click(message)
    await service.fanout.flush()
    assert await dispatcher.step() == 2


async def wait_for_attempts(sender: SlowSender, at_once: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while sender.most_at_once < at_once:
            await asyncio.sleep(0.01)  # wait a moment before the condition is checked again


async def test_new_states_of_one_message_are_sent_in_order_and_states_of_several_messages_at_the_same_time(
    service: Service, story: Story, sender: SlowSender, dispatcher: Dispatcher
) -> None:
    messages = [await story.message(), await story.message()]
    for message in messages:
        await report(service, message.message_id, State.DELIVERED)
    await service.fanout.flush()
    assert await dispatcher.step() == 2
    for message in messages:
        await report(service, message.message_id, State.READ)
        await story.first_click(message)
    await service.fanout.flush()
    await dispatcher.flush()
    for message in messages:
        states = [state for message_id, state in sender.answered if message_id == message.message_id]
        assert states == ["DELIVERED", "READ", "CLICKTHRU"]
    assert sender.most_at_once == 2
    assert statuses(await deliveries(service)) == {DELIVERED: 6}


async def test_a_tracker_that_does_not_answer_delays_the_next_state_of_a_message_only_for_a_short_time(
    service: Service, story: Story, sender: SlowSender, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "MAX_WAIT_SECONDS", 0.05)
    sender.never_answers = True
    await start_two_states(service, story, dispatcher)
    await wait_for_attempts(sender, 2)
    await dispatcher.stop(60, 0)
    assert dispatcher.totals.claims_returned == 2


async def test_an_attempt_that_waits_for_an_earlier_one_gives_its_claim_back_when_the_process_stops(
    service: Service, story: Story, sender: SlowSender, dispatcher: Dispatcher
) -> None:
    sender.never_answers = True
    await start_two_states(service, story, dispatcher)
    await dispatcher.stop(60, 0)
    assert (sender.most_at_once, dispatcher.totals.claims_returned) == (1, 2)


async def test_an_attempt_that_waits_for_an_earlier_one_does_not_begin_after_the_stop_of_the_process_began(
    service: Service, story: Story, sender: SlowSender, dispatcher: Dispatcher
) -> None:
    await start_two_states(service, story, dispatcher)
    await dispatcher.stop(20)
    assert [state for _, state in sender.answered] == ["DELIVERED"]
    assert statuses(await deliveries(service)) == {DELIVERED: 1, PENDING: 1}


async def test_only_a_few_attempts_of_one_message_wait_so_that_they_do_not_use_all_slots_of_the_tracker(
    service: Service, story: Story, sender: SlowSender, dispatcher: Dispatcher
) -> None:
    sender.never_answers = True
    message = await story.message()
    for _ in range(10):
        await story.click(message, topics=Topic.CONVERSION)
    await service.fanout.flush()
    assert await dispatcher.step() == 10
    await wait_for_attempts(sender, 10 - MAX_WAITING)
    assert sender.most_at_once == 10 - MAX_WAITING
    await dispatcher.stop(60, 0)


async def test_a_later_attempt_waits_for_waiting_attempts_and_not_for_an_attempt_that_began_at_once(
    service: Service, story: Story, sender: SlowSender, dispatcher: Dispatcher
) -> None:
    sender.never_answers = True
    message = await story.message()
    # The first attempt is in flight, and the next MAX_WAITING attempts each wait for the one before. The last attempt is above the
    # limit of waiting attempts, so it begins at once.
    for _ in range(MAX_WAITING + 2):
        await story.click(message, topics=Topic.CONVERSION)
    await service.fanout.flush()
    assert await dispatcher.step() == MAX_WAITING + 2
    (attempts,) = dispatcher._order._in_flight.values()
    assert len(attempts) == MAX_WAITING + 1
    await dispatcher.stop(60, 0)


class HoldingSender:
    """A sender whose receiver answers no event until `released` is set. `starts` contains the start times of the attempts in
    seconds."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.starts: list[float] = []

    async def send(self, request: Any, timeout: float) -> SendResult:
        self.starts.append(asyncio.get_running_loop().time())
        await self.released.wait()
        return SendResult(200, b"", None, "", 1)


async def test_attempts_that_wait_for_earlier_ones_do_not_begin_faster_than_the_rate_of_their_tracker(
    service: Service, story: Story, make_tracker: MakeTracker, clock: Clock
) -> None:
    await make_tracker("http://127.0.0.1:9/", "state", concurrency=16, max_per_second=10)
    sender: Any = HoldingSender()
    dispatcher = other_dispatcher(service, sender=sender)
    for message in [await story.message() for _ in range(3)]:
        await report(service, message.message_id, State.DELIVERED)
        await report(service, message.message_id, State.READ)
        await story.first_click(message)
    await service.fanout.flush()
    while await dispatcher.step():
        clock.forward(milliseconds=100)
    assert (dispatcher.in_flight, len(sender.starts)) == (9, 3)
    sender.released.set()
    await dispatcher.flush()
    assert len(sender.starts) == 9
    # Six attempts have waited. The second one begins 0.05 seconds after the first one, and each further one 0.1 seconds after the
    # previous one.
    assert sender.starts[-1] - sender.starts[3] > 0.4
