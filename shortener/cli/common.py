"""The functions that all commands share. They read settings, open the database, ask for confirmation, and print results and
errors."""
# Tested by tests/cli/test_commands.py

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import logging
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime, timedelta
from decimal import Decimal
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
import orjson

from shortener import settings_sources
from shortener.cli.command_clock import current_time, use_clock_of
from shortener.cli.database_errors import describe, name_database, user_name
from shortener.errors import ApiError, CommitUncertain, DatabaseInUse, StoreUnavailable
from shortener.lean_imports import import_without_extras
from shortener.settings import Settings, SettingsError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from shortener.accounts.audit import Actor, AuditWriter
    from shortener.redis.link_cache import LinkCache
    from shortener.storage.database import Database

P = ParamSpec("P")
T = TypeVar("T")

#: The width in characters of a table that is written to a file or a pipe. It is so large that no line is wrapped.
UNLIMITED_WIDTH = 1_000_000

#: A process reads changed accounts every REFRESH_SECONDS. This constant is the additional time that the reading may take.
_REFRESH_MARGIN_SECONDS = 0.15

json_option = click.option("--json", "as_json", is_flag=True, help="Print machine-readable JSON on stdout.")
yes_option = click.option("--yes", "yes", is_flag=True, help="Do not ask for confirmation.")
reveal_option = click.option("--reveal", is_flag=True, help="Show complete phone numbers. Default: they are masked.")


def is_terminal() -> bool:
    """Return whether stdin is a terminal, so that a user can answer a question."""
    return sys.stdin.isatty()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl+C interrupt synchronous code in the `with` block at once. Without this, asyncio handles the first Ctrl+C: it
    cancels the next `await`, and the synchronous code continues until then."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def confirm(what: str, yes: bool, *, is_required: bool = False) -> None:
    """Print `what`, the description of what a command is about to do. At a terminal, ask the user to confirm it, and raise Abort if
    the user declines.

    Do nothing if `yes` is true or `what` is empty. If stdin is not a terminal, do not ask: continue, or raise ClickException if
    `is_required` is true."""
    if yes or not what:
        return
    click.echo(what, err=True)
    if is_terminal():
        with interruptible():
            click.confirm("Continue?", abort=True, err=True)
    elif is_required:
        raise click.ClickException("nothing was changed: stdin is not a terminal, so add --yes to confirm")


class _RolledBack(Exception):
    """Rolls back a transaction that ran only as a test. The test shows whether the database rejects the change."""


async def confirm_write(
    database: Database,
    what: str,
    yes: bool,
    transact: Callable[..., T],
    *args: Any,
    is_required: bool = False,
    **kwargs: Any,
) -> T:
    """Ask the user to confirm a change (`confirm`), write it in one transaction, and return the result of the transaction.

    If the user must confirm, the transaction first runs once as a test and is rolled back. If the change is impossible, for
    example because an object does not exist, the command then fails before it asks the user. `transact` must have no effects
    outside of the database."""

    def rehearse(connection: Connection) -> None:
        transact(connection, *args, **kwargs)
        raise _RolledBack

    if what and not yes:
        with suppress(_RolledBack):
            await database.write(rehearse)
    confirm(what, yes, is_required=is_required)
    return await database.write(transact, *args, **kwargs)


def describe_replacement(what: str, overlap: timedelta, earlier_until: datetime | None = None) -> str:
    """Return the text that `confirm` prints before a key or secret is replaced. Return "" if no key or secret becomes invalid at
    once; then `confirm` does not ask.

    `what` names the present key or secret. It stays valid for `overlap`, or becomes invalid at once if `overlap` is 0.
    If the key or secret before the present one is still valid, `earlier_until` is the end of its validity. The replacement makes
    this older key or secret invalid at once."""
    from shortener.storage.types import to_iso

    now = current_time()
    text = f"{what} works until {to_iso(now + overlap)}." if overlap else f"{what} stops working at once."
    if earlier_until is not None and earlier_until > now:
        return f"{text} The previous one, which would be valid until {to_iso(earlier_until)}, stops working at once."
    return "" if overlap else text


async def describe_application(database: Any, application_id: int) -> str:
    """Return the id and the name of an application, for the text of `confirm`."""
    from shortener.accounts.directory import Directory

    directory = Directory(database)
    await directory.refresh()
    found = directory.application(application_id)
    return f"application {application_id} ({found.name if found else '-'})"


#: The documentation page that explains each error.
HELP_PAGE = "docs/reference/errors.md"


