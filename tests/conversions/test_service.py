import asyncio
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from sqlalchemy import Connection

from shortener.accounts.administration import create_application
from shortener.container import Service
from shortener.conversions.parsing import ConversionReport
from shortener.conversions.service import ConversionResult, Conversions
from shortener.errors import ApiError, ErrorCode
from shortener.ids import ClickIds, IdGenerator
from shortener.model import Topic
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.types import from_ms, to_ms
from tests.conftest import NOON, Clock
from tests.databases import Cut, CutCommits
from tests.factory import Message, add_hit, add_message, count_delta_sums, rows

SALE = ConversionReport(at=NOON, message_id="m-1", action="sale", transaction_id="t-1", value=Decimal("12.50"), currency="EUR")


@pytest.fixture
async def message(service: Service) -> Message:
    return await service.database.write(add_message, service.ids)


@pytest.fixture
async def hit(service: Service, message: Message) -> int:
    return await service.database.write(add_hit, service.ids, message.links[0])


async def rejection(service: Service, report: ConversionReport, application_id: int = 1) -> ErrorCode:
    with pytest.raises(ApiError) as raised:
        await service.conversions.ingest(application_id, report)
    return raised.value.code


async def totals(database: Database) -> dict[str, str]:
    """Return the stored count deltas, without those by disposition and action."""
    return {metric: amount for metric, amount in (await count_delta_sums(database)).items() if metric.count(":") < 2}


async def test_a_conversion_is_recorded_with_its_event_and_its_counts(
    service: Service, message: Message, hit: int, clock: Clock
) -> None:
    clock.forward(hours=1)
    click_id = service.click_ids.encode(hit)
    report = replace(SALE, message_id=None, click_id=click_id, status="ok", disposition="positive", metadata={"sub1": "ü\x01"})
    recorded = await service.conversions.ingest(1, report)
    (stored,) = await rows(service.database, schema.conversions)
    assert recorded == ConversionResult(recorded.conversion_id, "m-1", duplicate=False)
    assert recorded.conversion_id.startswith("cnv_")
    assert stored._asdict() | {"id": 0} == {
        "id": 0,
        "application_id": 1,
        "message_id": message.row,
        "hit_id": hit,
        "action": "sale",
        "transaction_id": "t-1",
        "status": "ok",
        "disposition": "positive",
        "value": Decimal("12.50"),
        "currency": "EUR",
        "at": NOON,
        "received_at": NOON + timedelta(hours=1),
        "metadata": {"sub1": "ü\x01"},
        "revision": 1,
        "updated_at": None,
        "latest_at": None,
        "action_text": None,
        "transaction_text": None,
        "warnings": None,
        "counted_as": "positive:sale",
    }
    (event,) = await rows(service.database, schema.events)
    assert (event.topics, event.at, event.application_id) == (Topic.CONVERSION, NOON, 1)
    assert (event.conversion_id, event.message_id) == (stored.id, message.row)
    assert (event.link_id, event.hit_id) == (message.links[0], hit)
    assert event.data == {
        "revision": 1,
        "previous_status": None,
        "previous_value": None,
        "conversion_status": "ok",
        "disposition": "positive",
        "value": "12.50",
        "currency": "EUR",
    }
    assert await count_delta_sums(service.database) == {
        "converted_messages": "1",
        "conversions": "1",
        "conversions:positive:sale": "1",
        "value:EUR": "12.50",
        "value:EUR:positive:sale": "12.50",
    }
    (delta,) = await rows(service.database, schema.count_deltas)
    assert {(cohort, from_ms(time_slot * 15 * 60_000)) for cohort, time_slot, _, _ in delta.data} == {(message.cohort_id, NOON)}


async def test_a_repeated_conversion_report_gets_the_first_result_and_creates_no_event(
    service: Service, message: Message, hit: int
) -> None:
    first = await service.conversions.ingest(1, SALE)
    # The same conversion is reported with a click_id, and with the value and the ids in another notation.
    by_click = replace(
        SALE,
        click_id=service.click_ids.encode(hit),
        value=Decimal("12.5"),
        transaction_id="T-1",
        action="Sale",
        at=NOON + timedelta(1),
    )
    for repeat in (SALE, by_click, replace(by_click, message_id=None)):
        assert await service.conversions.ingest(1, repeat) == replace(first, duplicate=True)
    assert len(await rows(service.database, schema.conversions)) == 1
    assert len(await rows(service.database, schema.events)) == 1
    assert await totals(service.database) == {"conversions": "1", "converted_messages": "1", "value:EUR": "12.50"}


