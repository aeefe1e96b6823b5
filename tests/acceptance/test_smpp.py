"""Tests of messages to a real SMSC over SMPP: the server of the npm package `smpp`. They are skipped if Node or npm is not
installed.

PROVE_SENDS is the number of messages in the test with kill -9 (default: 1,000).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.process import Server, end_leases, serving
from tests.servers import PATIENCE, free_port

SENDS = int(os.environ.get("PROVE_SENDS", "1000"))
SCRIPT = Path(__file__).with_name("smsc.js")
SETTINGS = {
    # a long time limit: if a response comes too late, the service sends the message again, and the machine may be slow
    "GATEWAY_TIMEOUT": "30",
    "GATEWAY_SCHEDULE": "0.5,1,2,2,2",
    "GATEWAY_ATTEMPTS": "40",
    "GATEWAY_SLOTS_PER_GATEWAY": "8",
    "REPORT_WAIT": "2",
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the npm package `smpp` is installed."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("SKIPPED: no SMPP message was sent to a real SMSC, because node or npm is missing (apt-get install nodejs npm)")
    folder = tmp_path_factory.mktemp("smpp")
    line = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", "smpp@0.5.1"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=4 * PATIENCE, check=False)
    if done.returncode:
        pytest.skip(f"SKIPPED: no SMPP message was sent to a real SMSC, because npm cannot install it: {done.stderr[-300:]}")
    return folder


class NodeSmsc:
    """The process of the SMSC, which runs in Node."""

    def __init__(self, packages: Path, folder: Path, *tls: str) -> None:
        self.port = free_port()
        self.log = folder / "smsc.log"
        self.log.touch()
        self._line = ["node", str(SCRIPT), str(packages), str(self.port), str(self.log), *tls]
        self.start()

    def start(self) -> None:
        """Start the SMSC process. It appends to the log of an earlier process."""
        self.process = subprocess.Popen(self._line)

    def stop(self) -> None:
        """Kill the SMSC process."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def entries(self, event: str) -> list[dict[str, Any]]:
        """Return the logged events of one kind, oldest first."""
        lines = self.log.read_text().split("\n")[:-1]
        return [entry for entry in map(json.loads, lines) if entry["event"] == event]


