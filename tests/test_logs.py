"""Tests that log lines contain no personal data."""

import asyncio
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import orjson
import pytest
import structlog

from shortener import logs
from shortener.settings import Settings
from tests.clicks.helpers import create_codes as send
from tests.clicks.helpers import make_hit as hit
from tests.conftest import MakeService, client_of

ADDRESS = "198.51.100.77"


@pytest.fixture(autouse=True)
def _reset_structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()


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
    broken = hit(service, code, address=ADDRESS, rule=None)  # A hit without a rule makes the recorder fail.
    await service.recorder.record(broken)
    logged = capsys.readouterr().err
    assert "hit_not_recordable" in logged
    assert ADDRESS not in logged


def test_held_log_lines_are_written_in_order_when_they_are_released(capsys: pytest.CaptureFixture[str]) -> None:
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
