"""Tests that install the built wheel in an empty virtual environment. The client must be installed without the parts of the
server.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import PATIENCE

ROOT = Path(__file__).parent.parent.parent


def run(*command: str | Path, code: int = 0) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=4 * PATIENCE)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def copy_source(folder: Path) -> Path:
    """Copy the files from which the wheel is built. Return the folder of the copies."""
    source = folder / "source"
    shutil.copytree(ROOT / "shortener", source / "shortener", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope="module")
def client_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Python interpreter of a virtual environment in which the wheel is installed with the extra `client`. The test is
    skipped if no package registry can be reached."""
    folder = tmp_path_factory.mktemp("installation")
    source = copy_source(folder)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    # Use the pip of this interpreter. To install pip in the new environment would take longer than everything else.
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    done = subprocess.run(
        [*pip, "--python", python, "install", "--no-compile", f"sms-shortener[client] @ file://{wheel}"],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
    )
    if done.returncode != 0 and "No matching distribution" in done.stderr:
        pytest.skip(f"SKIPPED: no package registry has httpx: {done.stderr}")
    assert done.returncode == 0, done.stderr
    yield python
    shutil.rmtree(folder)


def test_an_installation_with_the_extra_client_contains_no_part_of_the_server(client_python: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", client_python)
    listed = json.loads(run(*pip, "list", "--format", "json"))
    names = {package["name"].lower().replace("_", "-") for package in listed}
    assert {"sms-shortener", "httpx", "idna"} <= names
    assert names <= {"sms-shortener", "httpx", "httpcore", "h11", "anyio", "certifi", "idna", "sniffio", "typing-extensions"}
    run(*pip, "check")


def test_the_serve_command_prints_how_to_install_the_missing_extra_server(client_python: Path) -> None:
    text = run(client_python.parent / "shortener", "serve", code=1)
    assert "run `make setup` in a clone of the repository" in text
    assert "Traceback" not in text


def test_a_program_that_is_started_beside_the_clone_imports_the_client_that_make_run_installed(tmp_path: Path) -> None:
    """The clone is a folder with the name `shortener`, so Python could import the folder in place of the installed package."""
    (mode,) = re.findall(r"^EDITABLE := --config-settings editable_mode=(\w+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    build = f"from setuptools import build_meta; print(build_meta.build_editable({str(tmp_path)!r}, {{'editable_mode': {mode!r}}}))"
    subprocess.run([sys.executable, "-c", build], cwd=copy_source(tmp_path), check=True, capture_output=True, timeout=4 * PATIENCE)
    (wheel,) = tmp_path.glob("*.whl")
    installed, beside = tmp_path / "installed", tmp_path / "beside"
    zipfile.ZipFile(wheel).extractall(installed)
    (beside / "shortener" / "shortener").mkdir(parents=True)
    (beside / "shortener" / "README.md").touch()
    # Remove the folder of this repository from the import path, because its package may be installed for the interpreter of the
    # tests.
    paths = f"import site, sys; sys.path[:] = [one for one in sys.path if one != {str(ROOT)!r}]; "
    paths += f"site.addsitedir({str(installed)!r}); sys.path.insert(0, {str(beside)!r})"
    printed = run(sys.executable, "-I", "-c", f"{paths}; from shortener import client; print(client.__file__)")
    assert printed.strip() == str(tmp_path / "source" / "shortener" / "client" / "__init__.py")
