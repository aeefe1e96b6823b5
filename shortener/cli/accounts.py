"""The commands `shortener applications`, `shortener keys` and `shortener tokens`."""
# Tested by tests/cli/test_commands.py

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click

from shortener.accounts.settings import DEFAULT_PERMISSIONS, PERMISSIONS, fallback_warnings
from shortener.cli.command_clock import current_time
from shortener.cli.common import (
    after_change,
    async_command,
    command_line_audit,
    confirm,
    describe_application,
    describe_replacement,
    json_option,
    load_settings,
    open_store,
    print_fields,
    print_nested_fields,
    print_result,
    print_table,
    print_warnings,
    yes_option,
)
from shortener.cli.parameters import COMPANY_ID, DURATION, ID, OPTIONAL_APPLICATION, ApplicationCommand, OwnedCommand
from shortener.plurals import counted

MAX_RATE_LIMIT = 1_000_000  # the highest rate limit of a key, in requests per minute
RATE_LIMIT = click.IntRange(1, MAX_RATE_LIMIT)


@click.group()
def applications() -> None:
    """Create, list, show and update applications."""


@applications.command("create")
@click.argument("name")
@click.option("--domain", help="Prefix of the application's short links, for example https://go.brand.example. Default: BASE_URL.")
@click.option("--company-id", type=COMPANY_ID, help="Number that identifies the application in events (field company-id).")
@json_option
@async_command
async def create_application(name: str, domain: str | None, company_id: int | None, as_json: bool) -> None:
    """Create an application and print its id, API key, tracker token and callback secret.

    The credentials are printed only once. The key and the token are stored hashed, and the secret is stored encrypted.
    """
    from shortener.accounts import audited_accounts
    from shortener.accounts.own_hosts import OwnHosts
    from shortener.storage.installation import FINGERPRINT, get, open_installation_secret

    settings = load_settings()
    async with open_store() as database:
        secret = await open_installation_secret(database, settings, await database.read(get, FINGERPRINT))
        created = await database.write(
            audited_accounts.create_application,
            command_line_audit(database),
            name,
            current_time(),
            domain=domain,
            company_id=company_id,
            secret=secret,
            own_hosts=OwnHosts.of(settings),
        )
    fields = {
        "application_id": created.application_id,
        "api_key": created.api_key,
        "tracker_token": created.tracker_token,
        "callback_secret": created.callback_secret,
    }

    def print_text() -> None:
        print_fields(fields)
        click.echo("Store the key, the token and the secret now; they are not shown again.", err=True)

    print_result(fields, as_json, print_text)
    # Print the credentials first. The check of the domain makes a DNS look-up, and if the user interrupts it, the credentials are
    # already printed.
    await _warn_of_domain(domain)


@applications.command("rotate-callback-secret", cls=ApplicationCommand)
@click.argument("application", type=ID)
@click.option(
    "--overlap",
    type=DURATION,
    default="24h",
    show_default=True,
    help="How long requests are also signed with the previous secret, for example 90s, 15m, 24h or 7d.",
)
@yes_option
@json_option
@async_command
async def rotate_callback_secret(application: int, overlap: timedelta, yes: bool, as_json: bool) -> None:
    """Create and print a new callback secret, which signs the requests to lt_callbackurl and conversion_url.

    During --overlap, requests are signed with both the new and the previous secret. Older secrets are no longer used.
    """
    from shortener.cli.trackers import open_trackers
    from shortener.storage.types import to_iso

    async with open_trackers() as (database, trackers, _settings):
        is_set, earlier_until = await trackers.callback_secret_state(application)
        if is_set:
            owner = await describe_application(database, application)
            confirm(describe_replacement(f"The present callback secret of {owner}", overlap, earlier_until), yes)
        secret, until = await trackers.rotate_callback_secret(command_line_audit(database), application, overlap)
    fields = {"callback_secret": secret, "previous_valid_until": to_iso(until)}
    print_result(fields, as_json, lambda: print_fields(fields))


@applications.command("list")
@json_option
@async_command
async def list_applications(as_json: bool) -> None:
    """List all applications."""
    directory = await _load_directory()
    rows = [_application_fields(application) for application in directory.applications()]
    columns = ("application_id", "name", "company_id", "domains", "gateway", "disabled", "created_at")
    print_result(rows, as_json, lambda: print_table(rows, *columns))


