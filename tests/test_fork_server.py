"""Tests for tests/fork_server.py: a forked command behaves like a command that Python starts."""

from __future__ import annotations

import os
import signal
import subprocess
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
        process.kill()  # a signal to a process that has ended does nothing
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


def test_a_command_with_other_variables_of_python_than_the_test_process_is_a_real_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('customized')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    done = fork_server.run(["--help"], environment_of(tmp_path / "data"), capture_output=True, text=True)
    assert done.stdout.startswith("customized")


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
