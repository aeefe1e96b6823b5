"""These tests verify real deliveries with the code in docs/guides/verify-signatures.md and with published Node libraries."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from shortener.container import Service
from shortener.secret import new_signing_secret
from tests.conftest import NOON, Clock
from tests.delivery.conftest import MakeTracker, Story, changes
from tests.delivery.dispatching import deliver
from tests.receiver import Receiver

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "verify-signatures.md"
SECONDS = 120  # the first run of a compiler takes long on a busy machine

# Each program reads a JSON object with "secret", "headers" and "body" (base64), calls both functions in the signature guide, and
# prints their results.
DRIVERS = {
    "python": """
import json, sys
given = json.load(sys.stdin)
body = base64.b64decode(given["body"])
print(*(int(check(given["secret"], given["headers"], body)) for check in (verify_standard, verify_telecom)))
""",
    "js": """
const given = JSON.parse(require("fs").readFileSync(0));
const body = Buffer.from(given.body, "base64");
console.log([verifyStandard, verifyTelecom].map((check) => Number(check(given.secret, given.headers, body))).join(" "));
""",
    "php": """
$given = json_decode(stream_get_contents(STDIN), true);
$body = base64_decode($given["body"]);
echo (int) verify_standard($given["secret"], $given["headers"], $body), " ";
echo (int) verify_telecom($given["secret"], $given["headers"], $body), "\\n";
""",
    "go": """
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

func main() {
	var given struct {
		Secret  string
		Headers map[string]string
		Body    []byte
	}
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		panic(err)
	}
	fmt.Println(
		number(verifyStandard(given.Secret, given.Headers, given.Body)),
		number(verifyTelecom(given.Secret, given.Headers, given.Body)),
	)
}
""",
    "ruby": """
require "json"
given = JSON.parse($stdin.read)
body = Base64.decode64(given["body"])
puts [verify_standard(given["secret"], given["headers"], body), verify_telecom(given["secret"], given["headers"], body)]
  .map { |right| right ? 1 : 0 }.join(" ")
""",
}
COMMANDS = {
    "python": ["python3"],
    "js": ["node"],
    "php": ["php"],
    "go": ["go", "run"],
    "ruby": ["ruby"],
}
SUFFIXES = {"python": "py", "js": "js", "php": "php", "go": "go", "ruby": "rb"}


def documented_code(language: str) -> str:
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(block)


def run(command: list[str], given: dict[str, Any], folder: Path) -> str:
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=SECONDS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def node_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the published Node libraries for signatures are installed."""
    if shutil.which("npm") is None:
        pytest.skip("NOT VERIFIED by the libraries of Node: npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefer-offline", "standardwebhooks", "svix"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        pytest.skip(f"NOT VERIFIED by the libraries of Node: npm cannot install them: {done.stderr[-200:]}")
    return folder


BARE_BASE64 = base64.b64encode(bytes(range(100, 132))).decode()
SECRETS = {"generated": new_signing_secret(), "base64": BARE_BASE64}


async def captured(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock, secret: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Send two deliveries: one signed with the secret, and one during the rotation of the secret.

    Return the two requests as input for the verification programs."""
    clock.now = datetime.now(NOON.tzinfo)  # the verification programs compare the timestamp with the system clock
    tracker = await make_tracker(receiver.url(), "click", secret=secret)
    for _ in range(2):
        await story.first_click(await story.message(campaign="Grüße"))
        await deliver(service)
        await service.trackers.update(tracker, changes(rotate_secret=True, secret_overlap=3600))
    first, second = (
        {"secret": secret, "headers": dict(request.headers), "body": base64.b64encode(request.body).decode()}
        for request in receiver.requests
    )
    return first, second


@pytest.mark.slow  # starts interpreters and the Go compiler
@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("language", DRIVERS)
async def test_the_code_in_the_signature_guide_verifies_real_deliveries(
    service: Service,
    make_tracker: MakeTracker,
    story: Story,
    receiver: Receiver,
    clock: Clock,
    language: str,
    kind: str,
    tmp_path: Path,
) -> None:
    if shutil.which(COMMANDS[language][0]) is None:
        pytest.skip(f"NOT VERIFIED by the documented code: {COMMANDS[language][0]} is not installed")
    (tmp_path / f"verify.{SUFFIXES[language]}").write_text(
        documented_code(language) + ("" if language == "go" else DRIVERS[language])
    )
    files = [f"verify.{SUFFIXES[language]}"]
    if language == "go":
        (tmp_path / "main.go").write_text(DRIVERS["go"])
        files.append("main.go")
    first, during_rotation = await captured(service, make_tracker, story, receiver, clock, SECRETS[kind])
    tampered = {**first, "body": base64.b64encode(b"{}").decode()}
    command = [*COMMANDS[language], *files]
    results = [run(command, given, tmp_path) for given in (first, during_rotation, tampered)]
    assert results == ["1 1", "1 1", "0 0"]


@pytest.mark.slow  # installs packages of npm and starts Node
@pytest.mark.parametrize("kind", SECRETS)
async def test_the_published_node_libraries_verify_real_deliveries(
    service: Service,
    make_tracker: MakeTracker,
    story: Story,
    receiver: Receiver,
    clock: Clock,
    node_libraries: Path,
    kind: str,
) -> None:
    program = """
const given = JSON.parse(require("fs").readFileSync(0));
const body = Buffer.from(given.body, "base64").toString();
for (const name of ["standardwebhooks", "svix"]) {
  const { Webhook } = require(name);
  try { new Webhook(given.secret).verify(body, given.headers); console.log(1); } catch (error) { console.log(0); }
}
"""
    (node_libraries / "verify.js").write_text(program)
    first, during_rotation = await captured(service, make_tracker, story, receiver, clock, SECRETS[kind])
    tampered = {**first, "body": base64.b64encode(b"{}").decode()}
    results = [run(["node", "verify.js"], given, node_libraries).split() for given in (first, during_rotation, tampered)]
    assert results == [["1", "1"], ["1", "1"], ["0", "0"]]
