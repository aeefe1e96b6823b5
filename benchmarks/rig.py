"""Functions that all benchmarks share: start a real server with an empty folder, measure the baseline, and run wrk.

The baseline is a bare ASGI application that returns a fixed 302 with the same uvicorn settings. Speeds are reported as ratios to
the baseline of the same run. The benchmarks check that the database has a row for each response that wrk counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
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

from benchmarks import traffic

ROOT = Path(__file__).parent.parent
_TICK = os.sysconf("SC_CLK_TCK")
PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Mobile/15E148 Safari/604.1"
)
BASELINE = """
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
    """The result of one run of wrk. `p50` and `p99` are latencies in milliseconds."""

    requests: int
    per_second: float
    p50: float
    p99: float
    not_2xx_3xx: int
    socket_errors: int


#: The baseline of the machine for which the goals are stated, in responses per second (November 2026).
REFERENCE_BASELINE = 49_700


@dataclass(frozen=True)
class Goal:
    """The least or the greatest value that a figure may have. Create it with one of the functions below.

    The speed of a machine is its baseline divided by REFERENCE_BASELINE. The goal on a machine is `value` times its speed to the
    power of `exponent`. The exponent is 1 for a rate and -1 for a duration. It is 0 if the goal does not depend on the speed.
    """

    value: float
    is_maximum: bool = False
    exponent: int = 0

    def limit(self, speed: float) -> float:
        return float(self.value * speed**self.exponent)

    def is_met(self, value: float, speed: float) -> bool:
        return value <= self.limit(speed) if self.is_maximum else value >= self.limit(speed)


def rate(value: float) -> Goal:
    """Return a goal: the minimum rate on a machine with the baseline REFERENCE_BASELINE. A machine that is half as fast must
    reach half of this rate."""
    return Goal(value, exponent=1)


def share(value: float) -> Goal:
    """Return a goal: the minimum rate, as a share of the baseline."""
    return rate(value * REFERENCE_BASELINE)


def duration(value: float) -> Goal:
    """Return a goal: the maximum duration on a machine with the baseline REFERENCE_BASELINE. A machine that is half as fast may
    take twice as long."""
    return Goal(value, is_maximum=True, exponent=-1)


def minimum(value: float) -> Goal:
    """Return a goal: a minimum that is the same on every machine."""
    return Goal(value)


def maximum(value: float) -> Goal:
    """Return a goal: a maximum that is the same on every machine."""
    return Goal(value, is_maximum=True)


@dataclass
class Figure:
    """One row of the report. `ratio` is `value` divided by the baseline. `judge` sets `target` and `met`."""

    work: str
    value: float
    unit: str
    ratio: float | None = None
    goal: Goal | None = None
    target: str = ""
    met: bool | None = None
    note: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    def judge(self, speed: float) -> None:
        """Set `target` and `met`: the goal on a machine of this speed, and whether the figure meets it."""
        if self.goal is not None:
            self.target = f"{_short(self.goal.limit(speed))} {self.unit}"
            self.met = self.goal.is_met(self.value, speed)


def _short(value: float) -> str:
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


@dataclass(frozen=True)
class ProcessorTime:
    """Processor time in seconds."""

    user: float
    kernel: float

    @property
    def total(self) -> float:
        return self.user + self.kernel

    def __sub__(self, other: ProcessorTime) -> ProcessorTime:
        return ProcessorTime(self.user - other.user, self.kernel - other.kernel)


