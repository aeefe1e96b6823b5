"""Tests of messages through a real Kannel: bearerbox, smsbox and its fake SMSC. They are skipped if Debian's packages of Kannel
are not installed.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.process import NO_TLS, Server
from tests.servers import PATIENCE, free_port

FAKE_SMSC = Path("/usr/lib/kannel/test/fakesmsc")
BEARERBOX, SMSBOX = (shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/sbin") for name in ("bearerbox", "smsbox"))
#: The SMPP server of the Kannel project. Debian has no package of it, so it may be missing.
OPENSMPPBOX = shutil.which("opensmppbox")
pytestmark = pytest.mark.skipif(
    not (BEARERBOX and SMSBOX and FAKE_SMSC.exists()),
    reason="Kannel is not installed: apt-get install kannel kannel-extras",
)

CONFIGURATION = """
group = core
admin-port = {admin}
admin-password = test
smsbox-port = {boxes}
box-allow-ip = 127.0.0.1
dlr-storage = internal

group = smsc
smsc = fake
smsc-id = FAKE
port = {smsc}
connect-allow-ip = 127.0.0.1

group = smsbox
bearerbox-host = 127.0.0.1
sendsms-port = {http}

group = sendsms-user
username = tester
password = foobar
max-messages = 10
concatenation = true

group = sms-service
keyword = default
max-messages = 0
text = ""
"""

SMPP_CONFIGURATION = """
group = core
dlr-storage = internal

group = opensmppbox
opensmppbox-id = box
opensmppbox-port = {smpp}
bearerbox-host = 127.0.0.1
bearerbox-port = {boxes}
log-level = 1
our-system-id = kannel
route-to-smsc = FAKE
smpp-logins = "{logins}"
"""


class Kannel:
    """A running Kannel. `port` is the port of its HTTP interface."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._ports = {name: free_port() for name in ("admin", "boxes", "smsc")}
        self._folder = folder
        self._file = folder / "kannel.conf"
        self._file.write_text(CONFIGURATION.format(http=self.port, **self._ports))
        self._messages = folder / "fakesmsc.log"
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self._run("bearerbox.log", str(BEARERBOX), str(self._file))
        _wait_for_port(self._ports["boxes"])
        self._run("smsbox.log", str(SMSBOX), str(self._file))
        smsc = str(self._ports["smsc"])
        self._run("fakesmsc.log", str(FAKE_SMSC), "-H", "127.0.0.1", "-r", smsc, "-i", "1", "-m", "0", "1 2 text nothing")
        _wait_for_port(self.port)

    def start_smpp_server(self) -> int:
        """Start Kannel's SMPP server, on which the user is `tester` and the password is `foobar`. Return its port."""
        logins, file, port = self._folder / "logins.txt", self._folder / "smpp.conf", free_port()
        logins.write_text("tester foobar shop *.*.*.*\n")
        file.write_text(SMPP_CONFIGURATION.format(smpp=port, logins=logins, **self._ports))
        self._run("smpp.log", str(OPENSMPPBOX), str(file))
        _wait_for_port(port)
        return port

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait(PATIENCE)
        self._processes.clear()

    def messages(self) -> str:
        """Return the log of the fake SMSC, which contains each message that it received."""
        return self._messages.read_text(errors="replace")

    def _run(self, log: str, *words: str) -> None:
        with (self._folder / log).open("ab") as output:
            self._processes.append(subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, cwd=self._folder))


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/", timeout=1, verify=NO_TLS, trust_env=False)
            return
        except httpx.ConnectError:
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            threading.Event().wait(0.05)
        except httpx.TransportError:  # the process on this port accepts connections, but does not speak HTTP
            return


@pytest.fixture
def kannel(tmp_path: Path) -> Iterator[Kannel]:
    kannel = Kannel(tmp_path)
    with ExitStack() as stack:
        stack.callback(kannel.stop)
        kannel.start()
        yield kannel


