"""These tests send requests through a proxy. Its address may be private, but the addresses of the targets are still checked."""
# Part of the tests of shortener/delivery/sender.py.

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shortener.delivery.guard import Guard, Lookup
from shortener.delivery.guarded_resolver import MAX_LOOKUPS
from shortener.delivery.sender import Sender
from shortener.delivery.trackers import NewTracker
from shortener.errors import ApiError
from shortener.storage import schema
from tests.conftest import MakeService
from tests.delivery.conftest import Story
from tests.delivery.dispatching import deliver
from tests.delivery.receiver import receiver, respond
from tests.delivery.sending import post
from tests.factory import AUDIT, rows
from tests.servers import PATIENCE, free_port, tls_context


@dataclass
class Proxy:
    """An HTTP proxy for tests that forwards every request to one local port, whatever its target is."""

    port: int = 0
    to: int = 0
    status: int = 200  # the status of the response to CONNECT
    heads: list[bytes] = field(default_factory=list)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://user:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if self.status != 200:
            writer.write(f"HTTP/1.1 {self.status} No\r\nContent-Length: 0\r\n\r\n".encode())
        else:
            there, to_there = await asyncio.open_connection("127.0.0.1", self.to)
            if head.startswith(b"CONNECT"):
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                to_there.write(head)
            await asyncio.gather(self._pass(reader, to_there), self._pass(there, writer))
        writer.close()

    async def _pass(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                to.write(data)
            to.close()
        except OSError:
            pass


def public(host: str, port: int) -> list[str]:
    return ["203.0.114.7"] if host != "inside.example" else ["10.0.0.1"]


def sender_through(proxy: str) -> Sender:
    return Sender(Guard(lookup=public), user_agent="test", limit=4, proxy=proxy)


async def test_requests_are_sent_through_the_proxy_although_its_address_is_private() -> None:
    proxy = Proxy()
    async with receiver(respond(200)) as peer, proxy.listen() as url, sender_through(url) as sender:
        proxy.to = peer.port
        assert (await post(sender, "http://tracker.example/in?x=1")).status == 200
    assert proxy.heads[0].startswith(b"POST http://tracker.example/in?x=1 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=" in proxy.heads[0]


async def test_certificates_of_https_targets_are_verified_through_the_proxy(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    proxy = Proxy()
    async with receiver(respond(200), tls_context(certificate)) as peer, proxy.listen() as url, sender_through(url) as sender:
        proxy.to = peer.port
        result = await post(sender, "https://tracker.example/")
        assert proxy.heads[0].startswith(b"CONNECT tracker.example:443 HTTP/1.1\r\n")
        assert (result.status, result.error, result.is_local) == (None, "tls_error", False), "the certificate has another name"
        async with Sender(Guard(allow_private=True), user_agent="test", limit=1, proxy=url) as trusting:
            assert (await post(trusting, peer.url())).status == 200
    assert [head.partition(b" ")[0] for head in proxy.heads] == [b"CONNECT", b"CONNECT"]


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "inside.example", "[::1]"])
async def test_requests_to_forbidden_targets_are_blocked_before_the_sender_connects_to_the_proxy(host: str) -> None:
    proxy = Proxy()
    async with proxy.listen() as url, sender_through(url) as sender:
        result = await post(sender, f"http://{host}/")
    assert (result.status, result.error, proxy.heads) == (None, "blocked_address", [])


@pytest.mark.parametrize(
    ("status", "error", "is_local"),
    [
        (403, "proxy_error", True),
        (407, "proxy_error", True),
        *((status, "connection_refused", False) for status in (400, 404, 500, 502, 504)),
    ],
)
async def test_an_error_response_of_the_proxy_is_a_local_failure_only_for_status_403_and_407(
    status: int, error: str, is_local: bool
) -> None:
    proxy = Proxy(status=status)
    async with proxy.listen() as url, sender_through(url) as sender:
        result = await post(sender, "https://tracker.example/")
    assert (result.status, result.error, result.is_local) == (None, error, is_local)


async def test_a_request_through_a_proxy_that_is_down_is_a_local_failure() -> None:
    async with sender_through(f"http://127.0.0.1:{free_port()}") as sender:
        result = await post(sender, "http://tracker.example/")
    assert (result.status, result.error, result.is_local) == (None, "proxy_error", True)
    assert "tracker.example" not in result.detail


def unresolved(code: int) -> Lookup:
    def lookup(host: str, port: int) -> list[str]:
        raise socket.gaierror(code, "error of the resolver")

    return lookup


@pytest.mark.parametrize(
    ("code", "error", "is_local"), [(socket.EAI_AGAIN, "resolver_down", True), (socket.EAI_NONAME, "dns_error", False)]
)
async def test_a_resolver_that_is_down_is_a_local_failure_also_if_requests_are_sent_through_a_proxy(
    code: int, error: str, is_local: bool
) -> None:
    proxy = Proxy()
    async with proxy.listen() as url, Sender(Guard(lookup=unresolved(code)), user_agent="test", limit=4, proxy=url) as sender:
        result = await post(sender, "https://tracker.example/")
    assert (result.status, result.error, result.is_local, proxy.heads) == (None, error, is_local, [])


async def test_a_proxy_whose_name_does_not_exist_is_a_local_failure() -> None:
    guard = Guard(lookup=unresolved(socket.EAI_NONAME))
    async with Sender(guard, user_agent="test", limit=4, proxy="http://proxy.example:3128") as sender:
        result = await post(sender, "http://203.0.114.7/")
    assert (result.error, result.is_local) == ("proxy_error", True)


@pytest.mark.parametrize("host", ["metadata.example", "169.254.169.254"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_with_a_forbidden_address_is_a_local_failure_whose_detail_names_the_address(host: str, scheme: str) -> None:
    def lookup(host: str, port: int) -> list[str]:
        return {"metadata.example": ["169.254.169.254"], "tracker.example": ["203.0.114.7"]}[host]

    async with Sender(Guard(lookup=lookup), user_agent="test", limit=4, proxy=f"http://{host}:3128") as sender:
        result = await post(sender, f"{scheme}://tracker.example/")
    assert (result.error, result.is_local) == ("proxy_error", True)
    assert result.detail == "the proxy (DELIVERY_PROXY) has a forbidden address"


async def test_the_sender_stops_running_address_checks_when_it_is_closed() -> None:
    is_released, looked_up = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def lookup(host: str, port: int) -> list[str]:
        loop.call_soon_threadsafe(looked_up.set)
        is_released.wait(PATIENCE)
        return ["203.0.114.7"]

    before = asyncio.all_tasks()
    sender = Sender(Guard(lookup=lookup), user_agent="test", limit=4, proxy="http://127.0.0.1:9")
    request = asyncio.create_task(post(sender, "http://silent.example/"))
    try:
        await asyncio.wait_for(looked_up.wait(), PATIENCE)
        request.cancel()
        await asyncio.wait([request])
        assert len(asyncio.all_tasks() - before) == 1, "the check outlives its request, because others may wait for it"
        await sender.close()
        assert asyncio.all_tasks() == before
    finally:
        is_released.set()


async def test_many_requests_to_a_name_that_does_not_resolve_delay_no_other_request_through_the_proxy() -> None:
    proxy, looked_up, is_released = Proxy(), [], threading.Event()

    def lookup(host: str, port: int) -> list[str]:
        looked_up.append(host)
        if host == "silent.example":
            is_released.wait(PATIENCE)
        return ["203.0.114.7"]

    async with (
        receiver(respond(200)) as peer,
        proxy.listen() as url,
        Sender(Guard(lookup=lookup), user_agent="test", limit=200, proxy=url) as sender,
    ):
        proxy.to = peer.port
        silent = [asyncio.create_task(post(sender, "http://silent.example/")) for _ in range(2 * MAX_LOOKUPS)]
        async with asyncio.timeout(PATIENCE):
            while "silent.example" not in looked_up:
                await asyncio.sleep(0.005)
        silent[0].cancel()
        assert (await post(sender, "http://tracker.example/")).status == 200
        assert looked_up.count("silent.example") == 1
        is_released.set()
        assert {(await one).status for one in silent[1:]} == {200}, "the request that ended did not end the look-up of the others"


async def test_a_service_with_the_setting_delivery_proxy_sends_deliveries_through_the_proxy(make_service: MakeService) -> None:
    proxy = Proxy()
    async with receiver(respond(200)) as peer, proxy.listen() as url:
        proxy.to = peer.port
        service = await make_service(delivery_proxy=url, allow_private_targets=False)
        with pytest.raises(ApiError):
            await service.trackers.create(AUDIT, 1, NewTracker(url="http://127.0.0.1/in", events=("click",)))
        await service.trackers.create(AUDIT, 1, NewTracker(url="http://203.0.114.7/in", events=("click",)))
        await Story(service).first_click()
        await deliver(service)
    assert [head.partition(b"\r\n")[0] for head in proxy.heads] == [b"POST http://203.0.114.7/in HTTP/1.1"]
    (delivery,) = await rows(service.database, schema.deliveries)
    assert delivery.last_status == 200
