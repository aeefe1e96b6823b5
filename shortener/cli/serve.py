"""`shortener serve` and `deliver`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from shortener.cli.common import json_option, load_settings, runs

if TYPE_CHECKING:
    import uvicorn

    from shortener.container import Service
    from shortener.server.application import HttpApplication
    from shortener.settings import Settings

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds for a whole stop, once nothing new is taken: supervisors kill after ten, of which SHUTDOWN_DELAY takes one, and the
#: parent of several workers a half.
STOP_WITHIN = 7.5
#: Seconds of these that requests under way get, whole ones because uvicorn wants them so.
REQUESTS_WITHIN = 5
#: Seconds after which the process ends whatever hangs (a disk, a resolver): it is built to be killed at any time.
TOO_LONG = 0.5


@click.command()
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on.")
@click.option("--workers", type=click.IntRange(1, 64), help="Processes; more than one needs PostgreSQL.")
@json_option
def serve(host: str | None, port: int | None, workers: int | None, as_json: bool) -> None:
    """Serve web and delivery in one process."""
    settings = load_settings(host=host, port=port, workers=workers)
    if settings.workers > 1:
        _first_start(settings, as_json)
        _serve_many(settings)
    else:
        _serve_one(settings, as_json)


@runs
async def _serve_one(settings: Settings, as_json: bool) -> None:
    with _starting():
        from shortener import logs
        from shortener.container import open_service

        logs.configure(settings)
        service = await open_service(settings)
        _greet(service, as_json)
        server = _server(service)
    await server.serve()


async def serve_service(service: Service) -> None:
    """Serve until SIGTERM or SIGINT (see `_asked_to_stop`): requests under way finish, what waits is written, then it returns."""
    with _starting():
        server = _server(service)
    await server.serve()


def _server(service: Service) -> uvicorn.Server:
    import uvicorn

    from shortener.server.application import HttpApplication

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # uvicorn's own would raise the signal again afterwards, and a clean stop would not exit 0.
            loop = asyncio.get_running_loop()
            for number in STOP_SIGNALS:
                loop.add_signal_handler(number, _asked_to_stop, service, number, self.handle_exit)
            try:
                yield
            finally:
                for number in STOP_SIGNALS:
                    loop.remove_signal_handler(number)

    return Server(uvicorn_config(HttpApplication(service), service.settings))


def _asked_to_stop(service: Service, number: int, end: Callable[[int, None], None]) -> None:
    """From this moment /readyz says 503 and no delivery begins; `end`, which takes no more connections, follows SHUTDOWN_DELAY
    later, when load balancers had time to look. Somebody at the keyboard (SIGINT), or who asks twice, does not wait for that."""
    if service.is_stopping:
        end(number, None)
        return
    delay = service.settings.shutdown_delay if number == signal.SIGTERM else 0.0
    _stop_within(service, delay + STOP_WITHIN)
    asyncio.get_running_loop().call_later(delay, end, number, None)


def _stop_within(service: Service, seconds: float) -> None:
    service.begin_stop(seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds + TOO_LONG)  # nobody handles SIGALRM: it ends the process


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Modules, classes and routes live as long as the process. Collections that look through them while they are made, and once
    more at the end, took a fifth of the start; afterwards a full one stops everything for a tenth of a second, again and again."""
    gc.disable()
    try:
        yield
        gc.freeze()  # with what little garbage there is, less than a MiB
        # A request leaves few cycles behind. By default every 700 new objects are looked through, which is every tenth redirect.
        gc.set_threshold(20_000, 20, 50)
        # The thread that writes to SQLite takes the interpreter back after each statement; by default it waits 5 ms for the loop.
        sys.setswitchinterval(0.001)
    finally:
        gc.enable()


