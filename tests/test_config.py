"""Tests of the files in config/ for one machine and for Kubernetes. Each file is checked with the tool that reads it, such as
systemd, nginx or Caddy.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml  # type: ignore[import-untyped]  # comes with uvicorn; its types would be one more package

from shortener import __version__
from shortener.cli import cli
from shortener.cli.base_url import unreachable_links
from shortener.cli.serve import uvicorn_config
from shortener.settings import PREFIX, Settings
from shortener.settings_sources import load
from shortener.web.endpoints import ENDPOINTS
from tests.proxies import nginx_configuration
from tests.servers import PATIENCE

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "config"
#: The package `kubernetes_validate` contains the schemas of several versions of Kubernetes. These are the oldest and the newest
#: of them.
KUBERNETES_VERSIONS = ("1.33", kubernetes_validate.latest_version())


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def needs(program: str, package: str) -> pytest.MarkDecorator:
    reason = f"SKIPPED: {program} is not installed (apt-get install {package})"
    return pytest.mark.skipif(shutil.which(program) is None, reason=reason)


@needs("systemd-analyze", "systemd")
def test_systemd_accepts_the_unit_files_and_rates_the_service_as_well_isolated(tmp_path: Path) -> None:
    for name in ("shortener.service", "shortener-backup.service", "shortener-backup.timer"):
        # Put a program that exists in place of the program of the unit, because systemd-analyze requires that it exists.
        text = (CONFIG / name).read_text().replace("/opt/shortener/.venv/bin/shortener serve", "/bin/true serve")
        (tmp_path / name).write_text(text)
    units = sorted(tmp_path.iterdir())
    assert run("systemd-analyze", "verify", *units) == ""
    rated = run("systemd-analyze", "security", "--offline=true", tmp_path / "shortener.service")
    exposure = re.search(r"Overall exposure level for shortener.service: ([\d.]+)", rated)
    assert exposure
    assert float(exposure[1]) <= 1.5, "an exposure of 0 means no access, and 10 means full access"
    assert run("systemd-analyze", "calendar", "*-*-* 00/6:17:00")


def test_the_commands_of_the_systemd_units_exist() -> None:
    text = "".join((CONFIG / name).read_text() for name in ("shortener.service", "shortener-backup.service"))
    used = re.findall(r"/opt/shortener/\.venv/bin/shortener (\w+)", text)
    assert used == ["serve", "backup"]
    for command in used:
        assert command in cli.list_commands(None)  # type: ignore[arg-type]  # the group ignores its context
    stop = re.search(r"TimeoutStopSec=(\d+)", text)
    assert stop
    assert int(stop[1]) > Settings().shutdown_delay + 9


@needs("nginx", "nginx")
def test_nginx_accepts_the_supplied_configuration(tmp_path: Path) -> None:
    assert "successful" in run("nginx", "-t", "-c", nginx_configuration(tmp_path, 8443, 8080, 8000))


def test_caddy_and_nginx_close_idle_connections_before_the_service_does_and_hide_internal_paths() -> None:
    idle: int = uvicorn_config(None, Settings()).timeout_keep_alive
    assert idle == 5
    caddyfile, nginx = (CONFIG / "Caddyfile.one-machine").read_text(), (CONFIG / "nginx.conf").read_text()
    assert "keepalive 3s\n" in caddyfile
    assert "keepalive_timeout 3s;" in nginx
    assert "@inside path /internal/* /metrics" in caddyfile
    assert "location = /metrics" in nginx
    assert "location /internal" in nginx
    size = re.search(r"client_max_body_size (\d+)m", nginx)
    assert size
    assert int(size[1]) * 2**20 > Settings().body_limit
    asked = re.search(r"ask http://127\.0\.0\.1:8000(\S+)", caddyfile)
    assert asked
    assert asked[1] in {endpoint.path for endpoint in ENDPOINTS}


@needs("caddy", "caddy")
def test_caddy_accepts_the_caddyfile_of_one_machine(tmp_path: Path) -> None:
    file = CONFIG / "Caddyfile.one-machine"
    environment = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "PATH": "/usr/bin:/usr/local/bin"}
    for words in (("validate", "--adapter", "caddyfile", "--config"), ("fmt", "--diff")):
        done = subprocess.run(
            ["caddy", *words, file], capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stderr
    assert not [line for line in done.stdout.splitlines() if line.startswith(("+", "-"))]


@pytest.fixture(scope="module")
def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    """The Kubernetes objects of the manifests, by kind and name."""
    items = yaml.safe_load((CONFIG / "kubernetes.yaml").read_text())["items"]
    return {(item["kind"], item["metadata"]["name"]): item for item in items}


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_kubernetes_accepts_every_manifest(manifests: dict[tuple[str, str], dict[str, Any]], version: str) -> None:
    assert len(manifests) == 10
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_kubernetes_pods_run_without_privileges_and_without_environment_variables_of_services(
    manifests: dict[tuple[str, str], dict[str, Any]],
) -> None:
    for kind, name in (("Job", "shortener-migrate"), ("Deployment", "shortener-serve"), ("Deployment", "shortener-deliver")):
        pod = manifests[kind, name]["spec"]["template"]["spec"]
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["image"].endswith(f":{__version__}")
        assert container["args"][0] == "shortener"
        assert container["args"][1] in cli.list_commands(None)  # type: ignore[arg-type]
        assert container["resources"]["limits"]["memory"]


def test_kubernetes_probes_autoscalers_and_disruption_budgets_match_the_service(
    manifests: dict[tuple[str, str], dict[str, Any]],
) -> None:
    pod = manifests["Deployment", "shortener-serve"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = {endpoint.path for endpoint in ENDPOINTS}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz", "an outage of the database must not restart nodes"
    values = manifests["ConfigMap", "shortener"]["data"] | manifests["Secret", "shortener"]["stringData"]
    filled = {name: value or "0123456789abcdefghijklmnopqrstuv" for name, value in values.items()}
    assert all(name.startswith(PREFIX) for name in filled)
    settings = load(filled)
    assert unreachable_links(settings) is None
    assert settings.port == container["ports"][0]["containerPort"]
    assert pod["terminationGracePeriodSeconds"] > settings.shutdown_delay + 9
    scaler = manifests["HorizontalPodAutoscaler", "shortener-deliver"]["spec"]
    metric = scaler["metrics"][0]["external"]["metric"]["name"]
    assert f"| `{metric}` |" in (ROOT / "docs" / "reference" / "metrics.md").read_text()
    for name in ("shortener-serve", "shortener-deliver"):
        labels = manifests["Deployment", name]["spec"]["template"]["metadata"]["labels"]
        budget = manifests["PodDisruptionBudget", name]["spec"]
        assert budget["selector"]["matchLabels"] == labels
        target = manifests["HorizontalPodAutoscaler", name]["spec"]
        assert target["scaleTargetRef"]["name"] == name
        assert target["minReplicas"] > budget["minAvailable"]
    assert manifests["Service", "shortener"]["spec"]["selector"] == container_labels(manifests)


def container_labels(manifests: dict[tuple[str, str], dict[str, Any]]) -> Any:
    return manifests["Deployment", "shortener-serve"]["spec"]["template"]["metadata"]["labels"]
