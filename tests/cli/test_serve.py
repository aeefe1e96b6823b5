"""Tests of the start of a server: its port, its first output, and its garbage collector."""

from __future__ import annotations

import gc
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pytest

from shortener import lean_imports
from shortener.cli.serve import NO_FULL_COLLECTIONS, _fast_start, _print_start
from shortener.errors import StoreUnavailable
from tests.cli.shell import Shell
from tests.conftest import MakeService
from tests.servers import PATIENCE, free_port


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "data")


@pytest.fixture
def _restore_interpreter_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lean_imports, "_excludes_objects", False)
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.unfreeze()  # The test process has excluded its own objects from collections (tests/speed.py). Include them again.
    yield
    gc.unfreeze()
    gc.freeze()
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_restore_interpreter_settings")
def test_garbage_collection_is_off_during_the_start_and_ignores_objects_of_the_start_afterwards() -> None:
    with _fast_start():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert gc.get_threshold()[2] == NO_FULL_COLLECTIONS, "only the background job starts full collections"


@pytest.mark.usefixtures("_restore_interpreter_settings")
def test_a_failed_start_enables_garbage_collection_again() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    with pytest.raises(StoreUnavailable), _fast_start():
        raise StoreUnavailable("the database is down")
    assert gc.isenabled()
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


@pytest.mark.acceptance
def test_if_the_port_is_in_use_the_serve_command_prints_one_line_exits_with_1_and_creates_nothing(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        result = shell("serve", "--port", port, code=1)
        assert len(result.stderr.splitlines()) == 1
        assert f"port {port} on 127.0.0.1 is already in use" in result.stderr
        assert "Stop the process that uses it" in result.stderr
        assert "another port with the setting SHORTENER_PORT or the option --port" in result.stderr
        assert result.stdout == ""
        assert not shell.folder.exists()
        of_listen = shell("listen", "--port", port, code=1).stderr
        assert "already in use" in of_listen
        assert "another port with the option --port" in of_listen


@pytest.mark.acceptance
def test_the_serve_command_fails_if_other_machines_can_reach_the_server_but_base_url_is_local(shell: Shell) -> None:
    result = shell("serve", "--host", "0.0.0.0", "--port", "0", code=1)
    assert "Set SHORTENER_BASE_URL" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not shell.folder.exists()


@pytest.mark.acceptance
def test_the_serve_command_prints_its_address_before_the_first_log_line_and_no_credentials_from_the_settings(
    tmp_path: Path,
) -> None:
    key, token = "initial-key-0123456789-abcdefghijkl", "initial-token-0123456789-abcdefghijkl"
    (tmp_path / "key").write_text(key + "\n")
    shell = Shell(
        tmp_path / "data",
        SHORTENER_INITIAL_API_KEY_FILE=str(tmp_path / "key"),
        SHORTENER_INITIAL_TRACKER_TOKEN=token,
        SHORTENER_SERVICE_HOST="10.0.0.1",  # Kubernetes sets this variable for a Service called shortener
    )
    command = [sys.executable, "-m", "shortener", "serve", "--port", "0"]
    server = subprocess.Popen(command, env=shell.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout is not None
        lines = [server.stdout.readline() for _ in range(3)]
        assert lines[0] == "The default application is created. Its API key is INITIAL_API_KEY; no credentials are printed.\n"
        assert lines[1].startswith("Serving on http://127.0.0.1:")
        assert orjson.loads(lines[2])["variables"] == ["SHORTENER_SERVICE_HOST"]
        assert not any(secret in "".join(lines) for secret in (key, token, "whsec_"))
        base = lines[1].rpartition(" ")[2].strip()
        with httpx.Client(base_url=base, timeout=PATIENCE, trust_env=False) as client:
            assert client.get("/api/v1/application", headers={"X-API-Key": key}).status_code == 200
            report = client.get("/api/v1/track?message_id=none&action=sale", headers={"X-Api-Token": token})
            assert report.json()["error_code"] == "MESSAGE_NOT_FOUND"
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
        if server.stdout is not None:
            server.stdout.close()


@pytest.mark.acceptance
def test_the_server_starts_if_stdout_is_on_a_full_disk_and_the_log_says_which_credentials_are_lost(tmp_path: Path) -> None:
    port = free_port()
    shell = Shell(tmp_path / "data", SHORTENER_PORT=str(port))
    log_file = tmp_path / "log"
    with open("/dev/full", "w") as full, log_file.open("w") as stderr:
        server = subprocess.Popen([sys.executable, "-m", "shortener", "serve"], env=shell.environment, stdout=full, stderr=stderr)
    try:
        transport = httpx.HTTPTransport(retries=30)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport, timeout=PATIENCE, trust_env=False) as client:
            assert client.get("/healthz").status_code == 200
            assert client.get("/nocode1234").status_code == 404
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
    (line,) = (line for line in log_file.read_text().splitlines() if "start_not_printed" in line)
    entry = orjson.loads(line)
    assert (entry["level"], entry["error"]) == ("warning", "No space left on device")
    assert "shortener keys create 1 --permission all" in entry["remedy"]


@pytest.mark.acceptance
def test_if_the_address_belongs_to_another_machine_the_serve_command_prints_one_line_and_exits_with_1(shell: Shell) -> None:
    result = shell("serve", "--host", "192.0.2.1", "--port", "0", code=1)
    assert result.stderr.startswith("Error: cannot listen on 192.0.2.1")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.acceptance
def test_with_port_0_the_serve_command_selects_a_free_port_and_short_links_contain_this_port(shell: Shell) -> None:
    command = [sys.executable, "-m", "shortener", "serve", "--port", "0", "--json"]
    server = subprocess.Popen(command, env=shell.environment, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        started = orjson.loads(server.stdout.readline())
        assert started["port"] > 0
        assert started["base_url"] == f"http://127.0.0.1:{started['port']}"
        transport = httpx.HTTPTransport(retries=10)
        with httpx.Client(base_url=started["base_url"], transport=transport, timeout=PATIENCE, trust_env=False) as client:
            headers = {"X-API-Key": started["first_start"]["api_key"]}
            body = {"to": "+14085550100", "body": '#track("https://x.example/")'}
            (message,) = client.post("/api/v1/rewrite", json=body, headers=headers).json()["messages"]
            assert message["links"][0]["short_url"].startswith(started["base_url"] + "/")
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
        if server.stdout is not None:
            server.stdout.close()


@pytest.mark.parametrize(("in_path", "name"), [(False, ".venv/bin/shortener"), (True, "shortener")])
async def test_the_first_start_names_the_command_as_the_user_can_call_it(
    make_service: MakeService,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    in_path: bool,
    name: str,
) -> None:
    (tmp_path / "shortener").touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [".venv/bin/shortener", "serve"])
    monkeypatch.setenv("PATH", str(tmp_path) if in_path else "/nowhere")
    await _print_start(await make_service(), False)
    assert f"`{name} clicks list`" in capsys.readouterr().out


@pytest.mark.parametrize("access_log", ["on", "auto"])
async def test_the_first_start_says_where_a_click_can_be_seen(
    make_service: MakeService, capsys: pytest.CaptureFixture[str], access_log: str
) -> None:
    await _print_start(await make_service(access_log=access_log), False)
    printed = capsys.readouterr().out
    assert "shortener clicks list` lists the clicks" in printed
    assert ("ACCESS_LOG=on" in printed) == (access_log == "auto"), "the default log has no line for a click"