def load_settings(**overrides: Any) -> Settings:
    """Return the settings. `overrides` are options of the command line that replace single values.

    Raise ClickException with one line for each unusable setting. Raise its subclass WrongValue if an option of the command line
    is the cause."""
    try:
        return settings_sources.load(**overrides)
    except SettingsError as error:
        text = f"unusable settings:\n{error}\n({HELP_PAGE})"
    # If the command line has set values, load the settings again without them. If this succeeds, these values are the cause of the
    # error. Otherwise do not read the files again, because a settings file may be a pipe, which can be read only once.
    if any(value is not None for value in overrides.values()):
        with suppress(SettingsError):
            settings_sources.load()
            raise WrongValue(text)
    raise click.ClickException(text)


#: The commands that use uvloop. The import of uvloop takes time, so only commands that run for a long time use it.
_SERVERS = frozenset({"_serve_one", "deliver"})


def _new_fast_loop() -> asyncio.AbstractEventLoop:
    import uvloop  # uvloop is imported here, because the import is slow and only servers need it

    return uvloop.new_event_loop()


class WrongValue(click.ClickException):
    """Raised if the value of an argument or option is invalid. The command then exits with 2, the code for wrong usage."""

    exit_code = 2


def async_command(command: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Return a command that runs an async function. An error that an operator can correct becomes a ClickException."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        is_server = command.__name__ in _SERVERS
        if is_server:
            gc.disable()  # Garbage collection would delay the start. The server turns it on again at the end of its start.
        import_without_extras()
        from shortener.clicks.networks import NetworkFileError
        from shortener.secret import SecretError
        from shortener.storage.backup import BackupError
        from shortener.storage.installation import BaseUrlMissing, NoInstallation
        from shortener.storage.integrity import DatabaseLost
        from shortener.storage.migrate import MigrationBlocked, SchemaMismatch
        from shortener.tracing import TracingUnavailable

        try:
            with _logs_on_stderr(), asyncio.Runner(loop_factory=_new_fast_loop if is_server else None) as runner:
                return runner.run(command(*args, **kwargs))
        except ApiError as error:
            # Some descriptions mention `details`, a field of API responses. That part is removed, because the lines below show
            # the details.
            text, for_callers_of_the_api, _ = error.description.partition("; `details`")
            lines = [f"{error.code.name}: {text}{'.' if for_callers_of_the_api else ''}"]
            lines += [f"  {detail.field}: {detail.reason}" for detail in error.details]
            lines[-1] += f" ({HELP_PAGE})"
            is_wrong_usage = error.code.http_status == HTTPStatus.BAD_REQUEST
            raise (WrongValue if is_wrong_usage else click.ClickException)("\n".join(lines)) from None
        except (
            DatabaseInUse,
            MigrationBlocked,
            SchemaMismatch,
            SecretError,
            DatabaseLost,
            NoInstallation,
            BackupError,
            BaseUrlMissing,
            NetworkFileError,
            TracingUnavailable,
        ) as error:
            raise click.ClickException(f"{error} ({HELP_PAGE})") from None
        except CommitUncertain as error:
            text = (
                "the connection to the database ended during the commit, so the change may be stored. Check this before you repeat "
                "the command"
            )
            raise click.ClickException(f"{text}: {error} ({HELP_PAGE})") from None
        except StoreUnavailable as error:
            raise click.ClickException(f"the database is unavailable: {describe(error)} ({HELP_PAGE})") from None

    return run


@contextmanager
def after_change() -> Iterator[None]:
    """Put this context around the code that reads, after the commit, what the command prints. If the database becomes unavailable
    there, raise an error which says that the change is stored."""
    try:
        yield
    except StoreUnavailable as error:
        raise click.ClickException(f"the change is stored, but it cannot be shown: {error} ({HELP_PAGE})") from None


@contextmanager
def _logs_on_stderr() -> Iterator[None]:
    """Write log lines of level error to stderr, so that stdout contains only the result of the command. A server replaces this
    configuration with its own."""
    import structlog

    before = structlog.get_config() if structlog.is_configured() else None
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.reset_defaults()
        if before is not None:
            structlog.configure(**before)


@asynccontextmanager
async def open_store(application: int | None = None) -> AsyncIterator[Any]:
    """Open the database of an installation and check its schema. A server may use the database at the same time.

    Raise ApiError NOT_FOUND if no application has the id `application`. The values 0 and None are not checked. Raise
    NoInstallation if there is no database: a command in the wrong folder must not create one.

    If the command has changed an application or a credential, wait at the end until all processes of the installation use the
    change. Otherwise the next request of a script could still meet the old state, for example after the script has revoked a
    key."""
    from shortener.accounts.directory import require_application
    from shortener.accounts.version import read_version
    from shortener.storage.installation import BASE_URL, get, missing_base_url, require_installation
    from shortener.storage.open import open_database

    settings = load_settings()
    with name_database(settings):
        await require_installation(settings)
        database = await open_database(settings.store_url, owner=False)
        try:
            await use_clock_of(database)
            if settings.has_default_base_url and (stored := await database.read(get, BASE_URL)) is not None:
                print_warnings([missing_base_url(stored, settings)])
            if application:
                await database.read(require_application, application)
            version = await database.read(read_version)
            yield database
            # Ignore the error: the change is stored, and the command must still print its result, such as a new key.
            with suppress(StoreUnavailable):
                if await database.read(read_version) != version:
                    await _wait_for_refresh(database)
        finally:
            await database.close()


async def _wait_for_refresh(database: Any) -> None:
    """Wait until all processes of the installation have read the changed accounts. Return at once if no process runs."""
    from shortener.accounts.directory import REFRESH_SECONDS
    from shortener.delivery.processes import is_running
    from shortener.storage.types import to_ms

    if await database.read(is_running, to_ms(current_time())):
        await asyncio.sleep(REFRESH_SECONDS + _REFRESH_MARGIN_SECONDS)


@asynccontextmanager
async def open_cache() -> AsyncIterator[LinkCache]:
    """Open the link cache that the settings name. Commands that change links use it."""
    from shortener.container.connections import open_link_cache
    from shortener.redis.link_cache import NoLinkCache
    from shortener.secret import open_secret
    from shortener.storage.types import to_ms

    settings = load_settings()
    if not settings.redis_url:
        yield NoLinkCache()
        return
    redis, cache = open_link_cache(settings, open_secret(settings.secret, settings.data_dir), lambda: to_ms(current_time()))
    try:
        yield cache
    finally:
        if redis is not None:
            await redis.close()


def command_line_actor() -> Actor:
    """Return the actor of a command: the command line, with the user of the operating system who runs it."""
    from shortener.accounts.audit import COMMAND_LINE

    return dataclasses.replace(COMMAND_LINE, os_user=user_name())


def command_line_audit(database: Any) -> AuditWriter:
    """Return the writer of audit rows. The actor of its rows is the command line."""
    from shortener.accounts.audit import AuditWriter
    from shortener.ids import IdGenerator

    return AuditWriter(command_line_actor(), IdGenerator(database.node))


def print_result(data: Any, as_json: bool, print_text: Callable[[], None]) -> None:
    """Print `data` as JSON if the option --json is set; otherwise call `print_text`, which prints it as text."""
    if as_json:
        print_json(data)
    else:
        print_text()


def print_json(data: Any) -> None:
    """Print `data` as indented JSON on stdout. Times are printed as in the API, such as 2026-11-20T12:00:00Z."""
    # OPT_NON_STR_KEYS is necessary because the names of tables and columns are instances of a subclass of str.
    options = orjson.OPT_INDENT_2 | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_NON_STR_KEYS
    click.echo(orjson.dumps(data, default=_to_json, option=options).decode())


def _to_json(value: Any) -> Any:
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, datetime):
        from shortener.storage.types import to_iso

        return to_iso(value)
    raise TypeError(type(value).__name__)


