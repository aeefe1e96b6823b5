"""Tests of `shortener stats`, `clicks list`, `messages list` and `messages show` on an installation with a few messages.
The module also tests the two ways in which a user can name the application of a command."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import sqlite3
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import click
import pytest

from shortener.accounts.credentials import create_key
from shortener.cli import cli
from shortener.cli.parameters import ApplicationCommand
from shortener.container import open_service
from shortener.model import utcnow
from shortener.settings import Settings
from tests.cli.shell import InProcessShell, commands_of, create_installation
from tests.conftest import client_of
from tests.web.calls import PHONE, report, rewrite


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an installation with two messages of a campaign, a click by a person and a hit by a program."""

    folder = tmp_path_factory.mktemp("stats")

    async def fill() -> None:
        service = await open_service(Settings(data_dir=folder))
        credentials = service.first_credentials
        assert credentials is not None
        service.recorder.start()
        async with client_of(service, {"X-API-Key": credentials.api_key}) as client:
            first = await rewrite(client, "m0", campaign="spring")
            await rewrite(client, "m1", campaign="spring")
            await report(client, "m0", "DELIVERED")
            for number, status in enumerate(("approved", "rejected")):
                sale = {"action": "sale", "value": "10", "currency": "EUR", "transaction_id": str(number), "status": status}
                tracker = {"X-Api-Token": credentials.tracker_token}
                await client.post("/api/v1/track", json={"message_id": "m1", **sale}, headers=tracker)
            for headers in ({"User-Agent": "curl/8"}, PHONE):
                await client.get("/" + first["links"][0]["code"], headers=headers)
        await service.fanout.flush()
        await service.close()

    asyncio.run(fill())
    return folder


@pytest.fixture
def shell(tmp_path: Path, installation: Path) -> InProcessShell:
    """A shell on a copy of the installation."""
    shutil.copytree(installation, tmp_path / "data")
    return InProcessShell(tmp_path / "data")


def test_a_command_on_one_application_says_that_there_is_none_or_that_there_are_several(
    tmp_path: Path, sqlite_template: Path
) -> None:
    create_installation(tmp_path, sqlite_template)
    shell = InProcessShell(tmp_path)
    assert "there is no application" in shell("stats", code=1).stderr
    for name in ("first", "second"):
        shell("applications", "create", name)
    assert "there are several applications" in shell("messages", "list", code=1).stderr


def test_the_stats_command_prints_a_table_or_json(shell: InProcessShell) -> None:
    totals = shell.json("stats")
    assert (totals["messages"], totals["clicks"], totals["suspected_hits"], totals["click_rate"]) == (2, 1, 1, 0.5)
    assert (totals["conversions"], totals["converted_messages"], totals["conversion_rate"]) == (2, 1, 0.5)
    assert "50.0 %" in shell("stats").stdout
    table = re.sub(r" +", " ", shell("stats", "--by", "campaign").stdout).splitlines()
    (place,) = [n for n, name in enumerate(table[0].lower().split()) if name == "conversion_rate"]
    assert " ".join(table[1].replace(" %", "%").split()[place:]).startswith("50.0%")
    for by, name in (("campaign", "spring"), ("destination", "shop.example/a"), ("country", "US")):
        (group,) = shell.json("stats", "--by", by, "--basis", "sent")["groups"]
        assert (group[by], group["messages"], group["clicks"]) == (name, 2, 1)
        assert name in shell("stats", "--by", by).stdout
    assert sum(hour["clicks"] for hour in shell.json("stats", "--by", "hour", "--tz", "Asia/Kolkata")["groups"]) == 1
    assert shell.json("stats", "--by", "label")["groups"] == []
    (action,) = shell.json("stats", "--by", "action")["groups"]
    assert (action["action"], action["conversions"], action["value"]) == ("sale", 2, {"EUR": "10"})
    assert action["conversions_by_disposition"] == {"positive": 1, "negative": 1, "pending": 0, "other": 0}
    assert re.search(r"ACTION +CONVERSIONS +POSITIVE +NEGATIVE.*\nsale +2 +1 +1 ", shell("stats", "--by", "action").stdout, re.I)
    assert shell.json("stats", "--by", "day")["groups"][-1]["messages"] == 2


