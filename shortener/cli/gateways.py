"""The commands `shortener gateways`: manage gateways.

The commands change only the database. A running server applies the changes.
"""
# Tested by tests/cli/test_gateways.py

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click
import orjson

from shortener.cli.command_clock import current_time
from shortener.cli.common import (
    async_command,
    command_line_audit,
    confirm,
    describe_application,
    json_option,
    load_settings,
    open_store,
    print_fields,
    print_nested_fields,
    print_result,
    print_table,
    yes_option,
)
from shortener.cli.parameters import ID, ApplicationCommand, OwnedCommand
from shortener.cli.secret_input import has_secret, named_value_options, secret_options
from shortener.plurals import counted

if TYPE_CHECKING:
    from shortener.gateways.gateway import StoredGateway
    from shortener.gateways.store import GatewayStore
    from shortener.settings import Settings

_PRESETS = ("kannel", "jasmin", "playsms", "twilio", "infobip", "vonage", "plain")


@asynccontextmanager
async def open_gateways() -> AsyncIterator[tuple[Any, GatewayStore, Settings]]:
    """Yield the database, the store of its gateways, and the settings."""
    async with open_store() as database:
        yield database, *_store(database)


def _store(database: Any) -> tuple[GatewayStore, Settings]:
    from shortener.accounts.directory import Directory
    from shortener.gateways.store import GatewayStore
    from shortener.secret import open_secret

    settings = load_settings()
    secret = open_secret(settings.secret, settings.data_dir)
    return GatewayStore(database, secret, Directory(database), settings, current_time), settings


async def ensure_simulator(database: Any) -> None:
    """Create the built-in gateway `simulator` if it does not exist. Servers of earlier versions did not create it."""
    store, _ = _store(database)
    await database.write(store.ensure_simulator)