@pytest.fixture
def gateway_id(server: Server, kannel: Kannel) -> int:
    """Return the id of a Kannel gateway that is selected for the default application."""
    options = ("--option", "username=tester", "--option", "password=foobar", "--allow-private")
    url = f"http://127.0.0.1:{kannel.port}/cgi-bin/sendsms"
    added = server.command("gateways", "add", "kannel", "--preset", "kannel", "--url", url, *options)
    server.select_gateway("kannel")
    number: int = added["gateway_id"]
    return number


def send(server: Server, text: str, **fields: Any) -> str:
    """Send a message and return its id."""
    with server.api() as client:
        body = {"to": ["+14085550100"], "sender_id": "Brand", "message": text, **fields}
        response = client.post("/api/v1/sms/send", json=body)
        assert response.json()["sent"] is True, response.text
        message_id: str = response.json()["messages"][0]["message_id"]
        return message_id


def wait_for_state(server: Server, message_id: str, state: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE
    with server.api() as client:
        while True:
            status: dict[str, Any] = client.get(f"/api/v1/sms/status/{message_id}").json()
            if status["state"] == state:
                return status
            assert time.monotonic() < deadline, status
            threading.Event().wait(0.05)


def test_a_message_reaches_the_smsc_of_kannel_and_its_delivery_report_comes_back(
    server: Server, kannel: Kannel, gateway_id: int
) -> None:
    message_id = send(server, 'Grüße & 100 % +1 #track("https://shop.example/?a=1&b=2")')
    status = wait_for_state(server, message_id, "DELIVERED")
    assert status["sent_at"] is not None
    short = status["links"][0]["short_url"]
    assert f"Brand +14085550100 text Grüße & 100 % +1 {short}" in kannel.messages()


def test_unicode_messages_and_long_messages_are_sent_through_kannel(server: Server, kannel: Kannel, gateway_id: int) -> None:
    for text in ("Привет, мир 😀", "x" * 400, "€uro [ok] ~{}"):
        wait_for_state(server, send(server, text), "DELIVERED")


def test_messages_wait_while_kannel_is_down_and_are_sent_when_it_is_back(server: Server, kannel: Kannel, gateway_id: int) -> None:
    server.command("gateways", "update", str(gateway_id), "--schedule", "0.5")
    kannel.stop()
    message_id = send(server, "later")
    threading.Event().wait(1)
    kannel.start()
    wait_for_state(server, message_id, "DELIVERED")


def test_a_test_message_to_kannel_with_wrong_credentials_shows_the_error(server: Server, kannel: Kannel, gateway_id: int) -> None:
    with server.api() as client:
        body = {
            "name": "wrong",
            "preset": "kannel",
            "options": {"url": f"http://127.0.0.1:{kannel.port}/cgi-bin/sendsms", "username": "tester", "password": "wrong"},
        }
        wrong = client.post("/api/v1/gateways", json=body).json()["gateway_id"]
        refused = client.post(f"/api/v1/gateways/{wrong}/test", json={"to": "+14085550100"}).json()
    assert (refused["outcome"], refused["http_status"]) == ("retry", 403)
    assert "Authorization failed" in refused["detail"]


@pytest.mark.skipif(not OPENSMPPBOX, reason="Kannel's opensmppbox is not installed: build it from its source with kannel-dev")
def test_messages_are_sent_to_kannel_over_smpp_and_delivery_receipts_come_back(server: Server, kannel: Kannel) -> None:
    url = f"smpp://127.0.0.1:{kannel.start_smpp_server()}"
    settings = ("--set", "system_id=tester", "--set", "password=foobar", "--set", "system_type=shop")
    server.command("gateways", "add", "kannel-smpp", "--kind", "smpp", "--url", url, "--allow-private", *settings)
    server.select_gateway("kannel-smpp")
    for text in ("plain €uro [ok]", "Привет 😀"):
        wait_for_state(server, send(server, text), "DELIVERED")
    assert "Brand +14085550100 text plain €uro [ok]" in kannel.messages()
    # opensmppbox joins the parts of a long message, and does not send a delivery receipt for it
    wait_for_state(server, send(server, "я😀" * 60), "SENT")
