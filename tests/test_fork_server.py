"""Tests that a forked command behaves like a command that Python itself starts (tests/fork_server.py)."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import fork_server
from tests.cli.shell import create_installation, environment_of
from tests.servers import PATIENCE, free_port

pytestmark = pytest.mark.slow


@pytest.fixture(params=["forked", "real"])
def environment(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    if request.param == "real":
        monkeypatch.setenv("REAL_PROCESSES", "1")
    return environment_of(tmp_path / "data")


def test_a_forked_command_has_the_output_and_the_exit_code_of_a_real_one(environment: dict[str, str], tmp_path: Path) -> None:
    done = fork_server.run(["stats", "--nothing"], environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: python -m shortener stats")
    shown = fork_server.run(["--help"], environment, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("Usage: python -m shortener")
    with pytest.raises(subprocess.CalledProcessError):
        fork_server.run(["stats", "--nothing"], environment, stdout=subprocess.PIPE, check=True)


def test_a_forked_process_receives_signals_and_releases_its_port(environment: dict[str, str], tmp_path: Path) -> None:
    words = ["serve", "--port", str(free_port())]
    with fork_server.start(words, environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        wait_for_start(process)
        assert psutil.Process(process.pid).cwd() == str(tmp_path)
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.kill()
        assert process.wait(PATIENCE) == -signal.SIGKILL
        process.kill()  # after the process has ended, a signal does nothing
    assert process.poll() == -signal.SIGKILL
    with fork_server.start(words, environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        wait_for_start(process)
        process.terminate()
        assert process.wait(PATIENCE) == 0


def wait_for_start(process: fork_server.AnyProcess) -> None:
    assert process.stdout is not None
    while "Serving on" not in (line := process.stdout.readline()):
        assert line, "the process has ended"


def test_two_forked_processes_have_their_own_random_numbers(
    environment: dict[str, str], tmp_path: Path, sqlite_template: Path
) -> None:
    keys = set()
    for number in range(2):
        environment["SHORTENER_DATA_DIR"] = str(tmp_path / str(number))
        create_installation(tmp_path / str(number), sqlite_template)
        done = fork_server.run(["applications", "create", "shop"], environment, stdout=subprocess.PIPE, check=True, text=True)
        keys.add(done.stdout)
    assert len(keys) == 2


def test_a_forked_process_begins_with_one_thread_and_no_open_file_of_the_fork_server(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    os.mkfifo(settings)
    environment = environment_of(tmp_path / "data", SHORTENER_CONFIG=str(settings))
    with fork_server.start(["serve"], environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        with os.fdopen(_open_when_read(settings), "w") as writer:  # the process reads its settings until this file is closed
            assert psutil.Process(process.pid).num_threads() == 1
            opened = [os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir() if int(link.name) > 2]
            writer.write("port = 'none'")
        assert set(opened) <= {str(settings)}
        assert process.stderr is not None
        assert "unusable settings" in process.stderr.read()
        assert process.wait(PATIENCE) == 1


def _open_when_read(pipe: Path) -> int:
    """Wait until another process opens a named pipe for reading, and open it for writing. Return the descriptor."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        assert time.monotonic() < deadline, "no process reads the pipe"
        time.sleep(0.01)