def _parse_schedule(context: click.Context, parameter: click.Parameter, value: str | None) -> list[float] | None:
    try:
        return None if value is None else [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter("must be numbers of seconds, separated by commas") from None


_LIMIT_OPTIONS = (
    click.option(
        "--on-doubt",
        type=click.Choice(["resend", "hold"]),
        help="What to do with a message if the gateway does not respond to the request that sends it. resend: send it again. "
        "hold: wait for a delivery report or for a decision of the operator. Default: resend.",
    ),
    click.option(
        "--max-attempts",
        type=click.IntRange(1, 50),
        help="Maximum number of attempts to send a message. Default: GATEWAY_ATTEMPTS (7).",
    ),
    click.option(
        "--timeout", type=click.FloatRange(0.1, 120), help="Time limit of an attempt in seconds. Default: GATEWAY_TIMEOUT (10)."
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(1, 1024),
        help="Maximum number of simultaneous attempts of all processes. Default: GATEWAY_SLOTS_PER_GATEWAY (16).",
    ),
    click.option(
        "--max-per-second",
        type=click.FloatRange(0.01, 100_000),
        help="Maximum number of messages per second, from 0.01 to 100000. Default: no limit.",
    ),
    click.option(
        "--schedule",
        callback=_parse_schedule,
        metavar="SECONDS,...",
        help="Seconds between attempts, separated by commas. Default: GATEWAY_SCHEDULE.",
    ),
    named_value_options(
        "set",
        "pairs",
        "Setting of this kind of gateway, for example success_statuses=200. Objects and lists are JSON. A dot names one member of "
        "an object: headers.X-Team=sms",
    ),
    named_value_options(
        "variable", "variables", "Variable of an HTTP gateway, for example password. The other variables keep their values"
    ),
    named_value_options(
        "option",
        "options",
        "Option of the preset, for example url or password. If the gateway exists, its settings are built again from this option "
        "and its stored options",
    ),
)
_LIMITS = ("on_doubt", "max_attempts", "timeout", "concurrency", "max_per_second", "schedule")
#: The limits of a gateway that `update --remove` can remove. The key is the word that the option accepts.
_REMOVABLE = {name.replace("_", "-"): name for name in _LIMITS[1:]}


def _limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    # Decorators are applied from the last to the first, so `reversed` keeps the order of the help text.
    for option in reversed(_LIMIT_OPTIONS):
        command = option(command)
    return command


def _settings_of(pairs: dict[str, str], variables: dict[str, str]) -> dict[str, Any]:
    """Return the settings of a gateway from the options of a command: `pairs` from --set, and `variables` from --variable.

    A value of `pairs` that begins with { or [ is parsed as JSON, unless the type of its setting is text, or its setting is a
    member of an object. The variable x becomes the setting variables.x."""
    from shortener.gateways.kinds import KINDS

    texts = {name for kind in KINDS.values() for name, field in kind.settings_model.model_fields.items() if field.annotation is str}
    values: dict[str, Any] = {}
    for name, text in pairs.items():
        values[name] = text
        if name not in texts and "." not in name and text[:1] in ("{", "["):
            try:
                values[name] = orjson.loads(text)
            except orjson.JSONDecodeError:
                raise click.BadParameter(f"{name} must be JSON", param_hint="--set") from None
    return values | {f"variables.{name}": text for name, text in variables.items()}


@click.group()
def gateways() -> None:
    """Add, list, show, update, test and remove gateways, to which the service passes messages."""


@gateways.command("add")
@click.argument("name")
@click.option(
    "--application", type=ID, help="Application that owns the gateway. Default: none; every application may use the gateway."
)
@click.option(
    "--kind", type=click.Choice(["http", "smpp", "simulator"]), default="http", show_default=True, help="Kind of the gateway."
)
@click.option("--preset", type=click.Choice(_PRESETS), help="Product or provider. The gateway gets the usual settings for it.")
@secret_options(
    "url",
    "url",
    "URL of the gateway: with --preset, the option url of the preset; otherwise, the setting url",
    is_secret=has_secret,
)
@click.option("--allow-private", is_flag=True, help="Permit a private or loopback IP address, which is usual for Kannel.")
@_limit_options
@json_option
@async_command
async def add_gateway(
    name: str,
    application: int | None,
    kind: str,
    preset: str | None,
    url: str | None,
    options: dict[str, str],
    variables: dict[str, str],
    allow_private: bool,
    pairs: dict[str, str],
    as_json: bool,
    **limits: Any,
) -> None:
    """Add a gateway. Select it with `shortener applications update APPLICATION --gateway NAME`."""
    from shortener.gateways.gateway import NewGateway
    from shortener.model import ALL_APPLICATIONS

    settings_of_kind = _settings_of(pairs, variables)
    if url is not None:
        (options if preset else settings_of_kind)["url"] = url
    new = NewGateway(
        name=name,
        kind=kind,
        preset=preset or "",
        options=options,
        settings=settings_of_kind,
        allow_private=allow_private,
        **(limits | {"on_doubt": limits["on_doubt"] or "resend"}),
    )
    owner = application if application is not None else ALL_APPLICATIONS
    async with open_gateways() as (database, store, settings):
        created = await store.create(command_line_audit(database), owner, new)
    _print_gateway(settings, created, as_json)


@gateways.command("list", cls=ApplicationCommand)
@click.argument("application", type=ID, required=False)
@json_option
@async_command
async def list_gateways(application: int | None, as_json: bool) -> None:
    """List the gateways of one application, or all gateways, with the state of their circuit breakers."""
    from urllib.parse import urlsplit

    from shortener.gateways.presenter import gateway_fields

    async with open_gateways() as (_, store, settings):
        found = await store.all(application)
    rows = [gateway_fields(settings, one, current_time()) for one in found]
    table = [
        row | {"breaker": row["health"]["breaker"], "address": urlsplit(row["settings"].get("url", "")).netloc or None}
        for row in rows
    ]
    columns = ("gateway_id", "name", "kind", "preset", "application_id", "address", "enabled", "on_doubt", "breaker")
    print_result(rows, as_json, lambda: print_table(table, *columns))


@gateways.command("show", cls=OwnedCommand)
@click.argument("gateway", type=ID)
@json_option
@async_command
async def show_gateway(gateway: int, application: int | None, as_json: bool) -> None:
    """Show one gateway with its settings and its health. Credentials are not shown."""
    async with open_gateways() as (_, store, settings):
        found = await store.get(gateway, application)
    _print_gateway(settings, found, as_json)


@gateways.command("update", cls=OwnedCommand)
@click.argument("gateway", type=ID)
@click.option("--name", help="New name of the gateway.")
@click.option(
    "--disable/--enable",
    default=None,
    help="Disable: messages wait. Enable: the waiting messages are sent, and the circuit breaker is closed.",
)
@click.option("--rotate-report-key", is_flag=True, help="Create another key for the report URL. The old URL stops working.")
@click.option(
    "--remove",
    "removed",
    multiple=True,
    type=click.Choice(list(_REMOVABLE)),
    help="Remove a limit, so that its default applies. Can be repeated.",
)
@_limit_options
@yes_option
@json_option
@async_command
async def update_gateway(
    gateway: int,
    application: int | None,
    name: str | None,
    disable: bool | None,
    rotate_report_key: bool,
    removed: tuple[str, ...],
    pairs: dict[str, str],
    variables: dict[str, str],
    options: dict[str, str],
    yes: bool,
    as_json: bool,
    **limits: Any,
) -> None:
    """Change a gateway. Properties without an option keep their values.

    \b
    Change the password:  shortener gateways update 2 --variable password=-
    of an SMPP gateway:   shortener gateways update 2 --set password=-
    Change the address:   shortener gateways update 2 --option url=http://10.0.0.6:13013/cgi-bin/sendsms
    """
    from shortener.gateways.store import waiting_messages

    changes: dict[str, Any] = {field: limits[field] for field in _LIMITS if limits[field] is not None}
    for limit in removed:
        if _REMOVABLE[limit] in changes:
            raise click.UsageError(f"--remove {limit} must not be combined with --{limit}")
        changes[_REMOVABLE[limit]] = None
    if name is not None:
        changes["name"] = name
    if disable is not None:
        changes["enabled"] = not disable
    if pairs or variables:
        changes["settings"] = _settings_of(pairs, variables)
    if options:
        changes["options"] = options
    if rotate_report_key:
        changes["rotate_report_key"] = True
    async with open_gateways() as (database, store, settings):
        found = await store.get(gateway, application)
        effects = []
        if disable and found.enabled:
            waiting = await database.read(waiting_messages, gateway)
            kept = counted(waiting, "waiting message waits", "waiting messages wait")
            effects.append(f"sends no messages until it is enabled again, and its {kept}")
        if rotate_report_key:
            effects.append("gets another report URL: delivery reports to the current URL are rejected at once")
        if effects:
            confirm(f"Gateway {gateway} ({found.config.name}) of {await _owner(database, found)} {'; it '.join(effects)}.", yes)
        audit = command_line_audit(database)
        changed = await store.update(audit, gateway, changes, is_operator=True)  # type: ignore[arg-type]  # a dict with the keys of GatewayChanges
    _print_gateway(settings, changed, as_json)


async def _owner(database: Any, gateway: StoredGateway) -> str:
    """Return the owner of a gateway, one application or all of them, for the text of `confirm`."""
    from shortener.model import ALL_APPLICATIONS

    owner = gateway.application_id
    return "all applications" if owner == ALL_APPLICATIONS else await describe_application(database, owner)


def _print_gateway(settings: Settings, gateway: StoredGateway, as_json: bool) -> None:
    from shortener.gateways.presenter import gateway_fields

    fields = gateway_fields(settings, gateway, current_time())
    print_result(fields, as_json, lambda: print_nested_fields(fields))


@gateways.command("remove", cls=OwnedCommand)
@click.argument("gateway", type=ID)
@yes_option
@json_option
@async_command
async def remove_gateway(gateway: int, application: int | None, yes: bool, as_json: bool) -> None:
    """Remove a gateway. Its waiting messages become FAILED. Applications that use it have no gateway afterwards: their messages are
    rewritten, but not sent."""
    from shortener.gateways.store import require_removable, using_applications, waiting_messages

    async with open_gateways() as (database, store, _settings):
        found = await store.get(gateway, application)
        require_removable(found.application_id, found.config.name)
        waiting = await database.read(waiting_messages, gateway)
        name = f"Gateway {gateway} ({found.config.name}) of {await _owner(database, found)}"
        effect = f"{name} is removed, and its {counted(waiting, 'waiting message becomes', 'waiting messages become')} FAILED."
        if users := await database.read(using_applications, gateway):
            names = ", ".join(f"{number} ({owner})" for number, owner in users)
            effect += (
                f" Applications that use it: {names}. Afterwards the service rewrites their messages but sends none (NOT_SENT), "
                "until `shortener applications update APPLICATION --gateway NAME` selects another gateway."
            )
        confirm(effect, yes)
        await store.remove(command_line_audit(database), gateway, application)
    print_result({"gateway_id": gateway, "removed": True}, as_json, lambda: click.echo(f"gateway {gateway} is removed"))


@gateways.command("test", cls=OwnedCommand)
@click.argument("gateway", type=ID)
@click.argument("phone")
@click.option("--from", "sender_id", default="", help="Sender of the test message.")
@click.option("--text", help="Text of the test message.")
@json_option
@async_command
async def test_gateway(gateway: int, application: int | None, phone: str, sender_id: str, text: str | None, as_json: bool) -> None:
    """Send one test message to PHONE now and show the response. The exit code is 1 if the gateway does not accept it.

    A number on the opt-out list of the gateway's application gets no message (OPTED_OUT). If all applications may use the
    gateway, the opt-out lists of all applications apply. `shortener opt-outs remove` removes a number from a list.
    """
    from shortener.container.connections import open_sender
    from shortener.delivery.guard import Guard
    from shortener.gateways.presenter import test_fields
    from shortener.gateways.submission import GatewayContext, GatewayReport
    from shortener.gateways.testing import TEST_TEXT, send_test_message
    from shortener.ids import IdGenerator
    from shortener.messages.phone_numbers import PhoneNumberError

    async def ignore(gateway_id: int, report: GatewayReport) -> bool:
        return True

    async with open_gateways() as (database, store, settings):
        found = await store.get(gateway, application)
        timeout = found.timeout or settings.gateway_timeout
        guard = Guard(settings.allow_private_targets)
        async with (
            open_sender(guard, settings, current_time) as public,
            open_sender(Guard(allow_private=True), settings, current_time, uses_proxy=False) as private,
        ):
            context = GatewayContext(public, private, ignore, current_time, public_guard=guard)
            try:
                result = await send_test_message(
                    database,
                    command_line_audit(database),
                    found,
                    context,
                    IdGenerator(database.node),
                    phone=phone,
                    sender_id=sender_id,
                    text=text or TEST_TEXT,
                    timeout=timeout,
                )
            except PhoneNumberError as error:
                raise click.UsageError(error.reason) from None
    fields = test_fields(result)
    print_result(fields, as_json, lambda: print_fields(fields))
    if fields["outcome"] != "accepted":
        raise click.exceptions.Exit(1)
