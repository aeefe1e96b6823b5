"""Tests that each session can have only one CSV export at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, MutableMapping
from typing import Any

import httpx
import pytest

from shortener.container import Service
from shortener.errors import ApiError, StoreUnavailable
from shortener.portal.exports import Exports
from shortener.server.application import HttpApplication
from tests.portal.conftest import SignIn, log
from tests.servers import PATIENCE

PATH = "/portal/1/deliveries.csv"


class SlowExport:
    """A replacement for the CSV export of deliveries: it sends a header and a first page, and waits until `finish` is set.

    If `error` is set, the export raises this exception after `finish`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started = asyncio.Event()
        self.finish = asyncio.Event()
        self.error: Exception | None = None
        monkeypatch.setattr("shortener.portal.deliveries.stream_csv", self._lines)

    async def _lines(self, *arguments: Any) -> AsyncIterator[bytes]:
        yield b"delivery_id\r\n"
        yield b"first\r\n"
        self.started.set()
        await self.finish.wait()
        if self.error is not None:
            raise self.error
        yield b"last\r\n"


@pytest.fixture
def slow_export(monkeypatch: pytest.MonkeyPatch) -> SlowExport:
    return SlowExport(monkeypatch)


async def test_a_second_csv_export_of_a_session_is_rejected_while_the_first_export_runs(
    service: Service, sign_in: SignIn, slow_export: SlowExport
) -> None:
    browser, colleague = await sign_in(), await sign_in("Ben")
    first = asyncio.create_task(browser.get(PATH))
    await asyncio.wait_for(slow_export.started.wait(), PATIENCE)
    rows = len(await log(service))
    for path in (PATH, "/portal/1/clicks.csv", "/portal/admin/audit.csv"):
        rejected = await browser.get(path)
        assert (rejected.status_code, rejected.headers["retry-after"]) == (429, "5")
        assert "EXPORT_IN_PROGRESS" in rejected.text
        assert "Another CSV export that you started is still running" in rejected.text
        assert rejected.headers["content-type"].startswith("text/html")
    assert len(await log(service)) == rows, "a rejected export is not recorded as an export"
    assert (await browser.get("/portal/1/deliveries")).status_code == 200, "pages are not limited"
    assert (await colleague.get("/portal/1/clicks.csv")).status_code == 200, "other sessions are not affected"
    slow_export.finish.set()
    assert (await first).text.splitlines() == ["delivery_id", "first", "last"]
    assert (await browser.get(PATH)).status_code == 200, "the first export has ended"


async def test_a_csv_export_that_fails_does_not_prevent_the_next_export(sign_in: SignIn, slow_export: SlowExport) -> None:
    browser = await sign_in()
    slow_export.error = StoreUnavailable("the disk is full")
    slow_export.finish.set()
    with pytest.raises(StoreUnavailable):
        await browser.get(PATH)
    slow_export.error = None
    assert (await browser.get(PATH)).status_code == 200


async def test_a_csv_export_that_is_rejected_before_it_begins_does_not_prevent_the_next_export(sign_in: SignIn) -> None:
    browser = await sign_in()
    assert (await browser.get(PATH, params={"status": "nonsense"})).status_code == 400
    assert (await browser.get(PATH)).status_code == 200


async def test_a_csv_export_whose_client_disconnects_does_not_prevent_the_next_export(
    service: Service, sign_in: SignIn, slow_export: SlowExport
) -> None:
    browser = await sign_in()
    request = browser.build_request("GET", PATH)
    sent: list[MutableMapping[str, Any]] = []
    has_rows = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await has_rows.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)
        if message.get("body") == b"first\r\n":
            has_rows.set()

    scope = {
        "type": "http",
        # the version of ASGI's HTTP specification that the server of this service states
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8000),
    }
    async with asyncio.timeout(PATIENCE):
        await HttpApplication(service)(scope, receive, send)
    bodies = [message for message in sent if message["type"] == "http.response.body"]
    expected = [b"delivery_id\r\n", b"first\r\n"]
    assert [message["body"] for message in bodies] == expected, "the export did not end before the client disconnected"
    slow_export.finish.set()
    assert (await browser.get(PATH)).status_code == 200


async def test_a_session_may_begin_an_export_as_soon_as_the_last_byte_of_its_previous_export_has_been_sent() -> None:
    exports = Exports()
    export = exports.begin(1)

    async def response(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        assert exports.begin(1) is not None, "the client sends its next request before this response has ended"

    async def send(message: MutableMapping[str, Any]) -> None:
        if message.get("more_body"):
            with pytest.raises(ApiError):
                exports.begin(1)

    async def receive() -> dict[str, Any]:
        raise AssertionError

    await export.wrap(response)({}, receive, send)
    with pytest.raises(ApiError):
        exports.begin(1)  # The end of the first response does not end the second export.


async def test_a_cancelled_csv_export_does_not_prevent_the_next_export(sign_in: SignIn, slow_export: SlowExport) -> None:
    browser: httpx.AsyncClient = await sign_in()
    task = asyncio.create_task(browser.get(PATH))
    await asyncio.wait_for(slow_export.started.wait(), PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    slow_export.finish.set()
    assert (await browser.get(PATH)).status_code == 200


async def test_a_csv_export_of_the_portal_pauses_while_many_hits_arrive(
    service: Service, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed: list[AsyncIterator[bytes]] = []

    async def slow_down(pages: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        slowed.append(pages)
        async for page in pages:
            yield page

    monkeypatch.setattr(service.throttle, "slow_down", slow_down)
    browser = await sign_in()
    for path in (PATH, "/portal/1/clicks.csv", "/portal/1/messages.csv", "/portal/admin/audit.csv"):
        assert (await browser.get(path)).status_code == 200
    assert len(slowed) == 4
