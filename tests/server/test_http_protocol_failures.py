"""Tests of redirect requests while the database or the recorder cannot accept a hit, or if a response cannot be sent."""

import asyncio

from sqlalchemy import update
from structlog.testing import capture_logs
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shortener.container import Service
from shortener.storage import schema
from tests.clicks.helpers import unreliable_recorder
from tests.server.raw_http import (
    LAST_REQUEST,
    blocked_writes,
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


async def test_without_a_database_redirect_protocol_sends_the_same_503_response_as_the_protocol_of_uvicorn(
    service: Service,
) -> None:
    code = await create_link(service)
    database, service.recorder = await unreliable_recorder(service, deadline=0.02)
    database.refuse_writes = database.refuse_reads = True
    async with run_server(service) as server, run_server(service, HttpToolsProtocol) as reference:
        for request in (get(code), get(code, method=b"HEAD"), get(code, b"Connection: close")):
            response = await server.exchange(request)
            assert (status_of(response), response) == (503, await reference.exchange(request))
            assert b"\r\nretry-after: 2\r\n" in response
        assert server.app.paths.count(code) == 0
        database.refuse_writes = database.refuse_reads = False
        await service.recorder.flush()
        assert await stored_hits(service) == []
    await service.recorder.stop(1)


async def test_a_redirect_request_is_passed_to_the_asgi_application_if_too_many_hits_wait_for_the_database(
    service: Service,
) -> None:
    code = await create_link(service)
    database, service.recorder = await unreliable_recorder(service, deadline=0.3, waiting_limit=1)
    async with run_server(service) as server:
        database.refuse_writes = True
        readers = []
        for _ in range(8):
            reader, writer = await server.connect()
            writer.write(get(code))
            readers.append(reader)
        responses = [without_date(await read_response(reader)) for reader in readers]
        assert len(set(responses)) == 1
        assert status_of(responses[0]) == 302
        assert 0 < len(server.app.paths) < 8
        assert service.recorder.totals.dropped == len(server.app.paths)
        database.refuse_writes = False
        await service.recorder.flush()
        assert len(await stored_hits(service)) == 8 - len(server.app.paths)
    await service.recorder.stop(1)


async def test_a_redirect_with_a_control_character_in_its_location_is_not_sent(service: Service) -> None:
    """Stored destinations contain no control characters, so this check is a second protection. A control character could split
    the response into two."""
    codes = [await create_link(service) for _ in range(3)]
    changed = schema.links.c.code == codes[1][1:]
    url = "https://x.example/\r\nSet-Cookie: a=b"
    await service.database.write(lambda c: c.execute(update(schema.links).where(changed).values(url=url, location=url)))
    with capture_logs() as logs:
        async with run_server(service) as server:
            readers = []
            async with blocked_writes(service):
                for code in codes:
                    reader, writer = await server.connect()
                    writer.write(get(code) + LAST_REQUEST)
                    readers.append(reader)
                await wait_until(lambda: service.recorder.unrecorded == 3)
            first, second, third = [await asyncio.wait_for(reader.read(), PATIENCE) for reader in readers]
    assert (status_of(first), second, status_of(third)) == (302, b"", 302)
    assert [(entry["event"], entry["code"]) for entry in logs] == [("redirect_response_failed", codes[1][1:])]
    assert len(await stored_hits(service)) == 3