async def test_the_stats_command_prints_the_numbers_of_the_api_for_the_same_period_and_time_zone(
    tmp_path: Path, installation: Path
) -> None:
    folder = shutil.copytree(installation, tmp_path / "data")
    service = await open_service(Settings(data_dir=folder))
    credential = await service.database.write(create_key, 1, "reader", ["sms.read"], utcnow())
    await service.directory.refresh()
    groups = {"day": "daily", "hour": "by-hour", "country": "by-country", "campaign": "by-campaign"}
    listed = {"day": "days", "hour": "hours", "country": "countries", "campaign": "campaigns"}
    periods: list[dict[str, str]] = [{}]
    for zone in ("Pacific/Niue", "Asia/Kolkata", "Pacific/Kiritimati"):  # UTC-11, UTC+5:30 and UTC+14
        local = utcnow().astimezone(ZoneInfo(zone))
        today = local.date().isoformat()
        periods += [{"tz": zone}, {"tz": zone, "since": today, "until": today}, {"tz": zone, "until": today}]
        periods.append({"tz": zone, "since": f"{local - timedelta(hours=1):%Y-%m-%dT%H:%M}", "until": "2999-01-01T00:00"})
    async with client_of(service, {"X-API-Key": credential}) as client:
        for period in periods:
            words = [f"--{name}={value}" for name, value in period.items()]
            shell = InProcessShell(folder)
            printed = await asyncio.to_thread(shell.json, "stats", *words)
            expected = (await client.get("/api/v1/sms/stats", params=period)).json()
            assert expected["messages"] == 2
            differing = {name for name in expected.keys() - {"status", "until"} if printed[name] != expected[name]}
            assert differing == set(), period
            for by in groups if len(period) < 3 else ():
                printed = await asyncio.to_thread(shell.json, "stats", "--by", by, *words)
                response = (await client.get(f"/api/v1/sms/stats/{groups[by]}", params=period)).json()
                assert printed["groups"] == response[listed[by]], (period, by)
    await service.close()


