"""Tests of `shortener trackers` and `shortener deliveries` while a service uses the same database."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from shortener.cli import cli
from shortener.cli.trackers import REMOVABLE
from shortener.container import Service
from shortener.web.tracker_requests import TrackerUpdateRequest
from tests.delivery.conftest import Story
from tests.receiver import Receiver

Run = Callable[..., Awaitable[Any]]


@pytest.fixture
def invoke(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Awaitable[Result]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHORTENER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SHORTENER_DATABASE_URL", store_url)
    monkeypatch.setenv("SHORTENER_ALLOW_PRIVATE_TARGETS", "true")

    async def run(*arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, cli, list(arguments))

    return run


@pytest.fixture
def run(invoke: Callable[..., Awaitable[Result]]) -> Run:
    """Return a function that runs a command with --json, asserts that it succeeds, and returns the parsed output."""

    async def run(*arguments: str) -> Any:
        result = await invoke(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return orjson.loads(result.stdout)

    return run


async def test_a_tracker_added_by_a_command_receives_the_events_of_a_running_service(
    service: Service, run: Run, invoke: Callable[..., Awaitable[Result]], receiver: Receiver
) -> None:
    added = await run(
        *("trackers", "add", "1", receiver.url("/?p={phone}"), "--event", "click", "--event", "state", "--format", "json"),
        *(
            "--field",
            "phone",
            "--field",
            "event",
            "--header",
            "X-Mine: 1",
            "--success",
            "200",
            "--timeout",
            "2.5",
            "--schedule",
            "1,2",
        ),
    )
    assert added["secret"].startswith("whsec_")
    assert (added["events"], added["fields"], added["headers_set"]) == (["state", "click"], ["phone", "event"], True)
    assert (added["success"]["statuses"], added["timeout"], added["schedule"]) == ("200", 2.5, [1.0, 2.0])
    await Story(service).first_click()
    await service.fanout.flush()
    await service.dispatcher.flush()
    assert {request.json["event"] for request in receiver.requests} == {"click", "state"}
    assert receiver.requests[0].headers["x-mine"] == "1"
    (listed,) = await run("trackers", "list", "1")
    assert (listed["tracker_id"], listed["breaker"]) == (added["tracker_id"], "closed")
    assert "There is no application 2" in (await invoke("trackers", "list", "2")).stderr


async def test_commands_change_test_and_remove_a_tracker(
    service: Service, run: Run, invoke: Callable[..., Awaitable[Result]], receiver: Receiver
) -> None:
    added = await run("trackers", "add", "1", receiver.url(), "--event", "state", "--unsigned")
    assert (added["secret"], added["secret_set"]) == (None, False)
    number = str(added["tracker_id"])
    changed = await run(
        "trackers", "update", number, "--name", "new", "--rotate-secret", "--disable", "--url", receiver.url("/new")
    )
    assert (changed["name"], changed["enabled"], changed["events"]) == ("new", False, ["state"])
    assert changed["secret"].startswith("whsec_")
    rotated = await run("trackers", "update", number, "--rotate-secret", "--overlap", "1h", "--enable")
    assert rotated["enabled"]
    assert rotated["previous_secret_until"] is not None
    tested = await run("trackers", "test", number)
    assert (tested["delivered"], tested["http_status"], receiver.requests[0].target) == (True, 200, "/new")
    receiver.default_reply = 500
    failed = await invoke("trackers", "test", number)
    assert (failed.exit_code, "NOT accepted" in failed.output) == (1, True)
    shown = await invoke("trackers", "show", number)
    assert ["success.statuses", "2xx"] in [line.split() for line in shown.output.splitlines()]
    assert await run("trackers", "remove", number) == {"tracker_id": added["tracker_id"], "deleted": True}
    gone = await invoke("trackers", "remove", number)
    assert isinstance(gone.exception, SystemExit)
    assert "NOT_FOUND" in gone.output


async def test_commands_set_change_show_and_remove_the_filter_of_a_tracker_for_conversions(
    service: Service, run: Run, invoke: Callable[..., Awaitable[Result]], receiver: Receiver
) -> None:
    options = ("--action", "Sale", "--action", "deposit", "--disposition", "positive")
    added = await run("trackers", "add", "1", receiver.url(), "--event", "conversion", *options)
    number = str(added["tracker_id"])

    async def shown() -> tuple[Any, Any]:
        fields = await run("trackers", "show", number)
        return fields["conversion_actions"], fields["conversion_dispositions"]

    assert await shown() == (["Sale", "deposit"], ["positive"])
    assert "deposit" in (await invoke("trackers", "show", number)).stdout
    await run("trackers", "update", number, "--name", "new")
    assert await shown() == (["Sale", "deposit"], ["positive"])
    await run("trackers", "update", number, "--action", "lead", "--disposition", "none", "--disposition", "negative")
    assert await shown() == (["lead"], ["none", "negative"])
    await run("trackers", "update", number, "--all-conversions")
    assert await shown() == (None, None)
    both = await invoke("trackers", "update", number, "--all-conversions", "--action", "sale")
    assert (both.exit_code, "--all-conversions must not be combined with --action or --disposition" in both.stderr) == (2, True)
    assert (await invoke("trackers", "update", number, "--disposition", "other")).exit_code == 2
    empty = await invoke("trackers", "update", number, "--action", " ")
    assert (empty.exit_code, "conversion_actions" in empty.stderr) == (2, True)
    useless = await invoke("trackers", "add", "1", receiver.url(), "--event", "click", "--action", "sale", "--json")
    assert (useless.exit_code, orjson.loads(useless.stdout)["conversion_actions"]) == (0, ["sale"])
    assert "Warning: conversion_actions and conversion_dispositions have no effect" in useless.stderr


async def test_the_command_trackers_update_removes_every_property_that_the_api_can_remove(
    service: Service, run: Run, invoke: Callable[..., Awaitable[Result]], receiver: Receiver
) -> None:
    limits = ("--max-attempts", "3", "--timeout", "1", "--concurrency", "2", "--max-per-second", "5", "--schedule", "1,2")
    body = ("--format", "json", "--field", "phone", "--success", "200", "--header", "Authorization: Bearer x")
    number = str((await run("trackers", "add", "1", receiver.url(), "--event", "click", *limits, *body))["tracker_id"])
    plain = await run("trackers", "add", "1", receiver.url(), "--event", "click", "--format", "json", "--unsigned")
    with_null = {name for name, field in TrackerUpdateRequest.model_fields.items() if type(None) in get_args(field.annotation)}
    filters = {"conversion_actions", "conversion_dispositions"}  # --all-conversions removes them
    assert {name.rstrip("_") for name in with_null} - filters == set(REMOVABLE.values())
    refused = await invoke("trackers", "update", number, "--remove", "timeout", "--timeout", "2")
    assert (refused.exit_code, "--remove timeout must not be combined" in refused.stderr) == (2, True)
    for both in ("--rotate-secret", "--secret=" + "s" * 24):
        assert (await invoke("trackers", "update", number, "--remove", "secret", both)).exit_code == 2
    changed = await run("trackers", "update", number, "--yes", *(word for name in REMOVABLE for word in ("--remove", name)))
    differing = {"tracker_id", "created_at", "updated_at"}
    assert {name for name in plain if changed[name] != plain[name]} <= differing


async def test_commands_list_show_and_replay_deliveries(
    service: Service, run: Run, invoke: Callable[..., Awaitable[Result]], receiver: Receiver
) -> None:
    receiver.default_reply = 500
    added = await run("trackers", "add", "1", receiver.url(), "--event", "click", "--max-attempts", "1")
    number = str(added["tracker_id"])
    story = Story(service)
    for _ in range(3):
        await story.first_click()
    await service.fanout.flush()
    await service.dispatcher.flush()
    page = await run("deliveries", "list", "--tracker", number, "--status", "dead", "--limit", "2")
    assert [one["message_id"] for one in page["deliveries"]] == ["m-3", "m-2"]
    assert (await run("deliveries", "list", "--limit", "2"))["deliveries"] == page["deliveries"], (
        "without an option, the command uses the only application"
    )
    second_page = await run("deliveries", "list", "--application", "1", "--below", page["next"])
    assert ([one["message_id"] for one in second_page["deliveries"]], second_page["next"]) == (["m-1"], None)
    delivery = second_page["deliveries"][0]["delivery_id"]
    shown = await run("deliveries", "show", delivery)
    assert (shown["status"], [one["status"] for one in shown["attempts"]]) == ("dead", [500])
    health = (await run("trackers", "show", number))["health"]
    assert (health["breaker"], health["failures_in_row"], health["pending"], health["dead"]) == ("closed", 3, 0, 3)
    assert health["last_failure_at"] is not None
    printed = await invoke("trackers", "show", number)
    assert re.search(r"^failures_in_row +3$", printed.output, re.MULTILINE)
    assert await run("deliveries", "replay", delivery) == {"replayed": 1}
    assert await run("deliveries", "replay", "--tracker", number, "--since", "2026-11-21") == {"replayed": 0}
    assert await run("deliveries", "replay", "--tracker", number) == {"replayed": 2}
    for arguments in (("deliveries", "list", "--tracker", number), ("deliveries", "show", delivery), ("trackers", "list")):
        result = await invoke(*arguments)
        assert result.exit_code == 0, result.output


async def test_quarantined_events_are_delivered_after_the_command_deliveries_requeue(
    service: Service, run: Run, receiver: Receiver
) -> None:
    await run("trackers", "add", "1", receiver.url(), "--event", "click")
    story = Story(service)
    message = await story.message()
    await story.first_click(message)

    async def write(data: str) -> None:
        statement = text("UPDATE events SET data = :data")
        await service.database.write(lambda connection: connection.execute(statement, {"data": data}))

    await write("{")
    await service.fanout.flush()
    await service.dispatcher.flush()
    assert receiver.requests == []
    await write("{}")
    assert await run("deliveries", "requeue") == {"requeued": 1}
    await service.fanout.flush()
    await service.dispatcher.flush()
    assert len(receiver.requests) == 1
    assert await run("deliveries", "retell") == {"requeued": 0}


@pytest.mark.parametrize(
    "arguments",
    [
        ("deliveries", "replay"),
        ("trackers", "add", "1", "https://t.example/", "--secret", "x", "--unsigned"),
        ("trackers", "add", "1", "https://t.example/", "--header", "nonsense"),
        ("trackers", "add", "1", "https://t.example/", "--schedule", "soon"),
        ("trackers", "add", "1", "https://t.example/", "--event", "nonsense"),
        ("trackers", "add", "1", "https://t.example/", "--action", "sale"),
    ],
)
def test_wrong_usage_of_the_tracker_commands_has_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(cli, list(arguments)).exit_code == 2


async def test_tracker_commands_exit_with_2_for_invalid_values_and_with_1_for_failures(
    service: Service, invoke: Callable[..., Awaitable[Result]]
) -> None:
    result = await invoke("trackers", "add", "1", "https://t.example/{nonsense}", "--event", "click")
    assert (result.exit_code, "UNKNOWN_PLACEHOLDER" in result.output) == (2, True)
    result = await invoke("trackers", "add", "1", "https://t.example/", "--event", "click", "--max-attempts", "500")
    expected = "INVALID_REQUEST: A field is missing, unknown or has an invalid value.\n  max_attempts: must be at most 50"
    assert (result.exit_code, expected in result.output) == (2, True)
    result = await invoke("trackers", "add", "1", "https://t.example/?a={payout}&b={{status}}&c=[click_id]", "--event", "click")
    assert "write {value}" in result.output
    assert "write {status}" in result.output
    assert "write {click_id}" in result.output
    result = await invoke("trackers", "add", "1", "https://t.example/")
    assert (result.exit_code, "events" in result.output) == (2, True)
    result = await invoke("deliveries", "show", "nonsense")
    assert (result.exit_code, "no delivery" in result.output) == (1, True)


def test_the_help_of_the_command_trackers_add_lists_the_most_important_options_first() -> None:
    text = CliRunner().invoke(cli, ["trackers", "add", "--help"]).output
    positions = [text.index(option) for option in ("--name", "--event", "--method", "--format", "--timeout", "--secret", "--json")]
    assert positions == sorted(positions)