@applications.command("show", cls=ApplicationCommand, application_help=OPTIONAL_APPLICATION)
@click.argument("application", type=ID, required=False)
@json_option
@async_command
async def show_application(application: int | None, as_json: bool) -> None:
    """Show one application with its settings."""
    from shortener.cli.stats import find_application

    async with open_store() as database:
        owner = await find_application(database, application)
    found = await _find_application(owner)
    fields = _application_fields(found) | {"settings": found.settings.model_dump(mode="json")}
    print_result(fields, as_json, lambda: print_nested_fields(fields))


@applications.command("update", cls=ApplicationCommand)
@click.argument("application", type=ID)
@click.option("--name", help="New name of the application.")
@click.option("--company-id", type=COMPANY_ID, help="Number that identifies the application in events (field company-id).")
@click.option(
    "--add-domain",
    help=(
        "Domain to add, for example https://go.brand.example. New links use the default domain. If it is disabled or there is "
        "none, they use the first enabled domain."
    ),
)
@click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change a setting, for example click_events=every; an empty value resets it. `applications show` prints all settings. "
    "Can be repeated.",
)
@click.option(
    "--gateway", help="Name of the gateway that sends the messages of the application, for example simulator; none: no gateway."
)
@click.option("--disable/--enable", default=None, help="Disable or enable the application with all its links, keys and tokens.")
@yes_option
@json_option
@async_command
async def update_application(
    application: int,
    name: str | None,
    company_id: int | None,
    add_domain: str | None,
    pairs: tuple[str, ...],
    gateway: str | None,
    disable: bool | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Change an application. Properties without an option keep their values."""
    from shortener.accounts import audited_accounts

    changes = _parse_settings(pairs)
    for field, value in (("name", name), ("company_id", company_id), ("disabled", disable)):
        if value is not None:
            changes[field] = value

    from shortener.accounts.own_hosts import OwnHosts
    from shortener.cli.gateways import ensure_simulator
    from shortener.gateways.store import select_gateway

    own_hosts = OwnHosts.of(load_settings())

    def write(connection: Any, audit: Any) -> None:
        now = current_time()
        if gateway is not None:
            select_gateway(connection, audit, application, gateway, now, is_operator=True)
        if changes:
            audited_accounts.update_application(connection, audit, application, changes, now, own_hosts=own_hosts)
        if add_domain:
            audited_accounts.add_domain(connection, audit, application, add_domain, now, own_hosts=own_hosts)

    before = await _find_application(application)
    if disable and not before.disabled:
        confirm(
            f"Application {application} ({before.name}): all its links respond with 410, and its keys and tokens stop working.",
            yes,
        )
    async with open_store() as database:
        if gateway is not None:
            await ensure_simulator(database)
        await database.write(write, command_line_audit(database))
    with after_change():
        found = await _find_application(application)
    if "fallback_url" in changes:
        print_warnings(f"fallback_url {problem}" for problem in fallback_warnings(found.settings.fallback_url))
    await _warn_of_domain(add_domain)
    print_result(_application_fields(found), as_json, lambda: click.echo(f"application {application} is updated"))


async def _warn_of_domain(base_url: str | None) -> None:
    """Print the warnings about the host of a domain that was added. Do nothing if `base_url` is None."""
    from shortener.delivery.dns_warnings import new_domain_warnings

    if base_url:
        print_warnings(await new_domain_warnings(base_url))


def _parse_settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Parse NAME=VALUE pairs, and return the values by name. An empty value resets a setting to its default."""
    from shortener.accounts.settings import ApplicationSettings

    settings: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint="--set")
        field = ApplicationSettings.model_fields.get(name)
        settings[name] = value if value or field is None else field.default
    return settings


async def _load_directory() -> Any:
    from shortener.accounts.directory import Directory

    async with open_store() as database:
        directory = Directory(database)
        await directory.refresh()
    return directory


async def _find_application(application: int) -> Any:
    found = (await _load_directory()).application(application)
    if found is None:
        raise click.ClickException(f"there is no application {application}")
    return found


def _application_fields(application: Any) -> dict[str, Any]:
    return {
        "application_id": application.id,
        "name": application.name,
        "company_id": application.company_id,
        "domains": [domain.base_url + domain.path for domain in application.domains],
        "gateway": application.gateway and application.gateway.name,
        "disabled": application.disabled,
        "created_at": application.created_at,
    }


@click.group()
def keys() -> None:
    """Create, list, limit and revoke API keys."""


