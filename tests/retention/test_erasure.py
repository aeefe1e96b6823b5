from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Row, Table, insert, select, text, update

from shortener.accounts.audit import COMMAND_LINE, Actor, AuditWriter
from shortener.delivery.deliveries import Deliveries
from shortener.delivery.event_fields import FACTS
from shortener.errors import ApiError, ErrorCode, StoreUnavailable
from shortener.ids import IdGenerator
from shortener.model import DeliveryStatus, SendStatus
from shortener.redis.link_cache import NoLinkCache
from shortener.retention import erasure as erasing
from shortener.retention.erasure import (
    LinksStillCached,
    Subject,
    erase,
    erase_data,
    erase_message,
    erase_phone_number,
    find_codes,
)
from shortener.retention.scrub import ERASED, PERSONAL_FIELDS, ErasureResult
from shortener.storage import schema
from shortener.storage.database import Database
from tests.clicks.helpers import forget_expressions
from tests.conftest import NOON
from tests.factory import AUDIT, keep_sends
from tests.rows import KINDS, Rows, count

PHONE = "+14085550100"
OTHER = "+14085550199"
# The tests write this name into every field that may contain personal data, and search for it after an erasure.
NAME = "Kola Adeyemi"
SENT = NOON - timedelta(hours=2)
PENDING: dict[str, Any] = {"status": SendStatus.PENDING.value, "finished_at": None}


def add_personal_message(rows: Rows, message_id: str, to: str = PHONE, **more: Any) -> int:
    message = rows.message(
        SENT,
        message_id=message_id,
        to_address=to,
        content_hash="0123456789",
        metadata={"name": NAME},
        callback_url=f"https://xoxzo.example/?who={NAME}",
        reason_description=f"handset of {NAME} was off",
        telecom_message_id=NAME,
        from_address="18775550100",
        **more,
    )
    link = rows.link(
        message,
        url=f"https://shop.example/?name={NAME}",
        location=f"https://shop.example/?name={NAME}&phone={to}",
        fallback_url=f"https://shop.example/bye?{NAME}",
        label=f"for {NAME}",
    )
    rows.hit(link, user_agent=f"{NAME}'s preview", address="203.0.113.9")
    hit = rows.first_click(message, link, user_agent=f"{NAME}'s phone", address="203.0.113.9")
    conversion = rows.conversion(message, hit_id=hit, metadata={"name": NAME}, transaction_id="T-1")
    rows.converted(message)
    rows.revision(conversion, metadata={"name": NAME})
    event = rows.event(
        message,
        link_id=link,
        hit_id=hit,
        data={"previous_state": "SENT", "reason_description": NAME},
        facts={"to_address": to, "metadata": {"name": NAME}, "url": f"https://shop.example/{NAME}", "mt_price": "0.0095"},
    )
    rows.attempt(rows.delivery(event), answer=f"hello {NAME}", detail=f"https://customer.example/?{to}")
    rows.attempt(
        rows.delivery(event, tracker_id=None, callback_url=f"https://xoxzo.example/?who={NAME}", lane="cxoxzo.example"),
        answer=NAME,
    )
    rows.idempotent_response(SENT, f"key of {message_id}", answer=[{"message_id": message_id, "to": to, "body": NAME}], **more)
    rows.send(message, **PENDING, text=f"Hello {NAME}", gateway_message_id=NAME)
    attempts = schema.send_attempts
    detail = update(attempts).where(attempts.c.send_id == message).values(detail=f"{to} ({NAME}) is not valid")
    rows.connection.execute(detail)
    return message


def build(connection: Connection) -> None:
    rows = Rows(connection)
    for application in (1, 2):
        values: dict[str, Any] = {"id": application, "name": f"application {application}", "settings": {}, "created_at": SENT}
        connection.execute(insert(schema.applications).values(values))
    add_personal_message(rows, "one")
    add_personal_message(rows, "two", application_id=2)
    add_personal_message(rows, "other", OTHER)


