"""Tests of hostile requests, which try to slow down or block a real server. They must not delay the clicks of other clients.

`make prove` opens 2,000 connections. The machine may be busy, so the tests compare the times of clicks during an attack with
their times on the same server without an attack.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.acceptance.process import PHONE, Server, serving
from tests.servers import PATIENCE

CONNECTIONS = int(os.environ.get("PROVE_CONNECTIONS", "400"))
BODY_BYTES = 8 * 1024 * 1024 - 4096
QUIET_SECONDS = 2.0
#: The maximum duration of a click during a hostile request, on a machine that does nothing else.
MAX_WAIT_SECONDS = 0.1
MACHINE_FACTOR = 5  # a click may take this many times the maximum, because the machine may run other programs
#: MAX_WAIT_SECONDS applies to a machine on which a Python loop with WORK rounds takes WORK_SECONDS.
WORK, WORK_SECONDS = 3_000_000, 0.1
MAX_GROWTH_BYTES = 100 * 1024 * 1024


# A separate process sends the clicks. A thread would wait for the interpreter lock while the test reads a large response.
CLICKER = """
import http.client, json, select, sys, time
port, path, agent = int(sys.argv[1]), sys.argv[2], sys.argv[3]
clicks, connection = [], None
while not select.select([sys.stdin], [], [], 0.02)[0]:  # the pause between two clicks
    began, failure = time.monotonic(), None
    try:
        connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", path, headers={"User-Agent": agent, "Host": f"127.0.0.1:{port}"})
        response = connection.getresponse()
        response.read()
        if response.status != 302:
            failure = str(response.status)
    except (OSError, http.client.HTTPException) as error:
        failure = repr(error)
        connection = None
    clicks.append([began, time.monotonic(), failure])
    if len(clicks) == 1:
        print("began", flush=True)