def wait_until(condition: Callable[[], Any], text: str, patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, text
        threading.Event().wait(0.05)


@pytest.fixture
def smsc(packages: Path, tmp_path: Path) -> Iterator[NodeSmsc]:
    smsc = NodeSmsc(packages, tmp_path)
    yield smsc
    smsc.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    yield from serving(tmp_path, **SETTINGS)


def add_gateway(server: Server, url: str, *options: str) -> None:
    """Add an SMPP gateway and select it. `options` are additional options of the command `gateways add`."""
    credentials = ("--set", "system_id=shortener", "--set", "password=secret", "--set", "message_ids=hex_response")
    server.command("gateways", "add", "smsc", "--kind", "smpp", "--url", url, "--allow-private", *credentials, *options)
    server.select_gateway("smsc")


def send(server: Server, text: str, *numbers: str) -> list[str]:
    """Send a text to one or more numbers. Return the message ids."""
    with server.api() as client:
        body = {"to": list(numbers or ["+14085550100"]), "sender_id": "Brand", "message": text}
        response = client.post("/api/v1/sms/send", json=body)
        assert response.json()["sent"] is True, response.text
        return [one["message_id"] for one in response.json()["messages"]]


def wait_for_state(server: Server, message_id: str, state: str) -> dict[str, Any]:
    with server.api() as client:
        status: dict[str, Any] = {}

        def has_state() -> bool:
            status.update(client.get(f"/api/v1/sms/status/{message_id}").json())
            return bool(status["state"] == state)

        wait_until(has_state, f"the state of the message is not {state}: {status}")
    return status


@pytest.mark.parametrize(
    ("text", "coding", "parts"),
    [
        ("plain €uro [ok] ~{} @£", 0, 1),
        ("Привет 😀", 8, 1),
        ("€" * 90 + "0123456789" * 20, 0, 3),
        ("я😀" * 60, 8, 3),
    ],
)
def test_a_message_is_sent_to_the_smsc_over_smpp_and_its_delivery_receipt_is_recorded(
    server: Server, smsc: NodeSmsc, text: str, coding: int, parts: int
) -> None:
    add_gateway(server, f"smpp://127.0.0.1:{smsc.port}")
    [message_id] = send(server, text)
    wait_for_state(server, message_id, "DELIVERED")
    submits = smsc.entries("submit")
    assert "".join(one["text"] for one in sorted(submits, key=lambda one: one["udh"])) == text
    assert (len(submits), {one["coding"] for one in submits}) == (parts, {coding})
    assert (submits[0]["to"], submits[0]["from"]) == ("14085550100", "Brand")


def test_an_smpp_message_is_repeated_if_throttled_fails_if_rejected_and_is_doubtful_if_the_connection_drops(
    server: Server, smsc: NodeSmsc
) -> None:
    add_gateway(server, f"smpp://127.0.0.1:{smsc.port}")
    throttled, rejected = (send(server, text)[0] for text in ("throttle", "reject"))
    wait_for_state(server, throttled, "DELIVERED")
    failed = wait_for_state(server, rejected, "FAILED")
    assert "ESME_RINVDSTADR" in json.dumps(failed)
    # Send "drop" only after the other messages have ended, because every message in flight becomes doubtful when the connection
    # drops.
    dropped = send(server, "drop")[0]
    wait_for_state(server, dropped, "DELIVERED")
    counts = Counter(one["text"] for one in smsc.entries("submit"))
    assert (counts["throttle"], counts["reject"], counts["drop"]) == (2, 1, 2)
    with server.api() as client:
        sends = {one["message_id"]: one for one in client.get("/api/v1/sends").json()["sends"]}
    assert (sends[dropped]["doubtful"], sends[throttled]["doubtful"]) == (True, False)
    [gateway] = [one for one in server.command("gateways", "list") if one["name"] == "smsc"]
    assert gateway["health"]["breaker"] == "closed"


def test_a_doubtful_message_is_held_and_not_repeated_if_the_gateway_has_the_option_on_doubt_hold(
    server: Server, smsc: NodeSmsc
) -> None:
    add_gateway(server, f"smpp://127.0.0.1:{smsc.port}", "--on-doubt", "hold")
    send(server, "drop")
    with server.api() as client:
        wait_until(lambda: client.get("/api/v1/sends?send_status=held").json()["sends"], "the message is not held")
    assert len(smsc.entries("submit")) == 1


def test_a_reply_with_a_stop_word_opts_the_recipient_out(server: Server, smsc: NodeSmsc) -> None:
    add_gateway(server, f"smpp://127.0.0.1:{smsc.port}")
    [message_id] = send(server, "ask")
    wait_for_state(server, message_id, "DELIVERED")
    with server.api() as client:

        def is_opted_out() -> bool:
            phones = [one["phone"] for one in client.get("/api/v1/opt-outs").json()["opt_outs"]]
            return phones == ["+14085550100"]

        wait_until(is_opted_out, "the recipient is not on the opt-out list")
        response = client.post("/api/v1/sms/send", json={"to": ["+14085550100"], "sender_id": "Brand", "message": "again"})
        assert "OPTED_OUT" in response.text


def test_smpp_connections_use_tls_and_an_untrusted_certificate_is_rejected(packages: Path, tmp_path: Path, server: Server) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    line = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*line, *names], check=True, capture_output=True, timeout=PATIENCE)
    smsc = NodeSmsc(packages, tmp_path, str(key), str(certificate))
    try:
        add_gateway(server, f"smpps://127.0.0.1:{smsc.port}", "--set", f"tls_ca={certificate.read_text()}")
        wait_for_state(server, send(server, "over TLS")[0], "DELIVERED")
        assert smsc.entries("bind")[0]["secure"] is True
        with server.api() as client:
            settings = {"url": f"smpps://127.0.0.1:{smsc.port}", "system_id": "shortener"}
            wrong = client.post("/api/v1/gateways", json={"name": "wrong", "kind": "smpp", "settings": settings}).json()
            tested = client.post(f"/api/v1/gateways/{wrong['gateway_id']}/test", json={"to": "+14085550100"}).json()
        assert (tested["outcome"], tested["reason"]) == ("retry", "tls_error")
    finally:
        smsc.stop()


def test_after_kill_9_of_service_and_smsc_no_message_is_lost_and_no_message_with_a_response_is_sent_again(
    server: Server, smsc: NodeSmsc
) -> None:
    add_gateway(server, f"smpp://127.0.0.1:{smsc.port}")
    numbers = [f"+1408{5550000 + number}" for number in range(SENDS)]
    for start in range(0, SENDS, 100):
        send(server, "hello", *numbers[start : start + 100])
    recorded = []
    for part, killed in ((1, "service"), (2, "SMSC"), (3, "service")):
        wait_until(
            lambda part=part: len(smsc.entries("submit")) >= SENDS * part // 4,  # type: ignore[misc]
            "the messages do not arrive",
            10 * PATIENCE,
        )
        kill, restart = (server.kill, server.start) if killed == "service" else (smsc.stop, smsc.start)
        kill()
        if killed == "service":
            end_leases(server)
        recorded.append((sent_numbers(server), len(smsc.entries("submit"))))
        restart()
    wait_until(lambda: len(sent_numbers(server)) == SENDS, "a message is not recorded as sent", 10 * PATIENCE)
    submitted = [f"+{one['to']}" for one in smsc.entries("submit")]
    assert set(submitted) == set(numbers), "a message was lost"
    for sent_before, arrived in recorded:
        assert sent_before
        assert not sent_before & set(submitted[arrived:]), "a message was sent again after its response was recorded"
    repeated = {number for number, times in Counter(submitted).items() if times > 1}
    assert repeated <= sent_numbers(server, "s.doubtful"), "a message was sent twice that is not marked as doubtful"
    assert len(repeated) <= 3 * 8, "at most the messages in flight are sent twice"


def sent_numbers(server: Server, condition: str = "s.status = 1") -> set[str]:
    """Return the numbers of the messages for which an SQL condition is true. By default, these are the messages with a recorded
    response."""
    file = server.folder / "data" / "shortener.db"
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        query = "SELECT m.to_address FROM sends s JOIN messages m ON m.id = s.id WHERE "
        return {row[0] for row in connection.execute(query + condition)}
