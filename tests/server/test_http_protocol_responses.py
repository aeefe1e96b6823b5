"""Tests of the responses of RedirectProtocol over real sockets. They must equal the responses of uvicorn byte for byte."""

import asyncio

import pytest
from sqlalchemy import Connection, update
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shortener.accounts.administration import update_domain
from shortener.accounts.version import mark_accounts_changed
from shortener.container import Service
from shortener.storage import schema
from tests.conftest import Clock
from tests.one_service import on_one_service
from tests.server.raw_http import (
    LAST_REQUEST,
    create_link,
    get,
    read_response,
    run_server,
    status_of,
    stored_hits,
    wait_until,
    without_date,
)
from tests.servers import PATIENCE


async def test_redirect_responses_without_asgi_equal_the_responses_of_uvicorn_byte_for_byte(service: Service, clock: Clock) -> None:
    code = await create_link(service)
    of_brand = await create_link(service, 2)
    switched_off = await create_link(service)
    await service.database.write(
        lambda c: c.execute(update(schema.links).where(schema.links.c.code == switched_off[1:]).values(disabled_at=clock()))
    )
    expired = await create_link(service, expires_in=60)
    with_fallback = await create_link(service, expires_in=60, fallback_url="https://x.example/over")
    clock.forward(minutes=2)
    cases = [
        (302, get(code)),
        (302, get(code, b"Connection: close")),
        (302, get(code).replace(b"HTTP/1.1", b"HTTP/1.0")),
        (302, get(code, b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")),
        (302, get(code, b"Sec-Purpose: prefetch", b"Cookie: a=b", b"Accept: */*")),
        (404, get("/nosuchcode")),
        (404, get("/nosuchcode", b"Connection: close")),
        (410, get(expired)),
        (302, get(with_fallback)),
        (410, get(switched_off)),
        (302, get(code + ").")),
        (302, get(code + "?")),
        (302, get(code + "?.")),
        (302, get(code + "%E2%80%9D%22")),
        (302, get(code + '"`*')),
        (302, get(code + "/")),
        (302, get(code + "%F0%9F%91%8D")),
        (302, get(code, b"X-Request-Id: caller-1")),
        (302, get(code, b"X-Request-Id: not valid")),
        (404, get("/nosuchcode", b"X-Request-Id: caller-2")),
        (302, get(code, host=b"S.Example.:8000")),
        (302, get(code, host=b"127.0.0.1:8000")),
        (302, get(of_brand, host=b"go.brand.example")),
        (404, get(code, host=b"go.brand.example")),
        (302, get(of_brand)),
    ]
    async with run_server(service) as server, run_server(service, HttpToolsProtocol) as reference:
        for expected, request in cases:
            for sent in (request, request, b"HEAD" + request[3:]):
                response = await server.exchange(sent)
                assert (status_of(response), response) == (expected, await reference.exchange(sent)), sent
                assert b"\r\ndate: ...\r\n" in response
        assert set(server.app.paths) == {"/healthz"}, "no redirect took the ASGI path"
    rows = [(hit.link_id, hit.verdict, hit.rule, hit.flags & ~3, hit.address, hit.user_agent) for hit in await stored_hits(service)]
    assert rows[::2] == rows[1::2], "both paths store the same hits"


async def test_requests_that_redirect_protocol_does_not_handle_get_the_response_of_the_asgi_application(service: Service) -> None:
    code = await create_link(service)
    long_path = code + "%E2%80%9D" * 8 + "?" + "x" * 256
    cases = [
        (302, get(code + "?x=1")),
        (302, get(code + "?utm=%0d%0a")),
        (302, get(long_path)),
        (404, get(code + "x" * 128)),
        (302, get(code, method=b"OPTIONS")),
        (302, get("http://s.example" + code)),
        (404, get("http://elsewhere.example" + code, host=b"elsewhere.example")),
        (404, get(code, host=b"unknown.example")),
        (404, get(code, host=None)),
        (404, get(code, host=b"")),
        (400, get(code, b"Host: s.example", host=b"")),
        (400, get(code, b"Host: s.example")),
        (400, get(code, b"Host: s.example", host=b"unknown.example")),
        (400, get("/docs", b"Host: s.example")),
        (404, get("/portal", host=b"go.brand.example")),
        (404, get("/api", host=b"go.brand.example")),
        (200, get("/healthz")),
        (200, get("/docs")),
        (302, get(code, b"Content-Length: 0")),
        (302, get(code, b"Content-Length: 5") + b"hello"),
        (302, get(code, b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n"),
        (302, get(code, b"Transfer-Encoding: chunked") + b"0\r\nTrailer: x\r\nExpect: 100-continue\r\n\r\n"),
        (302, get(code, b"Expect: 100-continue")),
        (302, get(code, b"Expect: 100-continue", b"Content-Length: 5") + b"hello"),
        (302, get(code, b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABkAARAAAAA")),
        (302, get(code, b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")),
        (302, get(code, b"Upgrade: h2c")),
        (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ]
    async with run_server(service) as server, run_server(service, HttpToolsProtocol) as reference:
        for expected, request in cases:
            before = len(server.app.paths)
            response = await server.exchange(request)
            assert (status_of(response), response) == (expected, await reference.exchange(request)), request
            assert request.startswith((b"PRI", b"GET /healthz")) or server.app.paths[before:][:1] not in ([], ["/healthz"])


async def test_a_code_behind_the_path_of_a_domain_is_redirected_without_asgi(service: Service, clock: Clock) -> None:
    await service.database.write(update_domain, "go.brand.example", {"path": "/s/{sender}"}, clock())
    await service.directory.refresh()
    code = await create_link(service, 2, from_address="ABCDEF")
    cases = [
        (302, get("/s/ABCDEF" + code, host=b"go.brand.example")),
        (302, get("/S/abcdef" + code + "/", host=b"go.brand.example")),
        (302, get(code, host=b"go.brand.example")),  # before the change, this was the path of links on the domain
        (302, get("/s/ABCDEF" + code)),
        (404, get("/s/ABCDEF/nosuchcode", host=b"go.brand.example")),
    ]
    not_found = [
        (404, get("/t/ABCDEF" + code, host=b"go.brand.example")),
        (404, get("/s" + code, host=b"go.brand.example")),
        (404, get("/api/v1" + code)),
    ]
    async with run_server(service) as server, run_server(service, HttpToolsProtocol) as reference:
        for expected, request in cases:
            response = await server.exchange(request)
            assert (status_of(response), response) == (expected, await reference.exchange(request)), request
        assert set(server.app.paths) == {"/healthz"}, "no redirect took the ASGI path"
        for expected, request in not_found:
            response = await server.exchange(request)
            assert (status_of(response), response) == (expected, await reference.exchange(request)), request


INVALID_OR_AMBIGUOUS_HEADERS = [
    b"Content-Length: 3\r\nContent-Length: 3",
    b"Content-Length: 3\r\nContent-Length: 0",
    b"Content-Length: 3, 3",
    b"Content-Length: +3",
    b"Content-Length: -1",
    b"Content-Length: 0x3",
    b"Content-Length:",
    b"Content-Length: 3\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 3",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding\t: chunked",
    b" Transfer-Encoding: chunked",
    b"X: y\r\n Transfer-Encoding: chunked",
    b"X: y\r\n\tContent-Length: 3",
    b"X: y\nContent-Length: 3",
    b"X: y\rContent-Length: 3",
    b"X: y\x00z",
    b"X: y\x01z",
    b"X\x00: y",
    b"\xc2\xa0Content-Length: 3",
    b": y",
    b"X",
]


async def test_requests_with_ambiguous_body_headers_are_parsed_as_by_uvicorn(service: Service) -> None:
    """RedirectProtocol and uvicorn's HttpToolsProtocol must agree whether the bytes after the head of a redirect request are its
    body or the next request. Otherwise request smuggling would be possible."""
    code = await create_link(service)
    async with run_server(service) as server, run_server(service, HttpToolsProtocol) as reference:
        for header in INVALID_OR_AMBIGUOUS_HEADERS:
            before = len(server.app.paths)
            smuggled = get(code, header) + b"0\r\n\r\n" + get("/nosuchcode")
            response = await server.exchange(smuggled)
            assert response == await reference.exchange(smuggled), header
            if status_of(response) != 400:
                assert server.app.paths[before] == code, "a request with a body takes the ASGI path"


@on_one_service
@pytest.mark.parametrize("version", [b"1.0", b"0.9", b"2.0"])
@pytest.mark.parametrize("more", [(), (b"Connection: keep-alive",)])
async def test_a_chunked_body_in_another_version_than_http_1_1_gets_400_and_closes_the_connection(
    service: Service, version: bytes, more: tuple[bytes, ...]
) -> None:
    """Only HTTP/1.1 has chunked encoding. With another version, a proxy in front of the service may see another end of the
    request, which would permit request smuggling."""
    code = await create_link(service)
    async with run_server(service) as server:
        for path, method in ((code, b"GET"), ("/docs", b"GET"), ("/api/v1/rewrite", b"POST")):
            request = get(path, *more, b"Transfer-Encoding: chunked", method=method).replace(b"HTTP/1.1", b"HTTP/" + version)
            for sent in (request, request + b"0\r\n\r\n" + get(code), request + b"5\r\nhel"):
                reader, writer = await server.connect()
                writer.write(sent)
                response = await asyncio.wait_for(reader.read(), PATIENCE)
                assert (status_of(response), response.count(b"HTTP/1.1 ")) == (400, 1), sent
                assert b"Transfer-Encoding requires HTTP/1.1." in response
        assert server.app.paths == []
    assert await stored_hits(service) == []


async def test_a_malformed_request_behind_a_redirect_gets_400_and_closes_the_connection(service: Service) -> None:
    code = await create_link(service)
    async with run_server(service) as server, run_server(service, HttpToolsProtocol) as reference:
        for one in (server, reference):
            reader, writer = await one.connect()
            writer.write(get(code))
            assert status_of(await read_response(reader)) == 302
            writer.write(b"G\x00T / HTTP/1.1\r\n\r\n" + get(code))
            assert status_of(response := await reader.read()) == 400
            assert response.count(b"HTTP/1.1 ") == 1
        for path in (code, code + "?x=1"):
            pipelined = get(path) + get("/healthz") + b"G\x00T / HTTP/1.1\r\n\r\n"
            response = await server.exchange(pipelined)
            assert (status_of(response), response) == (400, await reference.exchange(pipelined))
        await wait_until(lambda: not server.server.server_state.tasks)
        await service.recorder.flush()
        assert server.app.paths == [code], "the request before the malformed one was not started"
    assert len(await stored_hits(service)) == 6


async def test_hits_from_clients_behind_one_proxy_connection_are_stored_with_the_address_of_each_client(service: Service) -> None:
    code = await create_link(service)
    clients = ["203.0.113.7", "198.51.100.9", "2001:db8:7::1", "203.0.113.7, 127.0.0.9", "203.0.113.7,192.0.2.4"]
    clients += ["203.0.113.7:4711", ""]
    unusual = ["unknown, 203.0.113.7", "[2001:db8:7::1]", "203.0.113.7 , 127.0.0.9"]
    async with run_server(service) as server:
        reader, writer = await server.connect()
        for client in clients + unusual:
            writer.write(get(code, b"X-Forwarded-For: " + client.encode(), b"Accept: */*"))
            assert status_of(await read_response(reader)) == 302
        writer.write(get(code, b"X-Forwarded-For: 203.0.113.7", b"X-Forwarded-For: 198.51.100.9", b"Accept: */*"))
        assert status_of(await read_response(reader)) == 302
    addresses = [hit.address for hit in await stored_hits(service)]
    assert addresses[:5] == ["203.0.113.0", "198.51.100.0", "2001:db8:7::", "203.0.113.0", "192.0.2.0"]
    assert addresses[5:7] == ["203.0.113.0", "127.0.0.0"]
    assert addresses[7:] == ["203.0.113.0", "2001:db8:7::", "203.0.113.0", "198.51.100.0"]


async def test_a_request_body_that_looks_like_a_redirect_request_is_not_recorded_as_a_hit(service: Service) -> None:
    """The service may send the response before the body arrives: a request without an API key gets 401 at once. The body that
    follows must not be read as a request."""
    code = await create_link(service)
    redirect = get(code)
    async with run_server(service) as server, run_server(service, HttpToolsProtocol) as reference:
        await server.exchange(redirect)
        start = get("/api/v1/rewrite", b"Content-Length: %d" % (2 * len(redirect)), method=b"POST")
        responses = []
        for one in (server, reference):
            reader, writer = await one.connect()
            writer.write(start)
            responses.append([without_date(await read_response(reader))])
            for piece in (redirect, redirect, LAST_REQUEST):
                writer.write(piece)
                await asyncio.sleep(0.02)  # a pause, so that each part of the request arrives separately
            responses[-1].append(without_date(await asyncio.wait_for(reader.read(), PATIENCE)))
        assert responses[0] == responses[1]
        assert status_of(responses[0][0]) == 401
    assert len(await stored_hits(service)) == 1


def rename_domain(connection: Connection, host: str, new: str) -> None:
    connection.execute(update(schema.domains).where(schema.domains.c.host == host).values(host=new))
    mark_accounts_changed(connection)


async def test_a_change_of_a_domain_applies_to_the_next_request_of_a_connection(service: Service, clock: Clock) -> None:
    of_brand = await create_link(service, 2)
    async with run_server(service) as server:
        reader, writer = await server.connect()
        request = get(of_brand, host=b"go.brand.example")
        writer.write(request)
        assert status_of(await read_response(reader)) == 302
        await service.database.write(update_domain, "go.brand.example", {"disabled": True}, clock())
        await service.directory.refresh()
        writer.write(request)
        assert status_of(await read_response(reader)) == 410
        await service.database.write(rename_domain, "go.brand.example", "other.example")
        await service.directory.refresh()
        writer.write(request)
        assert status_of(await read_response(reader)) == 404
