"""Tests that compose.yaml, the files that it mounts, the settings and the real servers agree with each other."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml  # type: ignore[import-untyped]  # comes with uvicorn; its types would be one more package

from shortener import __version__
from shortener.settings import PREFIX, Settings
from shortener.web.endpoints import ENDPOINTS
from tests.acceptance.conftest import server as server
from tests.acceptance.process import Server
from tests.servers import PATIENCE, RedisProcess

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "config"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return parsed


def mounts(compose: dict[str, Any]) -> dict[str, str]:
    """Return the files of this repository that compose.yaml mounts, each with its path in the container."""
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
        "shortener migrate --wait 120",
    ]
    for service in compose["services"].values():
        for needed in service.get("depends_on", ()):
            assert needed in compose["services"]
    assert [service for service in compose["services"] if "ports" in compose["services"][service]] == ["caddy"]


def test_every_file_that_compose_yaml_mounts_exists_and_every_file_in_config_is_used(compose: dict[str, Any]) -> None:
    mounted = mounts(compose)
    for source in mounted:
        assert (ROOT / source).is_file(), source
    # Other test modules check these files: tests/test_observability.py, tests/test_config.py and
    # tests/acceptance/test_litestream.py.
    others = {"grafana-dashboard.json", "prometheus.yml", "prometheus-rules.yml", "litestream.yml"}
    others |= {"Caddyfile.one-machine", "nginx.conf", "kubernetes.yaml"}
    others |= {"shortener.service", "shortener-backup.service", "shortener-backup.timer"}
    used = {Path(source).name for source in mounted} | others | {"shortener.toml"}  # the Dockerfile copies shortener.toml
    assert {file.name for file in CONFIG.iterdir()} == used
    commands = " ".join(str(service.get("command", "")) for service in compose["services"].values())
    for place in mounted.values():
        assert place in commands or place == "/etc/caddy/Caddyfile", "the command of the container names the file"
    named = {volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", ())}
    assert {name for name in named if not name.startswith(".")} == set(compose["volumes"])


def test_compose_yaml_passes_only_known_settings_to_nodes_and_contains_no_secrets(compose: dict[str, Any]) -> None:
    for name in ("serve1", "serve2", "deliver", "migrate"):
        environment = compose["services"][name]["environment"]
        for variable in environment:
            assert variable.removeprefix(PREFIX).lower() in Settings.model_fields, variable
        assert environment == compose["services"]["serve1"]["environment"], "both nodes belong to one installation"
    filled = {
        "${POSTGRES_PASSWORD:?}": "x",
        "${SHORTENER_SECRET:?}": "0123456789abcdefghijklmnopqrstuv",
        "${BASE_HOST:?}": "go.example",
        "${INITIAL_API_KEY:?}": "0123456789-abcdefghijklmnopqrstuv",
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
    assert [str(network) for network in settings.trusted_proxies] == [subnet], "only Caddy's X-Forwarded-For is trusted"
    text = (ROOT / "compose.yaml").read_text()
    for placeholder in set(re.findall(r"\$\{[^}]*\}", text)):
        assert placeholder.endswith(":?}"), f"{placeholder}: nothing starts with a secret that everybody knows"


def megabytes(text: str) -> float:
    """Convert a size such as 512m, 384MB or 1GB to megabytes."""
    number, unit = re.fullmatch(r"(\d+)([mg])b?", text.lower()).groups()  # type: ignore[union-attr]
    return int(number) * (1024 if unit == "g" else 1)


def test_the_memory_limits_of_all_compose_services_fit_a_machine_with_4_gb(compose: dict[str, Any]) -> None:
    services = {name: megabytes(service["mem_limit"]) for name, service in compose["services"].items()}
    del services["migrate"]  # the nodes start only after the migration has ended
    assert sum(services.values()) <= 3.75 * 1024, "the rest is for the operating system"
    postgresql = dict(re.findall(r"^(\w+) = (\S+)", (CONFIG / "postgresql.conf").read_text(), re.MULTILINE))
    shared, maintenance = megabytes(postgresql["shared_buffers"]), megabytes(postgresql["maintenance_work_mem"])
    assert shared + int(postgresql["autovacuum_max_workers"]) * maintenance <= services["postgres"]
    assert megabytes(compose["services"]["postgres"]["shm_size"]) < services["postgres"]
    redis = re.search(r"^maxmemory (\S+)", (CONFIG / "redis.conf").read_text(), re.MULTILINE)
    assert redis
    assert megabytes(redis[1]) * 1.3 < services["redis"], "the rewrite of the append-only file needs memory"


def test_the_compose_containers_have_pinned_images_limited_logs_and_no_new_privileges(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert re.search(r":\d+\.\d+(\.\d+)?(-\w+)?$", service["image"]), f"{name}: the image has no exact version"
        assert service["logging"]["options"]["max-size"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    for name in ("serve1", "serve2", "deliver", "migrate"):
        service = compose["services"][name]
        assert service["image"].endswith(f":{__version__}")
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
    check = compose["services"]["postgres"]["healthcheck"]["test"]
    assert "127.0.0.1" in check, "the temporary server of the first start listens on the socket only"


def test_compose_yaml_is_valid_in_the_schema_of_compose() -> None:
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(ROOT / "compose.yaml"))


def run(program: str, *words: str) -> None:
    """Run a program that a Python package installs."""
    path = shutil.which(program, path=str(Path(sys.executable).parent))
    if path is None:
        pytest.skip(f"SKIPPED: {program} is not available on this platform")
    done = subprocess.run([path, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_has_no_lint_findings_and_runs_as_a_numeric_user() -> None:
    run("hadolint", str(ROOT / "Dockerfile"))
    text = (ROOT / "Dockerfile").read_text()
    assert "\nUSER 10001:10001\n" in text
    assert f'org.opencontainers.image.version="{__version__}"' in text
    assert "latest" not in text
    assert all(re.search(r":\d+\.\d+\.\d+-", image) for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE))


def test_the_container_image_contains_each_document_that_a_text_of_the_service_names() -> None:
    copied = re.findall(r"^COPY (?!--from)(\S+) ", (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2], re.MULTILINE)
    named = set()
    for file in (ROOT / "shortener").rglob("*.py"):
        tree = ast.parse(file.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                named |= set(re.findall(r"\bdocs/[\w./-]+\.md", node.value))
    assert "docs/reference/errors.md" in named
    for name in named:
        assert (ROOT / name).is_file(), name
        assert any(name.startswith(f"{folder}/") for folder in copied), f"the image does not contain {name}"


@pytest.mark.acceptance
def test_the_health_check_of_the_container_image_sends_requests_to_the_port_of_the_server(server: Server) -> None:
    check = re.search(r"^HEALTHCHECK.*\n +CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert check
    python, *words = json.loads(check[1])
    assert python == "python"
    environment = server.environment | {"SHORTENER_PORT": str(server.port), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words]
    assert subprocess.run(command, env=environment, timeout=PATIENCE, check=False).returncode == 0
    assert server.stop() == 0
    assert subprocess.run(command, env=environment, timeout=PATIENCE, capture_output=True, check=False).returncode == 1


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
            assert int(told["maxmemory"]) == 512 * 2**20
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
