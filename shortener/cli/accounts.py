"""`shortener applications`, `keys` and `tokens`."""
# Tested by tests/cli/test_commands.py

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import click

from shortener.cli.common import json_option, open_store, runs, show, table


@click.group()
def applications() -> None:
    """Create, list, show and update applications."""


@applications.command("create")
@click.argument("name")
@click.option("--domain", help="Prefix of its short links, for example https://go.brand.example.")
@click.option("--company-id", type=int, help="Echoed in events as company-id.")
@json_option
@runs
async def create_application(name: str, domain: str | None, company_id: int | None, as_json: bool) -> None:
    """Make an application; prints its API key and tracker token, this once."""
    from shortener.accounts import administration
    from shortener.model import utcnow

    async with open_store() as database:
        made = await database.write(administration.create_application, name, utcnow(), domain=domain, company_id=company_id)
    data = {"application_id": made.application_id, "api_key": made.api_key, "tracker_token": made.tracker_token}

    def people() -> None:
        click.echo(f"application_id  {made.application_id}")
        click.echo(f"api_key         {made.api_key}")
        click.echo(f"tracker_token   {made.tracker_token}")
        click.echo("Keep them now: they are stored hashed and not shown again.", err=True)

    show(data, as_json, people)


@applications.command("list")
@json_option
@runs
async def list_applications(as_json: bool) -> None:
    """List all applications."""
    from shortener.accounts.directory import Directory

    async with open_store() as database:
        directory = Directory(database)
        await directory.refresh()
    rows = [_told(application) for application in directory.applications()]
    show(rows, as_json, lambda: table(rows, "application_id", "name", "company_id", "domains", "disabled", "created_at"))


@applications.command("show")
@click.argument("application", type=int)
@json_option
@runs
async def show_application(application: int, as_json: bool) -> None:
    """Show one application with its settings."""
    from shortener.accounts.directory import Directory

    async with open_store() as database:
        directory = Directory(database)
        await directory.refresh()
    found = directory.application(application)
    if found is None:
        raise click.ClickException(f"there is no application {application}")
    data = _told(found) | {"settings": found.settings.model_dump(mode="json")}

    def people() -> None:
        for name, value in data.items():
            click.echo(f"{name:16}{value}")

    show(data, as_json, people)


@applications.command("update")
@click.argument("application", type=int)
@click.option("--name", help="A new name.")
@click.option("--company-id", type=int, help="Echoed in events as company-id.")
@click.option("--add-domain", help="One more domain, for example https://go.brand.example; new links use the first one.")
@click.option(
    "--set", "pairs", multiple=True, metavar="NAME=VALUE", help="A setting, for example click_events=every; empty resets."
)
@click.option("--disable/--enable", default=None, help="Switch the application off or on.")
@json_option
@runs
async def update_application(
    application: int,
    name: str | None,
    company_id: int | None,
    add_domain: str | None,
    pairs: tuple[str, ...],
    disable: bool | None,
    as_json: bool,
) -> None:
    """Change an application."""
    from shortener.accounts import administration
    from shortener.accounts.directory import Directory
    from shortener.accounts.settings import ApplicationSettings
    from shortener.model import utcnow

    changes: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint="--set")
        default = ApplicationSettings.model_fields.get(key)
        changes[key] = value if value or default is None else default.default
    for key, given in (("name", name), ("company_id", company_id), ("disabled", disable)):
        if given is not None:
            changes[key] = given
    async with open_store() as database:
        if changes:
            await database.write(administration.update_application, application, changes, utcnow())
        if add_domain:
            await database.write(administration.add_domain, application, add_domain, utcnow())
        directory = Directory(database)
        await directory.refresh()
    found = directory.application(application)
    if found is None:
        raise click.ClickException(f"there is no application {application}")
    show(_told(found), as_json, lambda: click.echo(f"application {application} updated"))


def _told(application: Any) -> dict[str, Any]:
    return {
        "application_id": application.id,
        "name": application.name,
        "company_id": application.company_id,
        "domains": [domain.base_url for domain in application.domains],
        "disabled": application.disabled,
        "created_at": application.created_at,
    }


@click.group()
def keys() -> None:
    """API keys: create, list, revoke."""


@keys.command("create")
@click.argument("application", type=int)
@click.option("--name", default="", help="For people.")
@click.option("--permission", "permissions", multiple=True, help="sms.send, sms.read or trackers.write; all when absent.")
@json_option
@runs
async def create_key(application: int, name: str, permissions: tuple[str, ...], as_json: bool) -> None:
    """Make a key; it is shown this once."""
    from shortener.accounts import credentials
    from shortener.accounts.settings import PERMISSIONS
    from shortener.model import utcnow

    wanted = permissions or PERMISSIONS
    async with open_store() as database:
        key = await database.write(credentials.create_key, application, name, wanted, utcnow())
    show({"api_key": key, "permissions": sorted(wanted)}, as_json, lambda: click.echo(key))


@keys.command("list")
@click.argument("application", type=int, required=False)
@json_option
@runs
async def list_keys(application: int | None, as_json: bool) -> None:
    """List keys; their secrets are not kept."""

    from shortener.accounts import credentials

    async with open_store() as database:
        rows = await database.read(credentials.list_keys, application)
    show(rows, as_json, lambda: table(rows, "id", "application_id", "name", "hint", "permissions", "created_at", "revoked_at"))


@keys.command("revoke")
@click.argument("key", type=int)
@json_option
@runs
async def revoke_key(key: int, as_json: bool) -> None:
    """Revoke a key; it stops working within a second on every node."""
    from shortener.accounts import credentials
    from shortener.model import utcnow

    async with open_store() as database:
        await database.write(credentials.revoke_key, key, utcnow())
    show({"id": key, "revoked": True}, as_json, lambda: click.echo(f"key {key} revoked"))


@click.group()
def tokens() -> None:
    """Tracker tokens: rotate."""


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Duration(click.ParamType[timedelta]):
    """90s, 15m, 24h, 7d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"(\d{1,6})([smhd])", str(value))
        if not match:
            self.fail(f"{value!r} is not a duration such as 90s, 15m, 24h or 7d", param, ctx)
        return timedelta(**{_UNITS[match[2]]: int(match[1])})


@tokens.command("rotate")
@click.argument("application", type=int)
@click.option("--overlap", type=Duration(), default="24h", show_default=True, help="How long the previous token stays valid.")
@json_option
@runs
async def rotate_token(application: int, overlap: timedelta, as_json: bool) -> None:
    """Make a new tracker token; the previous one stays valid for the overlap."""
    from shortener.accounts import credentials
    from shortener.model import utcnow
    from shortener.storage.types import to_iso

    async with open_store() as database:
        token, until = await database.write(credentials.rotate_token, application, utcnow(), overlap)
    data = {"tracker_token": token, "previous_valid_until": to_iso(until)}

    def people() -> None:
        click.echo(f"tracker_token         {token}")
        click.echo(f"previous_valid_until  {to_iso(until)}")

    show(data, as_json, people)
