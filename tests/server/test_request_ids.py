"""Tests of the X-Request-Id: each response contains the caller's value if it is valid, otherwise a generated one."""

import json
import sys
from collections.abc import Iterator

import pytest
import structlog

from shortener import logs
from shortener.container import Service
from shortener.server.request_ids import request_id
from tests.conftest import client_of, reset_logs


@pytest.fixture(autouse=True)
def _reset_structlog() -> Iterator[None]:
    yield
    reset_logs()


@pytest.mark.parametrize("requested", [b"a", b"7f3e-22", b"x" * 128, b"Root=1-67891233-abcdef"])
def test_a_valid_x_request_id_header_of_the_caller_is_returned_in_the_response(requested: bytes) -> None:
    assert request_id(requested, 255) == requested


@pytest.mark.parametrize("requested", [b"", b"x" * 129, b"a b", b"a\r\nb", "é".encode(), b'a"b'])
def test_an_invalid_x_request_id_header_is_replaced_by_a_generated_id(requested: bytes) -> None:
    assert request_id(requested, 255) == b"ff"


@pytest.mark.parametrize("path", ["/nosuchcode", "/healthz", "/api/v1/sms/stats", "/nothing/here", "/", "/robots.txt", "/%00"])
async def test_every_response_has_an_x_request_id_header(service: Service, path: str) -> None:
    async with client_of(service) as client:
        for host in ("127.0.0.1:8000", "unknown.example"):
            generated = (await client.get(path, headers={"Host": host})).headers["x-request-id"]
            assert int(generated, 16)
            given = await client.get(path, headers={"Host": host, "X-Request-Id": "caller-7"})
            assert given.headers.get_list("x-request-id") == ["caller-7"]


async def test_the_log_line_of_a_failed_request_contains_the_request_id(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(service.directory, "find_by_api_key", lambda key: 1 / 0)
    logs.configure(service.settings)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr), cache_logger_on_first_use=False)
    async with client_of(service) as client:
        response = await client.get("/api/v1/sms/stats", headers={"X-API-Key": "x", "X-Request-Id": "caller-8"})
    assert (response.status_code, response.headers["x-request-id"]) == (500, "caller-8")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["request_id"] for line in lines if line["event"] == "request_failed"] == ["caller-8"]
