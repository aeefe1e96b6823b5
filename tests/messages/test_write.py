from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, Table, func, select
from sqlalchemy.exc import IntegrityError

from shortener.accounts.directory import Domain
from shortener.errors import ApiError, ErrorCode
from shortener.ids import IdGenerator
from shortener.messages.codes import Codes
from shortener.messages.plan import PlannedRequest
from shortener.messages.write import NewRows, Response, RewriteWriter
from shortener.model import LinkFlag
from shortener.outbox.count_deltas import Cohorts
from shortener.outbox.link_sets import LinkSets
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.key_table import KeyTable
from shortener.storage.types import to_ms
from tests.conftest import NOON, Clock
from tests.factory import count_delta_sums, rows
from tests.messages.rewriting import LINK, TO, Hosts, application, item, plan

OTHER = "+14085550199"


class Writer:
    """A `RewriteWriter` on the database of a test. It uses the codes in `codes` before it creates random ones."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.codes: list[str] = []
        self._database = database
        self._random = Codes("q8Zp3vKs0LmXw7Rt")
        self._ids = IdGenerator(0, lambda: to_ms(clock()))
        self._processes = KeyTable(
            schema.processes,
            ("application_id", "track", "type"),
            lambda key: {"process_key": "/".join(map(str, key)), "created_at": NOON},
        )
        self.hosts = Hosts()

    def mint(self) -> str:
        return self.codes.pop(0) if self.codes else self._random.mint()

    async def write(self, *requests: PlannedRequest) -> tuple[list[Response | Exception], NewRows]:
        codes: Any = self
        writer = RewriteWriter(self._ids, codes, Cohorts(), LinkSets(), self._processes, self.hosts)
        return await self._database.write(writer.apply, requests)

    async def respond(self, request: PlannedRequest) -> Response:
        (result,), _ = await self.write(request)
        if isinstance(result, Exception):
            raise result
        return result


@pytest.fixture
def writer(database: Database, clock: Clock) -> Writer:
    return Writer(database, clock)


async def count(database: Database, *tables: Table) -> tuple[int, ...]:
    def read(connection: Connection) -> tuple[int, ...]:
        return tuple(connection.execute(select(func.count()).select_from(table)).scalar_one() for table in tables)

    return await database.read(read)


async def test_a_new_message_is_stored_with_its_links_and_counts(writer: Writer, database: Database) -> None:
    body = f'{LINK} #trackurl("https://x.example/{{code}}?id={{click_id}}","sale")'
    writer.codes = ["codeA", "codeB"]
    domain = Domain(7, 1, "sms.example", "https://sms.example", None, False)
    sender = application(domains=(domain,), click_id_param="cid")
    (result,), new = await writer.write(plan(item(body, fallback_url="https://x.example/bye"), application=sender))
    assert isinstance(result, list)
    assert result[0]["body"] == "https://sms.example/codeA https://sms.example/codeB"
    (message,) = await rows(database, schema.messages)
    assert (message.to_address, message.created_at, message.segments) == (TO, NOON, 1)
    first, second = await rows(database, schema.links)
    assert (first.code, first.position, first.domain_id, first.flags) == ("codeA", 0, 7, LinkFlag.APPEND_CLICK_ID)
    assert (first.url, first.location, first.fallback_url) == ("https://x.example/", None, "https://x.example/bye")
    assert second.flags == LinkFlag.APPEND_CLICK_ID | LinkFlag.EVERY_CLICK | LinkFlag.FILL_CLICK_ID
    assert (second.label, second.location) == ("sale", "https://x.example/codeB?id={click_id}")
    assert [(link.code, link.link_id, link.url) for link in new.links] == [
        ("codeA", first.id, first.url),
        ("codeB", second.id, second.location),
    ]
    assert list(new.cohorts.values()) == [message.cohort_id]
    assert await count_delta_sums(database) == {"messages": "1", "segments": "1", "links": "2"}


async def test_placeholders_of_a_fallback_url_are_replaced_for_each_link(writer: Writer, database: Database) -> None:
    writer.codes = ["codeA", "codeB"]
    fallback = "https://x.example/bye?m={message_id}&l={code}&n={campaign}&c={click_id}"
    _, new = await writer.write(plan(item(f"{LINK} {LINK}", message_ids=("m-1",), campaign="a b", fallback_url=fallback)))
    expected = [f"https://x.example/bye?m=m-1&l={code}&n=a%20b&c={{click_id}}" for code in ("codeA", "codeB")]
    assert [link.fallback_url for link in new.links] == expected
    assert [row.fallback_url for row in await rows(database, schema.links)] == expected


async def test_no_click_id_is_appended_to_a_link_with_an_app_scheme(writer: Writer, database: Database) -> None:
    sender = application(click_id_param="cid", extra_schemes=["tel"])
    await writer.write(plan(item('#track("tel:+14155550100")'), application=sender))
    (link,) = await rows(database, schema.links)
    assert (link.url, link.flags) == ("tel:+14155550100", 0)


async def test_a_repeated_message_id_returns_the_first_response(writer: Writer, database: Database) -> None:
    request = plan(item(f"see {LINK}", message_ids=("m-1",)))
    first = await writer.respond(request)
    assert await writer.respond(plan(item(f"see {LINK}", message_ids=("m-1",)))) == first
    assert await count(database, schema.messages, schema.links) == (1, 1)
    assert await count_delta_sums(database) == {"messages": "1", "segments": "1", "links": "1"}


async def test_two_requests_with_the_same_message_id_in_one_transaction_create_one_message(
    writer: Writer, database: Database
) -> None:
    requests = [plan(item(message_ids=("m-1",))), plan(item(message_ids=("m-1",))), plan(item("other", message_ids=("m-1",)))]
    (first, second, third), _ = await writer.write(*requests)
    assert first == second
    assert isinstance(third, ApiError)
    assert third.code is ErrorCode.MESSAGE_ID_CONFLICT
    assert await count(database, schema.messages, schema.links) == (1, 1)


async def test_a_repeated_message_is_recognised_before_its_problems_are_checked(writer: Writer) -> None:
    first = await writer.respond(plan(item(message_ids=("m-1",))))
    blocked = Hosts(blocked={"x.example"})
    assert await writer.respond(plan(item(message_ids=("m-1",)), hosts=blocked)) == first
    with pytest.raises(ApiError) as raised:
        await writer.respond(plan(item(message_ids=("m-2",)), hosts=blocked))
    assert raised.value.code is ErrorCode.INVALID_TRACK_URL


async def test_a_request_with_a_repeated_and_an_invalid_message_stores_nothing(writer: Writer, database: Database) -> None:
    await writer.respond(plan(item(message_ids=("m-1",))))
    request = plan(item(message_ids=("m-1",)), item(message_ids=("m-2",)), item("fine"), hosts=Hosts(blocked={"x.example"}))
    with pytest.raises(ApiError) as raised:
        await writer.respond(request)
    assert len(raised.value.details) == 1
    assert await count(database, schema.messages) == (1,)


async def test_a_message_id_conflict_and_an_invalid_message_of_one_request_are_both_reported(writer: Writer) -> None:
    await writer.respond(plan(item(message_ids=("m-1",))))
    request = plan(item(message_ids=("m-1",), campaign="other"), item("#track(", message_ids=("m-2",)))
    with pytest.raises(ApiError) as raised:
        await writer.respond(request)
    assert [detail.field for detail in raised.value.details] == ["body", "message_id"]


async def test_a_repeated_message_keeps_its_domain_after_the_application_got_another_domain(writer: Writer) -> None:
    old, new = (Domain(number, 1, f"d{number}.example", f"https://d{number}.example", None, False) for number in (1, 2))
    first = await writer.respond(plan(item(message_ids=("m-1",)), application=application(domains=(old,))))
    writer.hosts = Hosts(base_urls={1: old.base_url, 2: new.base_url})
    repeat = plan(item(message_ids=("m-1",)), application=application(domains=(new, old)))
    assert await writer.respond(repeat) == first


async def test_a_repeated_idempotency_key_returns_the_first_response_even_for_an_invalid_request(
    writer: Writer, database: Database
) -> None:
    first = await writer.respond(plan(item(to=(TO, OTHER)), key="key", content=b"content"))
    repeats = [
        plan(item(to=(TO, OTHER)), key="key", content=b"content"),
        plan(item(to=(TO, OTHER), expires_at=NOON), key="key", content=b"content"),
        plan(item(to=("invalid", OTHER)), key="key", content=b"content"),
        plan(item(to=(TO,) * 99), key="key", content=b"content"),
    ]
    for repeat in repeats:
        assert await writer.respond(repeat) == first
    assert await count(database, schema.messages, schema.links) == (2, 2)


async def test_a_repeated_idempotency_key_with_other_content_is_a_conflict(writer: Writer) -> None:
    await writer.respond(plan(item(), key="key", content=b"content"))
    with pytest.raises(ApiError) as raised:
        await writer.respond(plan(item("#track("), key="key", content=b"other"))
    assert raised.value.code is ErrorCode.IDEMPOTENCY_CONFLICT


async def test_the_idempotency_key_of_an_invalid_request_can_be_used_again(writer: Writer, database: Database) -> None:
    for invalid in (plan(item("#track("), key="key"), plan(item(to=(TO,) * 99), key="key")):
        with pytest.raises(ApiError):
            await writer.respond(invalid)
    assert await count(database, schema.idempotency, schema.messages) == (0, 0)
    assert len(await writer.respond(plan(item(), key="key"))) == 1


async def test_messages_with_the_same_tracking_values_share_a_conversion_process_and_a_cohort(
    writer: Writer, database: Database
) -> None:
    pin: dict[str, Any] = {"tracking": ("SMS", "One_Time_Pin")}
    _, new = await writer.write(plan(item(**pin), item(to=OTHER, **pin), item("plain")))
    assert set(new.processes) == {(1, "SMS", "One_Time_Pin"), (1, "", "")}
    cohorts = [message.cohort_id for message in await rows(database, schema.messages)]
    assert cohorts[0] == cohorts[1] != cohorts[2]


async def test_a_rewrite_transaction_that_contains_an_existing_link_code_is_rejected(writer: Writer, database: Database) -> None:
    writer.codes = ["same", "same"]
    await writer.respond(plan(item()))
    with pytest.raises(IntegrityError):
        await writer.respond(plan(item()))
    assert await count(database, schema.messages, schema.links) == (1, 1)
