"""Tests of `--since`, `--until` and `--tz`, the options of a period, in all commands that have them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, delete

from shortener.cli import cli
from shortener.container import Service
from shortener.storage import schema
from tests.cli.shell import InProcessShell, commands_of
from tests.conftest import Clock, client_of
from tests.receiver import Receiver
from tests.web.calls import click as click_link
from tests.web.calls import convert, rewrite

DAY = datetime(2026, 11, 22, tzinfo=UTC)
NEXT_DAY, MILLISECOND = DAY + timedelta(days=1), timedelta(milliseconds=1)
#: The times of the rows: one millisecond before the day, its first millisecond, its last millisecond, and the start of the next
#: day.
TIMES = (DAY - MILLISECOND, DAY, NEXT_DAY - MILLISECOND, NEXT_DAY)

#: Each period, and the indexes in TIMES of the rows that it contains. The periods consist of complete time slots of 15 minutes,
#: because a list of hits extends its period to them.
PERIODS: tuple[tuple[dict[str, str], list[int]], ...] = (
    ({"since": "2026-11-22", "until": "2026-11-22"}, [1, 2]),
    ({"until": "2026-11-22"}, [0, 1, 2]),
    ({"since": "2026-11-22", "until": "2026-11-23T00:00"}, [1, 2]),
    ({"since": "2026-11-22T00:15:00Z", "until": "2026-11-23T00:45:00+01:00"}, []),
)

#: The commands that list rows. For each command: the name of the list in its JSON (None if the JSON is the list itself), the name
#: of the id of a row, the path of the same list in the API, and the name of the list in the API's response.
LISTS: dict[tuple[str, ...], tuple[str | None, str, str, str]] = {
    ("messages", "list"): (None, "message_id", "/api/v1/sms/messages", "messages"),
    ("export", "1"): (None, "message_id", "/api/v1/sms/messages", "messages"),
    ("clicks", "list"): (None, "click_id", "/api/v1/clicks", "clicks"),
    ("links", "list", "1"): (None, "code", "/api/v1/links", "links"),
    ("deliveries", "list"): ("deliveries", "delivery_id", "/api/v1/deliveries", "deliveries"),
    ("conversions", "list"): ("conversions", "conversion_id", "/api/v1/conversions", "conversions"),
    ("conversions", "refused"): ("refused", "refused_id", "/api/v1/conversions/refused", "refused"),
}
#: The other commands that have a period.
CHANGES = (("deliveries", "replay"), ("clicks", "reclassify"), ("verify",))
#: This command also has a period. tests/cli/test_stats.py compares its periods with those of the API.
STATS = ("stats",)


def _options(period: dict[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in period.items()]


@pytest.fixture
async def installation(service: Service, clock: Clock, receiver: Receiver, store_url: str, tmp_path: Path) -> InProcessShell:
    """A shell on an installation that has a message, a click, a dead delivery, a conversion and a refused report at each of the
    TIMES."""
    shell = InProcessShell(tmp_path, SHORTENER_DATABASE_URL=store_url)
    receiver.default_reply = 500
    words = ("trackers", "add", "1", receiver.url(), "--event", "click", "--max-attempts", "1")
    await asyncio.to_thread(shell.json, *words)
    credentials = service.first_credentials
    assert credentials is not None
    async with client_of(service, {"X-API-Key": credentials.api_key}) as client:
        for number, clock.now in enumerate(TIMES):
            await click_link(client, await rewrite(client, f"m{number}"))
            await convert(service, credentials, message_id=f"m{number}", action="sale", transaction_id=str(number))
            refused = {"message_id": f"m{number}", "action": "sale", "transaction_id": "{tid}"}
            await client.get("/api/v1/track", params=refused, headers={"X-Api-Token": credentials.tracker_token})
            await service.fanout.flush()
            await service.dispatcher.flush()
    return shell


def test_the_tests_of_this_file_know_all_commands_with_a_period() -> None:
    names = {words for words, command in commands_of(cli) if any(one.name in ("since", "until") for one in command.params)}
    assert names == {tuple(word for word in words if word != "1") for words in LISTS} | {*CHANGES, STATS}


async def test_all_commands_with_a_period_list_the_rows_of_the_api_for_the_same_period(
    installation: InProcessShell, service: Service
) -> None:
    credentials = service.first_credentials
    assert credentials is not None
    async with client_of(service, {"X-API-Key": credentials.api_key}) as client:
        for words, (name, key, path, api_name) in LISTS.items():
            everything = await _api_ids(client, path, api_name, key)
            assert len(everything) == len(TIMES), path
            for period, positions in PERIODS:
                expected = await _api_ids(client, path, api_name, key, period)
                assert expected == [everything[-1 - position] for position in reversed(positions)], (path, period)
                printed = await asyncio.to_thread(installation.json, *words, *_options(period))
                assert [row[key] for row in (printed[name] if name else printed)] == expected, (words, period)


async def test_dates_without_a_zone_are_in_the_time_zone_of_the_option_tz(installation: InProcessShell, service: Service) -> None:
    """In New York, the day 2026-11-22 contains the third and the fourth of the TIMES. In UTC, it contains the second and the
    third."""
    credentials = service.first_credentials
    assert credentials is not None
    utc = {"since": "2026-11-22T05:00:00Z", "until": "2026-11-23T05:00:00Z"}
    async with client_of(service, {"X-API-Key": credentials.api_key}) as client:
        for words, (name, key, path, api_name) in LISTS.items():
            expected = await _api_ids(client, path, api_name, key, utc)
            assert len(expected) == 2, path
            options = ("--since=2026-11-22", "--until=2026-11-22", "--tz=America/New_York")
            printed = await asyncio.to_thread(installation.json, *words, *options)
            assert [row[key] for row in (printed[name] if name else printed)] == expected, words


async def test_the_default_period_of_the_list_of_hits_is_the_period_of_the_api(
    installation: InProcessShell, service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = service.first_credentials
    assert credentials is not None

    async def open_clock(database: object) -> Clock:
        return clock

    monkeypatch.setattr("shortener.storage.clock.open_clock", open_clock)
    async with client_of(service, {"X-API-Key": credentials.api_key}) as client:
        for days, number in ((29, 4), (30, 3), (31, 1), (32, 0)):
            clock.now = DAY + timedelta(days=days, hours=-1)
            expected = await _api_ids(client, "/api/v1/clicks", "clicks", "click_id")
            assert len(expected) == number
            printed = await asyncio.to_thread(installation.json, "clicks", "list")
            assert [row["click_id"] for row in printed] == expected


async def _api_ids(client: httpx.AsyncClient, path: str, name: str, key: str, period: dict[str, str] | None = None) -> list[Any]:
    response = await client.get(path, params=period)
    assert response.status_code == 200, response.text
    return [row[key] for row in response.json()[name]]


async def test_a_date_as_the_end_of_a_period_includes_this_day_when_deliveries_are_replayed_and_hits_reclassified(
    installation: InProcessShell,
) -> None:
    for period, positions in PERIODS[:1] + PERIODS[2:]:
        words = ("clicks", "reclassify", "--dry-run", *_options(period))
        assert (await asyncio.to_thread(installation.json, *words))["hits"] == len(positions), period
    for period, number in ((PERIODS[3][0], 0), (PERIODS[0][0], 2), (PERIODS[1][0], 1), ({"until": "2026-11-23"}, 1)):
        words = ("deliveries", "replay", "--tracker", "1", "--yes", *_options(period))
        assert await asyncio.to_thread(installation.json, *words) == {"replayed": number}, period


async def test_a_date_as_the_end_of_a_period_includes_this_day_when_the_counts_are_verified(
    installation: InProcessShell, service: Service
) -> None:
    def lose_counts(connection: Connection) -> None:
        for table in (schema.count_deltas, schema.counts):
            connection.execute(delete(table))

    await service.database.write(lose_counts)
    words = ("verify", "--since", "2026-11-22", "--until", "2026-11-22")
    drift = (await asyncio.to_thread(lambda: installation.json(*words, code=1)))["drift"]
    slots = {row["at"] for row in drift if row["counts"] == "counts"}
    assert slots == {"2026-11-22T00:00:00Z", "2026-11-22T23:45:00Z"}


@pytest.mark.parametrize("words", [*LISTS, *CHANGES, STATS], ids=" ".join)
def test_an_unknown_time_zone_is_wrong_usage(words: tuple[str, ...], tmp_path: Path) -> None:
    result = InProcessShell(tmp_path)(*words, "--since=2026-11-22", "--tz=Mars", code=2)
    assert "'Mars' is not a time zone such as Europe/Berlin" in result.stderr


@pytest.mark.parametrize("words", [*LISTS, *CHANGES, STATS], ids=" ".join)
def test_a_period_that_ends_before_it_begins_is_wrong_usage(words: tuple[str, ...], tmp_path: Path) -> None:
    shell = InProcessShell(tmp_path)
    for options in (("--since=2026-11-22", "--until=2026-11-21"), ("--until=2026-11-22T00:00Z", "--since=2026-11-22")):
        assert "--since must be before --until" in shell(*words, *options, code=2).stderr
