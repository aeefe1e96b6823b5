"""Tests of a real Prometheus: it scrapes a server, evaluates the alert rules, and answers every expression of the dashboard."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.process import PHONE, Server
from tests.servers import PATIENCE, free_port

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
PROMTOOL, PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")

pytestmark = pytest.mark.skipif(
    PROMTOOL is None or PROMETHEUS is None, reason="SKIPPED: Prometheus is not installed (apt-get install prometheus)"
)


def promtool(*words: str | Path) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *map(str, words)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_configuration_and_the_alert_rules() -> None:
    promtool("check", "config", CONFIG / "prometheus.yml")
    promtool("check", "rules", CONFIG / "prometheus-rules.yml")
    promtool("test", "rules", ROOT / "tests" / "prometheus_rules_test.yml")


@pytest.fixture
def prometheus(server: Server, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a Prometheus that scrapes the server every second."""
    port = free_port()
    text = (CONFIG / "prometheus.yml").read_text()
    text = text.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}").replace(": 15s", ": 1s")
    (tmp_path / "prometheus.yml").write_text(text)
    shutil.copy(CONFIG / "prometheus-rules.yml", tmp_path)
    assert PROMETHEUS is not None
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE) as client:
            yield client
    finally:
        process.terminate()
        process.wait(PATIENCE)


def query(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    response = client.get("/api/v1/query", params={"query": expression})
    assert response.status_code == 200, (expression, response.text)
    result: list[dict[str, Any]] = response.json()["data"]["result"]
    return result


def wait_for(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    """Evaluate an expression again and again until it has a result."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(httpx.TransportError, AssertionError):
            if found := query(client, expression):
                return found
        assert time.monotonic() < deadline, expression
        threading.Event().wait(0.2)


def test_prometheus_scrapes_the_server_and_evaluates_every_panel_and_rule(server: Server, prometheus: httpx.Client) -> None:
    with server.api() as client:
        body = {"to": "+14085550100", "body": '#track("https://x.example/")'}
        code = client.post("/api/v1/rewrite", json=body).json()["messages"][0]["links"][0]["code"]
        client.get("/api/v1/sms/status/none")
        assert client.get(f"/{code}", headers={"User-Agent": PHONE}).status_code == 302
    wait_for(prometheus, 'up{job="shortener"} == 1')
    wait_for(prometheus, "shortener_redirect_seconds_count == 1")
    (error,) = wait_for(prometheus, 'shortener_responses_total{error_code="MESSAGE_NOT_FOUND"}')
    assert error["metric"]["endpoint"] == "/api/v1/sms/status/{message_id}"
    wait_for(prometheus, "count_over_time(shortener_first_clicks_total[1m]) >= 3")  # Prometheus needs two scrapes to compute a rate
    empty = set()
    for panel in json.loads((CONFIG / "grafana-dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            if not query(prometheus, target["expr"].replace("$__rate_interval", "1m")):
                empty.add(target["expr"])
    for expression in empty:  # These metrics exist only with Redis, or after their first event.
        assert re.search("spool|conversions_refused|conversion_reports|delivery_attempts", expression), expression
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) >= 12
    deadline = time.monotonic() + PATIENCE
    while any(rule["health"] != "ok" for rule in rules):
        assert time.monotonic() < deadline, [rule for rule in rules if rule["health"] != "ok"]
        threading.Event().wait(0.2)
        rules = [rule for group in prometheus.get("/api/v1/rules").json()["data"]["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []
