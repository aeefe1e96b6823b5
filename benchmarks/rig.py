"""What the benchmarks stand on: the real server on a fresh folder, the raw ceiling beside it, wrk as the load generator.

Speed is told as ratios of one run: "raw" is a bare ASGI application that answers a fixed 302 on the same uvicorn settings, and it
is measured before and after. Nothing here asserts a time; what is asserted is that every answer that wrk counted has its row.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Mobile/15E148 Safari/604.1"
)
RAW = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 302, "headers": [
        (b"cache-control", b"private, no-store"), (b"referrer-policy", b"no-referrer-when-downgrade"),
        (b"x-robots-tag", b"noindex"), (b"content-length", b"0"), (b"location", b"https://shop.example/a?b=1")]})
    await send({"type": "http.response.body", "body": b""})
"""


@dataclass(frozen=True)
class Load:
    """What wrk saw. Latencies in milliseconds."""

    requests: int
    per_second: float
    p50: float
    p99: float
    not_2xx_3xx: int
    socket_errors: int


@dataclass
class Figure:
    """One row of the report."""

    work: str
    value: float
    unit: str
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    note: str = ""
    more: dict[str, Any] = field(default_factory=dict)


def phone(number: int) -> str:
    """A number of North America, ten digits as real ones have."""
    return f"+1{2_010_000_000 + number % 900_000_000}"


def need_wrk() -> str:
    found = shutil.which("wrk")
    if not found:
        sys.exit("wrk is needed as the load generator: apt-get install wrk")
    return found


def wrk(url: str, *, seconds: float, connections: int = 64, script: Path | None = None, header: str | None = None) -> Load:
    command = [need_wrk(), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "--timeout", "30s"]
    if script:
        command += ["-s", str(script)]
    if header:
        command += ["-H", header]
    told = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout

    def find(pattern: str, default: str = "0") -> str:
        match = re.search(pattern, told, re.MULTILINE)
        return match[1] if match else default

    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", told)
    return Load(
        requests=int(find(r"(\d+) requests in")),
        per_second=float(find(r"Requests/sec:\s+([\d.]+)")),
        p50=_milliseconds(find(r"^\s+50%\s+(\S+)", "0ms")),
        p99=_milliseconds(find(r"^\s+99%\s+(\S+)", "0ms")),
        not_2xx_3xx=int(find(r"Non-2xx or 3xx responses: (\d+)")),
        socket_errors=sum(map(int, errors.groups())) if errors else 0,
    )


