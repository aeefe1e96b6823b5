"""The command `shortener demo`: it takes one message through all its steps with a real server and a local receiver, and prints
each step.

The server is `shortener serve` in a separate process, on a free port and with a temporary data folder. The receiver is the one of
`shortener listen`. All requests and responses that the command prints are real.
"""
# Tested by tests/cli/test_demo.py and tests/cli/test_commands.py

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from shortener.cli.common import async_command, json_option
from shortener.cli.listen import format_body
from shortener.cli.sockets import bind, port_of

if TYPE_CHECKING:
    import httpx

PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Mobile/15E148 Safari/604.1"
)
PREVIEW = (
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_11_1) AppleWebKit/601.2.4 (KHTML, like Gecko) Version/9.0.1 Safari/601.2.4 "
    "facebookexternalhit/1.1 Facebot Twitterbot/1.0"
)
TIMEOUT_SECONDS = 20.0  # the maximum duration of each step of the demo


@click.command()
@click.option(
    "--portal", is_flag=True, help="Serve the portal of a demo installation with three weeks of traffic, until you press Ctrl+C."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port of the portal; 0: a free port.")
@click.option(
    "--messages", type=click.IntRange(10, 20_000), default=900, show_default=True, help="Number of messages for the portal."
)
@json_option
def demo(portal: bool, port: int, messages: int, as_json: bool) -> None:
    """Rewrite one message, click its link and report a conversion, with a local receiver. Print every request and response.

    The demo starts a server with an installation of its own in a temporary folder, which it deletes at the end. It does not use
    your installation. Nothing is sent to other machines.

    With --portal: fill such an installation with campaigns, bots, failures, conversions and trackers, print the link for the first
    sign-in, and serve the portal.
    """
    if portal:
        _serve_portal(port, messages, as_json)
    else:
        _run_steps(as_json)


def _serve_portal(port: int, messages: int, as_json: bool) -> None:
    """Fill a temporary installation, and run `shortener serve` on it until a signal stops it."""
    import subprocess  # imported here, because only the option --portal needs it

    bind("127.0.0.1", port).close()  # check the port first, because creating the traffic takes a minute
    from shortener.cli.demo_receivers import demo_receivers

    with tempfile.TemporaryDirectory(prefix="shortener-demo-") as folder, demo_receivers() as receivers:
        click.echo(f"The demo has an installation of its own in {folder}, which it deletes at the end.", err=True)
        click.echo(f"Making three weeks of traffic with {messages} messages ...", err=True)
        _fill(folder, messages, receivers)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SHORTENER_")}
        environment |= {"SHORTENER_DATA_DIR": folder, "SHORTENER_ALLOW_PRIVATE_TARGETS": "true", "SHORTENER_LOG_LEVEL": "warning"}
        command = [sys.executable, "-m", "shortener", "serve", "--port", str(port), *(["--json"] if as_json else [])]
        # The server runs in a separate session of the operating system. Ctrl+C therefore reaches only this process, which sends
        # the server one signal. Otherwise the server would receive two.
        process = subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603 - all arguments are constants
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda received, _: process.send_signal(received))
        code = process.wait()
    if code:
        raise click.ClickException("the server failed")


@async_command
async def _fill(folder: str, messages: int, receivers: str) -> None:
    from shortener import logs
    from shortener.cli.demo_traffic import fill_installation
    from shortener.settings import Settings

    # Hide the warnings, because the demo contains deliveries that fail on purpose.
    logs.configure(Settings(data_dir=Path(folder), log_level="error"))
    await fill_installation(folder, messages, receivers)


@async_command
async def _run_steps(as_json: bool) -> None:
    printer = _Printer(as_json)
    with tempfile.TemporaryDirectory(prefix="shortener-demo-") as folder:
        async with _receiver() as (receiver, receiver_port), _server(folder) as (base, first):
            for line in _introduction(folder, base, receiver_port):
                printer.note(line)
            await _play(printer, receiver, f"http://127.0.0.1:{receiver_port}", base, first)