def processor_time(pid: int) -> dict[int, ProcessorTime]:
    """Return the processor time that each thread of a process has used so far, by thread id."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found[int(task.name)] = ProcessorTime(int(fields[11]) / _TICK, int(fields[12]) / _TICK)
    return found


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def phone(number: int) -> str:
    """Return a North American phone number with ten digits after the country code."""
    return f"+1{2_010_000_000 + number % 900_000_000}"


def need_wrk() -> str:
    """Return the path of wrk. Exit if it is not installed."""
    program = shutil.which("wrk")
    if not program:
        sys.exit("wrk is required as the load generator: apt-get install wrk")
    return program


def wrk(url: str, script: Path, *, seconds: float, connections: int = 64) -> Load:
    """Run wrk, which sends the requests of the script to `url` for `seconds` over `connections` connections."""
    command = [need_wrk(), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "--timeout", "30s"]
    printed = subprocess.run([*command, "-s", str(script), url], capture_output=True, text=True, check=True).stdout

    def find(pattern: str, default: str = "0") -> str:
        match = re.search(pattern, printed, re.MULTILINE)
        return match[1] if match else default

    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", printed)
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
def baseline_server() -> Iterator[tuple[str, Path]]:
    """Start the baseline. Yield its URL and a script with requests of handsets."""
    with tempfile.TemporaryDirectory(prefix="shortener-baseline-") as name:
        folder = Path(name)
        (folder / "baseline.py").write_text(BASELINE)
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "baseline:app", "--port", str(port), "--loop", "uvloop", "--http", "httptools",
             "--no-access-log", "--no-server-header", "--log-level", "error", "--backlog", "4096"],
            cwd=folder,
        )  # fmt: skip
        try:
            base = f"http://127.0.0.1:{port}"
            wait_for(f"{base}/x")
            yield base, traffic.script(folder, "baseline", random_paths())
        finally:
            process.terminate()
            process.wait(20)


def random_paths(number: int = 10_000) -> list[str]:
    """Return paths that look like codes. Each run gets the same paths."""
    chance = random.Random(1)
    return [f"/{chance.getrandbits(59):010x}"[:11] for _ in range(number)]


def measure_baseline(seconds: float, connections: int = 64) -> Load:
    with baseline_server() as (base, script):
        wrk(base, script, seconds=1, connections=connections)
        return wrk(base, script, seconds=seconds, connections=connections)


def wait_for(url: str, patience: float = 120) -> None:
    """Wait until a server responds at `url`. Raise TimeoutError after `patience` seconds."""
    end = time.monotonic() + patience
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < end:
            with contextlib.suppress(httpx.TransportError):
                client.get(url)
                return
            time.sleep(0.02)  # the pause between two checks
    raise TimeoutError(url)


@dataclass
class Server:
    """A running `shortener serve`. `folder` contains its SQLite database, `first` the credentials of the default application."""

    folder: Path
    base: str
    process: subprocess.Popen[bytes]
    first: dict[str, Any]
    patience: float = 60  # seconds that `api` waits for a response

    def api(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.base, headers={"X-API-Key": self.first["api_key"]}, timeout=self.patience, trust_env=False
        )

    def salts_of_wal(self) -> bytes:
        """Return the salts of SQLite's WAL file. They change each time SQLite begins to overwrite the file from its beginning."""
        with open(self.folder / "shortener.db-wal", "rb") as wal:
            return wal.read(24)[16:]

    def query(self, statement: str) -> Any:
        """Return the first value of a query on the SQLite database. The query uses a separate connection."""
        with contextlib.closing(sqlite3.connect(f"file:{self.folder / 'shortener.db'}?mode=ro", uri=True)) as connection:
            return connection.execute(statement).fetchone()[0]

    @property
    def resident_mb(self) -> float:
        """Return the resident memory of the server process in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert match
        return int(match[1]) / 1024

    def links(self, number: int, body: str = 'see #track("https://shop.example/a?b=1")', batch: int = 500) -> list[str]:
        """Rewrite `number` messages of one link each, `batch` per request. Return the codes."""
        codes: list[str] = []
        with self.api() as client:
            while len(codes) < number:
                to = [phone(len(codes) + n) for n in range(min(batch, number - len(codes)))]
                response = client.post("/api/v1/rewrite", json={"to": to, "body": body})
                response.raise_for_status()
                codes += [message["links"][0]["code"] for message in response.json()["messages"]]
        return codes


@contextlib.contextmanager
def server(checkout: Path = ROOT, prefix: Sequence[str] = (), patience: float = 60, /, **settings: str) -> Iterator[Server]:
    """Start `shortener serve` on an empty folder, with the benchmark as a trusted proxy. `settings` are further settings.

    `checkout` is the folder of the code. If that folder has a virtual environment (.venv), its Python runs the server. `prefix`
    is a program that runs this Python, for example valgrind, with its options. `patience` is the number of seconds to wait for a
    response of the API, and for the end of the server."""
    folder = Path(tempfile.mkdtemp(prefix="shortener-bench-"))
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHORTENER_")}
    environment |= {
        "PYTHONPATH": str(checkout),
        "SHORTENER_DATA_DIR": str(folder),
        "SHORTENER_BASE_URL": f"http://localhost:{port}",
        "SHORTENER_TRUSTED_PROXIES": traffic.TRUSTED_PROXIES,
        "SHORTENER_ALLOW_PRIVATE_TARGETS": "true",
        "SHORTENER_LOG_LEVEL": "warning",
        "SHORTENER_BATCH_LIMIT": "10000",
        **{f"SHORTENER_{name.upper()}": value for name, value in settings.items()},
    }
    process = subprocess.Popen(
        [*prefix, python_of(checkout), "-m", "shortener", "serve", "--port", str(port), "--json"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())["first_start"]
        base = f"http://127.0.0.1:{port}"
        wait_for(f"{base}/healthz")
        yield Server(Path(settings.get("data_dir", folder)), base, process, first, patience)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(patience)
        shutil.rmtree(folder, ignore_errors=True)


def python_of(checkout: Path) -> str:
    """Return the Python of the checkout's virtual environment, or the running one if the checkout has none."""
    own = checkout / ".venv" / "bin" / "python"
    return str(own) if own.exists() else sys.executable


