"""Two PostgreSQL servers under Debian's Patroni. If the primary fails, Patroni promotes the standby. It stores the lock of the
leader in etcd.

The tests that use this module are part of `make prove`. They need `apt-get install patroni etcd-server python3-etcd`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.acceptance.nodes import wait_until
from tests.postgresql_cluster import Cluster
from tests.servers import PATIENCE, free_port

LOCK_SECONDS = 20  # Patroni's setting `ttl`: if the leader has not renewed its lock for this time, the standby may take over.

NODE = """
scope: shortener
name: node{number}
restapi: {{listen: "127.0.0.1:{rest}", connect_address: "127.0.0.1:{rest}"}}
etcd3: {{host: "127.0.0.1:{etcd}"}}
bootstrap:
  dcs:
    ttl: {lock_seconds}
    loop_wait: 5
    retry_timeout: 5
    synchronous_mode: true
    postgresql: {{use_pg_rewind: true, parameters: {{max_connections: 200}}}}
  initdb: [{{encoding: UTF8}}]
  pg_hba: ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust", "local all all trust"]
postgresql:
  listen: 127.0.0.1:{port}
  connect_address: 127.0.0.1:{port}
  data_dir: {data}
  bin_dir: {programs}
  pgpass: {folder}/pgpass{number}
  authentication: {{superuser: {{username: postgres}}, replication: {{username: replicator}}, rewind: {{username: rewinder}}}}
  parameters: {{unix_socket_directories: "{folder}"}}
"""


def is_installed() -> bool:
    return all(shutil.which(program) for program in ("patroni", "etcd"))


class PatroniServer(Cluster):
    """One PostgreSQL server and the Patroni process that starts, watches and promotes it."""

    def __init__(self, programs: Path, number: int, etcd_port: int) -> None:
        super().__init__(programs)
        self.rest = free_port()
        self._agent: subprocess.Popen[bytes] | None = None
        self._configuration = self._folder / "node.yml"
        self._configuration.write_text(
            NODE.format(
                number=number,
                rest=self.rest,
                etcd=etcd_port,
                lock_seconds=LOCK_SECONDS,
                port=self.port,
                data=self.data,
                programs=programs,
                folder=self._folder,
            )
        )

    def start(self) -> None:
        if self._agent is not None:
            self._agent.wait(PATIENCE)  # the test has killed this process
        with (self._folder / "log").open("ab") as log:
            command = ["patroni", str(self._configuration)]
            self._agent = subprocess.Popen(command, user=self._user, cwd=self._folder, stdout=log, stderr=log, env=_environment())

    def role(self) -> str:
        """Return the role of the server: `master`, or `replica` with its kind of replication. Return "" if Patroni does not
        respond."""
        try:
            state = httpx.get(f"http://127.0.0.1:{self.rest}/patroni", timeout=1, trust_env=False).json()
        except (httpx.TransportError, ValueError):
            return ""
        role = state.get("role", "") if state.get("state") == "running" else ""
        return f"{role} sync" if state.get("sync_standby") else str(role)

    def close(self) -> None:
        super().close()
        if self._agent is not None:
            self._agent.wait()

    def _processes(self) -> list[Any]:
        agent = [psutil.Process(self._agent.pid)] if self._agent is not None and self._agent.poll() is None else []
        return [*agent, *super()._processes()]


class PatroniPair:
    """Has the methods of `PrimaryAndStandby`. Here, `fail_over` only waits until Patroni has promoted the standby."""

    def __init__(self, programs: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="shortener-etcd-"))
        client, peer = free_port(), free_port()
        clients, peers = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        options = {
            "data-dir": str(self._folder),
            "listen-client-urls": clients,
            "advertise-client-urls": clients,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"default={peers}",
        }
        command = ["etcd", *(f"--{name}={value}" for name, value in options.items())]
        self._etcd = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.servers = [PatroniServer(programs, number, client) for number in (1, 2)]
        self.primary, self.standby = self.servers
        self.primary.start()
        wait_until(lambda: self.primary.role() == "master", "Patroni made no primary")
        self.standby.start()
        self._wait_for_standby()

    def url(self, name: str) -> str:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        return f"postgresql://postgres@{hosts}/{name}"

    def attach_standby(self) -> None:
        """Start Patroni on the failed server again. Patroni rewinds the data of the old primary and makes this server a
        standby."""
        self.standby.start()
        self._wait_for_standby()

    def fail_over(self) -> None:
        wait_until(lambda: self.standby.role().startswith("master"), "Patroni did not promote the standby")
        self.primary, self.standby = self.standby, self.primary

    def close(self) -> None:
        for server in self.servers:
            server.thaw()
            server.close()
        self._etcd.kill()
        self._etcd.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_for_standby(self) -> None:
        wait_until(lambda: self.standby.role() == "replica sync", "Patroni made no synchronous standby", 120)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "PATRONI"))}