@pytest.mark.usefixtures("message")
async def test_a_conversion_report_with_another_action_or_transaction_id_creates_a_separate_conversion(service: Service) -> None:
    refund = replace(SALE, action="refund", value=Decimal("-12.50"))
    chargeback = replace(SALE, transaction_id="t-1-back", value=Decimal("-0.25"))
    without = replace(SALE, transaction_id="", value=Decimal("1"), currency=None)
    plain = ConversionReport(at=NOON, message_id="m-1")
    recorded = [await service.conversions.ingest(1, report) for report in (SALE, refund, chargeback, without, plain)]
    assert not any(one.duplicate for one in recorded)
    assert len({one.conversion_id for one in recorded}) == 5
    assert await totals(service.database) == {
        "conversions": "5",
        "converted_messages": "1",
        "value:EUR": "-0.25",
        "value:": "1",
    }


async def test_the_same_transaction_id_for_two_messages_creates_two_conversions(service: Service, message: Message) -> None:
    await service.database.write(add_message, service.ids, "m-2")
    first = await service.conversions.ingest(1, SALE)
    second = await service.conversions.ingest(1, replace(SALE, message_id="m-2", value=Decimal("99")))
    assert (first.message_id, second.message_id, second.duplicate) == ("m-1", "m-2", False)


async def test_a_hundred_concurrent_reports_of_one_conversion_store_one_conversion(service: Service, message: Message) -> None:
    recorded = await asyncio.gather(*(service.conversions.ingest(1, SALE) for _ in range(100)))
    assert [one.duplicate for one in recorded].count(False) == 1
    assert len({one.conversion_id for one in recorded}) == 1
    assert len(await rows(service.database, schema.events)) == 1
    assert await totals(service.database) == {"conversions": "1", "converted_messages": "1", "value:EUR": "12.50"}


async def test_each_conversion_report_of_a_batch_gets_its_own_result(service: Service, message: Message) -> None:
    reports = [
        SALE,
        replace(SALE, value=Decimal("1")),
        replace(SALE, message_id="unknown"),
        replace(SALE, transaction_id=""),
        SALE,
        replace(SALE, transaction_id="", value=Decimal("1")),
        replace(SALE, message_id=None, click_id="invalid"),
    ]
    results = await asyncio.gather(*(service.conversions.ingest(1, one) for one in reports), return_exceptions=True)
    assert [getattr(result, "code", None) or getattr(result, "duplicate", None) for result in results] == [
        False,
        False,  # this report updates the conversion
        ErrorCode.MESSAGE_NOT_FOUND,
        False,
        True,  # this report repeats the first revision, after an update
        ErrorCode.CONVERSION_CONFLICT,
        ErrorCode.MESSAGE_NOT_FOUND,
    ]


# These tests check how the message of a conversion is found.


async def test_a_conversion_report_with_the_click_id_and_the_message_id_of_different_messages_is_rejected(
    service: Service, hit: int
) -> None:
    await service.database.write(add_message, service.ids, "m-2")
    report = replace(SALE, message_id="m-2", click_id=service.click_ids.encode(hit))
    assert await rejection(service, report) is ErrorCode.INVALID_REQUEST


async def test_a_conversion_report_for_a_message_or_click_of_another_application_is_rejected(service: Service, hit: int) -> None:
    other = (await service.database.write(create_application, "other", NOON)).application_id
    await service.database.write(add_message, service.ids, "other", application_id=other)
    click_id = service.click_ids.encode(hit)
    for report in (SALE, ConversionReport(NOON, click_id=click_id)):
        assert await rejection(service, report, other) is ErrorCode.MESSAGE_NOT_FOUND
    assert await rows(service.database, schema.conversions) == []
    await service.conversions.ingest(other, ConversionReport(NOON, message_id="other", click_id=click_id))
    (stored,) = await rows(service.database, schema.conversions)
    assert (stored.hit_id, stored.metadata) == (None, {"click_id": click_id})


async def test_a_message_id_identifies_a_message_only_within_its_application(service: Service, message: Message) -> None:
    other = (await service.database.write(create_application, "other", NOON)).application_id
    theirs = await service.database.write(add_message, service.ids, application_id=other)
    await asyncio.gather(service.conversions.ingest(1, SALE), service.conversions.ingest(other, SALE))
    stored = {(row.application_id, row.message_id) for row in await rows(service.database, schema.conversions)}
    assert stored == {(1, message.row), (other, theirs.row)}


async def test_an_unknown_message_id_is_not_found_although_the_click_id_is_known(service: Service, hit: int) -> None:
    report = replace(SALE, message_id="unknown", click_id=service.click_ids.encode(hit))
    assert await rejection(service, report) is ErrorCode.MESSAGE_NOT_FOUND


