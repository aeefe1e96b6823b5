"""`shortener demo`: the whole life of one message against a real server and a real receiver, printed step by step.

The server is `shortener serve` in a process of its own, on a free port, with a data folder that is thrown away; the receiver is
that of `shortener listen`. Everything shown went over the wire.
"""
# Tested by tests/cli/test_commands.py

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import click
import orjson

from shortener.cli.common import json_option, runs
from shortener.cli.listen import pretty

PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Mobile/15E148 Safari/604.1"
)
PREVIEW = (
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_11_1) AppleWebKit/601.2.4 (KHTML, like Gecko) Version/9.0.1 Safari/601.2.4 "
    "facebookexternalhit/1.1 Facebot Twitterbot/1.0"
)
PATIENCE = 20.0  # seconds to wait for anything


@click.command()
@json_option
@runs
async def demo(as_json: bool) -> None:
    """Play the whole life of one message against a real local receiver."""
    story = _Story(as_json)
    with tempfile.TemporaryDirectory(prefix="shortener-demo-") as folder:
        async with _receiver() as (receiver, receiver_port), _server(folder) as (base, first):
            await _play(story, receiver, f"http://127.0.0.1:{receiver_port}", base, first)


class _Story:
    """Prints the steps: for people with headings, for machines one JSON object a line."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._number = 0

    def step(self, title: str) -> None:
        self._number += 1
        if self._as_json:
            click.echo(orjson.dumps({"step": self._number, "title": title}).decode())
        else:
            click.secho(f"\n{self._number}. {title}", bold=True)

    def show(self, what: str, text: str | None = None, body: bytes = b"") -> None:
        if self._as_json:
            click.echo(
                orjson.dumps({"step": self._number, "what": what, "text": text, "body": body.decode("utf-8", "replace")}).decode()
            )
            return
        click.echo(f"   {what}" + (f" {text}" if text else ""))
        for line in pretty(body).splitlines() if body else ():
            click.echo(f"     {line}")


async def _play(story: _Story, receiver: Any, sink: str, base: str, first: dict[str, Any]) -> None:
    import httpx

    key, token = {"X-API-Key": first["api_key"]}, {"X-Api-Token": first["tracker_token"]}
    async with httpx.AsyncClient(base_url=base, timeout=PATIENCE, trust_env=False) as client:

        async def call(method: str, path: str, headers: dict[str, str], body: Any = None) -> Any:
            content = orjson.dumps(body) if body is not None else None
            if content:
                headers = headers | {"Content-Type": "application/json"}
            story.show("request ", f"{method} {path}", content or b"")
            answer = await client.request(method, path, headers=headers, content=content)
            story.show("answer  ", str(answer.status_code), answer.content)
            if answer.is_error:
                raise click.ClickException(f"{method} {path} answered {answer.status_code}")
            return answer.json()

        async def tap(url: str, agent: str) -> httpx.Response:
            path = url.removeprefix(base)
            answer = await client.get(path, headers={"User-Agent": agent})
            story.show("request ", f"GET {path}  User-Agent: {agent[:60]}...")
            story.show("answer  ", f"{answer.status_code} Location: {answer.headers.get('location')}")
            return answer

        async def arrived(number: int) -> None:
            received = await receiver.wait_for(number, PATIENCE)
            story.show("received", f"{received.method} {received.target}  (signature: {received.signature})", received.body)

        story.step("The customer says where events go: CLICKTHRU in Syniverse's form, conversions as a postback")
        await call(
            "POST",
            "/api/v1/trackers",
            key,
            {"name": "state", "url": f"{sink}/events", "events": ["state"], "format": "scg", "secret": _SECRET},
        )
        await call(
            "POST",
            "/api/v1/trackers",
            key,
            {
                "name": "postback",
                "url": f"{sink}/postback?phone={{phone}}&status={{status}}&cost={{cost}}&click={{click_id}}",
                "events": ["conversion"],
                "format": "json",
                "secret": _SECRET,
            },
        )
        story.step("The send pipeline has its text rewritten")
        body = 'Hello Kola, please visit us at #track("https://example.com/offer?b=1&click={click_id}") for new information'
        message: dict[str, Any] = {"to": "+14085550100", "from": "18775550100", "body": body, "mt_price": "0.0095"}
        rewritten = (await call("POST", "/api/v1/rewrite", key, message))["messages"][0]
        link, message_id = rewritten["links"][0]["short_url"], rewritten["message_id"]

        story.step("The carrier's delivery reports come in; each moves the message and is told")
        for number, state in enumerate(("SENT", "DELIVERED")):
            await call("POST", "/api/v1/sms/status", key, {"message_id": message_id, "state": state})
            await arrived(number)

        story.step("A preview bot opens the link: it is sent on, kept as suspected, and spends nothing")
        await tap(link, PREVIEW)
        story.step("The person taps the link: sent on once the click is durable; the message becomes CLICKTHRU")
        resolution = await tap(link, PHONE)
        await arrived(2)
        story.step("A second tap only redirects")
        await tap(link, PHONE)

        story.step("The landing page got a click id; the tracker reports a deposit with it")
        click_id = httpx.URL(resolution.headers["location"]).params["click"]
        report = f"/api/v1/track?click_id={click_id}&action=deposit&value=25.00&currency=EUR&transaction_id=T-1&status=approved"
        await call("GET", report, token)
        await arrived(3)
        story.step("The tracker repeats itself: the same answer, and nothing is sent")
        await call("GET", report, token)
        story.step("What became of the message")
        await call("GET", f"/api/v1/sms/status/{message_id}", key)
        if len(receiver.received) != 4:
            raise click.ClickException(f"the receiver got {len(receiver.received)} requests, 4 were due")


_SECRET = "whsec_" + "c2hvcnRlbmVyIGRlbW8gc2VjcmV0IDMyIGJ5dGVzISE="


@contextlib.asynccontextmanager
async def _receiver() -> AsyncIterator[tuple[Any, int]]:
    import uvicorn

    from shortener.cli.receiver import Receiver
    from shortener.delivery.signatures import parse_secret

    receiver = Receiver(secrets=[parse_secret(_SECRET)])
    port = free_port()
    config = uvicorn.Config(
        receiver, host="127.0.0.1", port=port, access_log=False, log_level="error", lifespan="off", server_header=False
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())  # without signal handlers: Ctrl-C belongs to the demo
    try:
        yield receiver, port
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def _server(folder: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """A real `shortener serve`; yields its base URL and the credentials of its first start."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHORTENER_")}
    environment |= {"SHORTENER_DATA_DIR": folder, "SHORTENER_ALLOW_PRIVATE_TARGETS": "true", "SHORTENER_LOG_LEVEL": "warning"}
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "shortener", "serve", "--port", str(port), "--json",
        env=environment, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
        if not line:
            raise click.ClickException("the server did not start")
        base = f"http://127.0.0.1:{port}"
        await _until_ready(base)
        yield base, orjson.loads(line)["first_start"]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), PATIENCE)


async def _until_ready(base: str) -> None:
    import httpx

    async with asyncio.timeout(PATIENCE), httpx.AsyncClient(base_url=base, trust_env=False) as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get("/readyz")).status_code == 200:
                    return
            await asyncio.sleep(0.05)  # and look again


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
