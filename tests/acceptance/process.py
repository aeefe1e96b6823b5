"""A real server process for tests, which start it, call it over HTTP, and kill it."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson

from tests import fork_server
from tests.fork_server import AnyProcess
from tests.servers import PATIENCE, free_port

PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Mobile/15E148 Safari/604.1"
)

#: These TLS settings are for clients of servers without TLS. Without them, httpx would read all CA certificates for each new
#: client, which takes as long as twenty requests.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

#: The longest permitted HIT_DEADLINE. With it, each hit is stored before its response, even on a slow machine. Many tests need
#: this, because they read a click directly after its response.
NO_EARLY_RESPONSE = "60"


@dataclass
class Server:
    """One `shortener serve` process. `first` contains the credentials that the first start printed."""

    folder: Path
    port: int
    environment: dict[str, str]
    process: AnyProcess | None = None
    first: dict[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    printed: str = ""

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        words = ["serve", "--port", str(self.port), "--json", *self.options]
        self.process = fork_server.start(words, self.environment, cwd=self.folder, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server did not start"
        self.printed = line.decode()
        self.first = orjson.loads(line)["first_start"] or self.first
        deadline = time.monotonic() + PATIENCE
        with httpx.Client(verify=NO_TLS, trust_env=False) as client:
            while time.monotonic() < deadline:
                with contextlib.suppress(httpx.TransportError):
                    if client.get(f"{self.base}/readyz").status_code == 200:
                        return
                assert self.process.poll() is None, "the server process has ended"
                threading.Event().wait(0.02)
        raise AssertionError("the server is not ready")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)
        self._close()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal that stops the server, and wait for its end. Return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._close()
        return code

    def command(self, *words: str) -> Any:
        """Run `shortener WORDS --json` while the server runs. Return the parsed output."""
        command = [*words, "--json"]
        done = fork_server.run(command, self.environment, cwd=self.folder, stdout=subprocess.PIPE, check=True, timeout=PATIENCE)
        return orjson.loads(done.stdout)

    def select_gateway(self, name: str) -> None:
        """Select a gateway for application 1 on the command line. Wait until the running service uses this gateway."""
        self.command("applications", "update", "1", "--gateway", name)
        deadline = time.monotonic() + PATIENCE
        with self.api() as client:
            while client.get("/api/v1/application").json()["gateway"] != name:
                assert time.monotonic() < deadline, f"the service does not use the gateway {name}"
                threading.Event().wait(0.02)

    def _close(self) -> None:
        assert self.process is not None
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.base, headers=headers, timeout=PATIENCE, verify=NO_TLS, trust_env=False)

    def api(self) -> httpx.Client:
        return self.client(**{"X-API-Key": self.first["api_key"]})

    def tracker(self) -> httpx.Client:
        return self.client(**{"X-Api-Token": self.first["tracker_token"]})


def serving(folder: Path, **settings: str) -> Iterator[Server]:
    """Start a server whose data is in `folder`. Stop it at the end of the `with` block."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHORTENER_")}
    environment |= {
        "SHORTENER_DATA_DIR": str(folder / "data"),
        "SHORTENER_ALLOW_PRIVATE_TARGETS": "true",
        "SHORTENER_DELIVERY_SCHEDULE": "0.1,0.1,0.1",
        "SHORTENER_HIT_DEADLINE": NO_EARLY_RESPONSE,
        **{f"SHORTENER_{name}": value for name, value in settings.items()},
    }
    server = Server(folder, free_port(), environment)
    server.start()
    yield server
    if server.process is not None:
        server.kill()


def end_leases(server: Server) -> None:
    """End the leases of messages that a killed service has left, so that the test does not wait until they end."""
    with contextlib.closing(sqlite3.connect(server.folder / "data" / "shortener.db")) as connection, connection:
        now = round(time.time() * 1000)
        connection.execute("UPDATE sends SET lease_until = ?, next_at = ? WHERE lease_until > ?", (now, now, now))


def wait_until_delivered(server: Server) -> None:
    """Wait until the server has created the deliveries of all events, and no delivery is pending."""
    file = server.folder / "data" / "shortener.db"
    pending = "SELECT 1 FROM events WHERE NOT fanned_out UNION ALL SELECT 1 FROM deliveries WHERE status = 0 LIMIT 1"
    deadline = time.monotonic() + PATIENCE
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        while connection.execute(pending).fetchone():
            assert time.monotonic() < deadline, "a delivery is pending"
            threading.Event().wait(0.02)  # wait a moment, then check the condition again


@contextlib.contextmanager
def locked(server: Server) -> Iterator[None]:
    """During the `with` block, lock the database with a separate write transaction, as another process does."""
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN IMMEDIATE'); "
    program += "print('locked', flush=True); sys.stdin.read()"
    file = server.folder / "data" / "shortener.db"
    process = subprocess.Popen([sys.executable, "-c", program, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"locked\n"
    try:
        yield
    finally:
        process.communicate(timeout=PATIENCE)
