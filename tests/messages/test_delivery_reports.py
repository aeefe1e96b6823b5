import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Row

from shortener.accounts.administration import create_application
from shortener.clicks.resolver import Hit
from shortener.container import Service
from shortener.messages.delivery_reports import MAX_WAITING, DeliveryReport, DeliveryReportResult, DeliveryReports, _ReportedMessage
from shortener.model import State, Topic, Verdict
from shortener.storage import schema
from shortener.storage.batcher import MAX_ROWS
from tests.conftest import NOON
from tests.factory import Message, add_message, count_delta_sums, rows
from tests.rows import messages_now
from tests.servers import PATIENCE, SOON_SECONDS

SENT = DeliveryReport("m-1", State.SENT, NOON + timedelta(seconds=1))
DELIVERED = DeliveryReport("m-1", State.DELIVERED, NOON + timedelta(seconds=2), report_status="DELIVRD", reason_code="000")
READ = DeliveryReport("m-1", State.READ, NOON + timedelta(seconds=3))
FAILED = DeliveryReport("m-1", State.FAILED, NOON + timedelta(seconds=4), reason_code="505", reason_description="absent subscriber")
EXPIRED = DeliveryReport("m-1", State.EXPIRED, NOON + timedelta(seconds=5))


@pytest.fixture
async def message(service: Service) -> Message:
    return await service.database.write(add_message, service.ids)


async def record(service: Service, *reports: DeliveryReport) -> list[DeliveryReportResult]:
    return [one for one in await service.delivery_reports.record(1, reports) if one is not None]


async def stored(service: Service) -> Row[Any]:
    return (await rows(service.database, messages_now))[0]


async def click(service: Service, message: Message, seconds: float = 0) -> None:
    at = service.now_ms() + int(seconds * 1000)
    await service.recorder.record(Hit(service.ids(), message.codes[0], None, at, Verdict.HUMAN, "test", "", "Phone"))


async def test_a_delivery_report_changes_the_state_of_the_message_and_creates_delivery_and_state_events(
    service: Service, message: Message
) -> None:
    facts: dict[str, Any] = {"telecom_message_id": "tm-1", "mt_price": Decimal("0.0095"), "fragments_count": 2}
    delivered = replace(DELIVERED, reason_description="ok", **facts)
    assert await record(service, delivered) == [DeliveryReportResult("m-1", State.DELIVERED, changed=True)]
    row = await stored(service)
    assert (row.state, row.delivered_at, row.sent_at) == (State.DELIVERED, DELIVERED.at, None)
    assert (row.report_status, row.reason_code, row.reason_description) == ("DELIVRD", "000", "ok")
    assert {name: getattr(row, name) for name in facts} == facts
    (event,) = await rows(service.database, schema.events)
    assert event.topics == Topic.DELIVERY | Topic.STATE
    assert (event.message_id, event.application_id, event.at) == (message.row, 1, DELIVERED.at)
    assert event.data == {
        "state": "DELIVERED",
        "previous_state": "CREATED",
        "new_state": "DELIVERED",
        "status": "DELIVRD",
        "reason_code": "000",
        "reason_description": "ok",
    }
    assert await count_delta_sums(service.database) == {"delivered": "1"}


async def test_a_repeated_delivery_report_creates_no_event(service: Service, message: Message) -> None:
    await record(service, SENT, DELIVERED)
    later = replace(DELIVERED, at=DELIVERED.at + timedelta(hours=1))
    assert await record(service, DELIVERED, later, SENT) == [DeliveryReportResult("m-1", State.DELIVERED, changed=False)] * 3
    assert (await stored(service)).delivered_at == DELIVERED.at
    assert len(await rows(service.database, schema.events)) == 2
    assert await count_delta_sums(service.database) == {"sent": "1", "delivered": "1"}


async def test_a_late_delivery_report_stores_its_time_and_does_not_change_the_state_of_the_message(
    service: Service, message: Message
) -> None:
    await record(service, replace(READ, telecom_message_id="new"))
    late = replace(SENT, report_status="ENROUTE", telecom_message_id="old", mt_price=Decimal("0.01"))
    assert await record(service, late) == [DeliveryReportResult("m-1", State.READ, changed=True)]
    row = await stored(service)
    assert (row.state, row.read_at, row.sent_at, row.delivered_at) == (State.READ, READ.at, SENT.at, None)
    assert (row.report_status, row.telecom_message_id, row.mt_price) == (None, "new", Decimal("0.01"))
    *_, event = await rows(service.database, schema.events)
    assert event.topics == Topic.DELIVERY
    assert event.data == {"state": "SENT", "status": "ENROUTE", "reason_code": None, "reason_description": None}


