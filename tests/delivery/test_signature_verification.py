"""These tests verify real deliveries, signed with every kind of secret: with the code in docs/guides/verify-signatures.md, and with
the published libraries for Standard Webhooks.

pip and npm install the libraries for Python and Node. The libraries for PHP and Ruby are in the
repository standard-webhooks/standard-webhooks. Set STANDARD_WEBHOOKS to a checkout of it to run their tests."""

from __future__ import annotations

import base64
import importlib
import json
import os
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
from tests.factory import AUDIT
from tests.receiver import Receiver

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "verify-signatures.md"
SECONDS = 120  # the first run of a compiler takes long on a busy machine

# Each program reads a JSON list of objects with "secret", "headers" and "body" (base64). For each object, it calls both functions
# in the signature guide and prints their results as a line.
DRIVERS = {
    "python": """
import json, sys
for given in json.load(sys.stdin):
    body = base64.b64decode(given["body"])
    print(*(int(check(given["secret"], given["headers"], body)) for check in (verify_standard, verify_telecom)))
""",
    "js": """
for (const given of JSON.parse(require("fs").readFileSync(0))) {
  const body = Buffer.from(given.body, "base64");
  console.log([verifyStandard, verifyTelecom].map((check) => Number(check(given.secret, given.headers, body))).join(" "));
}
""",
    "php": """
foreach (json_decode(stream_get_contents(STDIN), true) as $given) {
    $body = base64_decode($given["body"]);
    echo (int) verify_standard($given["secret"], $given["headers"], $body), " ";
    echo (int) verify_telecom($given["secret"], $given["headers"], $body), "\\n";
}
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
	var all []struct {
		Secret  string
		Headers map[string]string
		Body    []byte
	}
	if err := json.NewDecoder(os.Stdin).Decode(&all); err != nil {
		panic(err)
	}
	for _, given := range all {
		fmt.Println(
			number(verifyStandard(given.Secret, given.Headers, given.Body)),
			number(verifyTelecom(given.Secret, given.Headers, given.Body)),
		)
	}
}
""",
    "ruby": """
require "json"
JSON.parse($stdin.read).each do |given|
  body = Base64.decode64(given["body"])
  puts [verify_standard(given["secret"], given["headers"], body), verify_telecom(given["secret"], given["headers"], body)]
    .map { |right| right ? 1 : 0 }.join(" ")
end
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

# Each program reads a JSON list of requests and verifies each request with a published library. It prints 1 if the signature is
# valid, otherwise 0.
LIBRARY_PROGRAMS = {
    "php": """<?php
require getenv("STANDARD_WEBHOOKS") . "/libraries/php/init.php";
foreach (json_decode(stream_get_contents(STDIN), true) as $given) {
    try {
        (new \\StandardWebhooks\\Webhook($given["library_secret"]))->verify(base64_decode($given["body"]), $given["headers"]);
        echo "1\\n";
    } catch (\\StandardWebhooks\\Exception\\WebhookVerificationException $error) {
        echo "0\\n";
    }
}
""",
    "ruby": """
$LOAD_PATH.unshift(ENV["STANDARD_WEBHOOKS"] + "/libraries/ruby/lib")
require "standardwebhooks"
JSON.parse($stdin.read).each do |given|
  begin
    StandardWebhooks::Webhook.new(given["library_secret"]).verify(Base64.decode64(given["body"]), given["headers"])
    puts 1
  rescue StandardWebhooks::WebhookVerificationError
    puts 0
  end
end
""",
}


def documented_code(language: str) -> str:
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(block)


def run(command: list[str], given: list[dict[str, Any]], folder: Path) -> list[str]:
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=SECONDS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


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


TEXT = "correct horse: battery staple!"
SECRETS = {
    "generated": new_signing_secret(),
    "generated, 24 bytes": f"whsec_{base64.b64encode(bytes(range(24))).decode()}",
    "generated, 64 bytes": f"whsec_{base64.b64encode(bytes(range(64))).decode()}",
    "base64": base64.b64encode(bytes(range(100, 132))).decode(),
    "hexadecimal": bytes(range(100, 132)).hex(),
    "base64 without padding": base64.b64encode(bytes(range(100, 131))).decode().rstrip("="),
    "text": TEXT,
}
#: The kinds of secret whose text is the key. The published libraries require this text encoded as base64.
TEXTS = ("base64 without padding", "text")


@pytest.fixture
async def deliveries(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> list[dict[str, Any]]:
    """Send three deliveries with each kind of secret: a valid one, one during a rotation, and one with a changed body.

    Return the requests as input for the verification programs. `library_secret` is the secret for the published libraries."""
    clock.now = datetime.now(NOON.tzinfo)  # the verification programs compare the timestamp with the system clock
    found = []
    for kind, secret in SECRETS.items():
        tracker = await make_tracker(receiver.url(), "click", secret=secret)
        for _ in range(2):
            await story.first_click(await story.message(campaign="Grüße"))
            await deliver(service)
            await service.trackers.update(AUDIT, tracker, changes(rotate_secret=True, secret_overlap=3600))
        await service.trackers.update(AUDIT, tracker, changes(enabled=False))
        sent = {
            "secret": secret,
            "library_secret": base64.b64encode(secret.encode()).decode() if kind in TEXTS else secret,
        }
        first, second = (
            {**sent, "headers": dict(request.headers), "body": base64.b64encode(request.body).decode()}
            for request in receiver.requests
        )
        receiver.requests.clear()
        found += [first, second, {**first, "body": base64.b64encode(b"{}").decode()}]
    return found


def skip_without(program: str, what: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"NOT VERIFIED by {what}: {program} is not installed")


@pytest.mark.slow  # starts interpreters and the Go compiler
@pytest.mark.parametrize("language", DRIVERS)
async def test_the_code_in_the_signature_guide_verifies_real_deliveries(
    deliveries: list[dict[str, Any]], language: str, tmp_path: Path
) -> None:
    skip_without(COMMANDS[language][0], "the documented code")
    (tmp_path / f"verify.{SUFFIXES[language]}").write_text(
        documented_code(language) + ("" if language == "go" else DRIVERS[language])
    )
    files = [f"verify.{SUFFIXES[language]}"]
    if language == "go":
        (tmp_path / "main.go").write_text(DRIVERS["go"])
        files.append("main.go")
    assert run([*COMMANDS[language], *files], deliveries, tmp_path) == ["1 1", "1 1", "0 0"] * len(SECRETS)


@pytest.mark.parametrize("name", ["standardwebhooks", "svix.webhooks"])
async def test_the_published_python_libraries_verify_real_deliveries(deliveries: list[dict[str, Any]], name: str) -> None:
    library = importlib.import_module(name)  # The import of svix takes longer than the test.

    def is_valid(given: dict[str, Any]) -> bool:
        try:
            library.Webhook(given["library_secret"]).verify(base64.b64decode(given["body"]), given["headers"])
        except library.WebhookVerificationError:
            return False
        return True

    assert [is_valid(given) for given in deliveries] == [True, True, False] * len(SECRETS)


@pytest.mark.slow  # installs packages of npm and starts Node
async def test_the_published_node_libraries_verify_real_deliveries(deliveries: list[dict[str, Any]], node_libraries: Path) -> None:
    program = """
for (const given of JSON.parse(require("fs").readFileSync(0))) {
  const body = Buffer.from(given.body, "base64").toString();
  const results = ["standardwebhooks", "svix"].map((name) => {
    const { Webhook } = require(name);
    try { new Webhook(given.library_secret).verify(body, given.headers); return 1; } catch (error) { return 0; }
  });
  console.log(results.join(" "));
}
"""
    (node_libraries / "verify.js").write_text(program)
    assert run(["node", "verify.js"], deliveries, node_libraries) == ["1 1", "1 1", "0 0"] * len(SECRETS)


@pytest.mark.slow  # starts interpreters
@pytest.mark.parametrize("language", LIBRARY_PROGRAMS)
async def test_the_published_libraries_of_other_languages_verify_real_deliveries(
    deliveries: list[dict[str, Any]], language: str, tmp_path: Path
) -> None:
    if not os.environ.get("STANDARD_WEBHOOKS"):
        pytest.skip(f"NOT VERIFIED by the library for {language}: STANDARD_WEBHOOKS is not set")
    skip_without(COMMANDS[language][0], "the published library")
    file = f"main.{SUFFIXES[language]}"
    (tmp_path / file).write_text(LIBRARY_PROGRAMS[language])
    assert run([*COMMANDS[language], file], deliveries, tmp_path) == ["1", "1", "0"] * len(SECRETS)
