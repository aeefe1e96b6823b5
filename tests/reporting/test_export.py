"""Tests of the CSV export: its content, its safety in spreadsheets, and its constant memory."""

from __future__ import annotations

import csv
import io
import tracemalloc
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, insert

from shortener.errors import StoreUnavailable
from shortener.model import HitFlag, State, Verdict
from shortener.reporting import export
from shortener.reporting.export import HEADER, escape_formula, export_csv
from shortener.reporting.messages import MessageFilter
from shortener.storage import schema
from shortener.storage.bulk import BulkInsert
from shortener.storage.database import Database
from shortener.storage.types import to_ms
from tests.one_test import in_one_test
from tests.rows import Rows

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def base_url(domain: int) -> str:
    return f"https://d{domain}.example"


def cohorts(connection: Connection, campaign: str = "") -> None:
    values = {"id": 1, "application_id": 1, "campaign": campaign, "source": "api", "country": "US"}
    connection.execute(insert(schema.cohorts).values(values))


EVERYTHING = MessageFilter(1)


async def exported(database: Database, filters: MessageFilter = EVERYTHING, **options: Any) -> list[dict[str, str]]:
    pieces = [piece async for piece in export_csv(database, filters, base_url, **{"reveal": True} | options)]
    return list(csv.DictReader(io.StringIO(b"".join(pieces).decode(), newline="")))


async def test_the_csv_export_contains_one_line_for_each_message(database: Database) -> None:
    def fill(connection: Connection) -> None:
        cohorts(connection, "Grüße 春")
        rows = Rows(connection)
        message = rows.message(
            NOON,
            message_id="m",
            from_address='Shop, "Ltd"',
            state=int(State.DELIVERED),
            delivered_at=NOON + timedelta(seconds=4),
            mt_price=Decimal("0.0095"),
        )
        rows.link(message, position=1, code="BBB")
        rows.link(message, position=0, code="AAA", url="https://shop.example/?a=1,2", domain_id=3)

    await database.write(fill)
    (line,) = await exported(database)
    assert tuple(line) == HEADER
    assert line["message_id"] == "m"
    assert line["to"] == "+14085550100"  # a plain number does not get the apostrophe of a formula
    assert line["from"] == 'Shop, "Ltd"'
    assert line["campaign"] == "Grüße 春"
    assert (line["state"], line["delivered_at"], line["sent_at"]) == ("DELIVERED", "2026-11-20T12:00:04Z", "")
    assert (line["mt_price"], line["segments"], line["fragments_count"]) == ("0.0095", "1", "")
    assert (line["short_url"], line["url"]) == ("https://d3.example/AAA", "https://shop.example/?a=1,2")


async def test_the_csv_export_without_messages_contains_only_the_header(database: Database) -> None:
    pieces = [piece async for piece in export_csv(database, EVERYTHING, base_url, reveal=True)]
    assert pieces == [(",".join(HEADER) + "\r\n").encode()]


async def test_the_csv_export_escapes_cells_that_a_spreadsheet_would_run_as_a_formula(database: Database) -> None:
    def fill(connection: Connection) -> None:
        cohorts(connection, "=cmd|' /C calc'!A0")
        Rows(connection).message(NOON, message_id="@SUM(1)", from_address="+1-2", reason_description='-2+3;=HYPERLINK("x")')

    await database.write(fill)
    (line,) = await exported(database)
    assert line["campaign"] == "'=cmd|' /C calc'!A0"
    assert (line["message_id"], line["from"]) == ("'@SUM(1)", "'+1-2")
    assert line["reason_description"] == '\'-2+3;=HYPERLINK("x")'


@in_one_test
@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("", ""),
        ("plain", "plain"),
        ("+14085550100", "+14085550100"),
        ("+14…00", "+14…00"),
        ("+14…00+1", "'+14…00+1"),
        ("+cmd…00", "'+cmd…00"),
        ("=14…00", "'=14…00"),
        ("-5.25", "-5.25"),
        ("+1+1", "'+1+1"),
        ("  =1", "'  =1"),
        ("\t=1", "'\t=1"),
        ("\rx", "'\rx"),
        ("\nx", "'\nx"),
        (" \rx", "' \rx"),
        ("two\r\nlines", "two\r\nlines"),
        ("＝1", "'＝1"),
        ("＠x", "'＠x"),
        ("a; =b", "a; =b"),
        ("a\n=b", "a\n=b"),
        ("a|-b", "a|-b"),
        ("https://shop.example/?a=1&b=-1", "https://shop.example/?a=1&b=-1"),
        ("+١٢", "'+١٢"),
    ],
)
def test_escape_formula_escapes_formulas_and_returns_other_text_unchanged(text: str, safe: str) -> None:
    assert escape_formula(text) == safe


@given(st.text(alphabet=st.sampled_from("=+-@＝＋－＠\t\r\n ;|'\"a1.")))
def test_text_that_escape_formula_returns_never_starts_like_a_formula(text: str) -> None:
    safe = escape_formula(text)
    assert escape_formula(safe) == safe
    assert not safe.lstrip(" ").startswith(tuple("=@＝＋－＠\t\r\n"))
    if safe.lstrip(" ").startswith(("+", "-")):
        Decimal(safe)  # Decimal raises an exception if the text is not a plain number.


@given(st.lists(st.text(alphabet=st.sampled_from("a1 ,;'\"\r\n\t|é\u2028\x85"), max_size=6), min_size=1, max_size=4))
def test_cells_of_the_csv_export_are_quoted_like_those_of_the_module_csv(column: list[str]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["a", escape_formula(cell)] for cell in column])
    assert "".join(f"a,{cell}\r\n" for cell in export.text_cells(column)) == text.getvalue()