print(json.dumps(clicks), flush=True)
"""


class Click(NamedTuple):
    """One click: the times at which it began and ended, and the failure if it got no redirect."""

    began: float
    ended: float
    failure: str | None


@dataclass
class Clicker(contextlib.AbstractContextManager["Clicker"]):
    """A separate process that clicks on one link, one click after the other. The results are available after the `with` block."""

    server: Server
    path: str
    clicks: list[Click] = field(default_factory=list)

    def __enter__(self) -> Clicker:
        command = [sys.executable, "-S", "-c", CLICKER, str(self.server.port), self.path, PHONE]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "began\n"
        return self

    def __exit__(self, *exc_info: object) -> None:
        output, _ = self._process.communicate(timeout=PATIENCE)  # the end of the input ends the process
        self.clicks = [Click(*click) for click in json.loads(output)]

    @property
    def failures(self) -> list[str]:
        return [click.failure for click in self.clicks if click.failure is not None]

    @property
    def longest(self) -> float:
        return max(click.ended - click.began for click in self.clicks)

    def longest_between(self, start: float, end: float) -> float:
        """Return the longest duration of the clicks between two times on the clock `time.monotonic`. Without a click between
        them, return the duration of the next click."""
        later = [click for click in self.clicks if click.ended >= start]
        between = later[:1] + [click for click in later if click.began <= end]
        return max((click.ended - click.began for click in between), default=0.0)


def code_of(server: Server) -> str:
    with server.api() as client:
        response = client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": '#track("https://x.example/")'})
    return "/" + str(response.json()["messages"][0]["links"][0]["code"])


def quiet_clicks(server: Server, path: str) -> float:
    """Return the duration of the longest click on a server that does nothing else."""
    with Clicker(server, path) as clicker:
        time.sleep(QUIET_SECONDS)  # measure the clicks for this time
    assert not clicker.failures
    return clicker.longest


def slowness() -> float:
    """Return how much slower than an idle machine this machine is now, as a factor of at least 1."""
    began = time.monotonic()
    for _ in range(WORK):
        pass
    return max(1.0, (time.monotonic() - began) / WORK_SECONDS)


def bound(quiet: float) -> float:
    return MACHINE_FACTOR * (MAX_WAIT_SECONDS * slowness() + quiet)


def rss(server: Server) -> int:
    assert server.process is not None
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fill(begin: bytes, piece: bytes, end: bytes = b"") -> bytes:
    return begin + piece * ((BODY_BYTES - len(begin) - len(end)) // len(piece)) + end


def numbered(begin: bytes, end: bytes) -> bytes:
    """Return a JSON object with so many different fields that it reaches the maximum size of a body."""
    parts: list[bytes] = []
    size = 0
    for number in itertools.count():
        part = b'"p%d":"{a}",' % number
        size += len(part)
        if size > BODY_BYTES:
            return begin + b"".join(parts) + end
        parts.append(part)
    raise AssertionError


def hostile_bodies() -> dict[str, tuple[str, bytes]]:
    """Return the hostile requests: the path and the body, by the name of the body. A path may begin with the method, or with
    `form` if the body is a form."""
    many_fields = b"{" + b",".join(b'"p%d":1' % number for number in range(150)) + b"},"
    known_fields = b'{"to":[' + b"1," * 49 + b'1],"body":5,"from":[],"track":"x","mt_price":[],"expires_in":0,"metadata":1},'
    invalid_recipients = b'{"body":"","to":[' + b'"1",' * 90 + b'"1"],"message_id":[' + b'"1",' * 90 + b'"1"]},'
    return {
        "empty objects in messages": ("/api/v1/rewrite", fill(b'{"messages":[', b"{},", b"{}]}")),
        "unknown fields": ("/api/v1/rewrite", b'{"messages":[' + (many_fields * 1000)[:-1] + b"]}"),
        "known fields of a wrong type": ("/api/v1/rewrite", b'{"messages":[' + (known_fields * 1000)[:-1] + b"]}"),
        "invalid recipients and a field of a wrong type": (
            "/api/v1/rewrite",
            b'{"messages":[' + invalid_recipients * 999 + b'{"to":"1","body":5}]}',
        ),
        "recipients that are numbers": ("/api/v1/rewrite", b'{"to":[' + b"1," * 100_000 + b'1],"body":""}'),
        "long texts with URLs": (
            "/api/v1/rewrite",
            b'{"messages":['
            + (b'{"to":"+14085550100","track":"all_urls","body":"' + b"see SALE.shop.com/a?b=1 now. " * 280 + b'"},') * 499
            + b'{"to":"+14085550100","body":""}]}',
        ),
        "long texts with URLs and a field of a wrong type": (
            "/api/v1/rewrite",
            b'{"messages":['
            + (b'{"to":"+14085550100","track":"all_urls","body":"' + b"see SALE.shop.com/a?b=1 now. " * 280 + b'"},') * 99
            + b'{"to":"+14085550100","body":"","mt_price":[]}]}',
        ),
        "a text of signs": ("/api/v1/rewrite", b'{"to":"+14085550100","body":"' + b"#a\\u00e9(" * 3000 + b'"}'),
        "many destinations": (
            "/api/v1/rewrite",
            b'{"messages":[' + (b'{"destinations":[' + b"{}," * 199 + b"{}]},") * 999 + b"{}]}",
        ),
        "one long text": ("/api/v1/rewrite", fill(b'{"to":"+14085550100","body":"', b"x", b'"}')),
        "a deep document": ("/api/v1/rewrite", fill(b"", b"[")),
        "many numbers": ("/api/v1/rewrite", fill(b"[", b"1,", b"1]")),
        "empty delivery reports": ("/api/v1/sms/status", fill(b"[", b"{},", b"{}]")),
        "delivery reports with unknown fields": ("/api/v1/sms/status", b"[" + (many_fields * 1000)[:-1] + b"]"),
        "events of a tracker": ("/api/v1/trackers", fill(b'{"url":"http://x.example/","events":[', b'"",', b'""]}')),
        "headers of a tracker": ("/api/v1/trackers", numbered(b'{"url":"http://x.example/","headers":{', b'"x":""}}')),
        "settings": ("PATCH /api/v1/application", fill(b'{"conversion_fields":[', b'"a",', b'"a"]}')),
        "blocked hosts": ("/api/v1/blocked-hosts", fill(b'{"host":"', b"a.", b'"}')),
        "an erasure": ("/api/v1/erasures", numbered(b"{", b'"x":1}')),
        "a conversion process": ("/ct/1/log/end/x", fill(b"[", b"[],", b"[]]")),
        "a conversion": ("/api/v1/callback/action", numbered(b'{"message_id":"x",', b'"x":1}')),
        "a conversion as a form": ("form /action", fill(b"message_id=", b"%41%")),
        "a form with many parameters": ("form /action", fill(b"message_id=x", b"&a=1")),
    }


#: The maximum time in seconds for the response to a hostile request. The longest request needs several seconds of processor time,
#: and the clicks run at the same time.
REQUEST_PATIENCE = 10 * PATIENCE


def test_hostile_request_bodies_do_not_delay_clicks_and_their_memory_is_freed(server: Server) -> None:
    hostile = hostile_bodies()
    path = code_of(server)
    quiet = quiet_clicks(server, path)
    report: list[str] = []
    spans: list[tuple[str, float, float]] = []
    with server.api() as api, server.tracker() as tracker, Clicker(server, path) as clicker:
        for repeat in range(2):
            before = rss(server)
            for name, (target, body) in hostile.items():
                method, _, url = target.rpartition(" ")
                kind = "application/x-www-form-urlencoded" if method == "form" else "application/json"
                client = tracker if "action" in url else api
                began = time.monotonic()
                response = client.request(
                    method if method == "PATCH" else "POST",
                    url,
                    content=body,
                    headers={"Content-Type": kind},
                    timeout=REQUEST_PATIENCE,
                )
                time.sleep(0.05)  # during this pause, at least one click is made
                spans.append((name, began, time.monotonic()))
                status = 200 if name in ("long texts with URLs", "a text of signs") else 400
                assert status <= response.status_code < status + 100, (name, response.text[:200])
                assert len(response.content) <= 1024 * 1024 or response.status_code == 200, name
            grown = rss(server) - before
            report.append(f"round {repeat}: memory grew by {grown / 2**20:.0f} MiB")
    assert not clicker.failures
    longest: dict[str, float] = {}
    for name, began, ended in spans:
        longest[name] = max(longest.get(name, 0.0), clicker.longest_between(began, ended))
    report += [f"{seconds * 1000:8.1f} ms  {name}" for name, seconds in [*longest.items(), ("the quiet server", quiet)]]
    sys.stdout.write("\n".join(["", *report, ""]))
    assert max(longest.values()) < bound(quiet)
    assert grown < MAX_GROWTH_BYTES, "the second round needs no more memory than the first"


HELD = [
    b"",
    b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n\r\n",
    b"GET /nosuchcode HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n\r\n",
    b"POST /api/v1/rewrite HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{",
    b"POST /api/v1/rewrite HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 20,
    b"GET /abc",
    b"GET / HTTP/1.1\r\nX-Slow: ",
]


@pytest.fixture
def limited_server(tmp_path: Path) -> Iterator[Server]:
    """Start a server with a time limit of 2 seconds for each request."""
    yield from serving(tmp_path, REQUEST_TIMEOUT="2")


def test_hostile_connections_do_not_delay_clicks_and_the_server_closes_all_of_them(limited_server: Server) -> None:
    server = limited_server
    path = code_of(server)
    quiet = quiet_clicks(server, path)
    held: list[socket.socket] = []
    try:
        with Clicker(server, path) as clicker:
            for number in range(CONNECTIONS):
                one = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                one.sendall(HELD[number % len(HELD)])
                held.append(one)
            deadline = time.monotonic() + PATIENCE
            open_connections = CONNECTIONS
            while open_connections and time.monotonic() < deadline:
                open_connections = connections_of(server) - 1  # one connection belongs to the clicker, and does not count
                time.sleep(0.2)  # give the server time to close the connections
        figures = f"longest click {clicker.longest * 1000:.1f} ms, quiet {quiet * 1000:.1f} ms, {len(clicker.clicks)} clicks"
        sys.stdout.write(f"\n{figures}\n")
        assert not clicker.failures
        assert open_connections <= 0
        assert clicker.longest < bound(quiet)
    finally:
        for one in held:
            one.close()


def connections_of(server: Server) -> int:
    """Return the number of open connections of this test to the server."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    port = f":{server.port:04X}"
    return sum(line.split()[1].endswith(port) and line.split()[3] == "01" for line in lines)


