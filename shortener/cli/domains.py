"""The command `shortener domains`: add, list, change and remove domains of applications.

Running servers apply a change within a second.
"""
# Tested by tests/cli/test_links.py

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TextIO

import click

from shortener.cli.command_clock import current_time
from shortener.cli.common import (
    after_change,
    async_command,
    command_line_audit,
    confirm_write,
    json_option,
    load_settings,
    open_store,
    print_fields,
    print_result,
    print_table,
    print_warnings,
    yes_option,
)
from shortener.cli.parameters import ID, ApplicationCommand, OwnedCommand


@click.group()
def domains() -> None:
    """Add, list, update, remove, disable and enable domains of applications."""


@domains.command("list", cls=ApplicationCommand)
@click.argument("application", type=ID, required=False)
@json_option
@async_command
async def list_domains(application: int | None, as_json: bool) -> None:
    """List domains of one application or of all applications. `new_links` marks the domain on which new links are created."""
    from shortener.accounts.administration import serialize_domain
    from shortener.accounts.directory import Directory

    async with open_store(application) as database:
        directory = Directory(database)
        await directory.refresh()
    rows = [
        serialize_domain(domain, owner)
        for owner in directory.applications()
        if application in (None, owner.id)
        for domain in owner.domains
    ]
    columns = ("host", "application_id", "base_url", "fallback_url", "home_url", "enabled", "default", "new_links")
    print_result(rows, as_json, lambda: print_table(rows, *columns))


_options = (
    click.option(
        "--fallback-url",
        help="URL to which expired links and unknown codes of the domain redirect. Empty: the application's fallback URL.",
    ),
    click.option("--home-url", help="URL to which the path / of this domain redirects. Empty: the path / returns 404."),
    click.option("--default", "is_default", is_flag=True, help="Create new links of the application on this domain."),
    click.option(
        "--assetlinks", type=click.File(), help="File with the content of /.well-known/assetlinks.json. An empty file removes it."
    ),
    click.option(
        "--apple-app-site-association",
        type=click.File(),
        help="File with the content of /.well-known/apple-app-site-association. An empty file removes it.",
    ),
)


def _domain_options(command: Any) -> Any:
    for option in reversed(_options):
        command = option(command)
    return command


def _changes(
    fallback_url: str | None,
    home_url: str | None,
    is_default: bool,
    assetlinks: TextIO | None,
    apple_app_site_association: TextIO | None,
) -> dict[str, Any]:
    """Return the changes in the form that `administration.update_domain` takes. An empty URL or file becomes None, which removes
    the stored value."""
    changes: dict[str, Any] = {"default": True} if is_default else {}
    texts = {"fallback_url": fallback_url, "home_url": home_url}
    texts |= {
        name: file.read().strip()
        for name, file in (("assetlinks", assetlinks), ("apple_app_site_association", apple_app_site_association))
        if file is not None
    }
    return changes | {name: text or None for name, text in texts.items() if text is not None}


@domains.command("add", cls=ApplicationCommand)
@click.argument("application", type=ID)
@click.argument("base_url")
@_domain_options
@json_option
@async_command
async def add_domain(application: int, base_url: str, as_json: bool, **options: Any) -> None:
    """Add a domain to an application, for example https://go.brand.example.

    The URL may have a path, for example https://go.brand.example/ABCDEF. New links then contain this path before the code. The path
    {sender} is replaced by the sender of the message.
    """
    from shortener.accounts import audited_accounts
    from shortener.accounts.own_hosts import OwnHosts
    from shortener.delivery.dns_warnings import new_domain_warnings

    changes, own_hosts = _changes(**options), OwnHosts.of(load_settings())

    def add(connection: Any, audit: Any) -> str:
        host = audited_accounts.add_domain(connection, audit, application, base_url, current_time(), own_hosts=own_hosts)
        if changes:
            audited_accounts.update_domain(connection, audit, host, changes, current_time(), own_hosts=own_hosts)
        return host

    async with open_store() as database:
        host = await database.write(add, command_line_audit(database))
        with after_change():
            await _print_domain(database, host, as_json, await new_domain_warnings(base_url))


@domains.command("update", cls=OwnedCommand)
@click.argument("host")
@_domain_options
@click.option(
    "--path", help="Path before the codes of new links, such as /ABCDEF or /{sender}. Empty: no path. Older links still work."
)
@click.option("--disable/--enable", default=None, help="Disable or enable the domain.")
@yes_option
@json_option
@async_command
async def update_domain(
    host: str, application: int | None, path: str | None, disable: bool | None, yes: bool, as_json: bool, **options: Any
) -> None:
    """Change a domain. Properties without an option keep their values."""
    changes = _changes(**options)
    if path is not None:
        changes["path"] = path
    if disable is not None:
        changes["disabled"] = disable
    if not changes:
        raise click.UsageError("nothing to change: use at least one option")
    await _change_domain(host, application, changes, as_json, yes=yes)