def test_the_stats_command_prints_all_campaigns_if_there_are_many(
    shell: InProcessShell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def fill() -> None:
        service = await open_service(Settings(data_dir=tmp_path / "data"))
        key = await service.database.write(create_key, 1, "sender", ["sms.send"], utcnow())
        await service.directory.refresh()
        async with client_of(service, {"X-API-Key": key}) as client:
            for number in range(5):
                await rewrite(client, f"c{number}", campaign=f"campaign {number}")
        await service.close()

    asyncio.run(fill())
    monkeypatch.setattr("shortener.cli.stats.PAGE_CAMPAIGNS", 2, raising=True)
    names = [group["campaign"] for group in shell.json("stats", "--by", "campaign")["groups"]]
    assert names == ["campaign 4", "campaign 3", "campaign 2", "campaign 1", "campaign 0", "spring"]


def test_verify_repair_counts_messages_whose_conversions_an_older_release_has_stored(
    shell: InProcessShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(sqlite3.connect(shell.folder / "shortener.db")) as database, database:
        database.execute("DELETE FROM first_conversions")
        for row_id, *columns in database.execute("SELECT id, data, origins FROM tallies").fetchall():
            entries = zip(*(json.loads(column) for column in columns), strict=True)
            kept = [entry for entry in entries if entry[0][2] != "converted_messages"]
            values = [json.dumps(part) for part in zip(*kept, strict=True)]
            database.execute("UPDATE tallies SET data = ?, origins = ? WHERE id = ?", (*values, row_id))
    assert shell.json("stats")["converted_messages"] == 0
    assert shell.json("verify")["drift"] == [], "the job of the service will count the message"
    # the clock moves by three minutes, because the repair skips conversions that are less than two minutes old
    later = utcnow() + timedelta(minutes=3)
    monkeypatch.setattr("shortener.storage.clock.utcnow", lambda: later)
    assert "1 message with conversions was not recorded as converted before" in shell("verify", "--repair").stdout
    repaired = shell.json("verify", "--repair")
    assert (repaired["newly_converted"], repaired["drift"]) == (0, [])
    assert (shell.json("stats")["converted_messages"], shell.json("stats")["conversion_rate"]) == (1, 0.5)


def test_verify_reports_a_lost_row_of_a_converted_message_and_repair_stores_it_without_counting_the_message_again(
    shell: InProcessShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = utcnow() + timedelta(minutes=3)
    monkeypatch.setattr("shortener.storage.clock.utcnow", lambda: later)
    assert shell.json("verify", "--repair")["missing_first_conversions"] == 0
    with contextlib.closing(sqlite3.connect(shell.folder / "shortener.db")) as database, database:
        stored = database.execute("SELECT * FROM first_conversions").fetchall()
        database.execute("DELETE FROM first_conversions")
        # The statement below stores that the job which records converted messages has read all conversions up to this one.
        last = database.execute("SELECT max(id) FROM conversions").fetchone()[0]
        database.execute("INSERT OR REPLACE INTO installation (name, value) VALUES ('first conversions', ?)", (str(last),))
    found = shell.json("verify", code=1)
    assert (found["missing_first_conversions"], found["drift"]) == (1, [])
    text = "1 message with conversions is not recorded as converted (table first_conversions). Use --repair."
    assert text in shell("verify", code=1).stdout
    repaired = shell.json("verify", "--repair")
    assert (repaired["newly_converted"], repaired["missing_first_conversions"], repaired["drift"]) == (1, 0, [])
    assert shell.json("stats")["converted_messages"] == 1
    with contextlib.closing(sqlite3.connect(shell.folder / "shortener.db")) as database:
        assert database.execute("SELECT * FROM first_conversions").fetchall() == stored


def test_invalid_options_of_the_stats_command_are_rejected(shell: InProcessShell) -> None:
    assert "is not a time zone" in shell("stats", "--tz", "Mars", code=2).stderr
    assert "there is no application 9" in shell("stats", "--application", "9", code=1).stderr
    assert "--since must be before --until" in shell("stats", "--since", "2026-01-02", "--until", "2026-01-01", code=2).stderr
    in_future = shell.json("stats", "--since", "2999-01-01")
    assert (in_future["messages"], in_future["since"], in_future["until"]) == (0, *["2999-01-01T00:00:00Z"] * 2)
    assert shell.json("clicks", "list", "--since", "2999-01-01") == []


def test_the_command_clicks_list_shows_the_verdict_and_the_rule_of_each_hit(shell: InProcessShell) -> None:
    listed = shell.json("clicks", "list")
    assert [(hit["verdict"], hit["rule"]) for hit in listed] == [("human", "browser"), ("suspected", "crawler")]
    assert [hit["verdict"] for hit in shell.json("clicks", "list", "--verdict", "suspected", "--message", "m0")] == ["suspected"]
    assert shell.json("clicks", "list", "--message", "m1") == []
    assert "crawler" in shell("clicks", "list").stdout


def test_the_command_messages_list_masks_phone_numbers(shell: InProcessShell) -> None:
    assert [message["message_id"] for message in shell.json("messages", "list", "--campaign", "spring")] == ["m1", "m0"]
    (clicked,) = shell.json("messages", "list", "--state", "CLICKTHRU")
    assert clicked["to"] == "+14…00"


def test_the_command_messages_list_finds_a_phone_number_in_every_notation_that_a_rewrite_accepts(shell: InProcessShell) -> None:
    for to in ("+14085550100", "14085550100", "0014085550100", "+1 408 555 0100", "\u202a+1 (408) 555-0100\u202c"):
        assert len(shell.json("messages", "list", "--to", to)) == 2, to
    assert shell.json("messages", "list", "--to", "+14085550199") == []


def test_a_text_that_is_not_a_phone_number_is_rejected_as_an_option(shell: InProcessShell) -> None:
    for options in (("list", "--to", "+1 408 555 XXXX"), ("erase", "--yes", "--phone", "4085550100")):
        assert "is not an E.164 number" in shell("messages", *options, code=2).stderr


def test_the_command_messages_show_prints_a_timeline_of_the_message(shell: InProcessShell) -> None:
    timeline = shell.json("messages", "show", "m0")["timeline"]
    assert [entry["what"] for entry in timeline] == ["created", "delivered", "hit", "hit"]
    assert [(entry["verdict"], entry["rule"]) for entry in timeline[2:]] == [("suspected", "crawler"), ("human", "browser")]
    assert timeline[3]["first_of_message"] is True
    shown = shell("messages", "show", "m0").stdout
    assert "verdict suspected, rule crawler" in shown
    fields = dict(line.split(maxsplit=1) for line in shown.partition("\n\n")[0].splitlines())
    assert fields["message_id"] == "m0"
    assert fields["link_tracking.accessed"] == "true"
    assert "first_of_message True" not in shown
    assert fields["links.1.code"] == shell.json("messages", "show", "m0")["links"][0]["code"]
    assert "{" not in shown


def test_each_command_on_one_application_accepts_its_id_as_argument_and_as_option() -> None:
    only_option = set()
    for path, command in commands_of(cli):
        arguments = [one.name for one in command.params if isinstance(one, click.Argument)]
        options = {name for one in command.params if isinstance(one, click.Option) for name in one.opts}
        assert ("application" in arguments) == isinstance(command, ApplicationCommand), path
        if isinstance(command, ApplicationCommand):
            assert arguments[0] == "application", path
        elif "--application" in options and not arguments:
            only_option.add(" ".join(path))
    assert only_option == {"clicks reclassify", "messages erase"}, "these commands work on all applications without the option"


def test_each_command_that_only_reads_the_data_of_one_application_works_without_its_id_if_there_is_only_one() -> None:
    required = {
        " ".join(path)
        for path, command in commands_of(cli)
        if path[-1] in ("list", "show", "refused", "stats", "export")
        for argument in command.params
        if argument.name == "application" and isinstance(argument, click.Argument) and argument.required
    }
    assert required == set()


def test_each_command_on_one_object_of_an_application_accepts_the_id_of_the_application_as_option() -> None:
    without = set()
    for path, command in commands_of(cli):
        arguments = [one for one in command.params if isinstance(one, click.Argument)]
        options = {name for one in command.params if isinstance(one, click.Option) for name in one.opts}
        if arguments and "--application" not in options:
            without.add(" ".join(path))
    of_no_application = {"backup", "restore", "applications create", "operators disable", "operators reset"}
    assert without == of_no_application


@pytest.mark.parametrize(
    "words",
    [("stats",), ("clicks", "list"), ("messages", "list"), ("links", "list"), ("keys", "list"), ("applications", "show")],
)
def test_a_command_on_one_application_accepts_its_id_as_argument_or_as_option_or_not_at_all(
    installation: Path, words: tuple[str, ...]
) -> None:
    shell = InProcessShell(installation)
    # The results of `stats` contain the end of the period. It is the time of the call, so it differs between the calls and is
    # removed.
    results = [
        {**found, "until": None} if isinstance(found := shell.json(*words, *form), dict) else found
        for form in (("1",), ("--application", "1"), ("--application=1",), ())
    ]
    assert results[0] == results[1] == results[2] == results[3]
    assert results[0]
    twice = shell(*words, "1", "--application", "1", code=2)
    assert "With --application, leave out the argument APPLICATION." in twice.stderr
    assert "is not an id" in shell(*words, "--application", "first", code=2).stderr
    assert "requires an argument" in shell(*words, "--application", code=2).stderr


def test_the_option_for_the_application_works_beside_other_arguments(shell: InProcessShell) -> None:
    shell("balance", "set", "50", "--application", "1", "--currency", "EUR")
    assert shell.json("balance", "add", "--application", "1", "5")["balance"] == "55"
    assert shell.json("balance", "remove", "--application", "1")["removed"] is True
    assert "Missing argument" in shell("balance", "set", "--application", "1", code=2).stderr


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (("messages", "list"), 2),
        (("clicks", "list"), 2),
        (("links", "list", "1"), 2),
        (("deliveries", "list"), None),
        (("export", "1"), 2),
        (("stats",), None),
        (("conversions", "list"), None),
        (("conversions", "refused"), None),
    ],
)
def test_a_command_with_a_period_accepts_the_first_and_the_last_date_of_the_calendar(
    shell: InProcessShell, words: tuple[str, ...], number: int | None
) -> None:
    printed = shell.json(*words, "--since", "0001-01-01", "--until", "9999-12-31T23:59:59Z")
    assert number is None or len(printed) == number


def test_the_stats_command_prints_rates_like_the_portal_and_names_missing_campaigns_and_currencies(
    tmp_path: Path,
) -> None:
    async def fill() -> None:
        service = await open_service(Settings(data_dir=tmp_path / "data"))
        assert service.first_credentials is not None
        async with client_of(service, {"X-API-Key": service.first_credentials.api_key}) as client:
            to = [f"+1408555{number:04}" for number in range(201)]
            body = {"to": to, "body": "x", "message_id": [f"m{number}" for number in range(201)]}
            assert (await client.post("/api/v1/rewrite", json=body)).status_code == 200
            await report(client, "m0", "DELIVERED")
        await service.close()

    asyncio.run(fill())
    shell = InProcessShell(tmp_path / "data")
    assert re.search(r"^delivery_rate +0\.50 %$", shell("stats").stdout, re.MULTILINE)
    table = shell("stats", "--by", "campaign").stdout
    assert re.search(r"^\(no campaign\) +201 ", table, re.MULTILINE)
    assert re.search(r" 0\.50 % +0 % +0 %", table)
    assert shell.json("stats", "--by", "campaign")["groups"][0]["campaign"] in (None, "")