def everything(connection: Connection) -> str:
    """Return all rows of all tables as one text. A test searches this text for personal data."""
    return "\n".join(str(row) for table in KINDS for row in connection.execute(text(f"SELECT * FROM {table.name}")))


def rows_of(connection: Connection, table: Table) -> list[Row[Any]]:
    return list(connection.execute(select(table).order_by(table.c.id)))


async def test_erasing_a_phone_number_leaves_no_personal_data(database: Database) -> None:
    await database.write(build)
    before = await database.read(count)
    assert all(before.values()), "the test has rows in each table"
    assert await erase(database, None, OTHER, NOON, AUDIT, keep_sends) == ErasureResult(
        messages=1, links=1, hits=2, conversions=1, events=1, attempts=2
    )
    assert await erase(database, None, PHONE, NOON, AUDIT, keep_sends) == ErasureResult(
        messages=2, links=2, hits=4, conversions=2, events=2, attempts=4
    )
    remaining = await database.read(everything)
    for personal in (NAME, PHONE, OTHER, "203.0.113.9", "0123456789"):
        assert personal not in remaining
    assert await database.read(count) == before | {"idempotency": 0}


async def test_erasing_a_message_does_not_change_the_statistics(database: Database) -> None:
    await database.write(build)
    await database.write(erase_message, 1, "one", NOON, AUDIT, keep_sends)
    message = (await database.read(rows_of, schema.messages))[0]
    assert (message.to_address, message.message_id, message.segments, message.from_address) == ("", "one", 1, "18775550100")
    hit = (await database.read(rows_of, schema.hits))[0]
    assert (hit.rule, hit.at) == ("person", SENT)
    conversion = (await database.read(rows_of, schema.conversions))[0]
    assert conversion.transaction_id == "T-1"
    event = (await database.read(rows_of, schema.events))[0]
    assert event.data == {"previous_state": "SENT"}
    assert event.facts == {"mt_price": "0.0095"}


async def test_erasing_a_message_does_not_change_other_messages(database: Database) -> None:
    await database.write(build)
    await database.write(erase_message, 1, "one", NOON, AUDIT, keep_sends)
    assert [m.to_address for m in await database.read(rows_of, schema.messages)] == ["", PHONE, OTHER]
    assert [link.disabled_at for link in await database.read(rows_of, schema.links)] == [NOON, None, None]
    assert [event.facts.get("to_address") for event in await database.read(rows_of, schema.events)] == [None, PHONE, OTHER]


async def test_erasing_a_message_keeps_the_stored_responses_to_other_requests_that_arrived_in_the_same_millisecond(
    database: Database,
) -> None:
    await database.write(build)
    await database.write(erase_message, 1, "one", NOON, AUDIT, keep_sends)
    keys = await database.read(lambda connection: connection.execute(select(schema.idempotency.c.key)).scalars().all())
    assert sorted(keys) == ["key of other", "key of two"]


async def test_erasing_messages_that_another_process_has_purged_deletes_nothing(database: Database) -> None:
    await database.write(build)
    before = await database.read(everything)
    assert await database.write(erasing._erase, [12345], NOON, keep_sends) == ErasureResult()
    assert await database.read(everything) == before


async def test_a_phone_number_can_be_erased_for_one_application_only(database: Database) -> None:
    await database.write(build)
    assert (await erase(database, 2, PHONE, NOON, AUDIT, keep_sends)).messages == 1
    assert [m.to_address for m in await database.read(rows_of, schema.messages)] == [PHONE, "", OTHER]


