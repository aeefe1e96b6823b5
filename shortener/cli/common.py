"""What the commands share: `--json`, settings, the store, and how a failure is said."""
# Tested by tests/cli/test_commands.py

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
import orjson

from shortener import settings as settings_module
from shortener.errors import ApiError, StoreUnavailable
from shortener.settings import Settings, SettingsError

if TYPE_CHECKING:
    from shortener.redis.link_cache import LinkCache

P = ParamSpec("P")
T = TypeVar("T")

json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output on stdout.")


def load_settings(**overrides: Any) -> Settings:
    try:
        return settings_module.load(**overrides)
    except SettingsError as error:
        raise click.ClickException(f"unusable settings:\n{error}") from None


#: Commands that run for long: they are worth the import of uvloop.
_SERVERS = frozenset({"_serve_one", "deliver"})


def _fast_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def runs(command: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Makes a command of an async function; failures that an operator can act on become one line on stderr."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        from shortener.secret import SecretError
        from shortener.storage.migrate import SchemaMismatch

        try:
            with asyncio.Runner(loop_factory=_fast_loop if command.__name__ in _SERVERS else None) as runner:
                return runner.run(command(*args, **kwargs))
        except ApiError as error:
            lines = [f"{error.code.name}: {error.description}"]
            lines += [f"  {detail.field}: {detail.reason}" for detail in error.details]
            raise click.ClickException("\n".join(lines)) from None
        except StoreUnavailable as error:
            raise click.ClickException(f"the store is unavailable: {error}") from None
        except (SchemaMismatch, SecretError) as error:
            raise click.ClickException(str(error)) from None

    return run


@asynccontextmanager
async def open_store() -> AsyncIterator[Any]:
    """The database of the settings, its schema checked, beside a server that may be running."""
    from shortener.storage.migrate import prepare
    from shortener.storage.open import open_database

    settings = load_settings()
    await prepare(settings.store_url)
    database = await open_database(settings.store_url, owner=False)
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def open_cache() -> AsyncIterator[LinkCache]:
    """The link cache of the settings: for a command that changes links."""
    from shortener.container import open_link_cache
    from shortener.model import utcnow
    from shortener.secret import open_secret
    from shortener.storage.types import to_ms

    settings = load_settings()
    redis, cache = open_link_cache(settings, open_secret(settings.secret, settings.data_dir), lambda: to_ms(utcnow()))
    try:
        yield cache
    finally:
        if redis is not None:
            await redis.close()


def show(data: Any, as_json: bool, people: Callable[[], None]) -> None:
    """Print `data` as JSON, or let `people` print it for people."""
    if as_json:
        click.echo(orjson.dumps(data, default=plain, option=orjson.OPT_INDENT_2).decode())
    else:
        people()


def plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(type(value).__name__)


def table(rows: list[dict[str, Any]], *columns: str) -> None:
    """A table for people."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column)
    for row in rows:
        grid.add_row(*(_cell(row.get(column)) for column in columns))
    Console().print(grid)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
