"""Tests that log lines contain no personal data."""

import asyncio
import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import orjson
import pytest
import structlog

from shortener import logs
from shortener.logs import mask_in, mask_numbers, mask_parameters, mask_recipient
from shortener.settings import Settings
from tests.clicks.helpers import create_codes as send
from tests.clicks.helpers import make_hit as hit
from tests.conftest import MakeService, client_of, reset_logs
from tests.server.raw_http import get, run_server

PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Mobile/15E148 Safari/604.1"
)
ADDRESS = "198.51.100.77"


@pytest.fixture(autouse=True)
def _reset_structlog() -> Iterator[None]:
    # Reset these loggers, because an earlier test that started uvicorn has changed them.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate, logger.level = True, logging.NOTSET
    yield
    reset_logs()


def configure(form: Literal["json", "text"]) -> None:
    logs.configure(Settings(log_format=form))
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr), cache_logger_on_first_use=False)


@dataclass
class Secret:
    number: str = "+14085550100"


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_log_line_of_an_exception_contains_no_values_of_variables_and_rows(
    form: Literal["json", "text"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure(form)

    def fail(secret: Secret) -> None:
        raise ValueError(f"a message\nDETAIL:  Failing row contains ({secret.number}).")

    try:
        fail(Secret())
    except ValueError:
        structlog.get_logger().exception("job_failed", job="x")
    logged = capsys.readouterr().err
    assert "a message" in logged
    assert "in fail" in logged
    assert "4085550100" not in logged


@pytest.mark.parametrize("form", ["json", "text"])
async def test_no_log_line_contains_the_ip_address_of_a_hit(
    make_service: MakeService, form: Literal["json", "text"], capsys: pytest.CaptureFixture[str]
) -> None:
    service = await make_service(ip_privacy="full", trusted_proxies="127.0.0.0/8", log_level="debug")
    configure(form)
    assert service.first_credentials is not None
    (code,) = await send(service)
    async with client_of(service, {"X-Forwarded-For": ADDRESS, "User-Agent": "Phone"}) as client:
        assert (await client.get(f"/{code}")).status_code == 302
        assert (await client.get("/nosuchcode")).status_code == 404
    broken = hit(service, code, address=ADDRESS, rule=None)  # The database rejects this hit, because its column `rule` is NOT NULL.
    await service.recorder.record(broken)
    logged = capsys.readouterr().err
    assert "hit_not_recordable" in logged
    assert ADDRESS not in logged


async def test_the_access_log_has_one_line_for_each_click_and_each_request_without_personal_data(
    make_service: MakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service = await make_service(log_format="text", trusted_proxies="127.0.0.0/8")
    configure("text")
    assert service.first_credentials is not None
    (code,) = await send(service)
    headers = {"X-Forwarded-For": ADDRESS, "X-API-Key": service.first_credentials.api_key}
    async with client_of(service, headers) as client:
        await client.get(f"/{code}", headers={"User-Agent": PHONE})
        await client.get(f"/{code}", headers={"User-Agent": "curl/8"})
        await client.get("/nosuchcode")
        await client.get("/api/v1/sms/status/none")
    lines = [line.split("  ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert [re.sub(r"[\d.]+ ms", "N ms", line) for line in lines] == [
        f"click    302  /{code}  human (browser)  N ms",
        f"click    302  /{code}  suspected (crawler)  N ms",
        "click    404  /nosuchcode  none (unknown_code)  N ms",
        "request  404  GET /api/v1/sms/status/{message_id}  N ms  MESSAGE_NOT_FOUND",
    ]


async def test_the_log_line_of_a_click_contains_the_request_id_of_the_response(
    make_service: MakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service = await make_service(access_log="on")
    configure("json")
    (code,) = await send(service)
    async with run_server(service) as server:
        response = await server.exchange(get(f"/{code}", b"X-Request-Id: id-1", host=b"127.0.0.1:8000"))
    assert b"x-request-id: id-1" in response
    lines = [orjson.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["request_id"] for line in lines if line["event"] == "click"] == ["id-1"]


async def test_the_access_log_has_a_line_for_a_request_with_an_unknown_path_or_a_wrong_method_without_values_of_the_path(
    make_service: MakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service = await make_service(access_log="on")
    configure("json")
    async with client_of(service, {"X-Request-Id": "id-2"}) as client:
        await client.get("/api/v1/postback/pk_secret/more")
        await client.delete("/api/v1/rewrite")
        await client.delete("/api/v1/postback/pk_secret")
    printed = capsys.readouterr().err
    assert "secret" not in printed
    lines = [orjson.loads(line) for line in printed.splitlines()]
    assert [(line["request_id"], line["path"], line["status"], line["error_code"]) for line in lines] == [
        ("id-2", "(unknown)", 404, "NOT_FOUND"),
        ("id-2", "/api/v1/rewrite", 405, "METHOD_NOT_ALLOWED"),
        ("id-2", "/api/v1/postback/{postback_key}", 405, "METHOD_NOT_ALLOWED"),
    ]


async def test_there_is_no_access_log_by_default(make_service: MakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service = await make_service()
    configure("json")
    (code,) = await send(service)
    async with client_of(service) as client:
        await client.get(f"/{code}")
        await client.get("/healthz")
    assert capsys.readouterr().err == ""
    assert [Settings(access_log="on").logs_access, Settings(access_log="off", log_format="text").logs_access] == [True, False]


def test_a_text_log_line_begins_with_its_time_and_contains_its_level(capsys: pytest.CaptureFixture[str]) -> None:
    configure("text")
    structlog.get_logger().warning("redis_down", error="x")
    structlog.get_logger().info("redis_up")
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}  WARNING redis_down  error=x", first)
    assert second.endswith("  redis_up")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("+14085550100", "+14…00"),
        ("14085550100", "140…00"),
        ("to +1 (408) 555-0100 and +447700900123.", "to +1 …00 and +44…23."),
        ("https://x.example/?p=%2B14085550100&o=1234567", "https://x.example/?p=%2B…00&o=1234567"),
        ("2026-11-20T12:00:00+00:00", "2026-11-20T12:00:00+00:00"),
        ("spring 2026", "spring 2026"),
    ],
)
def test_phone_numbers_in_a_text_are_masked(text: str, masked: str) -> None:
    assert mask_numbers(text) == masked


@pytest.mark.parametrize(
    ("message_id", "number", "masked"),
    [
        ("48151623", "+14085550123", "48151623"),
        ("sms-14085550123-1", "+14085550123", "sms-14…23-1"),
        ("14085550123", "", "14085550123"),
        ("+4915112345678", "", "+49…78"),
    ],
)
def test_only_the_recipient_and_international_numbers_are_masked_in_a_message_id(message_id: str, number: str, masked: str) -> None:
    assert mask_recipient(message_id, number) == masked


def test_a_masked_number_in_a_text_has_a_plus_only_if_the_text_has_one() -> None:
    text = "to '14085550100' has no +; it was read as +14085550100"
    assert mask_in(text, "+14085550100") == "to '14…00' has no +; it was read as +14…00"


def test_phone_numbers_in_parameters_are_masked_but_not_other_numbers() -> None:
    parameters = {
        "Phone": "14085550100",
        "to": 14085550100,
        "mobile": " 1 408-555-0100",
        "id": "14085550100",
        "more": [{"tel": "+14085550100"}, True, 1.5],
    }
    assert mask_parameters(parameters) == {
        "Phone": "140…00",
        "to": "140…00",
        "mobile": " 1 4…00",
        "id": "14085550100",
        "more": [{"tel": "+14…00"}, True, 1.5],
    }


def test_a_log_line_with_an_unpaired_surrogate_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings())
    structlog.get_logger().warning("unreadable", word="\ud800")
    assert json.loads(capsys.readouterr().err)["word"] == "\ud800"


def test_log_lines_that_are_held_during_the_start_are_written_in_order_when_they_are_released(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure(Settings())
    logs.hold()
    structlog.get_logger().warning("first")
    logging.getLogger("uvicorn.error").warning("second")
    assert capsys.readouterr().err == ""
    logs.release()
    structlog.get_logger().warning("third")
    assert [orjson.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["first", "second", "third"]


def test_a_request_that_a_server_stop_cancels_is_logged_as_one_warning_without_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("json")
    try:
        raise asyncio.CancelledError("Task cancelled, timeout graceful shutdown exceeded")
    except asyncio.CancelledError as error:
        logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=error)
    (line,) = capsys.readouterr().err.splitlines()
    assert "A request did not finish before the stop, and was cancelled." in line
    assert '"level":"warning"' in line
    assert "Traceback" not in line