def _milliseconds(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    assert match, text
    return float(match[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}[match[2]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def raw_server() -> Iterator[str]:
    """The ceiling: a fixed 302 on the same uvicorn settings."""
    with tempfile.TemporaryDirectory(prefix="shortener-raw-") as folder:
        Path(folder, "raw.py").write_text(RAW)
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "raw:app", "--port", str(port), "--loop", "uvloop", "--http", "httptools",
             "--no-access-log", "--no-server-header", "--log-level", "error", "--backlog", "4096"],
            cwd=folder,
        )  # fmt: skip
        try:
            wait_for(f"http://127.0.0.1:{port}/x")
            yield f"http://127.0.0.1:{port}/abcdefghij"
        finally:
            process.terminate()
            process.wait(20)


def measure_raw(seconds: float, connections: int = 64) -> Load:
    with raw_server() as url:
        wrk(url, seconds=1, connections=connections)
        return wrk(url, seconds=seconds, connections=connections)


def wait_for(url: str, patience: float = 30) -> None:
    end = time.monotonic() + patience
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < end:
            with contextlib.suppress(httpx.TransportError):
                client.get(url)
                return
            time.sleep(0.02)  # and look again
    raise TimeoutError(url)


@dataclass
class Server:
    folder: Path
    base: str
    process: subprocess.Popen[bytes]
    first: dict[str, Any]

    def api(self) -> httpx.Client:
        return httpx.Client(base_url=self.base, headers={"X-API-Key": self.first["api_key"]}, timeout=60, trust_env=False)

    def salts_of_wal(self) -> bytes:
        """Change whenever SQLite's WAL begins anew."""
        with open(self.folder / "shortener.db-wal", "rb") as wal:
            return wal.read(24)[16:]

    def query(self, statement: str) -> Any:
        """One value of the SQLite database, from beside the server."""
        with contextlib.closing(sqlite3.connect(f"file:{self.folder / 'shortener.db'}?mode=ro", uri=True)) as connection:
            return connection.execute(statement).fetchone()[0]

    @property
    def resident_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert match
        return int(match[1]) / 1024

    def links(self, number: int, body: str = 'see #track("https://shop.example/a?b=1")', batch: int = 500) -> list[str]:
        """Rewrite `number` messages; the codes."""
        codes: list[str] = []
        with self.api() as client:
            while len(codes) < number:
                to = [phone(len(codes) + n) for n in range(min(batch, number - len(codes)))]
                answer = client.post("/api/v1/rewrite", json={"to": to, "body": body})
                answer.raise_for_status()
                codes += [message["links"][0]["code"] for message in answer.json()["messages"]]
        return codes


@contextlib.contextmanager
def server(**settings: str) -> Iterator[Server]:
    """A real `shortener serve` on a fresh folder."""
    folder = Path(tempfile.mkdtemp(prefix="shortener-bench-"))
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHORTENER_")}
    environment |= {
        "SHORTENER_DATA_DIR": str(folder),
        "SHORTENER_ALLOW_PRIVATE_TARGETS": "true",
        "SHORTENER_LOG_LEVEL": "warning",
        "SHORTENER_BATCH_LIMIT": "10000",
        **{f"SHORTENER_{name.upper()}": value for name, value in settings.items()},
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "shortener", "serve", "--port", str(port), "--json"], env=environment, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())["first_start"]
        base = f"http://127.0.0.1:{port}"
        wait_for(f"{base}/healthz")
        yield Server(Path(settings.get("data_dir", folder)), base, process, first)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


# In `init`, not before: only then does wrk know the Host header.
_RUN_THROUGH = """local requests, n = {{}}, 0
function init()
  for line in io.lines("{listed}") do requests[#requests + 1] = {request} end
end
function request() n = n + 1; return requests[(n - 1) % #requests + 1] end
"""


def script(folder: Path, name: str, paths: Sequence[str], *, agent: str = PHONE, method: str = "GET") -> Path:
    """A wrk script that asks for each path once, then from the beginning again."""
    place = folder / f"{name}.lua"
    listed = folder / f"{name}.txt"
    listed.write_text("\n".join(paths) + "\n")
    place.write_text(_RUN_THROUGH.format(listed=listed, request=f'wrk.format("{method}", line, {{["User-Agent"] = "{agent}"}})'))
    return place


def post_script(folder: Path, name: str, bodies: Sequence[str], path: str, headers: dict[str, str]) -> Path:
    """A wrk script that posts each body in turn."""
    place = folder / f"{name}.lua"
    listed = folder / f"{name}.txt"
    listed.write_text("\n".join(bodies) + "\n")
    fetch_packed = ", ".join(f'["{key}"] = "{value}"' for key, value in (headers | {"Content-Type": "application/json"}).items())
    place.write_text(_RUN_THROUGH.format(listed=listed, request=f'wrk.format("POST", "{path}", {{{fetch_packed}}}, line)'))
    return place


def fsync_ms(folder: Path) -> float:
    """Milliseconds that the disk takes for 16 KiB of a file that has them already, as a WAL does."""
    took = []
    with open(folder / "fsync", "wb") as file:
        file.write(bytes(1 << 22))
        os.fsync(file.fileno())
        for number in range(200):
            os.pwrite(file.fileno(), os.urandom(1 << 14), number << 14)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def table(figures: list[Figure]) -> str:
    lines = [f"{'work':40}{'figure':>18}{'of raw':>9}  {'target':16}{'met':5}note"]
    for one in figures:
        value = f"{one.value:,.2f}" if one.value < 100 else f"{one.value:,.0f}"
        ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
        met = {None: "", True: "yes", False: "NO"}[one.met]
        lines.append(f"{one.work:40}{value + ' ' + one.unit:>18}{ratio:>9}  {one.target:16}{met:5}{one.note}")
    return "\n".join(lines)
