"""Tests of the X-Request-Id: each response contains the id that the caller has sent if it is valid, otherwise a generated one."""

import asyncio
import json
import re
import sys
from collections.abc import Iterator

import pytest
import structlog

from shortener import logs
from shortener.container import Service
from shortener.server.request_ids import request_id
from tests.conftest import client_of, reset_logs
from tests.one_service import on_one_service
from tests.server.raw_http import run_server
from tests.servers import PATIENCE


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


@on_one_service
@pytest.mark.parametrize("path", ["/nosuchcode", "/healthz", "/api/v1/sms/stats", "/nothing/here", "/", "/robots.txt", "/%00"])
async def test_every_response_has_an_x_request_id_header(service: Service, path: str) -> None:
    async with client_of(service) as client:
        for host in ("127.0.0.1:8000", "unknown.example"):
            generated = (await client.get(path, headers={"Host": host})).headers["x-request-id"]
            assert int(generated, 16)
            given = await client.get(path, headers={"Host": host, "X-Request-Id": "caller-7"})
            assert given.headers.get_list("x-request-id") == ["caller-7"]


@on_one_service
@pytest.mark.parametrize("requested", ["caller-9", "not valid", None])
@pytest.mark.parametrize("broken", ["body", "head", "version", "second head"])
async def test_the_response_to_invalid_http_and_its_log_line_have_the_request_id_of_the_caller(
    service: Service, capsys: pytest.CaptureFixture[str], requested: str | None, broken: str
) -> None:
    logs.configure(service.settings)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr), cache_logger_on_first_use=False)
    head = b"POST /api/v1/rewrite HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n"
    head += b"" if requested is None else b"X-Request-Id: " + requested.encode() + b"\r\n"
    chunked = b"Transfer-Encoding: chunked\r\n\r\n"
    sent = {
        "body": head + chunked + b"no hexadecimal number\r\n",
        "head": head + b"Accept: */*\r\n" + b"a header without a colon\r\n\r\n",
        "version": head.replace(b"HTTP/1.1", b"HTTP/1.0") + chunked,
        "second head": head + b"Content-Length: 0\r\n\r\n" + b"\0",
    }[broken]
    async with run_server(service) as server:
        reader, writer = await server.connect()
        writer.write(sent)
        response = await asyncio.wait_for(reader.read(), PATIENCE)
    last = response[response.rindex(b"HTTP/1.1 400 ") :]
    (id_,) = re.findall(rb"\r\nx-request-id: (.*)\r\n", last)
    is_known = requested == "caller-9" and broken != "second head"
    assert (id_ == b"caller-9") == is_known
    assert is_known or int(id_, 16)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["request_id"] for line in lines if line["event"] == "invalid_request"] == [id_.decode()]


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