def print_warnings(warnings: Iterable[str]) -> None:
    """Print each warning to stderr, also with --json. A warning begins with `Warning:`."""
    for warning in warnings:
        click.echo(f"Warning: {warning}", err=True)


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print one line for each field: its name and its value."""
    width = max(map(len, fields), default=0) + 2
    for name, value in fields.items():
        click.echo(f"{name:{width}}{cell(value)}")


def print_nested_fields(fields: Mapping[str, Any]) -> None:
    """Print one line for each value of nested objects and of lists of objects. The line begins with the path of the value, such
    as settings.url."""
    print_fields(dict(_flatten(fields)))


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        path = f"{prefix}{name}"
        if isinstance(value, list | tuple) and value and all(isinstance(one, Mapping) for one in value):
            value = {str(number): one for number, one in enumerate(value, 1)}
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{path}.")
        else:
            yield path, None if value in ({}, [], (), "") else value


def print_table(rows: Sequence[Mapping[str, Any]], *columns: str) -> None:
    """Print a table as text. Values are never truncated.

    On a terminal long values are wrapped inside their column. If stdout is a file or a pipe, each row is one line.
    """
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(cell(row.get(column)) for column in columns))
    Console(width=None if sys.stdout.isatty() else UNLIMITED_WIDTH, markup=False, highlight=False).print(grid)


def cell(value: Any) -> str:
    """Return a value as tables show it: "-" for an empty value, "true" or "false" for a bool. Control characters are escaped."""
    if value is None or value in ("", [], ()):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        from shortener.storage.types import to_iso

        return to_iso(value) or "-"
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return printable(str(value))


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return a text on one line, with escapes such as \\x1b in place of control characters and of changes of the writing direction.

    A terminal would execute these characters. The text may come from anybody who reports a conversion or responds to a
    request."""
    return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)