def test_nothing_of_the_service_that_warmed_up_the_fork_server_remains_in_it() -> None:
    """After the fork, a child has only the thread that called `fork`, and it closes all files. Threads, files and objects that
    use them must therefore not exist in the fork server."""
    program = """
import asyncio, functools, gc, json, os, signal, sqlite3, sys, threading
import aiosqlite, asyncpg, httpx, sqlalchemy
from tests.warm_up import import_modules, warm_up
import_modules()
import structlog
from shortener.container import Service
from shortener.storage.sqlite import SqliteDatabase

def state():
    files = sorted(os.listdir("/proc/self/fd"))
    handlers = [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())]
    return {"files": files, "handlers": handlers, "environment": dict(os.environ), "folder": os.getcwd(),
        "threads": len(os.listdir("/proc/self/task")), "collection": gc.get_threshold(), "switch": sys.getswitchinterval(),
        "logs": structlog.is_configured()}

before = state()
warm_up()
gc.collect()
kinds = (asyncio.AbstractEventLoop, asyncio.Future, sqlite3.Connection, aiosqlite.Connection, asyncpg.Connection,
    sqlalchemy.Connection, httpx.AsyncClient, Service, SqliteDatabase)
caches = [one for one in gc.get_objects() if isinstance(one, functools._lru_cache_wrapper)]
print(json.dumps({
    "changed": [name for name, value in state().items() if value != before[name]],
    "threads": [thread.name for thread in threading.enumerate()],
    "objects": [str(one) for one in gc.get_objects() if isinstance(one, kinds)],
    "filled": [str(one) for one in caches if one.__module__.startswith("shortener") and one.cache_info().currsize],
}))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=fork_server.ROOT, stdout=subprocess.PIPE, check=True)
    assert json.loads(done.stdout) == {"changed": [], "threads": ["MainThread"], "objects": [], "filled": []}


def test_the_fork_server_is_shared_and_kills_the_processes_of_a_test_process_that_ends(tmp_path: Path) -> None:
    environment = environment_of(tmp_path / "data", SHORTENER_CONFIG=str(tmp_path / "settings.toml"))
    os.mkfifo(tmp_path / "settings.toml")  # the process reads its settings from this pipe, so it waits until they are written
    program = f"""
import os
from tests import fork_server
process = fork_server.start(["serve"], {environment!r}, cwd={str(tmp_path)!r}, stdout=1)
print(process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    own = fork_server.start(["serve"], environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        run = fork_server.shell_command().split()[-1].removeprefix("shortener-tests-")
        variables = os.environ | {"PYTEST_XDIST_TESTRUNUID": run}
        command = [sys.executable, "-c", program]
        other = subprocess.run(command, cwd=fork_server.ROOT, env=variables, stdout=subprocess.PIPE, timeout=PATIENCE)
        assert other.returncode == -signal.SIGKILL
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(int(other.stdout)).wait(PATIENCE)
        assert own.poll() is None
    finally:
        own.kill()
        own.wait(PATIENCE)


def test_a_command_with_other_variables_of_python_than_the_test_process_is_a_real_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('customized')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    done = fork_server.run(["--help"], environment_of(tmp_path / "data"), capture_output=True, text=True)
    assert done.stdout.startswith("customized")


def test_a_command_executes_the_given_code_first(environment: dict[str, str], tmp_path: Path) -> None:
    code = (
        "from shortener import model\nmodel.utcnow.__code__ = (lambda: datetime(2030, 5, 6, tzinfo=UTC)).__code__\n"
        "from shortener.storage import clock\nprint('executed', __name__, clock.utcnow().date())\n"
    )
    environment |= fork_server.executed_first(code, tmp_path)
    done = fork_server.run(["--help"], environment, capture_output=True, text=True, check=True)
    first, second, *_ = done.stdout.splitlines()
    assert first == "executed sitecustomize 2030-05-06"
    assert second.startswith("Usage: python -m shortener")


def test_a_shell_script_starts_a_command_with_its_own_folder_variables_streams_and_signals(
    environment: dict[str, str], tmp_path: Path, sqlite_template: Path
) -> None:
    create_installation(tmp_path / "data", sqlite_template)
    command = fork_server.shell_command()
    script = (
        f"{command} applications create Shop >/dev/null && {command} applications list | grep -c Shop; {command} stats --nothing"
    )
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout.strip()) == (2, "1")
    assert "Usage: python -m shortener stats" in done.stderr
    script = f"exec {command} serve --port {free_port()}"
    with subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        wait_for_start(process)
        process.terminate()
        assert process.wait(PATIENCE) == 0
