"""Tests of `shortener.client` with a real server. They call every method, also while the server is killed, suspended, locked or
disconnected.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from shortener.client import (
    BadRequestError,
    BulkError,
    Client,
    ConflictError,
    ConnectionFailedError,
    DeadlineError,
    EventReceiver,
    NotFoundError,
    RetryPolicy,
    RewrittenText,
    ServerFailureError,
    WebhookEvent,
)
from tests.acceptance.endpoint import Endpoint
from tests.acceptance.process import PHONE, Server
from tests.document_blocks import ROOT
from tests.servers import PATIENCE

TO = "+14085550100"
TEXT = 'Look: #track("https://shop.example/a?b=1") now'
PATIENT = RetryPolicy(max_attempts=1000, first_delay=0.05, max_delay=0.2)


def client_of(server: Server, **options: Any) -> Client:
    values = {"api_key": server.first["api_key"], "tracker_token": server.first["tracker_token"], "timeout": PATIENCE, **options}
    return Client(server.base, **values)


def click(server: Server, text: RewrittenText) -> None:
    with server.client(**{"User-Agent": PHONE}) as handset:
        assert handset.get("/" + text.links[0].code).status_code == 302


def test_the_python_client_sends_a_message_and_reports_its_delivery_and_its_conversion(server: Server, endpoint: Endpoint) -> None:
    with client_of(server) as client, server.api() as api:
        tracker = {"name": "t", "url": endpoint.url, "events": ["click", "conversion"], "format": "json"}
        created = api.post("/api/v1/trackers", json={**tracker, "secret": "whsec_" + "c2VjcmV0" * 6}).json()
        assert created["status"] is True, created
        text = client.rewrite(to=TO, body=TEXT, from_="Shop", campaign="autumn", mt_price=Decimal("0.0095"), metadata={"order": 7})
        assert text.body == f"Look: {text.links[0].short_url} now"
        assert text.links[0].url == "https://shop.example/a?b=1"
        assert text.links[0].expires_at is not None
        report = client.report_delivery({"message_id": text.message_id, "state": "DELIVERED"}, {"message_id": "?", "state": "SENT"})
        assert (report.accepted, report.refused) == (1, 1)
        click(server, text)
        receipt = client.report_conversion(
            message_id=text.message_id,
            action="sale",
            value=Decimal("12.50"),
            currency="USD",
            transaction_id="o-1",
            metadata={"a": "b"},
        )
        assert not receipt.is_duplicate
        repeat = client.report_conversion(
            message_id=text.message_id, action="sale", value="12.50", currency="USD", transaction_id="o-1"
        )
        assert (repeat.conversion_id, repeat.is_duplicate) == (receipt.conversion_id, True)
        status = client.status(text.message_id)
        assert (status.state, status.mt_price, status.campaign) == ("CLICKTHRU", Decimal("0.0095"), "autumn")
        assert status.clicked_at is not None
        assert status.links[0].clicks == 1
        assert [one.value for one in status.conversions] == [Decimal("12.50")]
        assert [one.message_id for one in client.messages(campaign="autumn")] == [text.message_id]
        assert [one.conversion_id for one in client.conversions(action="sale")] == [receipt.conversion_id]
        assert [one.code for one in client.links(campaign="autumn")] == [text.links[0].code]
        assert [one["verdict"] for one in client.clicks(code=text.links[0].code)] == ["human"]
        assert {one["event"] for one in client.events(message_id=text.message_id)} >= {"click", "conversion"}
        assert client.update_link(text.links[0].code, url="https://shop.example/new").url == "https://shop.example/new"
        assert client.link(text.links[0].code).url == "https://shop.example/new"
        figures = client.statistics(campaign="autumn", tz="UTC")
        assert (figures.messages, figures.clicks, figures.conversions) == (1, 1, 1)
        assert client.statistics(campaign="spring").messages == 0
        days = list(client.statistics_by("daily", campaign="autumn"))
        assert (len(days), sum(day["messages"] for day in days)) == (30, 1)

        events: list[WebhookEvent] = []
        receiver = EventReceiver("whsec_" + "c2VjcmV0" * 6, events.append)
        received = endpoint.wait(2)
        for request in received * 2:
            assert receiver.handle(request.headers, request.body).status_code == 200
        assert sorted(event.name for event in events) == ["click", "conversion"]


def test_the_python_client_raises_errors_of_the_service_as_exceptions_with_details(server: Server) -> None:
    with client_of(server) as client:
        with pytest.raises(BadRequestError) as raised:
            client.rewrite(to="12", body='#track("ftp://x")')
        assert {detail.field for detail in raised.value.details} == {"to", "body"}
        assert raised.value.request_id
        with pytest.raises(NotFoundError) as not_found:
            client.status("nobody")
        assert not_found.value.error_code == "MESSAGE_NOT_FOUND"
        client.rewrite(to=TO, body=TEXT, message_id="m-1")
        assert client.rewrite(to=TO, body=TEXT, message_id="m-1").message_id == "m-1"
        with pytest.raises(ConflictError) as conflict:
            client.rewrite(to=TO, body=TEXT + "!", message_id="m-1")
        assert conflict.value.error_code == "MESSAGE_ID_CONFLICT"


def test_the_send_method_of_the_python_client_stores_messages_and_warns_if_the_application_has_no_gateway(server: Server) -> None:
    with client_of(server) as client:
        outcome = client.send(to=[TO, "+14085550101"], message=TEXT, sender_id="18775550100", campaign="sent")
        assert (outcome.accepted, outcome.is_sent) == (2, False)  # not sent, because the application has no gateway
        assert outcome.warnings[0].startswith("NOT_SENT")
        assert [message.message_id for message in client.messages(campaign="sent")] == [
            recipient.message_id for recipient in reversed(outcome.recipients)
        ]


def test_the_preview_method_of_the_python_client_returns_segments_and_stores_nothing(server: Server) -> None:
    with client_of(server) as client:
        text = client.preview(to=TO, body=TEXT, from_="Shop")
        assert (text.segments, len(text.links)) == (1, 1)
        assert list(client.messages()) == []


def numbers(count: int) -> list[str]:
    return [f"+1408555{index:04}" for index in range(count)]


def test_a_bulk_call_of_the_python_client_is_divided_into_requests_within_the_limits(
    tmp_path_factory: pytest.TempPathFactory, server: Server
) -> None:
    progress: list[tuple[int, int]] = []
    messages = [{"to": number, "body": TEXT, "message_id": f"m-{index}"} for index, number in enumerate(numbers(2500))]
    with client_of(server, batch_limit=4000) as client:
        texts = client.rewrite_many(messages, progress=lambda done, total: progress.append((done, total)))  # type: ignore[arg-type]
        assert [text.message_id for text in texts] == [f"m-{index}" for index in range(2500)]
        assert len({link.code for text in texts if isinstance(text, RewrittenText) for link in text.links}) == 2500
        assert progress[-1] == (2500, 2500)
        invalid = [{"to": TO, "body": TEXT}, {"to": "12", "body": TEXT}]
        skipped = client.rewrite_many(invalid, on_invalid="skip")  # type: ignore[arg-type]
        assert getattr(skipped[1], "error_code", None) == "INVALID_RECIPIENT"
        with pytest.raises(BulkError) as raised:
            client.rewrite_many([*messages, *invalid], idempotency_key="job")  # type: ignore[list-item]
        assert isinstance(raised.value.__cause__, BadRequestError)
        assert raised.value.__cause__.details[0].index == 2501


def test_a_call_of_the_python_client_succeeds_although_the_service_was_killed_and_restarted(server: Server) -> None:
    with client_of(server, retry=PATIENT) as client:
        first = client.rewrite(to=TO, body=TEXT, message_id="m-1")
        server.kill()
        with pytest.raises(ConnectionFailedError):
            Client(server.base, api_key="KEY", timeout=10).rewrite(to=TO, body=TEXT)
        long = client.rewrite(to=TO, body=TEXT, on_failure="send_long", timeout=0.5)
        assert (long.body, long.is_tracked) == ("Look: https://shop.example/a?b=1 now", False)
        restart = threading.Timer(0.3, server.start)
        restart.start()
        again = client.rewrite(to=TO, body=TEXT, message_id="m-1")
        restart.join()
        assert again.links == first.links
        # The message with long URLs was not stored by the service, so a later rewrite can use the same message id.
        assert client.rewrite(to=TO, body=TEXT, message_id=long.message_id).message_id == long.message_id


def test_the_python_client_raises_a_deadline_error_if_the_service_process_is_suspended(server: Server) -> None:
    assert server.process is not None
    with client_of(server) as client:
        client.rewrite(to=TO, body=TEXT)
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(DeadlineError):
                client.rewrite(to=TO, body=TEXT, timeout=0.5)
            assert client.rewrite(to=TO, body=TEXT, timeout=0.5, on_failure="send_long").is_tracked is False
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        assert client.rewrite(to=TO, body=TEXT).is_tracked


@contextlib.contextmanager
def locked_database(server: Server) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(server.folder / "data" / "shortener.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def test_the_python_client_repeats_a_request_after_a_503_response_until_the_database_is_unlocked(server: Server) -> None:
    with client_of(server, retry=PATIENT) as client:
        unavailable = None
        deadline = time.monotonic() + PATIENCE
        with locked_database(server):
            # the time limit is longer than usual, because a busy server may need more than 4 seconds for its first response
            while unavailable is None:
                assert time.monotonic() < deadline, "no call ended with a 503 response"
                with pytest.raises((ServerFailureError, DeadlineError)) as raised:
                    client.rewrite(to=TO, body=TEXT, timeout=4)
                errors = [raised.value, raised.value.__cause__]
                unavailable = next((one for one in errors if isinstance(one, ServerFailureError)), None)
        assert (unavailable.error_code, unavailable.retry_after) == ("UNAVAILABLE", 2)
        with ThreadPoolExecutor(1) as pool:
            with locked_database(server):
                future = pool.submit(client.rewrite, to=TO, body=TEXT)
                threading.Event().wait(3)
                assert not future.done()
            assert future.result(PATIENCE).is_tracked


class CuttingProxy:
    """A TCP proxy that cuts off each of the first `cuts` responses after 100 bytes."""

    def __init__(self, port: int, cuts: int) -> None:
        self._port = port
        self._cuts = cuts
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                inbound, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._relay, args=(inbound, self.connections <= self._cuts), daemon=True).start()

    def _relay(self, inbound: socket.socket, is_cut: bool) -> None:
        with inbound, socket.create_connection(("127.0.0.1", self._port)) as outbound, contextlib.suppress(OSError):

            def forward() -> None:
                with contextlib.suppress(OSError):
                    while data := inbound.recv(65536):
                        outbound.sendall(data)

            threading.Thread(target=forward, daemon=True).start()
            while data := outbound.recv(65536):
                inbound.sendall(data[:100] if is_cut else data)
                if is_cut:
                    inbound.shutdown(socket.SHUT_RDWR)
                    return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def test_a_message_is_stored_once_although_the_client_repeats_a_request_whose_response_was_cut_off(server: Server) -> None:
    proxy = CuttingProxy(server.port, cuts=2)
    with Client(proxy.base, api_key=server.first["api_key"], timeout=PATIENCE) as client:
        text = client.rewrite(to=TO, body=TEXT, campaign="cut")
        assert proxy.connections == 3
        assert [message.message_id for message in client.messages(campaign="cut")] == [text.message_id]
        assert [link.code for link in client.links(campaign="cut")] == [text.links[0].code]
    proxy.close()


def test_the_code_blocks_of_the_python_client_guide_run_in_order(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    guide = (ROOT / "docs" / "guides" / "python-client.md").read_text().replace("http://127.0.0.1:8000", server.base)
    blocks = re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"KEY": server.first["api_key"]}
    for block in blocks:
        exec(compile(block, "python-client.md", "exec"), names)
    printed = capsys.readouterr().out
    provider = Endpoint()
    names["TWILIO"] = provider.url
    message_id = names["send_with_twilio"]("+14085550100", 'See #track("https://example.com/offer")')
    form = {name: value for name, [value] in parse_qs(provider.wait(1)[0].body.decode()).items()}
    provider.close()
    assert form["Body"].startswith(f"See {server.base}/")
    assert parse_qs(urlsplit(form["StatusCallback"]).query) == {"message_id": [message_id]}
    states = []
    for status in ({"MessageStatus": "sent"}, {"MessageStatus": "undelivered", "ErrorCode": "30005"}):
        names["handle_twilio_status"](message_id, {"MessageSid": "SM1"} | status)
        stored = names["client"].status(message_id)
        states.append((stored.state, stored.raw["reason_code"], stored.raw["telecom_message_id"]))
    assert [state for state, _, _ in states] == ["SENT", "FAILED"]
    assert states[1] == ("FAILED", "30005", "SM1")
    assert "2 of 2" in printed
    assert names["text"].is_tracked
    names["client"].close()
