"""Tests of the Host header: its parts, and the limit on the length of cached hosts."""

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shortener.container import Service
from shortener.server.hosts import MAX_HOST_BYTES, split_host
from tests.one_service import on_one_service
from tests.server.raw_http import HOST, create_link, get, run_server, status_of


@pytest.mark.parametrize(
    ("host", "name", "name_with_port"),
    [
        (b"S.Example", "s.example", "s.example"),
        (b"s.example.", "s.example", "s.example"),
        (b"s.example:8000", "s.example", "s.example:8000"),
        (b"S.Example.:8000", "s.example", "s.example:8000"),
        (b"[::1]:80", "[::1]", "[::1]:80"),
        (b"s.example:x", "s.example:x", "s.example:x"),
        (b"", "", ""),
    ],
)
def test_a_host_header_is_split_into_host_name_and_port(host: bytes, name: str, name_with_port: str) -> None:
    assert split_host(host) == (name, name_with_port)


async def test_a_host_header_that_is_too_long_gets_404_and_is_not_cached(service: Service) -> None:
    code = await create_link(service)
    split_host.cache_clear()
    async with run_server(service) as server, run_server(service, HttpToolsProtocol) as reference:
        for host in (b"x" * 100_000, HOST + b"." * MAX_HOST_BYTES, b"1" * 100_000):
            response = await server.exchange(get(code, host=host))
            assert (status_of(response), response) == (404, await reference.exchange(get(code, host=host)))
    assert split_host.cache_info().currsize == 1, "only localhost, the host of the last request of each exchange"


@on_one_service
@pytest.mark.parametrize("second", [HOST, b"evil.example", b""])
@pytest.mark.parametrize("path", ["code", "/", "/api/v1/links", "/robots.txt"])
async def test_a_request_with_two_host_headers_gets_400(service: Service, path: str, second: bytes) -> None:
    path = await create_link(service) if path == "code" else path
    async with run_server(service) as server:
        assert status_of(await server.exchange(get(path, b"Host: " + second))) == 400
