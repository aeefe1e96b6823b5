"""Tests that generate clients from the OpenAPI document. Each generated client rewrites a text and reads an error.

The code blocks of docs/guides/generate-clients.md run unchanged, except for the address and the key. The tests of TypeScript
clients are skipped if Node is not installed, or if npm cannot download the generators.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.process import Server, serving
from tests.cli.shell import create_installation
from tests.document_blocks import ROOT
from tests.servers import PATIENCE

GUIDE = (ROOT / "docs" / "guides" / "generate-clients.md").read_text()
PACKAGES = Path(__file__).parent / "generators"

pytestmark = pytest.mark.slow


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True, timeout=4 * PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def code_block(language: str, text: str, server: Server) -> str:
    """Return the code block of the guide that contains `text`. In the result, the address of the test server replaces the address
    of the block."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if text in block]
    return str(block).replace("http://127.0.0.1:8000", server.base)


def check_output(printed: str) -> None:
    rewritten, error = printed.splitlines()
    assert re.fullmatch(r"Look: http://\S+/\w{10}", rewritten)
    assert error == "INVALID_RECIPIENT to"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[Server]:
    """A server that all tests of this module share. Each generated client only rewrites one text."""
    folder = tmp_path_factory.mktemp("server")
    create_installation(folder / "data", sqlite_template)
    yield from serving(folder)


@pytest.fixture(scope="module")
def node_packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the pinned packages of npm."""
    if shutil.which("npm") is None:
        pytest.skip("SKIPPED: node with npm is not installed (apt-get install nodejs npm), so no TypeScript client was generated")
    folder = tmp_path_factory.mktemp("generators")
    for name in ("package.json", "package-lock.json", "tsconfig.json"):
        shutil.copy(PACKAGES / name, folder)
    done = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
    )
    if done.returncode != 0:
        pytest.skip(f"SKIPPED: npm cannot install the generators: {done.stderr[-500:]}")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def program(name: str, packages: Path) -> Path:
    """Return the path of a program in the npm packages. `npx` would start the same program, but takes longer to find it."""
    return packages / "node_modules" / ".bin" / name


def document_of(server: Server, folder: Path) -> Path:
    with server.client() as client:
        file = folder / "openapi.json"
        file.write_bytes(client.get("/openapi.json").content)
        return file


@pytest.fixture(scope="module")
def node_programs(server: Server, node_packages: Path) -> Path:
    """Generate both TypeScript clients, and compile the program of the guide for each of them with all strict checks. Return the
    folder of the compiled programs.

    The compiler runs once for both, because this takes two thirds of the processor time of two runs."""
    folder, document = node_packages, document_of(server, node_packages)
    types = ("--default-non-nullable=false", "--output", "schema.d.ts")
    run(program("openapi-typescript", folder), document, *types, folder=folder)
    run(program("openapi-ts", folder), "--input", document, "--output", "sms", "--no-log-file", folder=folder)
    for name, text in (("fetch", "openapi-fetch"), ("sdk", "sdk.gen")):
        (folder / f"{name}.ts").write_text(f'const KEY = "{server.first["api_key"]}";\n{code_block("ts", text, server)}')
    run(program("tsc", folder), "--project", ".", folder=folder)
    return folder / "build"


def test_openapi_python_client_generates_a_client_without_warnings(server: Server, tmp_path: Path) -> None:
    document = document_of(server, tmp_path)
    (tmp_path / "options.yaml").write_text("post_hooks: []\n")
    printed = run(
        *(sys.executable, "-c", "from openapi_python_client.cli import app; app()", "generate", "--meta", "none"),
        *("--path", document, "--output-path", tmp_path / "sms", "--config", tmp_path / "options.yaml"),
        folder=tmp_path,
    )
    assert "arning" not in printed, printed
    script = f"KEY = {server.first['api_key']!r}\n" + code_block("python", "from sms.api", server)
    (tmp_path / "main.py").write_text(script)
    check_output(run(sys.executable, "main.py", folder=tmp_path))


def test_openapi_typescript_generates_types_that_strict_typescript_accepts(node_programs: Path) -> None:
    check_output(run("node", "fetch.js", folder=node_programs))


def test_openapi_ts_generates_a_client_that_strict_typescript_accepts(node_programs: Path) -> None:
    check_output(run("node", "sdk.js", folder=node_programs))
