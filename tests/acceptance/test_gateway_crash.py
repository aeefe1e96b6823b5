"""Tests that kill the service and the gateway with SIGKILL during sends. No message may be lost. A message for which the
gateway's response was recorded must not be sent again.

PROVE_SENDS is the number of messages (default: 1,000).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from shortener.ids import encode
from shortener.model import SendStatus
from tests.acceptance.process import Server, end_leases, serving
from tests.document_blocks import ROOT
from tests.servers import PATIENCE, free_port

SENDS = int(os.environ.get("PROVE_SENDS", "1000"))
#: The service sends a message again if the gateway's response comes too late. With this long time limit, that does not happen
#: even on a slow machine.
SETTINGS = {"GATEWAY_TIMEOUT": "30", "GATEWAY_SCHEDULE": "0.5,1,2,2,2", "GATEWAY_ATTEMPTS": "40", "GATEWAY_SLOTS_PER_GATEWAY": "8"}


class Gateway:
    """A gateway in a separate process."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.file = folder / "gateway.log"
        self.file.touch()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        line = [sys.executable, "-m", "tests.acceptance.gateway_process", str(self.port), str(self.file)]
        self._process = subprocess.Popen(line, cwd=ROOT)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)

    def received(self) -> list[str]:
        """Return the references of the messages that the gateway received, oldest first."""
        return self.file.read_text().split()

    def wait_for(self, number: int) -> None:
        """Wait until the gateway has received `number` different messages."""
        deadline = time.monotonic() + 10 * PATIENCE
        while len(set(self.received())) < number:
            assert time.monotonic() < deadline, f"{len(set(self.received()))} of {number} messages arrived"
            threading.Event().wait(0.02)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path)
    gateway.start()
    yield gateway
    gateway.kill()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    yield from serving(tmp_path, **SETTINGS)


def sends(server: Server, condition: str) -> set[str]:
    """Return the references of the messages for which an SQL condition on `sends` is true."""
    file = server.folder / "data" / "shortener.db"
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return {encode(row[0]) for row in connection.execute(f"SELECT id FROM sends WHERE {condition}")}


def test_after_kill_9_no_message_is_lost_and_no_message_with_a_gateway_response_is_sent_again(
    server: Server, gateway: Gateway
) -> None:
    server.command("gateways", "add", "test", "--preset", "plain", "--url", f"http://127.0.0.1:{gateway.port}/")
    server.select_gateway("test")
    with server.api() as client:
        for start in range(0, SENDS, 100):
            to = [f"+1408{5550000 + number}" for number in range(start, start + 100)]
            response = client.post("/api/v1/sms/send", json={"to": to, "message": "hello", "sender_id": "18775550100"})
            assert response.json()["sent"] is True, response.text

    def kill_service() -> tuple[set[str], int]:
        """Kill the service. Return the messages for which it had recorded a response, and the number of requests that the gateway
        had received."""
        server.kill()
        end_leases(server)
        return sends(server, f"status = {SendStatus.SENT:d}"), len(gateway.received())

    recorded = []
    gateway.wait_for(SENDS // 4)
    recorded.append(kill_service())
    server.start()
    gateway.wait_for(SENDS // 2)
    gateway.kill()
    gateway.start()
    gateway.wait_for(SENDS * 3 // 4)
    recorded.append(kill_service())
    server.start()

    gateway.wait_for(SENDS)
    deadline = time.monotonic() + 10 * PATIENCE
    while len(sends(server, f"status = {SendStatus.SENT:d} AND text IS NULL")) < SENDS:
        assert time.monotonic() < deadline, "a message is not recorded as sent"
        threading.Event().wait(0.2)
    received = gateway.received()
    for sent_before, arrived in recorded:
        assert sent_before
        assert not sent_before & set(received[arrived:]), "a message was sent again after its response was recorded"
    repeated = {reference for reference, times in Counter(received).items() if times > 1}
    assert repeated <= sends(server, "doubtful"), "a message was sent twice that is not marked as doubtful"
    assert len(repeated) <= 5 * 8, "at most the messages in flight are sent twice"