def uvicorn_config(app: Any, settings: Settings, **more: Any) -> Any:
    import uvicorn

    from shortener.server.http_protocol import RedirectProtocol

    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=RedirectProtocol,
        lifespan="on",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # click.address reads X-Forwarded-For, from TRUSTED_PROXIES only
        timeout_graceful_shutdown=REQUESTS_WITHIN,
        backlog=4096,
        **more,
    )


@runs
async def _first_start(settings: Settings, as_json: bool) -> None:
    """Once, before there are several: make the store ready, and say what the very first start has to say."""
    from shortener import logs
    from shortener.container import open_service

    logs.configure(settings)
    service = await open_service(settings)
    _greet(service, as_json)
    await service.close()


def _serve_many(settings: Settings) -> None:
    """Serve from several processes on one socket until SIGTERM or SIGINT; a worker that dies is replaced."""
    import os

    from uvicorn.config import STARTUP_FAILURE
    from uvicorn.supervisors import Multiprocess

    class Supervisor(Multiprocess):
        def terminate_all(self) -> None:
            super().terminate_all()
            for listener in self.sockets:
                listener.close()  # or clients could go on to connect, to nobody, until the last worker has stopped

    for name in ("host", "port", "workers"):  # the workers read settings of their own
        os.environ[f"SHORTENER_{name.upper()}"] = str(getattr(settings, name))
    config = uvicorn_config("shortener.cli.serve:Worker", settings, factory=True, workers=settings.workers)
    supervisor = Supervisor(config, [config.bind_socket()])
    supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise click.ClickException("a worker could not start")


class Worker:
    """The application of one process of several; it opens its service when its loop runs."""

    def __init__(self) -> None:
        from shortener import logs

        self.app: HttpApplication | None = None
        self._settings = load_settings()
        logs.configure(self._settings)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.app is None:
            self.app = await self._open()
        await self.app(scope, receive, send)

    async def _open(self) -> HttpApplication:
        with _starting():
            from shortener.container import open_service
            from shortener.server.application import HttpApplication

            service = await open_service(self._settings)
            app = HttpApplication(service)
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            end: Any = signal.getsignal(number)  # uvicorn's
            loop.add_signal_handler(number, _asked_to_stop, service, number, end)
        return app


def _greet(service: Service, as_json: bool) -> None:
    """Say where it listens; the very first start prints the default application's credentials, this once."""
    import orjson

    base = service.settings.base_url
    first = service.first_credentials
    if as_json:
        made = first and {
            "application_id": first.application_id,
            "api_key": first.api_key,
            "tracker_token": first.tracker_token,
        }
        click.echo(orjson.dumps({"base_url": base, "port": service.settings.port, "first_start": made}).decode())
        return
    if first is not None:
        click.echo(
            f"The default application is made. Keep these now: they are not shown again.\n\n"
            f"  application_id  {first.application_id}\n"
            f"  api_key         {first.api_key}\n"
            f"  tracker_token   {first.tracker_token}\n\n"
            f"A first rewrite:\n\n"
            f"  curl -s {base}/api/v1/rewrite -H 'X-API-Key: {first.api_key}' -H 'Content-Type: application/json' \\\n"
            f"""    -d '{{"to": "+14085550100", "body": "Hello, see #track(\\"https://example.com/\\")"}}'\n"""
        )
    click.echo(f"Serving on http://{service.settings.host}:{service.settings.port}, short links begin with {base}/")


@click.command()
@json_option
@runs
async def deliver(as_json: bool) -> None:
    """Run delivery workers alone (scale-out); needs PostgreSQL."""
    settings = load_settings()
    if not settings.is_postgresql:
        raise click.UsageError("deliver runs beside serve and so needs PostgreSQL; with SQLite, serve delivers by itself")
    with _starting():
        from shortener import logs
        from shortener.container import open_service

        logs.configure(settings)
        service = await open_service(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    service.start(web=False)
    click.echo("Delivering.")
    await stop.wait()
    _stop_within(service, STOP_WITHIN)
    await service.close()
