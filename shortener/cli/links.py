"""`shortener links` and `hosts`: where links lead, and the switches that stop them.

The commands change the database while servers may be running. A disabled link takes effect at once; a blocked host takes effect on
every node within a second.
"""

from __future__ import annotations

from typing import Any

import click

from shortener.cli.common import (
    async_command,
    json_option,
    load_settings,
    open_cache,
    open_store,
    print_fields,
    print_result,
    print_table,
)
from shortener.cli.parameters import ID


@click.group()
def links() -> None:
    """Show, disable and enable short links."""


@links.command("show")
@click.argument("code")
@json_option
@async_command
async def show_link(code: str, as_json: bool) -> None:
    """Show the destination of a link, or why it does not redirect."""
    from shortener.clicks.link_admin import find_link

    async with open_store() as database:
        await _print_link(database, await database.read(find_link, code), as_json)


@links.command("disable")
@click.argument("code")
@json_option
@async_command
async def disable_link(code: str, as_json: bool) -> None:
    """Disable a link: it responds with 410, and hits on it are not clicks."""
    await _switch_link(code, False, as_json)


@links.command("enable")
@click.argument("code")
@json_option
@async_command
async def enable_link(code: str, as_json: bool) -> None:
    """Enable a disabled link."""
    await _switch_link(code, True, as_json)


async def _switch_link(code: str, enabled: bool, as_json: bool) -> None:
    from shortener.clicks.link_admin import find_link, switch_link
    from shortener.model import utcnow

    async with open_store() as database, open_cache() as cache:
        await database.read(find_link, code)
        is_cache_updated = await cache.invalidate([code])
        await _print_link(database, await database.write(switch_link, code, utcnow(), enabled=enabled), as_json)
    if not is_cache_updated:
        raise click.ClickException(
            "the link is changed, but Redis is unavailable: if the database also fails, Redis may still redirect the link as before"
        )


async def _print_link(database: Any, link: Any, as_json: bool) -> None:
    from shortener.accounts.directory import Directory, base_url_of
    from shortener.clicks.link_admin import serialize_link
    from shortener.model import utcnow

    directory = Directory(database)
    await directory.refresh()
    fields = serialize_link(link, directory, base_url_of(load_settings(), directory), utcnow())
    fields = {"application_id": link.application_id} | fields
    print_result(fields, as_json, lambda: print_fields(fields))


@click.group()
def hosts() -> None:
    """Block, unblock and list destination hosts."""


_application_option = click.option(
    "--application", type=ID, help="Only for links of this application. Default: for links of ALL applications."
)


@hosts.command("block")
@click.argument("host")
@_application_option
@json_option
@async_command
async def block_host(host: str, application: int | None, as_json: bool) -> None:
    """Block a host: links to it respond with 410, and new ones are rejected.

    HOST is for example shop.example, or *.shop.example for every host below it.
    """
    from shortener.accounts import administration
    from shortener.accounts.directory import ALL_APPLICATIONS
    from shortener.model import utcnow

    owner = ALL_APPLICATIONS if application is None else application
    async with open_store() as database:
        blocked = await database.write(administration.block_host, owner, host, utcnow())
    fields = {"host": blocked, "application_id": application}
    print_result(fields, as_json, lambda: click.echo(f"{blocked} is blocked"))


@hosts.command("unblock")
@click.argument("host")
@_application_option
@json_option
@async_command
async def unblock_host(host: str, application: int | None, as_json: bool) -> None:
    """Unblock a host: links to it redirect again."""
    from shortener.accounts import administration
    from shortener.accounts.directory import ALL_APPLICATIONS

    owner = ALL_APPLICATIONS if application is None else application
    async with open_store() as database:
        unblocked = await database.write(administration.unblock_host, owner, host)
    fields = {"host": unblocked, "application_id": application}
    print_result(fields, as_json, lambda: click.echo(f"{unblocked} is no longer blocked"))


@hosts.command("list")
@json_option
@async_command
async def list_hosts(as_json: bool) -> None:
    """List blocked hosts. A host without an application is blocked for all applications."""
    from shortener.accounts import administration

    async with open_store() as database:
        blocked = await database.read(administration.list_blocked_hosts)
    rows = [row | {"application_id": row["application_id"] or None} for row in blocked]
    print_result(rows, as_json, lambda: print_table(rows, "host", "application_id", "created_at"))
