"""Test of `shortener listen` with a real server: it prints each request and whether its signature is valid."""

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import orjson

from shortener.secret import new_signing_secret
from tests import fork_server
from tests.acceptance.process import Server
from tests.servers import PATIENCE, free_port


@contextlib.contextmanager
def listening(server: Server, *options: str) -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
    """Run `shortener listen`. Yield its URL and the lines that it prints."""
    port = free_port()
    words = ["listen", "--port", str(port), "--json", *options]
    process = fork_server.start(words, server.environment, cwd=server.folder, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < deadline, "the command accepts no connection"
            threading.Event().wait(0.02)
        yield f"http://127.0.0.1:{port}/", map(orjson.loads, process.stdout)
    finally:
        process.terminate()
        process.wait(PATIENCE)
        process.stdout.close()


def signed_by(line: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in line["headers"].items() if name.startswith(("webhook-", "x-webhook-"))}


def test_the_listen_command_verifies_signatures_with_both_secrets_during_a_rotation(server: Server) -> None:
    old, new, other = new_signing_secret(), new_signing_secret(), new_signing_secret()
    with (
        server.api() as client,
        listening(server, "--secret", old, "--secret", new, "--fail", "1") as (of_both, heard_by_both),
        listening(server, "--secret", new) as (of_new, heard_by_new),
        listening(server, "--secret", other) as (of_other, heard_by_other),
        listening(server) as (of_nobody, heard_by_nobody),
    ):

        def change(**changes: Any) -> None:
            assert client.patch(f"/api/v1/trackers/{tracker}", json=changes).status_code == 200

        def send() -> bool:
            delivered: bool = client.post(f"/api/v1/trackers/{tracker}/test").json()["delivered"]
            return delivered

        made = client.post("/api/v1/trackers", json={"url": of_both, "events": ["click"], "secret": old}).json()
        tracker = made["tracker_id"]
        assert not send(), "the option --fail 1 makes the first request fail"
        assert send()
        change(secret=new, secret_overlap=3600)
        assert send()
        for url in (of_new, of_other, of_nobody):
            change(url=url)
            assert send()
        told = [next(heard_by_both) for _ in range(3)] + [next(heard_by_new), next(heard_by_other), next(heard_by_nobody)]
        assert [line["answered"] for line in told] == [500, 200, 200, 200, 200, 200]
        signatures = [line["signature"] for line in told]
        assert signatures[:4] == ["right"] * 4
        assert signatures[4].startswith("WRONG: ")
        assert signatures[5] == "not checked: no secret given"
        forged = httpx.post(of_new, content=told[3]["body"] + " ", headers=signed_by(told[3]), trust_env=False, timeout=PATIENCE)
        assert forged.status_code == 200
        assert next(heard_by_new)["signature"].startswith("WRONG: ")


def test_the_listen_command_prints_control_characters_of_a_request_as_escapes(server: Server) -> None:
    port = free_port()
    words = ["listen", "--port", str(port)]
    process = fork_server.start(
        words, server.environment, cwd=server.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        assert process.stderr.readline().startswith("Listening on")
        for body in ('{"text": "a\x9bb"}', "first\x1b]0;title\x07\nsecond"):
            httpx.post(f"http://127.0.0.1:{port}/", content=body, headers=[(b"X-Note", b"\x9b31m")])
        process.terminate()
        printed = process.stdout.read()
    assert "\n  x-note: \\x9b31m\n" in printed
    assert '"text": "a\\x9bb"' in printed
    assert "\nfirst\\x1b]0;title\\x07\nsecond\n" in printed