def put_messages(connection: Connection, count: int) -> None:
    cohorts(connection)
    columns = ("id", "application_id", "cohort_id", "message_id", "request_id", "content_hash", "to_address", "state", "created_at")
    put = BulkInsert(schema.messages, *columns, "encoding", "segments")
    at = to_ms(NOON)
    put(connection, [(i + 1, 1, 1, f"m{i}", "r", "", "+14085550100", 0, at, "GSM-7", 1) for i in range(count)])


async def test_a_csv_export_of_any_length_needs_the_memory_of_one_page(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PAGE_MESSAGES", 100)
    await database.write(put_messages, 2000)
    lines, peak_growth = 0, 0
    reports: list[int] = []
    tracemalloc.start()
    try:
        before = 0
        async for piece in export_csv(database, EVERYTHING, base_url, reveal=True, progress=reports.append):
            lines += piece.count(b"\r\n")
            now, peak = tracemalloc.get_traced_memory()
            before = before or now  # Measure the memory after the first page, because the caches are filled then.
            peak_growth = max(peak_growth, peak - before)
            tracemalloc.reset_peak()
    finally:
        tracemalloc.stop()
    assert lines == 2001
    assert reports == list(range(100, 2001, 100))
    assert peak_growth < 1_500_000  # All 2000 rows together would need about 4 MB of memory.


async def test_the_csv_export_contains_only_messages_that_match_its_filters(database: Database) -> None:
    def fill(connection: Connection) -> None:
        cohorts(connection, "spring")
        rows = Rows(connection)
        for minute in range(3):
            rows.message(NOON + timedelta(minutes=minute), message_id=f"m{minute}")

    await database.write(fill)
    found = await exported(database, MessageFilter(1, campaign="spring", since=NOON + timedelta(minutes=1)))
    assert [line["message_id"] for line in found] == ["m2", "m1"]
    assert await exported(database, MessageFilter(2)) == []


async def test_the_csv_export_raises_an_error_if_the_database_becomes_unavailable(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "PAGE_MESSAGES", 2)
    await database.write(put_messages, 5)
    pages = export_csv(database, EVERYTHING, base_url, reveal=True)
    await anext(pages)

    async def unavailable(*arguments: object) -> None:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(database, "read", unavailable)
    with pytest.raises(StoreUnavailable):
        await anext(pages)


def fill_clicked(connection: Connection) -> None:
    cohorts(connection)
    rows = Rows(connection)
    rows.message(NOON, message_id="plain")
    message = rows.message(NOON, message_id="two")
    rows.link(message, position=0, code="AAA", url="https://shop.example/one", label="one")
    second = rows.link(
        message, position=1, code="BBB", url="https://shop.example/two", label="two", location="https://shop.example/2"
    )
    first = rows.hit(second, at=NOON, flags=int(HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE))
    connection.execute(insert(schema.first_clicks).values(id=message, at=NOON, hit_id=first, links=2))
    rows.hit(second, at=NOON + timedelta(seconds=5))
    rows.hit(second, at=NOON + timedelta(seconds=6), verdict=int(Verdict.SUSPECTED))
    for transaction, value, counted_as in (
        ("1", "19.90", "positive:sale"),
        ("2", "0.10", "other:conversion"),
        ("3", "7", "negative:sale"),
        ("4", "3", "pending:sale"),
    ):
        currency = "USD" if counted_as == "pending:sale" else "EUR"
        rows.conversion(message, transaction_id=transaction, value=Decimal(value), currency=currency, counted_as=counted_as)


LINK = ("short_url", "url", "label", "destination", "clicked_url", "clicks", "conversions", "value", "currency")


async def test_a_line_of_the_csv_export_contains_the_clicks_and_conversions_of_a_message(database: Database) -> None:
    await database.write(fill_clicked)
    lines = {line["message_id"]: [line[name] for name in LINK] for line in await exported(database)}
    assert lines["plain"] == ["", "", "", "", "", "0", "0", "", ""]
    one = ["https://d0.example/AAA", "https://shop.example/one", "one", "https://shop.example/one", "https://shop.example/two"]
    assert lines["two"] == [*one, "2", "4", "20.00", "EUR"]


async def test_the_csv_export_can_contain_a_line_for_each_link(database: Database) -> None:
    await database.write(fill_clicked)
    lines = [[line[name] for name in ("message_id", *LINK[2:6])] for line in await exported(database, rows="links")]
    assert sorted(lines) == [
        ["plain", "", "", "", "0"],
        ["two", "one", "https://shop.example/one", "", "0"],
        ["two", "two", "https://shop.example/2", "https://shop.example/two", "2"],
    ]


async def test_the_csv_export_contains_one_byte_order_mark_at_its_beginning(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "PAGE_MESSAGES", 2)
    await database.write(put_messages, 5)
    content = b"".join([piece async for piece in export_csv(database, EVERYTHING, base_url, bom=True, reveal=True)])
    assert content.startswith(b"\xef\xbb\xbfmessage_id,")
    assert content.count(b"\xef\xbb\xbf") == 1


async def test_the_csv_export_masks_phone_numbers_unless_the_caller_may_see_them(database: Database) -> None:
    await database.write(fill_clicked)
    assert {line["to"] for line in await exported(database, reveal=False)} == {"+14…00"}