@keys.command("create", cls=ApplicationCommand)
@click.argument("application", type=ID)
@click.option("--name", default="", help="Name of the API key. It has no effect and is only displayed.")
@click.option(
    "--permission",
    "permissions",
    multiple=True,
    type=click.Choice([*PERMISSIONS, "all"]),
    help="Permission of the API key; all: every permission. Can be repeated. Default: sms.send and sms.read.",
)
@click.option("--rate-limit", type=RATE_LIMIT, help="Maximum requests per minute; further requests get 429. Default: no limit.")
@json_option
@async_command
async def create_key(application: int, name: str, permissions: tuple[str, ...], rate_limit: int | None, as_json: bool) -> None:
    """Create an API key and print it. The key is stored hashed and is never shown again."""
    from shortener.accounts import audited_credentials

    granted = PERMISSIONS if "all" in permissions else permissions or DEFAULT_PERMISSIONS
    async with open_store() as database:
        audit = command_line_audit(database)
        key, stored = await database.write(
            audited_credentials.create_key, audit, application, name, granted, current_time(), rate_limit
        )
    fields = {"api_key": key, "key_id": stored["id"], "permissions": sorted(granted)}
    print_result(fields, as_json, lambda: click.echo(key))


@keys.command("list", cls=ApplicationCommand)
@click.argument("application", type=ID, required=False)
@json_option
@async_command
async def list_keys(application: int | None, as_json: bool) -> None:
    """List the API keys of one application or of all applications, without the secret keys, which are not stored."""
    from shortener.accounts import credentials

    async with open_store(application) as database:
        rows = await database.read(credentials.list_keys, application)
    columns = ("id", "application_id", "name", "hint", "permissions", "rate_limit", "created_at", "revoked_at")
    print_result(rows, as_json, lambda: print_table(rows, *columns))


@keys.command("update", cls=OwnedCommand)
@click.argument("key", type=ID)
@click.option(
    "--rate-limit", type=click.IntRange(0, MAX_RATE_LIMIT), required=True, help="Maximum requests per minute; 0: no limit."
)
@json_option
@async_command
async def update_key(key: int, application: int | None, rate_limit: int, as_json: bool) -> None:
    """Change the rate limit of an API key. Every node applies the new limit within a second."""
    from shortener.accounts import audited_credentials

    async with open_store() as database:
        audit, changes = command_line_audit(database), {"rate_limit": rate_limit or None}
        await database.write(audited_credentials.update_key, audit, application, key, changes, current_time())
    text = f"{counted(rate_limit, 'request')} per minute" if rate_limit else "no limit"
    print_result({"id": key, "rate_limit": rate_limit or None}, as_json, lambda: click.echo(f"key {key} has {text}"))


@keys.command("revoke", cls=OwnedCommand)
@click.argument("key", type=ID)
@yes_option
@json_option
@async_command
async def revoke_key(key: int, application: int | None, yes: bool, as_json: bool) -> None:
    """Revoke an API key by its id. The key stops working on every node within a second."""
    from shortener.accounts import audited_credentials, credentials

    async with open_store() as database:
        found = next(
            (row for row in await database.read(credentials.list_keys, application) if row["id"] == key and not row["revoked_at"]),
            None,
        )
        if found is not None:
            owner = await describe_application(database, found["application_id"])
            confirm(f"Key {key} ({found['name'] or found['hint']}) of {owner} stops working at once and for ever.", yes)
        await database.write(audited_credentials.revoke_key, command_line_audit(database), application, key, current_time())
    print_result({"id": key, "revoked": True}, as_json, lambda: click.echo(f"key {key} is revoked"))


@click.group()
def tokens() -> None:
    """Rotate tracker tokens."""


@tokens.command("rotate", cls=ApplicationCommand)
@click.argument("application", type=ID)
@click.option(
    "--overlap",
    type=DURATION,
    default="24h",
    show_default=True,
    help="How long the previous token stays valid, for example 90s, 15m, 24h or 7d.",
)
@yes_option
@json_option
@async_command
async def rotate_token(application: int, overlap: timedelta, yes: bool, as_json: bool) -> None:
    """Create a new tracker token and print it. The previous token stays valid during --overlap.

    Only these two tokens are valid: any older token stops working at once.
    """
    from shortener.accounts import audited_credentials, credentials
    from shortener.storage.clock import open_clock
    from shortener.storage.types import to_iso

    async with open_store(application) as database:
        now = (await open_clock(database))()
        tokens = await database.read(credentials.list_tokens, application, now)
        earlier_until = next((token["valid_until"] for token in tokens if token["valid_until"] is not None), None)
        owner = await describe_application(database, application)
        confirm(describe_replacement(f"The present tracker token of {owner}", overlap, earlier_until), yes)
        audit = command_line_audit(database)
        token, until = await database.write(audited_credentials.rotate_token, audit, application, now, overlap)
    fields = {"tracker_token": token, "previous_valid_until": to_iso(until)}
    print_result(fields, as_json, lambda: print_fields(fields))
