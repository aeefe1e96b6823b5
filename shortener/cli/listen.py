"""`shortener listen`: a local receiver that prints, and verifies, what it is sent."""
# Tested by tests/acceptance/test_listen.py

from __future__ import annotations

from typing import Any

import click

from shortener.cli.common import json_option, runs


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=9000, show_default=True)
@click.option("--fail", type=click.IntRange(0), default=0, help="Answer the first N requests with 500.")
@click.option("--delay", type=click.FloatRange(0, 3600), default=0.0, help="Seconds to wait before each answer.")
@click.option("--secret", multiple=True, help="Signing secret of the tracker; twice during a rotation.")
@json_option
@runs
async def listen(host: str, port: int, fail: int, delay: float, secret: tuple[str, ...], as_json: bool) -> None:
    """Print every request that arrives; stop with Ctrl-C."""
    import uvicorn

    from shortener.cli.receiver import Receiver
    from shortener.delivery.signatures import parse_secret

    try:
        secrets = [parse_secret(one) for one in secret]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--secret") from None
    receiver = Receiver(secrets=secrets, fail=fail, delay=delay, on_request=lambda received: show(received, as_json))
    click.echo(f"Listening on http://{host}:{port}/", err=True)
    config = uvicorn.Config(
        receiver, host=host, port=port, access_log=False, log_level="error", lifespan="off", server_header=False
    )
    await uvicorn.Server(config).serve()


def show(received: Any, as_json: bool) -> None:
    """Print one request: a JSON line for machines, the request as it came for people."""
    import orjson

    if as_json:
        line = {
            "at": received.at,
            "method": received.method,
            "target": received.target,
            "headers": received.headers,
            "body": received.body.decode("utf-8", "replace"),
            "signature": received.signature,
            "answered": received.answered,
        }
        click.echo(orjson.dumps(line).decode())
        return
    click.echo(f"\n{received.at:%H:%M:%S} {received.method} {received.target}  -> {received.answered}")
    for name, value in received.headers.items():
        click.echo(f"  {name}: {value}")
    click.echo(f"  (signature: {received.signature})")
    if received.body:
        click.echo(pretty(received.body))


def pretty(body: bytes) -> str:
    """JSON indented, anything else as it came."""
    import orjson

    try:
        return orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace")