async def test_delivery_reports_of_one_message_in_one_batch_may_have_any_order(service: Service, message: Message) -> None:
    results = await record(service, DELIVERED, SENT, READ, SENT)
    assert [(one.state.name, one.changed) for one in results] == [
        ("DELIVERED", True),
        ("DELIVERED", True),
        ("READ", True),
        ("READ", False),
    ]
    row = await stored(service)
    assert (row.state, row.sent_at, row.delivered_at, row.read_at) == (State.READ, SENT.at, DELIVERED.at, READ.at)
    events = await rows(service.database, schema.events)
    assert [event.data.get("previous_state") for event in events] == ["CREATED", None, "DELIVERED"]
    assert await count_delta_sums(service.database) == {"sent": "1", "delivered": "1", "read": "1"}


async def test_a_report_of_delivery_after_a_report_of_failure_removes_the_failure_reason(
    service: Service, message: Message
) -> None:
    await record(service, FAILED)
    assert ((await stored(service)).state, (await stored(service)).failed_at) == (State.FAILED, FAILED.at)
    await record(service, DeliveryReport("m-1", State.DELIVERED, NOON))
    row = await stored(service)
    assert (row.state, row.reason_code, row.reason_description) == (State.DELIVERED, None, None)


async def test_a_report_of_failure_after_a_report_of_delivery_does_not_change_the_state_of_the_message(
    service: Service, message: Message
) -> None:
    assert [one.state for one in await record(service, DELIVERED, FAILED, EXPIRED)] == [State.DELIVERED] * 3
    row = await stored(service)
    assert (row.state, row.failed_at, row.reason_code) == (State.DELIVERED, FAILED.at, "000")
    assert await count_delta_sums(service.database) == {"delivered": "1", "failed": "1"}


async def test_a_second_report_of_the_newest_state_corrects_the_reason_code_and_the_price(
    service: Service, message: Message
) -> None:
    await record(service, DELIVERED)
    (result,) = await record(service, replace(DELIVERED, reason_code="001", mt_price=Decimal("0.02"), report_status=None))
    assert result.changed
    row = await stored(service)
    assert (row.report_status, row.reason_code, row.mt_price) == ("DELIVRD", "001", Decimal("0.02"))
    (same,) = await record(service, replace(DELIVERED, reason_code="001", mt_price=Decimal("0.0200")))
    assert not same.changed


# These tests check delivery reports of clicked messages.


async def test_a_report_of_delivery_after_a_click_stores_everything_except_the_state(service: Service, message: Message) -> None:
    await record(service, SENT)
    await click(service, message, seconds=5)
    assert await record(service, DELIVERED) == [DeliveryReportResult("m-1", State.CLICKTHRU, changed=True)]
    row = await stored(service)
    assert (row.state, row.previous_state, row.delivered_at) == (State.CLICKTHRU, State.SENT, DELIVERED.at)
    assert (row.report_status, row.reason_code) == ("DELIVRD", "000")
    assert (await rows(service.database, schema.events))[-1].topics == Topic.DELIVERY


async def test_clicks_concurrent_with_delivery_reports_are_never_lost_and_the_message_state_never_goes_back(
    service: Service, message: Message
) -> None:
    def prepare(connection: Connection) -> list[Message]:
        return [add_message(connection, service.ids, f"race-{number}") for number in range(30)]

    messages = await service.database.write(prepare)
    reports = [replace(report, message_id=one.message_id) for one in messages for report in (SENT, DELIVERED)]
    await asyncio.gather(
        *(record(service, report) for report in reports),
        *(click(service, one) for one in messages),
        record(service, *(replace(READ, message_id=one.message_id) for one in reversed(messages))),
    )
    before = {}
    for row in (await rows(service.database, messages_now))[1:]:
        before[row.id] = State(row.previous_state).name
        assert (row.state, row.clicked_at is not None) == (State.CLICKTHRU, True)
        assert (row.sent_at, row.delivered_at, row.read_at) == (SENT.at, DELIVERED.at, READ.at)
    stored_events = await rows(service.database, schema.events)
    for one in messages:
        moves = [
            event.data or {"previous_state": before[one.row], "new_state": "CLICKTHRU"}
            for event in stored_events
            if event.message_id == one.row and event.topics & Topic.STATE
        ]
        # The event of a click has the id of the hit, so it sorts before events that other transactions stored after the hit.
        follows = {move["previous_state"]: move["new_state"] for move in moves}
        path = ["CREATED"]
        while path[-1] in follows:
            path.append(follows.pop(path[-1]))
        assert (path[-1], follows) == ("CLICKTHRU", {})
    await service.fanout.flush()
    metrics = ["sent", "delivered", "read", "clicks", "clicked_messages", "ttc:0"]
    assert await count_delta_sums(service.database) == dict.fromkeys(metrics, "30")


async def test_delivery_reports_of_unknown_messages_do_not_affect_other_reports_of_the_same_request(
    service: Service, message: Message
) -> None:
    other = (await service.database.write(create_application, "other", NOON)).application_id
    await service.database.write(add_message, service.ids, "other", application_id=other)
    reports = [replace(report, message_id=name) for report in (SENT, DELIVERED) for name in ("m-1", "unknown", "other")]
    results = await service.delivery_reports.record(1, reports)
    assert [None if one is None else one.state.name for one in results] == ["SENT", None, None, "DELIVERED", None, None]
    assert {row.state for row in await rows(service.database, messages_now)} == {State.CREATED, State.DELIVERED}
    assert len(await rows(service.database, schema.events)) == 2
    assert await count_delta_sums(service.database) == {"sent": "1", "delivered": "1"}


async def test_on_sqlite_a_large_request_of_delivery_reports_is_stored_in_several_transactions(
    service: Service, message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    apply = DeliveryReports._apply_group

    def counting(self: DeliveryReports, connection: Connection, waiting: Any) -> Any:
        sizes.append(sum(len(one.request[1]) for one in waiting))
        return apply(self, connection, waiting)

    monkeypatch.setattr(service.delivery_reports._group._batcher._handler, "_apply", partial(counting, service.delivery_reports))
    unknown = [replace(SENT, message_id=f"unknown-{number}") for number in range(2 * MAX_ROWS)]
    reports = [SENT, *unknown, DELIVERED]
    result = await service.delivery_reports.record(1, reports)
    assert [one and one.state for one in result] == [State.SENT, *[None] * len(unknown), State.DELIVERED]
    await asyncio.gather(*(service.delivery_reports.record(1, reports[:100]) for _ in range(20)))
    assert sum(sizes) >= len(reports) + 20 * 100
    if service.database.dialect == "sqlite":
        assert max(sizes) <= MAX_ROWS


async def test_a_delivery_report_that_arrives_before_its_message_is_stored_waits_for_the_message(service: Service) -> None:
    first = asyncio.create_task(record(service, SENT, DELIVERED))
    while not service.delivery_reports._wait.requests:
        await asyncio.sleep(0)  # wait a moment before the condition is checked again
    await service.database.write(add_message, service.ids)
    assert [one.state for one in await first] == [State.SENT, State.DELIVERED]
    assert (await stored(service)).sent_at == SENT.at


async def test_delivery_reports_of_unknown_messages_are_rejected_at_once_if_too_many_requests_wait_already(
    service: Service,
) -> None:
    service.delivery_reports._wait.seconds = PATIENCE
    service.delivery_reports._wait.requests = MAX_WAITING
    async with asyncio.timeout(SOON_SECONDS):
        assert await service.delivery_reports.record(1, [SENT]) == [None]
    assert service.delivery_reports._wait.requests == MAX_WAITING


async def test_a_later_delivery_report_without_status_word_and_reason_code_keeps_the_stored_status_word_and_reason_code(
    service: Service, message: Message
) -> None:
    await record(service, DELIVERED, READ)
    row = await stored(service)
    assert (row.state, row.report_status, row.reason_code) == (State.READ, "DELIVRD", "000")


async def test_a_delivery_report_without_a_state_stores_its_texts_and_keeps_the_state_of_the_message(
    service: Service, message: Message
) -> None:
    accepted = DeliveryReport("m-1", None, NOON, report_status="ENROUTE", telecom_message_id="tm-1")
    assert await record(service, accepted) == [DeliveryReportResult("m-1", State.CREATED, changed=True)]
    row = await stored(service)
    assert (row.state, row.sent_at, row.report_status, row.telecom_message_id) == (State.CREATED, None, "ENROUTE", "tm-1")
    (event,) = await rows(service.database, schema.events)
    assert (event.topics, event.data["state"], event.data["status"]) == (Topic.DELIVERY, "CREATED", "ENROUTE")
    await record(service, DELIVERED, replace(accepted, report_status="UNKNOWN"))
    assert (await stored(service)).report_status == "DELIVRD"
    assert await count_delta_sums(service.database) == {"delivered": "1"}


# This property-based test checks delivery reports in any order.


def unreported(state: State = State.CREATED, is_clicked: bool = False) -> _ReportedMessage:
    return _ReportedMessage(1, 1, state, None, None, None, None, None, None, None, None, None, None, is_clicked)


@given(st.lists(st.sampled_from([SENT, DELIVERED, READ, FAILED, EXPIRED]), max_size=8))
def test_delivery_reports_in_any_order_result_in_the_newest_state_and_the_first_time_of_each_state(
    reports: list[DeliveryReport],
) -> None:
    message, clicked = unreported(), unreported(is_clicked=True)
    rank = 0
    first: dict[State, datetime] = {}
    for report in reports:
        message.apply(report)
        clicked.apply(report)
        assert report.state is not None
        assert message.state // 10 >= rank
        rank = message.state // 10
        first.setdefault(State.FAILED if report.state is State.EXPIRED else report.state, report.at)
        assert not message.apply(report)
    assert rank == max((report.state // 10 for report in reports if report.state is not None), default=0)
    times = [message.sent_at, message.delivered_at, message.read_at, message.failed_at]
    assert times == [first.get(state) for state in (State.SENT, State.DELIVERED, State.READ, State.FAILED)]
    assert clicked.state is State.CLICKTHRU
    assert clicked.reported_state is State.CREATED
    assert replace(clicked, is_clicked=False, reported_state=message.state) == message
