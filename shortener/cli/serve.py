"""The commands `shortener serve` and `shortener deliver`: start servers, handle signals, and stop.

`serve` binds its port first. If the port is in use, the command fails before it creates anything. After SIGTERM, `/readyz`
responds with 503. After SHUTDOWN_DELAY, the process accepts no more connections, finishes the requests and deliveries in flight,
and exits with 0. stopping.py implements the stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from shortener.cli.base_url import unreachable_links
from shortener.cli.common import async_command, json_option, load_settings
from shortener.cli.database_errors import name_database
from shortener.cli.sockets import bind, port_of
from shortener.cli.stopping import (
    STOP_SECONDS,
    end_process,
    handle_stop_signals,
    parent_stop_seconds,
    stop_signals,
    stop_within,
)
from shortener.lean_imports import exclude_objects_of_start, import_without_extras
from shortener.settings_sources import service_link_variables

if TYPE_CHECKING:
    import uvicorn

    from shortener.accounts.credentials import Credentials
    from shortener.cli.worker_server import WorkerServer
    from shortener.container import Service
    from shortener.server.application import HttpApplication
    from shortener.settings import Settings

#: The time limit for requests in flight after the process has stopped accepting connections. uvicorn requires an integer.
REQUEST_GRACE_SECONDS = 5
#: The maximum number of connections that wait in the kernel until the process accepts them.
BACKLOG = 4096
#: Each connection from a client and each connection to a tracker needs an open file. If the process may open fewer files than
#: this, the start logs a warning.
MIN_OPEN_FILES = 4096
#: Python starts a full garbage collection after this number of smaller collections. The number is so high that this never
#: happens.
NO_FULL_COLLECTIONS = 1_000_000_000
#: At this interval, a worker checks whether its parent process still runs.
PARENT_CHECK_SECONDS = 1.0


@click.command()
@click.option("--host", help="IP address or host name to listen on. Default: HOST (127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0: a free port. Default: PORT (8000).")
@click.option(
    "--workers", type=click.IntRange(1, 64), help="Number of processes; more than one requires PostgreSQL. Default: WORKERS (1)."
)
@json_option
def serve(host: str | None, port: int | None, workers: int | None, as_json: bool) -> None:
    """Run the web server and the delivery workers in one process.

    The first start creates a default application and prints its credentials once.

    With ACCESS_LOG=on or LOG_FORMAT=text, the log contains a line for each click and each request. `shortener clicks list` always
    lists the clicks.
    """
    settings = load_settings(host=host, port=port, workers=workers)
    listener = bind(settings.host, settings.port, setting="SHORTENER_PORT")
    if problem := unreachable_links(settings):
        listener.close()
        raise click.ClickException(
            f"{problem} Set SHORTENER_BASE_URL to the address that phones use, for example https://go.example (to try the service "
            "in a container on this machine: http://localhost:8000)"
        )
    if settings.port == 0:  # Load the settings again with the selected port, because the default of BASE_URL contains the port.
        settings = load_settings(host=host, port=port_of(listener), workers=workers)
    if settings.workers > 1:
        listener.listen(BACKLOG)  # listen now: clients that connect early wait until the workers accept their connections
        _first_start(settings, as_json)
        _serve_many(settings, listener)
    else:
        _serve_one(settings, listener, as_json)
    end_process()


@async_command
async def _serve_one(settings: Settings, listener: socket.socket, as_json: bool) -> None:
    with _fast_start():
        from shortener import logs
        from shortener.container import open_service

        logs.configure(settings)
        logs.hold()  # hold log lines in memory, so that the URL and the credentials are printed before the first log line
        try:
            limit = _raise_open_files_limit()
            with name_database(settings):
                service = await open_service(settings)
            server = _new_server(service, as_json, limit)
        except BaseException:
            logs.release()
            raise
    try:
        await server.serve([listener])
    except OSError as error:  # after `bind`, another process has begun to listen on the port
        raise click.ClickException(f"cannot listen on port {settings.port}: {error.strerror or error}") from None


def _new_server(service: Service, as_json: bool, open_files: int) -> uvicorn.Server:
    from shortener.server.application import HttpApplication
    from shortener.server.graceful_close import GracefulServer

    class Server(GracefulServer):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            from shortener import logs

            try:
                await super().startup(sockets)
                # Print only now: from here on, clients can connect, and a signal stops the process cleanly.
                await _print_start(service, as_json)
            finally:
                logs.release()
            _log_start(open_files)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # This method replaces a method of uvicorn that raises the signal again after the stop. With uvicorn's method, the exit
            # code of a clean stop would not be 0.
            with handle_stop_signals(service, self.handle_exit):
                yield

        def is_stopping(self) -> bool:
            return service.is_stopping

    return Server(uvicorn_config(HttpApplication(service), service.settings))


def _raise_open_files_limit() -> int:
    from shortener.server.connection_limits import raise_open_files_limit

    return raise_open_files_limit()


def _log_start(open_files: int) -> None:
    """Log the limit of open files (a warning if it is low), and variables of Kubernetes that are ignored."""
    import structlog

    log = structlog.get_logger(__name__)
    if open_files < MIN_OPEN_FILES:
        log.warning("open_files_limit", limit=open_files, remedy="raise LimitNOFILE of the unit, or `ulimit -n`")
    else:
        log.debug("open_files_limit", limit=open_files)
    if ignored := service_link_variables():
        log.warning("service_links_ignored", variables=ignored, remedy="set enableServiceLinks: false in the pod")


@contextlib.contextmanager
def _fast_start() -> Iterator[None]:
    """Suspend garbage collection during the start, and exclude all objects that the start creates from later collections.

    These objects, such as modules, classes and routes, exist as long as the process. Collections would take a fifth of the time
    of the start. Each later full collection would stop the process for a tenth of a second, because it would examine these
    objects again. A background job examines them about once an hour (shortener/container/full_collections.py).
    """
    gc.disable()
    try:
        yield
        exclude_objects_of_start()
        # Requests leave few reference cycles, so collections can be rare. With the default threshold of 700 objects, every tenth
        # redirect would start a collection. A background job starts full collections (shortener/container/full_collections.py).
        gc.set_threshold(20_000, 20, NO_FULL_COLLECTIONS)
        # The thread that writes to SQLite needs the interpreter lock again after each statement. By default, it would wait up to
        # 5 ms for the lock.
        sys.setswitchinterval(0.001)
    finally:
        gc.enable()


def uvicorn_config(app: Any, settings: Settings, **more: Any) -> Any:
    """Return the configuration of uvicorn for `app`. `more` contains additional arguments for `uvicorn.Config`."""
    from shortener.server.connection_limits import ConnectionLimits, open_files_limit
    from shortener.server.http_protocol import RedirectProtocol, ServerConfig

    config = ServerConfig(
        app,
        host=settings.host,
        port=settings.port,
        http=RedirectProtocol,
        lifespan="on",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        # uvicorn must not read X-Forwarded-For: clicks/client_address.py reads it, and trusts only TRUSTED_PROXIES
        proxy_headers=False,
        timeout_graceful_shutdown=REQUEST_GRACE_SECONDS,
        backlog=BACKLOG,
        **more,
    )
    config.request_timeout = settings.request_timeout
    config.connection_limits = ConnectionLimits(settings.connections_per_address, settings.trusted_proxies, open_files_limit())
    return config


@async_command
async def _first_start(settings: Settings, as_json: bool) -> None:
    """Prepare the database before several workers open it at the same time. Print the URL of the service and the first
    credentials."""
    from shortener import logs
    from shortener.container import open_service

    logs.configure(settings)
    logs.hold()
    limit = _raise_open_files_limit()  # raise the limit of open files before the workers start, because they inherit it
    try:
        with name_database(settings):
            service = await open_service(settings)
        await _print_start(service, as_json)
    finally:
        logs.release()
    _log_start(limit)
    await service.close()


def _serve_many(settings: Settings, listener: socket.socket) -> None:
    """Serve from several worker processes on the same socket until SIGTERM or SIGINT. A worker that ends is replaced. SIGHUP
    replaces all workers, one after the other."""
    from shortener import logs
    from shortener.cli.workers import Supervisor, UvicornWorker, run

    logs.configure(settings)
    for name in ("host", "port", "workers"):  # each worker loads its settings from the environment
        os.environ[f"SHORTENER_{name.upper()}"] = str(getattr(settings, name))
    config = uvicorn_config("shortener.cli.serve:Worker", settings, factory=True, workers=settings.workers)
    supervisor = Supervisor(
        lambda: UvicornWorker(config, [listener]), settings.workers, parent_stop_seconds(settings.shutdown_delay)
    )
    run(supervisor, listener)
    if supervisor.failed:
        raise click.ClickException("a worker could not start")


class Worker:
    """The ASGI application of one worker process of several. At its first call, when the event loop runs, it opens its service.

    `server` is the server that runs the application. The server sets this attribute before the first call."""

    server: WorkerServer

    def __init__(self) -> None:
        import_without_extras()
        from shortener import logs

        self.app: HttpApplication | None = None
        self._settings = load_settings()
        logs.configure(self._settings)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.app is None:
            self.app = await self._open()
        await self.app(scope, receive, send)

    async def _open(self) -> HttpApplication:
        with _fast_start():
            from shortener.container import open_service
            from shortener.server.application import HttpApplication

            service = await open_service(self._settings)
            app = HttpApplication(service)
        self.server.handle_signals(service)
        service.supervisor.start("parent_watch", _stop_without_parent)
        return app


async def _invite_first_operator(service: Service) -> str | None:
    """Return the URL at which the first admin of the portal sets a password. Return None if an operator exists or the portal is
    off.

    The output of a container is often not visible. Therefore the URL is also written to a file in DATA_DIR that only this user
    can read."""
    if not service.settings.portal:
        return None
    from sqlalchemy.exc import IntegrityError

    from shortener.errors import StoreUnavailable
    from shortener.portal.invitation_url import invitation_file, link
    from shortener.portal.operators import invite_first

    try:
        invitation = await service.database.write(invite_first, service.clock())
    except (IntegrityError, StoreUnavailable):
        # IntegrityError: another node has created the operator at the same time, and prints the URL. StoreUnavailable: the next
        # start prints a URL.
        return None
    file = invitation_file(service.settings.data_dir)
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
    if invitation is None:
        return None
    url = link(service.settings.portal_origin, invitation.token)
    with contextlib.suppress(OSError), os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
        written.write(url + "\n")
    # The output of a container is often stored as a log. If INITIAL_API_KEY is set, no secret is therefore printed, and the
    # operator finds the URL in the file that was written above.
    return None if service.settings.initial_api_key.get_secret_value() else url


async def _stop_without_parent() -> None:
    """Stop this worker if its parent process has ended, for example by `kill -9`.

    Without its parent, the worker would keep the port in use, and the next start of `serve` would fail."""
    import multiprocessing  # imported here, because only the workers need it

    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        await asyncio.sleep(PARENT_CHECK_SECONDS)
    import structlog

    structlog.get_logger(__name__).error("parent_process_ended")
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.Event().wait()  # wait until the stop cancels this task


async def _print_start(service: Service, as_json: bool) -> None:
    """Print the URL of the service and the URL of the first invitation. The very first start also prints the credentials of the
    default application."""
    invitation = await _invite_first_operator(service)
    base_url, port, origin = service.settings.base_url, service.settings.port, service.settings.base_origin
    first = service.first_credentials
    if as_json:
        credentials = first and {"application_id": first.application_id, **_printed_credentials(service, first)}
        fields = {"base_url": base_url, "port": port, "first_start": credentials, "portal_invitation": invitation}
        _print(orjson.dumps(fields).decode(), first)
        return
    texts = []
    if first is not None and service.settings.initial_api_key.get_secret_value():
        texts.append("The default application is created. Its API key is INITIAL_API_KEY; no credentials are printed.")
    elif first is not None:
        texts.append(
            f"The default application is created. Store these credentials now; they are not shown again.\n\n"
            f"  application_id   {first.application_id}\n"
            f"  api_key          {first.api_key}\n"
            f"  tracker_token    {first.tracker_token}\n"
            f"  callback_secret  {first.callback_secret}\n\n"
            f"A first rewrite:\n\n"
            f"  curl -s {origin}/api/v1/rewrite -H 'X-API-Key: {first.api_key}' -H 'Content-Type: application/json' \\\n"
            f"""    -d '{{"to": "+14085550100", "body": "Hello, see #track(\\"https://example.com/\\")"}}'\n\n"""
            f"Open the short link of the response in a browser to click it. `{_command_name()} clicks list` lists the clicks"
            f"{'' if service.settings.logs_access else ', which the log does not contain (ACCESS_LOG=on adds them)'}.\n"
        )
    if invitation is not None:
        texts.append(
            f"The portal has no operator yet. Set the password of the first admin at this address, within 15 minutes:\n\n"
            f"  {invitation}\n"
        )
    texts.append(f"Serving on http://{service.settings.host}:{port}; short links begin with {base_url}/")
    _print("\n".join(texts), first)


def _command_name() -> str:
    """Return the command in the form in which the user can call it. If its folder is not in PATH, as after `make run`, this is
    its path."""
    import shutil

    path = Path(sys.argv[0])
    return str(path) if path.name == "shortener" and shutil.which("shortener") is None else "shortener"


def _print(text: str, first: Credentials | None = None) -> None:
    """Print a text about the start on stdout. `first` contains the credentials that are in the text.

    If the text cannot be printed, for example because stdout is a file on a full disk, the start continues. Otherwise a restart
    would stop all redirects. A warning in the log names the commands that replace the credentials."""
    try:
        click.echo(text)
    except OSError as error:
        import structlog

        remedy = "free the disk, or change where stdout is written"
        if first is not None:
            id_ = first.application_id
            commands = f"`shortener keys create {id_} --permission all` and `shortener tokens rotate {id_}`"
            remedy += f"; the credentials of application {id_} are lost: run {commands}"
        log = structlog.get_logger(__name__)
        log.warning("start_not_printed", error=error.strerror or str(error), remedy=remedy)


def _printed_credentials(service: Service, first: Credentials) -> dict[str, str | None]:
    """Return the credentials that the first start prints. All values are None if the operator has set INITIAL_API_KEY."""
    values = {"api_key": first.api_key, "tracker_token": first.tracker_token, "callback_secret": first.callback_secret}
    return dict.fromkeys(values) if service.settings.initial_api_key.get_secret_value() else values


@click.command()
@json_option
@async_command
async def deliver(as_json: bool) -> None:
    """Run delivery workers only, in addition to servers. This requires PostgreSQL."""
    settings = load_settings()
    if not settings.is_postgresql:
        raise click.UsageError("deliver requires PostgreSQL, because it runs in addition to serve; with SQLite, serve delivers")
    with _fast_start():
        from shortener import logs
        from shortener.container import open_service

        logs.configure(settings)
        logs.hold()
        limit = _raise_open_files_limit()
        try:
            with name_database(settings):
                service = await open_service(settings, may_create=False)
        except BaseException:
            logs.release()
            raise
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in stop_signals():
        loop.add_signal_handler(number, stop.set)
    service.start(web=False)
    _print(orjson.dumps({"delivering": True}, option=orjson.OPT_INDENT_2).decode() if as_json else "Delivering.")
    logs.release()
    _log_start(limit)
    await stop.wait()
    stop_within(service, STOP_SECONDS)
    await service.close()
    end_process()
