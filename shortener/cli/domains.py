"""`shortener domains`: the applications' own domains.

Running servers apply a change within a second.
"""
# Tested by tests/cli/test_links.py

from __future__ import annotations

from typing import Any

import click

from shortener.cli.common import async_command, json_option, load_settings, open_store, print_fields, print_result, print_table
from shortener.cli.parameters import ID


@click.group()
def domains() -> None:
    """Add, list, update, disable and enable domains of applications."""


@domains.command("list")
@click.argument("application", type=ID, required=False)
@json_option
@async_command
async def list_domains(application: int | None, as_json: bool) -> None:
    """List domains of one application, or of all. New links are created on the first enabled domain of an application."""
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
    columns = ("host", "application_id", "base_url", "fallback_url", "enabled", "new_links")
    print_result(rows, as_json, lambda: print_table(rows, *columns))


@domains.command("add")
@click.argument("application", type=ID)
@click.argument("base_url")
@click.option("--fallback-url", help="URL to which expired links of this domain redirect. Default: that of the application.")
@json_option
@async_command
async def add_domain(application: int, base_url: str, fallback_url: str | None, as_json: bool) -> None:
    """Add a domain to an application, for example https://go.brand.example."""
    from shortener.accounts import administration
    from shortener.model import utcnow
    from shortener.urls import host_of

    def add(connection: Any) -> None:
        administration.add_domain(connection, application, base_url, utcnow())
        if fallback_url is not None:
            changes, own_url = {"fallback_url": fallback_url}, load_settings().base_url
            administration.update_domain(connection, host_of(base_url), changes, utcnow(), own_url=own_url)

    async with open_store() as database:
        await database.write(add)
        await _print_domain(database, host_of(base_url), as_json)


@domains.command("update")
@click.argument("host")
@click.option(
    "--fallback-url",
    required=True,
    help="URL to which expired links of this domain redirect. Empty: that of the application, or a short page.",
)
@json_option
@async_command
async def update_domain(host: str, fallback_url: str, as_json: bool) -> None:
    """Change the fallback URL of a domain."""
    await _change_domain(host, {"fallback_url": fallback_url or None}, as_json)


@domains.command("disable")
@click.argument("host")
@json_option
@async_command
async def disable_domain(host: str, as_json: bool) -> None:
    """Disable a domain: its links respond with 410, and new links are created on another domain."""
    await _change_domain(host, {"disabled": True}, as_json)


@domains.command("enable")
@click.argument("host")
@json_option
@async_command
async def enable_domain(host: str, as_json: bool) -> None:
    """Enable a disabled domain."""
    await _change_domain(host, {"disabled": False}, as_json)


async def _change_domain(host: str, changes: dict[str, Any], as_json: bool) -> None:
    from shortener.accounts import administration
    from shortener.model import utcnow

    async with open_store() as database:
        own_url = load_settings().base_url
        await database.write(administration.update_domain, host.lower(), changes, utcnow(), own_url=own_url)
        await _print_domain(database, host.lower(), as_json)


async def _print_domain(database: Any, host: str, as_json: bool) -> None:
    from shortener.accounts.directory import Directory

    directory = Directory(database)
    await directory.refresh()
    fields = _domain_fields(directory.domain(host))
    print_result(fields, as_json, lambda: print_fields(fields))


def _domain_fields(domain: Any) -> dict[str, Any]:
    return {
        "host": domain.host,
        "application_id": domain.application_id,
        "base_url": domain.base_url,
        "fallback_url": domain.fallback_url,
        "enabled": not domain.disabled,
    }