# The function `init` of the script creates the requests, because wrk does not know the Host header before it calls `init`.
_POST_SCRIPT = """local requests, n = {{}}, 0
function init()
  for line in io.lines("{listed}") do requests[#requests + 1] = wrk.format("POST", "{path}", {{{headers}}}, line) end
end
function request() n = n + 1; return requests[(n - 1) % #requests + 1] end
"""


def post_script(folder: Path, name: str, bodies: Sequence[str], path: str, headers: dict[str, str]) -> Path:
    """Write a script for wrk that posts each JSON body once, in order, and then starts again. Return the script's file."""
    place = folder / f"{name}.lua"
    listed = folder / f"{name}.txt"
    listed.write_text("\n".join(bodies) + "\n")
    pairs = ", ".join(f'["{key}"] = "{value}"' for key, value in (headers | {"Content-Type": "application/json"}).items())
    place.write_text(_POST_SCRIPT.format(listed=listed, path=path, headers=pairs))
    return place


def fsync_ms(folder: Path) -> float:
    """Return the median duration of an fdatasync in milliseconds. Before each call, 16 KiB of a file are overwritten, as in a
    WAL."""
    milliseconds = []
    with open(folder / "fsync", "wb") as file:
        file.write(bytes(1 << 22))
        os.fsync(file.fileno())
        for number in range(200):
            os.pwrite(file.fileno(), os.urandom(1 << 14), number << 14)
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            milliseconds.append(1000 * (time.perf_counter() - start))
    return statistics.median(milliseconds)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def table(figures: list[Figure]) -> str:
    """Return the figures as a table of text. There must be at least one figure."""
    width = max(len(figure.work) for figure in figures) + 1
    lines = [f"{'work':{width}}{'figure':>20}{'ratio':>8}  {'target':20}{'met':5}note"]
    for figure in figures:
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        met = {None: "", True: "yes", False: "NO"}[figure.met]
        lines.append(
            f"{figure.work:{width}}{_short(figure.value) + ' ' + figure.unit:>20}{ratio:>8}  {figure.target:20}{met:5}{figure.note}"
        )
    return "\n".join(lines)
