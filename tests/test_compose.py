"""Tests that compose.yaml and the files that it mounts agree with each other, with the settings and with the real servers."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml  # type: ignore[import-untyped]  # comes with uvicorn; its types would be one more package

from shortener.settings import PREFIX, Settings
from shortener.web.routes import ENDPOINTS
from tests.servers import RedisProcess

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "config"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return parsed


def mounts(compose: dict[str, Any]) -> dict[str, str]:
    """Return the path in the container of each file of this repository that compose.yaml mounts."""
    found: dict[str, str] = {}
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source, place, *_ = volume.split(":")
            if source.startswith("."):
                found[source] = place
    return found


def test_compose_yaml_defines_postgresql_redis_two_nodes_one_delivering_process_and_caddy(compose: dict[str, Any]) -> None:
    commands = {name: service.get("command", "") for name, service in compose["services"].items()}
    assert sorted(commands) == ["caddy", "deliver", "migrate", "postgres", "redis", "serve1", "serve2"]
    assert [commands[name] for name in ("serve1", "serve2", "deliver", "migrate")] == [
        "shortener serve",
        "shortener serve",
        "shortener deliver",
        "shortener migrate",
    ]
    for service in compose["services"].values():
        for needed in service.get("depends_on", ()):
            assert needed in compose["services"]
    assert [service for service in compose["services"] if "ports" in compose["services"][service]] == ["caddy"]


def test_every_file_that_compose_yaml_mounts_exists_and_every_file_in_config_is_used(compose: dict[str, Any]) -> None:
    mounted = mounts(compose)
    for source in mounted:
        assert (ROOT / source).is_file(), source
    monitoring = {"grafana-dashboard.json", "prometheus.yml", "prometheus-rules.yml"}  # tests/test_observability.py checks these
    used = {Path(source).name for source in mounted} | monitoring | {"shortener.toml"}  # the Dockerfile copies shortener.toml
    assert {file.name for file in CONFIG.iterdir()} == used
    commands = " ".join(str(service.get("command", "")) for service in compose["services"].values())
    for place in mounted.values():
        assert place in commands or place == "/etc/caddy/Caddyfile", "the server is told to read it"
    named = {volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", ())}
    assert {name for name in named if not name.startswith(".")} == set(compose["volumes"])


def test_compose_yaml_passes_only_known_settings_to_nodes_and_contains_no_secrets(compose: dict[str, Any]) -> None:
    for name in ("serve1", "serve2", "deliver", "migrate"):
        environment = compose["services"][name]["environment"]
        for variable in environment:
            assert variable.removeprefix(PREFIX).lower() in Settings.model_fields, variable
        assert environment == compose["services"]["serve1"]["environment"], "they are one installation"
    filled = {
        "${POSTGRES_PASSWORD:?}": "x",
        "${SHORTENER_SECRET:?}": "0123456789abcdefghijklmnopqrstuv",
        "${BASE_HOST:?}": "go.example",
    }
    values = {}
    for variable, value in compose["services"]["serve1"]["environment"].items():
        for placeholder, text in filled.items():
            value = value.replace(placeholder, text)
        values[variable.removeprefix(PREFIX).lower()] = value
    settings = Settings(**values)
    assert settings.is_postgresql
    assert settings.redis_url
    subnet = compose["networks"]["default"]["ipam"]["config"][0]["subnet"]
    assert [str(network) for network in settings.trusted_proxies] == [subnet], "Caddy's X-Forwarded-For is believed, nobody else's"
    text = (ROOT / "compose.yaml").read_text()
    for placeholder in set(re.findall(r"\$\{[^}]*\}", text)):
        assert placeholder.endswith(":?}"), f"{placeholder}: nothing starts with a secret that everybody knows"


def test_the_caddyfile_uses_the_certificate_check_endpoint_and_forwards_requests_to_the_nodes(compose: dict[str, Any]) -> None:
    caddyfile = (CONFIG / "Caddyfile").read_text()
    paths = {endpoint.path for endpoint in ENDPOINTS}
    asked = re.search(r"ask http://localhost:9080(\S+)", caddyfile)
    assert asked
    assert asked[1] in paths
    probed = re.search(r"health_uri (\S+)", caddyfile)
    assert probed
    assert probed[1] in paths
    upstreams = re.search(r"reverse_proxy (.*) \{", caddyfile)
    assert upstreams
    assert upstreams[1].split() == ["serve1:8000", "serve2:8000"]
    assert Settings().port == 8000
    assert "@inside path /internal/* /metrics" in caddyfile
    assert caddyfile.count("{") == caddyfile.count("}")


def test_redis_starts_with_the_supplied_configuration_and_evicts_cached_links_but_no_hits(tmp_path: Path) -> None:
    file = tmp_path / "redis.conf"
    file.write_text((CONFIG / "redis.conf").read_text().replace("dir /data", f"dir {tmp_path}"))
    server = RedisProcess(tmp_path, configuration=file)
    server.start()
    try:
        with contextlib.closing(server.client()) as client:
            told = client.config_get()
            assert (told["appendonly"], told["appendfsync"], told["save"]) == ("yes", "everysec", "")
            assert told["maxmemory-policy"] == "volatile-ttl"
            assert int(told["maxmemory"]) == 4 * 2**30
            client.xadd("spool", {"h": "x"})
            for number in range(2000):
                client.set(f"link{number}", "x" * 1000, px=1_000_000 + number)
            client.config_set("maxmemory", int(client.info("memory")["used_memory"]) - 500_000)
            client.set("newest", "x", px=9_000_000)
            assert client.xlen("spool") == 1
            assert client.exists("newest")
            assert 0 < client.dbsize() < 1990
    finally:
        server.kill()


async def test_postgresql_accepts_every_setting_of_the_supplied_configuration_file(postgresql: str) -> None:
    lines = [line.partition("#")[0].strip() for line in (CONFIG / "postgresql.conf").read_text().splitlines()]
    given = dict(line.split(" = ", 1) for line in lines if line)
    connection = await asyncpg.connect(postgresql)
    try:
        known = {
            row["name"].lower(): row for row in await connection.fetch("SELECT name, vartype, enumvals, unit FROM pg_settings")
        }
        for name, value in given.items():
            assert name in known, name
            row = known[name]
            if row["vartype"] == "bool":
                assert value in ("on", "off"), name
            elif row["vartype"] == "enum":
                assert value in row["enumvals"], name
            elif row["vartype"] in ("integer", "real"):
                assert re.fullmatch(r"\d+(\.\d+)?(kB|MB|GB|ms|s|min|h|d)?", value), name
            else:
                assert value.startswith("'"), name
        assert (given["synchronous_commit"], given["fsync"], given["full_page_writes"]) == ("on", "on", "on")
    finally:
        await connection.close()