@domains.command("remove", cls=OwnedCommand)
@click.argument("host")
@yes_option
@json_option
@async_command
async def remove_domain(host: str, application: int | None, yes: bool, as_json: bool) -> None:
    """Remove a domain: no new links use it. Links that were already sent work until they expire."""
    from shortener.accounts import audited_accounts

    async with open_store() as database:
        what = await _describe_change(database, host, application, "no new links use it")
        audit = command_line_audit(database)
        owner = await _find_owner(database, host)
        removed = await confirm_write(
            database, what, yes, audited_accounts.remove_domain, audit, host, current_time(), application_id=application
        )
        with after_change():
            print_warnings(await _no_domain_warnings(database, owner))
    print_result({"host": removed, "removed": True}, as_json, lambda: click.echo(f"{removed} is removed"))


async def _find_owner(database: Any, host: str) -> int | None:
    """Return the id of the application that has a domain, or None if there is no such domain."""
    from shortener.accounts.directory import Directory
    from shortener.urls import canonical_host

    directory = Directory(database)
    await directory.refresh()
    domain = directory.domain(canonical_host(host))
    return domain.application_id if domain else None


async def _no_domain_warnings(database: Any, application: int | None) -> list[str]:
    """Warn if an application has no domain for new links any more. All its rewrites of texts with links then fail."""
    from shortener.accounts.directory import Directory

    directory = Directory(database)
    await directory.refresh()
    found = None if application is None else directory.application(application)
    if found is None or found.domain is not None or found.may_use_shared_host:
        return []
    return [
        f"application {found.id} ({found.name}) has no domain for new links: every rewrite of a text with links now fails with "
        f"NO_USABLE_DOMAIN. Add or enable a domain, or let links use BASE_URL: `shortener applications update {found.id} --set "
        "allow_shared_host=true`"
    ]


@domains.command("disable", cls=OwnedCommand)
@click.argument("host")
@yes_option
@json_option
@async_command
async def disable_domain(host: str, application: int | None, yes: bool, as_json: bool) -> None:
    """Disable a domain: its links respond with 410, and new links are created on another domain."""
    await _change_domain(host, application, {"disabled": True}, as_json, yes=yes)


async def _describe_change(database: Any, host: str, application: int | None, effect: str) -> str:
    """Return the text that `confirm_write` prints before a domain is changed. Return "" if there is no such domain, so that
    `confirm_write` does not ask."""
    from shortener.accounts.directory import Directory
    from shortener.urls import canonical_host

    directory = Directory(database)
    await directory.refresh()
    domain = directory.domain(canonical_host(host))
    if domain is None or application not in (None, domain.application_id):
        return ""
    owner = directory.application(domain.application_id)
    return f"Domain {domain.host} of application {domain.application_id} ({owner.name if owner else '-'}): {effect}."


@domains.command("enable", cls=OwnedCommand)
@click.argument("host")
@json_option
@async_command
async def enable_domain(host: str, application: int | None, as_json: bool) -> None:
    """Enable a disabled domain."""
    await _change_domain(host, application, {"disabled": False}, as_json)


async def _change_domain(host: str, application: int | None, changes: dict[str, Any], as_json: bool, *, yes: bool = False) -> None:
    from shortener.accounts import audited_accounts
    from shortener.accounts.own_hosts import OwnHosts

    async with open_store() as database:
        audit, own_hosts = command_line_audit(database), OwnHosts.of(load_settings())
        what = ""
        if changes.get("disabled"):
            effect = "its links respond with 410, including links that were already sent"
            what = await _describe_change(database, host, application, effect)

        def write(connection: Any) -> str:
            return audited_accounts.update_domain(
                connection, audit, host, changes, current_time(), application_id=application, own_hosts=own_hosts
            )

        stored = await confirm_write(database, what, yes, write)
        with after_change():
            await _print_domain(database, stored, as_json)


async def _print_domain(database: Any, host: str, as_json: bool, warnings: Iterable[str] = ()) -> None:
    from shortener.accounts.administration import serialize_domain
    from shortener.accounts.directory import Directory

    directory = Directory(database)
    await directory.refresh()
    domain = directory.domain(host)
    assert domain is not None  # the domain exists, because it was just changed
    fields = serialize_domain(domain, directory.application(domain.application_id))
    no_domain = await _no_domain_warnings(database, domain.application_id)
    fields["warnings"] = list(dict.fromkeys([*warnings, *fields["warnings"], *no_domain]))
    print_warnings(fields["warnings"])
    print_result(fields, as_json, lambda: print_fields({name: value for name, value in fields.items() if name != "warnings"}))