def test_the_serve_command_raises_and_logs_the_limit_of_open_files(tmp_path: Path) -> None:
    script = f"ulimit -Sn 256; exec {sys.executable} -m shortener serve --port 0"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHORTENER_")}
    environment |= {"SHORTENER_DATA_DIR": str(tmp_path / "data"), "SHORTENER_LOG_LEVEL": "debug"}
    process = subprocess.Popen(
        ["bash", "-c", script], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        while "Serving on" not in (line := process.stdout.readline()):
            assert process.poll() is None
        assert httpx.get(f"{line.split()[2].rstrip(';')}/healthz", trust_env=False, timeout=PATIENCE).status_code == 200, (
            "the server responds at once"
        )
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        soft, hard = next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files"))
        assert soft == hard
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE)
    assert f'"limit":{soft}' in errors
    assert "open_files_limit" in errors
    assert process.returncode == 0


def test_the_python_client_urllib_receives_413_for_a_request_body_that_is_too_large(server: Server) -> None:
    script = (
        "import sys, urllib.error, urllib.request\n"
        "request = urllib.request.Request(sys.argv[1], b' ' * 20_000_000, {'X-API-Key': sys.argv[2], "
        "'Content-Type': 'application/json'})\n"
        "try:\n    urllib.request.urlopen(request)\n"
        "except urllib.error.HTTPError as error:\n    print(error.code, error.read().decode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, f"{server.base}/api/v1/rewrite", server.first["api_key"]],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("413 ")
    assert "BODY_LIMIT" in done.stdout
