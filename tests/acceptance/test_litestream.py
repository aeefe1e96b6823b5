"""Test of Litestream: it replicates the database of a running server, and a server on the restored replica serves the same
links."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # comes with uvicorn; its types would be one more package

from tests.acceptance.process import PHONE, Server
from tests.cli.shell import Shell
from tests.servers import PATIENCE

ROOT = Path(__file__).parents[2]
LITESTREAM = shutil.which("litestream", path=f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin")

pytestmark = pytest.mark.skipif(LITESTREAM is None, reason="SKIPPED: litestream is not available on this platform")


def test_a_replica_of_litestream_contains_the_last_link_and_can_be_restored(server: Server, tmp_path: Path) -> None:
    assert LITESTREAM is not None
    configuration = yaml.safe_load((ROOT / "config" / "litestream.yml").read_text())
    (database,) = configuration["dbs"]
    assert Path(database["path"]).name == "shortener.db"
    database["path"] = str(server.folder / "data" / "shortener.db")
    database["replica"]["path"] = str(tmp_path / "replica")
    file = tmp_path / "litestream.yml"
    file.write_text(yaml.safe_dump(configuration))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([LITESTREAM, "replicate", "-config", file], stdout=log, stderr=log)
    try:
        codes = []
        with server.api() as client:
            for number in range(20):
                body = {"to": f"+140855501{number:02}", "body": '#track("https://x.example/")'}
                codes.append(client.post("/api/v1/rewrite", json=body).json()["messages"][0]["links"][0]["code"])
        restored, deadline = tmp_path / "restored.db", time.monotonic() + PATIENCE
        while True:
            threading.Event().wait(0.5)
            restored.unlink(missing_ok=True)
            command = [LITESTREAM, "restore", "-config", str(file), "-o", str(restored), str(database["path"])]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0 and links(restored) == 20:
                break
            assert time.monotonic() < deadline, done.stderr + (tmp_path / "log").read_text()
    finally:
        process.terminate()
        process.wait(PATIENCE)
    server.kill()
    shutil.copy(server.folder / "data" / "secret", tmp_path / "secret")
    shutil.rmtree(server.folder / "data")

    shell = Shell(server.folder / "data")
    shell("restore", str(restored))
    shutil.copy(tmp_path / "secret", server.folder / "data" / "secret")
    assert shell.json("verify")["drift"] == []
    server.start()
    with server.client(**{"User-Agent": PHONE}) as client:
        assert {client.get(f"/{code}").status_code for code in codes} == {302}


def links(file: Path) -> int:
    """Return the number of links in a database file."""

    with contextlib.closing(sqlite3.connect(file)) as connection:
        count: int = connection.execute("SELECT count(*) FROM links").fetchone()[0]
        return count