def _introduction(folder: str, base: str, receiver_port: int) -> list[str]:
    """Return the sentences that describe the parts of the demo."""
    return [
        f"The demo has an installation of its own: a server at {base} with its data in {folder}. It does not use your "
        "installation, and deletes the folder at the end.",
        f"A receiver at http://127.0.0.1:{receiver_port} acts as the systems of the customer. The demo sends no SMS, and "
        "nothing to other machines.",
        "A tracker is an endpoint of the customer: the service sends events to it. In the other direction, the shop or its network "
        "reports conversions to the service, with the tracker token.",
    ]


class _Printer:
    """A printer of the steps of the demo. It prints text with headings, or one line of JSON for each step."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._number = 0

    def note(self, text: str) -> None:
        """Print a sentence before the first step. In JSON, its line has the step number 0."""
        if self._as_json:
            click.echo(orjson.dumps({"step": 0, "what": "note", "text": text, "body": ""}).decode())
        else:
            click.echo(text)

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
        for line in format_body(body).splitlines() if body else ():
            click.echo(f"     {line}")


_SECRET = "whsec_" + "c2hvcnRlbmVyIGRlbW8gc2VjcmV0IDMyIGJ5dGVzISE="


class _Session:
    """The requests that the demo sends to its server, and the events that its receiver gets. All of them are printed."""

    def __init__(self, printer: _Printer, client: httpx.AsyncClient, receiver: Any) -> None:
        self._printer = printer
        self._client = client
        self._receiver = receiver

    async def call(self, method: str, path: str, headers: dict[str, str], body: Any = None) -> Any:
        """Call the API and return the JSON of the response. Raise ClickException if the response is an error."""
        content = orjson.dumps(body) if body is not None else None
        if content:
            headers = headers | {"Content-Type": "application/json"}
        self._printer.show("request ", f"{method} {path}", content or b"")
        response = await self._client.request(method, path, headers=headers, content=content)
        self._printer.show("response", str(response.status_code), response.content)
        if response.is_error:
            raise click.ClickException(f"{method} {path} returned {response.status_code}")
        return response.json()

    async def tap(self, url: str, agent: str) -> httpx.Response:
        """Open a short link with this User-Agent, print the request and the response, and return the response."""
        path = url.removeprefix(str(self._client.base_url).rstrip("/"))
        response = await self._client.get(path, headers={"User-Agent": agent})
        self._printer.show("request ", f"GET {path}  User-Agent: {agent[:60]}...")
        self._printer.show("response", f"{response.status_code} Location: {response.headers.get('location')}")
        return response

    async def show_received(self, number: int) -> None:
        """Wait until the receiver has got the request number `index` (counted from 0), and print this request."""
        received = await self._receiver.wait_for(number, TIMEOUT_SECONDS)
        self._printer.show("received", f"{received.method} {received.target}  (signature: {received.signature})", received.body)


async def _add_trackers(session: _Session, key: dict[str, str], receiver_url: str) -> None:
    postback = f"{receiver_url}/postback?phone={{phone}}&status={{status}}&cost={{cost}}&click={{click_id}}"
    for name, url, event, form in (
        ("state", f"{receiver_url}/events", "state", "scg"),
        ("postback", postback, "conversion", "json"),
    ):
        tracker = {"name": name, "url": url, "events": [event], "format": form, "secret": _SECRET}
        await session.call("POST", "/api/v1/trackers", key, tracker)


async def _play(printer: _Printer, receiver: Any, receiver_url: str, base: str, first: dict[str, Any]) -> None:
    import httpx

    key, token = {"X-API-Key": first["api_key"]}, {"X-Api-Token": first["tracker_token"]}
    async with httpx.AsyncClient(base_url=base, timeout=TIMEOUT_SECONDS, trust_env=False) as client:
        session = _Session(printer, client, receiver)
        printer.step(
            "The customer adds two trackers (endpoints that receive events): one for state events in Syniverse's format, one for "
            "conversions as a postback"
        )
        await _add_trackers(session, key, receiver_url)
        printer.step("The send pipeline asks the service to rewrite a text")
        body = 'Hello Kola, please visit us at #track("https://example.com/offer?b=1&click={click_id}") for new information'
        message: dict[str, Any] = {"to": "+14085550100", "from": "18775550100", "body": body, "mt_price": "0.0095"}
        rewritten = (await session.call("POST", "/api/v1/rewrite", key, message))["messages"][0]
        link, message_id = rewritten["links"][0]["short_url"], rewritten["message_id"]

        printer.step(
            "The carrier's delivery reports arrive; each changes the state of the message, and the tracker `state` receives the "
            "event"
        )
        for number, state in enumerate(("SENT", "DELIVERED")):
            await session.call("POST", "/api/v1/sms/status", key, {"message_id": message_id, "state": state})
            await session.show_received(number)

        printer.step("A preview bot opens the link and is redirected. Its hit is stored as suspected and does not count as a click")
        await session.tap(link, PREVIEW)
        await session.call("GET", f"/api/v1/clicks?message_id={message_id}", key)
        printer.step(
            "The person taps the link and is redirected after the click is stored durably. The message becomes CLICKTHRU, and the "
            "tracker `state` receives the event"
        )
        redirect = await session.tap(link, PHONE)
        await session.show_received(2)
        printer.step("A second tap only redirects")
        await session.tap(link, PHONE)

        printer.step(
            "The person makes a deposit in the shop, which received a click id with the redirect. The shop or its network reports "
            "the conversion with this id and the tracker token; the tracker `postback` receives the event"
        )
        click_id = httpx.URL(redirect.headers["location"]).params["click"]
        report = f"/api/v1/track?click_id={click_id}&action=deposit&value=25.00&currency=EUR&transaction_id=T-1&status=approved"
        await session.call("GET", report, token)
        await session.show_received(3)
        printer.step(
            "The network repeats its report: the response has the same id and `duplicate`, and no tracker receives an event"
        )
        await session.call("GET", report, token)
        printer.step("The status of the message")
        await session.call("GET", f"/api/v1/sms/status/{message_id}", key)
        if len(receiver.received) != 4:
            raise click.ClickException(f"the receiver got {len(receiver.received)} requests instead of 4")


@contextlib.asynccontextmanager
async def _receiver() -> AsyncIterator[tuple[Any, int]]:
    import uvicorn

    from shortener.cli.receiver import Receiver
    from shortener.signatures import parse_secret

    receiver = Receiver(secrets=[parse_secret(_SECRET)])
    listener = bind("127.0.0.1", 0)
    config = uvicorn.Config(receiver, access_log=False, log_config=None, log_level="error", lifespan="off", server_header=False)
    server = uvicorn.Server(config)
    task = asyncio.create_task(
        server._serve([listener])
    )  # Call `_serve`, because uvicorn's `serve` would install signal handlers. Without them, Ctrl-C ends the demo.
    try:
        yield receiver, port_of(listener)
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def _server(folder: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Run `shortener serve`. Yield its base URL and the credentials that its first start printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHORTENER_")}
    environment |= {"SHORTENER_DATA_DIR": folder, "SHORTENER_ALLOW_PRIVATE_TARGETS": "true", "SHORTENER_LOG_LEVEL": "warning"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "shortener", "serve", "--port", "0", "--json",
        env=environment, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(TIMEOUT_SECONDS):
            line = await process.stdout.readline()
        if not line:
            raise click.ClickException("the server did not start")
        started = orjson.loads(line)
        await _wait_until_ready(started["base_url"])
        yield started["base_url"], started["first_start"]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await process.wait()


async def _wait_until_ready(base: str) -> None:
    import httpx

    async with asyncio.timeout(TIMEOUT_SECONDS), httpx.AsyncClient(base_url=base, trust_env=False) as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get("/readyz")).status_code == 200:
                    return
            await asyncio.sleep(0.05)  # seconds until the next request for /readyz
