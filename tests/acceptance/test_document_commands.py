"""Tests that run the command blocks of the README, the tutorial and the guides with a real process.

The blocks are unchanged, except for the ports and the path of the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from tests import fork_server
from tests.acceptance.process import NO_TLS
from tests.cli.shell import create_installation
from tests.conftest import new_postgresql_database
from tests.document_blocks import DOCUMENTS, ROOT, runnable, shell_blocks, starts_receiver, starts_server
from tests.servers import PATIENCE, free_port

#: Other tests run the command blocks of these documents, or nothing can run them here (tests/test_docs.py states the reason).
OTHER_DOCUMENTS = ("scaling.md", "production-two-nodes.md")
#: The command blocks of these documents start a server or need a running server.
LIVE_DOCUMENTS = [
    document
    for document in DOCUMENTS
    if document.name in ("backup-and-restore.md", "monitoring.md")
    or any(starts_server(block) or "curl " in block for block in shell_blocks(document))
]
#: The command blocks of these documents need only an installation with one application.
OFFLINE_DOCUMENTS = [
    document
    for document in DOCUMENTS
    if shell_blocks(document) and document not in LIVE_DOCUMENTS and document.name not in OTHER_DOCUMENTS
]


@contextlib.contextmanager
def started(command: str, folder: Path, environment: dict[str, str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command block in the background. At the end, stop it with SIGINT, as Ctrl-C does."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-c", command], cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        process.wait(PATIENCE)


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(url, verify=NO_TLS, trust_env=False)
            return
        threading.Event().wait(0.05)
    raise AssertionError(f"{url} does not respond")


def wait_for_text(file: Path, text: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while text not in file.read_text():
        assert time.monotonic() < deadline, f"{text} is not in:\n{file.read_text()}"
        threading.Event().wait(0.05)


def is_background(block: str) -> bool:
    return starts_server(block) or starts_receiver(block)


@pytest.mark.parametrize("document", LIVE_DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_command_blocks_of_a_document_run_in_order(document: Path, tmp_path: Path) -> None:
    server_port, receiver_port = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHORTENER_")}
    environment |= {"SHORTENER_PORT": str(server_port), "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    # If a command of a block runs in the background, start it as a real process, because its output is read while it runs.
    blocks = [
        (block, runnable(block, server_port, receiver_port, None if is_background(block) else fork_server.shell_command()))
        for block in shell_blocks(document)
    ]
    servers = [text for block, text in blocks if starts_server(block)]
    receivers = [text for block, text in blocks if starts_receiver(block)]
    commands = [text for block, text in blocks if not is_background(block)]
    server = servers[0] if servers else runnable("SHORTENER_ALLOW_PRIVATE_TARGETS=true make run", server_port, receiver_port)
    events = tmp_path / "events"
    (tmp_path / "config").symlink_to(ROOT / "config")
    if any("promtool" in text for text in commands) and shutil.which("promtool") is None:
        pytest.skip("SKIPPED: promtool is not installed (apt-get install prometheus)")
    with contextlib.ExitStack() as stack:
        stack.enter_context(started(server, tmp_path, environment, tmp_path / "server"))
        wait_until_ready(f"http://127.0.0.1:{server_port}/healthz")
        for receiver in receivers:
            stack.enter_context(started(receiver, tmp_path, environment, events))
            wait_until_ready(f"http://127.0.0.1:{receiver_port}/")
        script = "set -euo pipefail\n" + "\necho\n".join(commands)
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=4 * PATIENCE
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert '"status":false' not in done.stdout, done.stdout
        assert "404 Not Found" not in done.stdout, done.stdout
        if receivers:
            wait_for_text(events, "CLICKTHRU")
            assert done.stdout.count("302 Found") >= 1
        if document.parent.name == "tutorial" or document.name == "README.md":
            wait_for_text(events, "purchase")
        if document.parent.name == "tutorial":
            assert json.dumps("ben-1") in done.stdout


def plain_environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHORTENER_")}
    return environment | {"PYTHONPATH": str(ROOT)}


def run_script(blocks: Sequence[str], folder: Path, environment: dict[str, str]) -> str:
    """Run command blocks one after the other with bash. Return what they printed."""
    script = "set -euo pipefail\n" + "\n".join(runnable(block, 8000, 9000, fork_server.shell_command()) for block in blocks)
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=4 * PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_command_blocks_of_documents_that_need_no_server_run_in_order(tmp_path: Path, sqlite_template: Path) -> None:
    create_installation(tmp_path / "data", sqlite_template)
    blocks = [block for document in OFFLINE_DOCUMENTS for block in shell_blocks(document)]
    assert len(blocks) >= len(OFFLINE_DOCUMENTS) > 3
    run_script([".venv/bin/shortener applications create First", *blocks], tmp_path, plain_environment())


def test_the_move_from_sqlite_to_postgresql_works_as_the_guide_shows(
    tmp_path: Path, sqlite_template: Path, postgresql: str
) -> None:
    copying, serving = shell_blocks(ROOT / "docs" / "guides" / "scaling.md")
    create_installation(tmp_path / "data", sqlite_template)
    target = asyncio.run(new_postgresql_database(postgresql, None))
    shown = "postgresql://shortener:password@database.example/shortener"
    assert shown in copying
    assert serving.splitlines()[-1] == ".venv/bin/shortener serve"
    without_server = "\n".join(serving.splitlines()[:-1])
    blocks = [".venv/bin/shortener applications create First >/dev/null", copying.replace(shown, f"'{target}'"), without_server]
    printed = run_script([*blocks, ".venv/bin/shortener applications list"], tmp_path, plain_environment())
    assert "rows copied and compared" in printed
    assert "agree with the raw data" in printed
    assert "First" in printed


def test_the_documented_command_creates_the_secrets_for_docker_compose_and_never_replaces_them(tmp_path: Path) -> None:
    creating, starting = shell_blocks(ROOT / "docs" / "guides" / "production-two-nodes.md")
    assert "docker compose" in starting, "there is no Docker here"
    run_script([creating], tmp_path, plain_environment())
    written = (tmp_path / ".env").read_text()
    assert (tmp_path / ".env").stat().st_mode & 0o77 == 0
    names = set(re.findall(r"\$\{(\w+):\?\}", (ROOT / "compose.yaml").read_text()))
    assert {line.partition("=")[0] for line in written.splitlines()} == names
    assert all(line.partition("=")[2] for line in written.splitlines())
    run_script([creating], tmp_path, plain_environment())
    assert (tmp_path / ".env").read_text() == written
