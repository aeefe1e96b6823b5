"""`shortener links`, `hosts` and `domains`: what links lead to, and the switches that stop them.

They work on the database, beside servers that may be running: a link's switch holds from the next hit on, the others are known to
every node within a second.
"""

from __future__ import annotations

from typing import Any

import click

from shortener.cli.common import json_option, open_store, runs, show, table
from shortener.urls import host_of


@click.group()
def links() -> None:
    """Links: show one, switch it off or on."""


@links.command("show")
@click.argument("code")
@json_option
@runs
async def show_link(code: str, as_json: bool) -> None:
    """Show a link: where it leads, or why it leads nowhere."""
    from shortener.clicks.link_admin import find_link

    async with open_store() as database:
        await _tell_link(database, await database.read(find_link, code), as_json)


@links.command("disable")
@click.argument("code")
@json_option
@runs
async def disable_link(code: str, as_json: bool) -> None:
    """Switch a link off: it answers 410 from now on, and hits on it are no clicks."""
    await _switch_link(code, False, as_json)


@links.command("enable")
@click.argument("code")
@json_option
@runs
async def enable_link(code: str, as_json: bool) -> None:
    """Switch a link on again."""
    await _switch_link(code, True, as_json)


async def _switch_link(code: str, enabled: bool, as_json: bool) -> None:
    from shortener.cli.common import open_cache
    from shortener.clicks.link_admin import find_link, switch_link
    from shortener.model import utcnow

    async with open_store() as database, open_cache() as cache:
        await database.read(find_link, code)
        told = await cache.invalidate([code])
        await _tell_link(database, await database.write(switch_link, code, utcnow(), enabled=enabled), as_json)
    if not told:
        raise click.ClickException("Redis is away: should the database go away too, it may answer for the link as it was")


async def _tell_link(database: Any, link: Any, as_json: bool) -> None:
    from shortener.accounts.directory import Directory
    from shortener.cli.common import load_settings
    from shortener.clicks.link_admin import serialize_link
    from shortener.container import base_url_of
    from shortener.model import utcnow

    directory = Directory(database)
    await directory.refresh()
    fields = serialize_link(link, directory, base_url_of(load_settings(), directory), utcnow())
    _show_fields({"application_id": link.application_id} | fields, as_json)


def _show_fields(fields: dict[str, Any], as_json: bool) -> None:
    def people() -> None:
        for name, value in fields.items():
            click.echo(f"{name:16}{'-' if value is None else value}")

    show(fields, as_json, people)


@click.group()
def hosts() -> None:
    """Destination hosts that no short link leads to: block, unblock, list."""


_of_application = click.option("--application", type=int, help="For its links only; for everybody's when absent.")


@hosts.command("block")
@click.argument("host")
@_of_application
@json_option
@runs
async def block_host(host: str, application: int | None, as_json: bool) -> None:
    """Block a host, for example shop.example, or *.shop.example for every host under it: links to it answer 410."""
    from shortener.accounts import administration
    from shortener.accounts.directory import ALL_APPLICATIONS
    from shortener.model import utcnow

    owner = ALL_APPLICATIONS if application is None else application
    async with open_store() as database:
        spelled = await database.write(administration.block_host, owner, host, utcnow())
    show({"host": spelled, "application_id": application}, as_json, lambda: click.echo(f"{spelled} is blocked"))


@hosts.command("unblock")
@click.argument("host")
@_of_application
@json_option
@runs
async def unblock_host(host: str, application: int | None, as_json: bool) -> None:
    """Let links lead to a host again."""
    from shortener.accounts import administration
    from shortener.accounts.directory import ALL_APPLICATIONS

    owner = ALL_APPLICATIONS if application is None else application
    async with open_store() as database:
        spelled = await database.write(administration.unblock_host, owner, host)
    show({"host": spelled, "application_id": application}, as_json, lambda: click.echo(f"{spelled} is not blocked any more"))


@hosts.command("list")
@json_option
@runs
async def list_hosts(as_json: bool) -> None:
    """List blocked hosts; those without an application are blocked for everybody."""
    from shortener.accounts import administration

    async with open_store() as database:
        found = await database.read(administration.list_blocked_hosts)
    rows = [row | {"application_id": row["application_id"] or None} for row in found]
    show(rows, as_json, lambda: table(rows, "host", "application_id", "created_at"))


@click.group()
def domains() -> None:
    """Applications' own domains: list, add, disable, enable, update."""


@domains.command("list")
@click.argument("application", type=int, required=False)
@json_option
@runs
async def list_domains(application: int | None, as_json: bool) -> None:
    """List domains. New links of an application are made on its first one that is enabled."""
    from shortener.accounts.directory import Directory

    async with open_store() as database:
        directory = Directory(database)
        await directory.refresh()
    rows = [
        _domain_fields(domain) | {"new_links": domain == owner.domain}
        for owner in directory.applications()
        if application in (None, owner.id)
        for domain in owner.domains
    ]
    show(rows, as_json, lambda: table(rows, "host", "application_id", "base_url", "fallback_url", "enabled", "new_links"))


@domains.command("add")
@click.argument("application", type=int)
@click.argument("base_url")
@click.option("--fallback-url", help="Where its expired links lead to.")
@json_option
@runs
async def add_domain(application: int, base_url: str, fallback_url: str | None, as_json: bool) -> None:
    """Give an application one more domain, for example https://go.brand.example."""
    from shortener.accounts import administration
    from shortener.model import utcnow

    def add(connection: Any) -> None:
        administration.add_domain(connection, application, base_url, utcnow())
        if fallback_url is not None:
            administration.update_domain(connection, host_of(base_url), {"fallback_url": fallback_url}, utcnow())

    async with open_store() as database:
        await database.write(add)
        await _tell_domain(database, host_of(base_url), as_json)


@domains.command("update")
@click.argument("host")
@click.option("--fallback-url", required=True, help="Where its expired links lead to; empty: to the application's, or a page.")
@json_option
@runs
async def update_domain(host: str, fallback_url: str, as_json: bool) -> None:
    """Change a domain."""
    await _change_domain(host, {"fallback_url": fallback_url or None}, as_json)


@domains.command("disable")
@click.argument("host")
@json_option
@runs
async def disable_domain(host: str, as_json: bool) -> None:
    """Switch a domain off: all its links answer 410, and new links are made on another one."""
    await _change_domain(host, {"disabled": True}, as_json)


@domains.command("enable")
@click.argument("host")
@json_option
@runs
async def enable_domain(host: str, as_json: bool) -> None:
    """Switch a domain on again."""
    await _change_domain(host, {"disabled": False}, as_json)


async def _change_domain(host: str, changes: dict[str, Any], as_json: bool) -> None:
    from shortener.accounts import administration
    from shortener.model import utcnow

    async with open_store() as database:
        await database.write(administration.update_domain, host.lower(), changes, utcnow())
        await _tell_domain(database, host.lower(), as_json)


async def _tell_domain(database: Any, host: str, as_json: bool) -> None:
    from shortener.accounts.directory import Directory

    directory = Directory(database)
    await directory.refresh()
    _show_fields(_domain_fields(directory.domain(host)), as_json)


def _domain_fields(domain: Any) -> dict[str, Any]:
    return {
        "host": domain.host,
        "application_id": domain.application_id,
        "base_url": domain.base_url,
        "fallback_url": domain.fallback_url,
        "enabled": not domain.disabled,
    }
