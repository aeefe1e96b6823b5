"""The command `shortener listen`: a local receiver that prints the requests of trackers and verifies their signatures."""
# Tested by tests/acceptance/test_listen.py

from __future__ import annotations

from typing import Any

import click
import orjson

from shortener.cli.common import async_command, json_option, printable
from shortener.cli.secret_input import secret_options
from shortener.cli.sockets import bind, port_of


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="IP address or host name to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=9000, show_default=True, help="Port to listen on; 0: a free port.")
@click.option(
    "--fail",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Number of requests at the beginning that get the status 500.",
)
@click.option(
    "--delay", type=click.FloatRange(0, 3600), default=0.0, show_default=True, help="Seconds to wait before each response."
)
@secret_options(
    "secret", "secret", "Signing secret of the tracker. Can be repeated, for the two secrets of a rotation", multiple=True
)
@json_option
@async_command
async def listen(host: str, port: int, fail: int, delay: float, secret: tuple[str, ...], as_json: bool) -> None:
    """Run a local HTTP server that prints every request and checks its signature. Ctrl-C stops the server."""
    import uvicorn

    from shortener.cli.receiver import Receiver
    from shortener.signatures import parse_secret

    try:
        secrets = [parse_secret(text) for text in secret]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--secret") from None
    listener = bind(host, port)
    receiver = Receiver(secrets=secrets, fail=fail, delay=delay, on_request=lambda request: print_request(request, as_json))
    click.echo(f"Listening on http://{host}:{port_of(listener)}/", err=True)
    config = uvicorn.Config(receiver, access_log=False, log_config=None, log_level="error", lifespan="off", server_header=False)
    await uvicorn.Server(config).serve([listener])


def print_request(request: Any, as_json: bool) -> None:
    """Print one received request: one line of JSON, or several lines of text."""
    if as_json:
        fields = {
            "at": request.at,
            "method": request.method,
            "target": request.target,
            "headers": request.headers,
            "body": request.body.decode("utf-8", "replace"),
            "signature": request.signature,
            "answered": request.status,
        }
        click.echo(orjson.dumps(fields).decode())
        return
    click.echo(f"\n{request.at:%H:%M:%S} {printable(request.method)} {printable(request.target)}  -> {request.status}")
    for name, value in request.headers.items():
        click.echo(f"  {printable(name)}: {printable(value)}")
    click.echo(f"  (signature: {request.signature})")
    if request.body:
        click.echo(format_body(request.body))


def format_body(body: bytes) -> str:
    """Return the lines of a body. JSON is indented. Control characters are replaced by escapes."""
    try:
        text = orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        text = body.decode("utf-8", "replace")
    return "\n".join(map(printable, text.split("\n")))