async def test_a_phone_number_with_many_messages_is_erased_in_batches(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasing, "MAX_MESSAGES_PER_BATCH", 3)

    def many(connection: Connection) -> None:
        rows = Rows(connection)
        for n in range(7):
            rows.complete_message(SENT + timedelta(seconds=n), to_address=PHONE)

    await database.write(many)
    assert (await database.write(erase_phone_number, None, PHONE, NOON, AUDIT, keep_sends)).messages == 3
    assert (await erase(database, None, PHONE, NOON, AUDIT, keep_sends)).messages == 4
    assert await erase(database, None, PHONE, NOON, AUDIT, keep_sends) == ErasureResult()


async def test_an_interrupted_erasure_of_a_phone_number_has_audit_rows_for_exactly_what_it_erased(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.write(build)
    await database.write(lambda connection: [add_personal_message(Rows(connection), f"more {number}") for number in range(2)])
    monkeypatch.setattr(erasing, "MAX_MESSAGES_PER_BATCH", 1)

    class ThirdTransactionFails(IdGenerator):
        transactions = 0

        def __call__(self) -> int:
            self.transactions += 1
            if self.transactions == 3:
                raise OSError("the process dies in the third transaction")
            return super().__call__()

    with pytest.raises(StoreUnavailable, match="dies"):
        await erase(database, 1, PHONE, NOON, AuditWriter(Actor(name="Mia"), ThirdTransactionFails(1)), keep_sends)
    rows = await database.read(rows_of, schema.audit_log)
    erased = [message for message in await database.read(rows_of, schema.messages) if not message.to_address]
    assert [(row.operator, row.action, row.application_id, row.object, row.after["messages"]) for row in rows] == [
        ("Mia", "data_erased", 1, "messages to a number", 1)
    ] * len(erased)
    assert len(erased) == 2
    audit = AuditWriter(COMMAND_LINE, IdGenerator(1))
    assert (await erase(database, None, PHONE, NOON, audit, keep_sends)).messages == 2
    await erase(database, None, PHONE, NOON, audit, keep_sends)
    assert [row.operator for row in (await database.read(rows_of, schema.audit_log))[2:]] == ["command line"] * 2


async def test_an_erasure_cancels_pending_callbacks_of_the_message_but_not_pending_deliveries_to_trackers(
    database: Database,
) -> None:
    pending = {"status": DeliveryStatus.PENDING.value, "finished_at": None}

    def waiting(connection: Connection) -> None:
        rows = Rows(connection)
        event = rows.event(rows.message(SENT, message_id="one"))
        rows.delivery(event, **pending)
        rows.delivery(event, tracker_id=None, callback_url="https://xoxzo.example/", lane="cxoxzo.example", **pending)

    await database.write(waiting)
    await database.write(erase_message, 1, "one", NOON, AUDIT, keep_sends)
    to_tracker, callback = await database.read(rows_of, schema.deliveries)
    assert to_tracker.status == DeliveryStatus.PENDING
    assert (callback.status, callback.finished_at, callback.last_error) == (DeliveryStatus.DEAD, NOON, ERASED)
    assert callback.callback_url is None
    with pytest.raises(ApiError, match="erased"):
        await Deliveries(database).replay(AUDIT, callback.id, NOON)


async def test_a_message_that_waits_for_its_gateway_is_not_sent_after_its_erasure(database: Database) -> None:
    statuses = (SendStatus.PENDING, SendStatus.HELD, SendStatus.SENT, SendStatus.FAILED)
    phones = [f"+1408555010{number}" for number in range(len(statuses))]

    def fill(connection: Connection) -> None:
        rows = Rows(connection)
        for phone, status in zip(phones, statuses, strict=True):
            message = rows.message(SENT, to_address=phone)
            rows.send(message, status=status.value, text=NAME, lease_until=NOON, gateway_message_id=NAME, last_error="timeout")

    await database.write(fill)
    for phone in phones:
        await erase(database, 1, phone, NOON, AUDIT, keep_sends)
    sends = await database.read(rows_of, schema.sends)
    assert [(send.status, send.last_error) for send in sends] == [
        (SendStatus.FAILED, ERASED),
        (SendStatus.FAILED, ERASED),
        (SendStatus.SENT, "timeout"),
        (SendStatus.FAILED, "timeout"),
    ]
    assert {(send.text, send.gateway_message_id, send.lease_until) for send in sends} == {(None, None, None)}
    assert {attempt.detail for attempt in await database.read(rows_of, schema.send_attempts)} == {None}


async def test_an_erasure_does_not_change_the_disabling_time_of_a_link_that_was_disabled_before(database: Database) -> None:
    def off(connection: Connection) -> None:
        rows = Rows(connection)
        rows.link(rows.message(SENT, message_id="one"), disabled_at=SENT)

    await database.write(off)
    await database.write(erase_message, 1, "one", NOON, AUDIT, keep_sends)
    assert [link.disabled_at for link in await database.read(rows_of, schema.links)] == [SENT]


async def test_erasure_of_an_unknown_or_ambiguous_message_id_is_rejected(database: Database) -> None:
    await database.write(build)
    await database.write(lambda connection: add_personal_message(Rows(connection), "one", application_id=2))
    before = await database.read(everything)
    for application, message_id, code in (
        (1, "unknown", ErrorCode.MESSAGE_NOT_FOUND),
        (1, "two", ErrorCode.MESSAGE_NOT_FOUND),
        (None, "one", ErrorCode.CONFLICT),
    ):
        with pytest.raises(ApiError) as raised:
            await database.write(erase_message, application, message_id, NOON, AUDIT, keep_sends)
        assert raised.value.code is code
    assert await database.read(everything) == before
    assert (await database.write(erase_message, None, "two", NOON, AUDIT, keep_sends)).messages == 1


async def test_erasure_of_an_invalid_phone_number_is_rejected_and_erases_nothing(database: Database) -> None:
    await database.write(build)
    before = await database.read(everything)
    for phone in ("", "4085550100", "+140855", "+1408555010O", "%", "+14085550100 "):
        with pytest.raises(ApiError) as raised:
            await erase(database, None, phone, NOON, AUDIT, keep_sends)
        assert raised.value.code is ErrorCode.INVALID_RECIPIENT
    assert await database.read(everything) == before


def test_every_field_of_an_event_is_classified_as_personal_or_not_personal() -> None:
    """A new field of events must be listed either as personal or as not personal, so that an erasure removes every personal
    field."""
    harmless = """
        event_id topic timestamp application_id company_id message_id message_request_id external_message_request_id
        from_address sender_id_id sender_id_alias previous_state new_state reason_code report_status fragments_count mt_price
        has_attachment campaign source country click_country click_id code short_url verdict verdict_reason first_for_message
        first_for_link click_number seconds_since_sent seconds_since_delivered sent_at delivered_at clicked_at conversion_id action
        conversion_status disposition value currency transaction_id revision previous_status previous_value process_key
        tracker_id delivery_id delivery_event count reason key_kind key_id expires_at created_at
    """
    assert set(FACTS) == PERSONAL_FIELDS | set(harmless.split())


async def test_find_codes_returns_the_codes_of_all_links_that_an_erasure_disables(database: Database) -> None:
    await database.write(build)
    codes = {link.message_id: link.code for link in await database.read(rows_of, schema.links)}
    ids = {message.message_id: message.id for message in await database.read(rows_of, schema.messages)}
    assert set(await database.read(find_codes, None, Subject(PHONE))) == {codes[ids["one"]], codes[ids["two"]]}
    assert await database.read(find_codes, 2, Subject(PHONE)) == [codes[ids["two"]]]
    assert await database.read(find_codes, None, Subject(message_id="other")) == [codes[ids["other"]]]


async def test_erasing_a_message_removes_the_ip_address_and_user_agent_from_its_dead_letters(database: Database) -> None:
    await database.write(build)

    def add_dead_letters(connection: Connection) -> None:
        codes = select(schema.links.c.code).join(schema.messages, schema.messages.c.id == schema.links.c.message_id)
        for message_id in ("one", "other"):
            code = connection.execute(codes.where(schema.messages.c.message_id == message_id)).scalar_one()
            fields = {"code": code, "address": "203.0.113.9", "user_agent": f"{NAME}'s phone", "at": 1}
            row = {"hit": json.dumps(fields), "code": code, "reason": "x", "at": NOON}
            connection.execute(insert(schema.hits_dead_letter), [row, row | {"hit": f"{{{NAME}"}])

    def texts(connection: Connection) -> list[str]:
        return list(connection.scalars(select(schema.hits_dead_letter.c.hit).order_by(schema.hits_dead_letter.c.id)))

    await database.write(add_dead_letters)
    await erase(database, None, PHONE, NOON, AUDIT, keep_sends)
    one, *other = await database.read(texts)
    assert json.loads(one) | {"code": ""} == {"code": "", "address": "", "user_agent": "", "at": 1}
    assert len(other) == 2, "the unreadable row of the erased message is deleted"
    assert all(NAME in text for text in other), "the rows of another message stay as they are"


async def test_an_erasure_removes_the_metadata_of_conversion_revisions_and_refused_reports_about_the_message(
    database: Database,
) -> None:
    def fill(connection: Connection) -> None:
        rows = Rows(connection)
        message = rows.message(SENT, message_id="m-1", to_address=PHONE)
        rows.revision(rows.conversion(message, metadata={"name": NAME}), metadata={"name": NAME})
        rows.refused_conversion(SENT, message_id="m-1", parameters={"message_id": "m-1", "name": NAME})
        rows.refused_conversion(SENT, message_id="m-2")

    await database.write(fill)
    await erase(database, 1, PHONE, NOON, AUDIT, keep_sends)

    def left(connection: Connection) -> tuple[list[str], list[Any]]:
        named = connection.scalars(select(schema.refused_conversions.c.message_id))
        return list(named), list(connection.scalars(select(schema.conversion_revisions.c.metadata)))

    assert await database.read(left) == (["m-2"], [None])


class ReadingCache(NoLinkCache):
    """A link cache that counts the enabled links in the database at the time of each removal of links. While `is_down` is true,
    it removes no links."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.enabled: list[int] = []
        self.is_down = False

    async def invalidate(self, codes: Collection[str]) -> bool:
        links = [link for link in await self._database.read(rows_of, schema.links) if link.code in codes and link.url]
        self.enabled.append(len(links))
        return not self.is_down


@pytest.mark.parametrize(("subject", "number"), [(Subject(PHONE), 2), (Subject(message_id="one"), 1)])
async def test_the_steps_of_an_erasure_run_in_order_and_only_if_the_link_cache_is_available(
    database: Database, monkeypatch: pytest.MonkeyPatch, subject: Subject, number: int
) -> None:
    forget_expressions(monkeypatch)
    await database.write(build)
    cache, given_up = ReadingCache(database), list[int]()

    def give_up(connection: Connection, ids: Sequence[int], now: datetime) -> None:
        given_up.extend(ids)

    cache.is_down = True
    before = await database.read(everything)
    with pytest.raises(LinksStillCached) as raised:
        await erase_data(database, cache, None, subject, NOON, AUDIT, give_up)
    assert (raised.value.code, raised.value.retry_after, given_up) == (ErrorCode.UNAVAILABLE, 2, [])
    assert await database.read(everything) == before
    cache.is_down = False
    erased = await erase_data(database, cache, None, subject, NOON, AUDIT, give_up)
    assert (erased.messages, erased.links, len(given_up)) == (number, number, number)
    assert cache.enabled == [number, number]
    assert len(await database.read(rows_of, schema.erasure_repeats)) == number
    assert [row.action for row in await database.read(rows_of, schema.audit_log)] == ["data_erased"]
