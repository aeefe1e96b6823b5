"""Test of a real nginx with config/nginx.conf in front of one server."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.process import PHONE, Server, serving
from tests.proxies import nginx_configuration
from tests.servers import PATIENCE, free_port

BASE = "go.example.com"

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="SKIPPED: nginx is not installed (apt-get install nginx)")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    yield from serving(tmp_path, BASE_URL=f"https://{BASE}", TRUSTED_PROXIES="127.0.0.1", IP_PRIVACY="full")


@pytest.fixture
def proxy(server: Server, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client that calls the server through nginx. Its connections come from 127.0.0.5."""
    https, http = free_port(), free_port()
    file = nginx_configuration(tmp_path, https, http, server.port)
    process = subprocess.Popen(["nginx", "-c", file, "-g", "daemon off;"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", https)).close()
            break
        assert process.poll() is None, (tmp_path / "error.log").read_text()
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
    transport = httpx.HTTPTransport(verify=False, local_address="127.0.0.5")
    try:
        headers = {"Host": BASE}
        with httpx.Client(base_url=f"https://127.0.0.1:{https}", transport=transport, headers=headers, timeout=PATIENCE) as client:
            yield client
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_nginx_forwards_the_host_header_and_the_client_address_and_hides_internal_paths(
    server: Server, proxy: httpx.Client
) -> None:
    body = {"to": "+14085550100", "body": '#track("https://x.example/")'}
    made = proxy.post("/api/v1/rewrite", json=body, headers={"X-API-Key": server.first["api_key"]})
    assert made.status_code == 200, made.text
    link = made.json()["messages"][0]["links"][0]
    assert link["short_url"] == f"https://{BASE}/{link['code']}"
    clicked = proxy.get(f"/{link['code']}", headers={"User-Agent": PHONE, "X-Forwarded-For": "203.0.113.9"})
    assert (clicked.status_code, clicked.headers["Location"]) == (302, "https://x.example/")
    with contextlib.closing(sqlite3.connect(server.folder / "data" / "shortener.db")) as connection:
        assert connection.execute("SELECT address FROM hits").fetchall() == [("127.0.0.5",)], "a client cannot forge its address"
    assert proxy.get("/healthz").status_code == 200
    for path in ("/metrics", "/%6detrics", "/metrics?x", "/internal/domain-check?domain=x", "/internal"):
        assert proxy.get(path).status_code == 404, path
    assert "shortener_hits_recorded" in httpx.get(f"{server.base}/metrics", trust_env=False, timeout=PATIENCE).text