@pytest.mark.usefixtures("message")
async def test_the_click_id_of_another_system_beside_a_valid_message_id_is_stored_as_metadata(service: Service) -> None:
    for number, click_id in enumerate(("invalid", "00000000001" + "0" * 8, "ü" * 19)):
        assert await rejection(service, ConversionReport(NOON, click_id=click_id)) is ErrorCode.MESSAGE_NOT_FOUND
        report = replace(SALE, click_id=click_id, transaction_id=str(number), metadata={"sub": "1"})
        assert (await service.conversions.ingest(1, report)).warnings == ()
        assert (await rows(service.database, schema.conversions))[-1].metadata == {"sub": "1", "click_id": click_id}


async def test_a_conversion_report_with_a_message_id_is_accepted_although_the_hit_of_its_click_id_was_purged(
    service: Service, message: Message
) -> None:
    purged = service.click_ids.encode(service.ids())
    assert await rejection(service, ConversionReport(NOON, click_id=purged)) is ErrorCode.MESSAGE_NOT_FOUND
    await service.conversions.ingest(1, replace(SALE, click_id=purged))
    (stored,) = await rows(service.database, schema.conversions)
    assert (stored.message_id, stored.hit_id) == (message.row, None)


async def test_a_conversion_is_recorded_long_after_the_link_expired(
    service: Service, message: Message, hit: int, clock: Clock
) -> None:
    clock.forward(days=200)
    report = ConversionReport(clock(), click_id=service.click_ids.encode(hit))
    assert not (await service.conversions.ingest(1, report)).duplicate


# These tests check concurrent processes and events that cannot be stored.


async def test_two_processes_that_receive_the_same_conversion_report_store_one_conversion(database: Database, clock: Clock) -> None:
    """Two `Conversions` objects share one database, like two processes. On PostgreSQL, their transactions overlap."""
    ids, click_ids = IdGenerator(database.node, lambda: to_ms(clock())), ClickIds(b"key")
    names = [f"m-{number}" for number in range(20)]

    def prepare(connection: Connection) -> None:
        for name in names:
            add_message(connection, ids, name)

    await database.write(prepare)
    notifications: list[int] = []
    processes = [Conversions(database, ids, click_ids, clock, lambda: notifications.append(1)) for _ in range(2)]
    reports = [replace(SALE, message_id=name) for name in names]
    jobs = [processes[0].ingest(1, report) for report in reports] + [processes[1].ingest(1, report) for report in reports[::-1]]
    recorded = await asyncio.gather(*jobs)
    assert [one.duplicate for one in recorded].count(False) == 20
    assert len(await rows(database, schema.conversions)) == len(await rows(database, schema.events)) == 20
    assert await totals(database) == {"conversions": "20", "converted_messages": "20", "value:EUR": "250.00"}
    assert notifications


async def test_a_conversion_is_not_stored_if_its_event_cannot_be_written(
    service: Service, message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no event")

    with monkeypatch.context() as patch:
        patch.setattr("shortener.outbox.events.append", broken)
        with pytest.raises(RuntimeError):
            await service.conversions.ingest(1, SALE)
    assert await rows(service.database, schema.conversions) == []
    assert not (await service.conversions.ingest(1, SALE)).duplicate


@pytest.mark.parametrize("cuts", [["stored"], ["rolled back"], ["stored", "stored"], ["rolled back", "stored"]])
async def test_a_report_whose_commit_was_interrupted_is_not_its_own_duplicate_and_a_report_sent_again_is_a_duplicate(
    service: Service, message: Message, monkeypatch: pytest.MonkeyPatch, cuts: list[Cut]
) -> None:
    batcher = service.conversions._group._batcher
    monkeypatch.setattr(batcher, "_database", CutCommits(service.database, cuts))
    first, same, other = await asyncio.gather(
        *(service.conversions.ingest(1, report) for report in (SALE, SALE, replace(SALE, transaction_id="t-2")))
    )
    again = await service.conversions.ingest(1, SALE)
    assert [one.duplicate for one in (first, same, other, again)] == [False, True, False, True]
    assert first.conversion_id == same.conversion_id == again.conversion_id
    assert service.conversions.reports == {"new": 2, "updated": 0, "duplicate": 2}
    assert len(await rows(service.database, schema.conversions)) == 2
    assert len([event for event in await rows(service.database, schema.events) if event.conversion_id is not None]) == 2
    sums = await totals(service.database)
    assert (sums["conversions"], sums["converted_messages"]) == ("2", "1")
