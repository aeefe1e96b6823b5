"""The command `shortener trackers`: manage trackers, which are endpoints of customers that receive events.

The commands change only the database. A running server applies the changes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shortener.cli.command_clock import current_time
from shortener.cli.common import (
    async_command,
    command_line_audit,
    confirm,
    describe_application,
    describe_replacement,
    json_option,
    load_settings,
    open_store,
    print_nested_fields,
    print_result,
    print_table,
    print_warnings,
    printable,
    yes_option,
)
from shortener.cli.parameters import DURATION, ID, ApplicationCommand, OwnedCommand
from shortener.cli.secret_input import has_secret, named_value_options, read_url, secret_options
from shortener.model import EVENT_NAMES
from shortener.plurals import counted

if TYPE_CHECKING:
    from pydantic import BaseModel

    from shortener.delivery.trackers import Tracker, TrackerChanges, Trackers
    from shortener.settings import Settings

    M = TypeVar("M", bound=BaseModel)


@asynccontextmanager
async def open_trackers(application: int | None = None) -> AsyncIterator[tuple[Any, Trackers, Settings]]:
    """Yield the database, the object that manages its trackers, and the settings. Raise ApiError NOT_FOUND if no application has
    the id `application`."""
    from shortener.delivery.guard import Guard
    from shortener.delivery.trackers import Trackers
    from shortener.secret import open_secret
    from shortener.storage.clock import open_clock

    settings = load_settings()
    async with open_store(application) as database:
        secret, clock = open_secret(settings.secret, settings.data_dir), await open_clock(database)
        yield database, Trackers(database, secret, Guard(settings.allow_private_targets), settings, clock), settings


def _validate(model: type[M], data: dict[str, Any]) -> M:
    from shortener.web.validation import validate

    return validate(model, data)


def _parse_schedule(context: click.Context, parameter: click.Parameter, value: str | None) -> list[float] | None:
    try:
        return None if value is None else [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter("must be numbers of seconds, separated by commas") from None


#: The options that `add` and `update` have in common, in the order of the help text.
_TRACKER_OPTIONS = (
    click.option("--name", help="Name of the tracker. It is only displayed. Default: the host of the URL."),
    click.option(
        "--event",
        "events",
        multiple=True,
        type=click.Choice(EVENT_NAMES),
        help="Event that the tracker receives; `add` needs at least one. Can be repeated.",
    ),
    click.option(
        "--action",
        "actions",
        multiple=True,
        help="Send only conversions with this action, for example sale. Case does not matter. Can be repeated. Default: all.",
    ),
    click.option(
        "--disposition",
        "dispositions",
        multiple=True,
        type=click.Choice(["positive", "negative", "none"]),
        help=(
            "Send only conversions with this disposition; none: conversions without a disposition, for example pending ones. Can "
            "be repeated. Default: all."
        ),
    ),
    click.option("--method", type=click.Choice(["POST", "GET"]), help="HTTP method of the requests. Default: POST."),
    click.option(
        "--format",
        "format_",
        type=click.Choice(["scg", "json", "xoxzo", "infobip"]),
        help="Format of the request body. Default: scg (Syniverse).",
    ),
    click.option("--field", "fields", multiple=True, help="Field of the request body in the format json. Can be repeated."),
    named_value_options("header", "headers", "Static header that each request contains", sign=":"),
    click.option(
        "--client-certificate",
        type=click.File("r"),
        help="PEM file with a client certificate, its chain and its key, for receivers that require one.",
    ),
    click.option("--success", metavar="STATUSES", help="HTTP statuses that mean success, for example 200. Default: 2xx."),
    click.option("--body-contains", metavar="TEXT", help="Text that the response body must contain for success."),
    click.option("--max-attempts", type=int, help="Maximum number of attempts per delivery. Default: DELIVERY_ATTEMPTS (10)."),
    click.option("--timeout", type=float, help="Time limit of one attempt, in seconds. Default: DELIVERY_TIMEOUT (5)."),
    click.option(
        "--concurrency", type=int, help="Maximum number of simultaneous attempts. Default: DELIVERY_SLOTS_PER_TRACKER (16)."
    ),
    click.option("--max-per-second", type=float, help="Maximum number of attempts per second. Default: no limit."),
    click.option(
        "--schedule",
        callback=_parse_schedule,
        metavar="SECONDS,...",
        help="Seconds between attempts, separated by commas. Default: DELIVERY_SCHEDULE.",
    ),
    click.option(
        "--with-suspected/--without-suspected",
        default=None,
        help="Also send click events for hits that probably come from a program. Default: do not send them.",
    ),
)


#: The properties of a tracker that `update --remove` can remove. The key is the word that the option accepts.
REMOVABLE = {
    name.replace("_", "-"): name
    for name in (
        *("secret", "headers", "client_certificate", "fields", "success", "max_attempts", "timeout", "concurrency"),
        *("max_per_second", "schedule"),
    )
}


def _tracker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    # Decorators are applied from the last to the first, so `reversed` keeps the order of the help text.
    for option in reversed(_TRACKER_OPTIONS):
        command = option(command)
    return command


_UNCHANGED_OPTIONS = (
    "name",
    "method",
    "headers",
    "max_attempts",
    "timeout",
    "concurrency",
    "max_per_second",
    "schedule",
    "with_suspected",
)


def _request_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an API request, from the options that the user has written."""
    fields = {
        "events": list(options["events"]),
        "fields": list(options["fields"]),
        "conversion_actions": list(options["actions"]),
        "conversion_dispositions": list(options["dispositions"]),
        "format": options["format_"],
        "client_certificate": options["client_certificate"] and options["client_certificate"].read(),
        **{name: options[name] for name in _UNCHANGED_OPTIONS},
    }
    if options["success"] is not None or options["body_contains"] is not None:
        fields["success"] = {"statuses": options["success"], "body_contains": options["body_contains"]}
    return {name: value for name, value in fields.items() if value not in (None, [], {})}


@click.group()
def trackers() -> None:
    """Add, list, show, update, remove and test trackers (the endpoints that receive events)."""


@trackers.command("add", cls=ApplicationCommand)
@click.argument("application", type=ID)
@click.argument("url", callback=read_url)
@_tracker_options
@secret_options(
    "secret",
    "secret",
    "Signing secret of the requests. It should have at least 24 bytes. Default: a secret is generated and printed once",
)
@click.option("--unsigned", is_flag=True, help="Do not sign requests.")
@json_option
@async_command
async def add_tracker(application: int, url: str, secret: str | None, unsigned: bool, as_json: bool, **options: Any) -> None:
    """Add a tracker that receives events of an application. The path and query of URL may contain placeholders like {phone}."""
    from shortener.delivery.tracker_presenter import tracker_fields, tracker_warnings
    from shortener.web.tracker_requests import TrackerCreateRequest

    if secret and unsigned:
        raise click.UsageError("--secret must not be combined with --unsigned")
    if not options["events"]:
        raise click.UsageError(f"events: name at least one with --event: {', '.join(EVENT_NAMES)}")
    data = {"url": url, "events": [], **_request_fields(options)}
    if secret or unsigned:
        data["secret"] = secret
    async with open_trackers() as (database, stored, settings):
        saved = await stored.create(command_line_audit(database), application, _validate(TrackerCreateRequest, data).to_tracker())
    print_warnings(tracker_warnings(saved.tracker, secret))
    _print_saved(tracker_fields(settings, saved.tracker), saved.secret, as_json)


@trackers.command("list", cls=ApplicationCommand)
@click.argument("application", type=ID, required=False)
@json_option
@async_command
async def list_trackers(application: int | None, as_json: bool) -> None:
    """List trackers of one application, or of all, with the state of their circuit breakers."""
    from shortener.delivery.tracker_presenter import tracker_fields
    from shortener.storage.types import to_ms

    async with open_trackers(application) as (_, stored, settings):
        found = await stored.all(application)
    now = to_ms(current_time())
    rows = [
        {
            "application_id": tracker.application_id,
            **tracker_fields(settings, tracker),
            "breaker": tracker.health.breaker(now),
        }
        for tracker in found
    ]
    columns = ("tracker_id", "application_id", "name", "events", "format", "url", "enabled", "breaker")
    print_result(rows, as_json, lambda: print_table(rows, *columns))


@trackers.command("show", cls=OwnedCommand)
@click.argument("tracker", type=ID)
@json_option
@async_command
async def show_tracker(tracker: int, application: int | None, as_json: bool) -> None:
    """Show one tracker and its health: circuit breaker, last success and failure, pending and dead deliveries."""
    from shortener.delivery.deliveries import Deliveries
    from shortener.delivery.tracker_presenter import health_fields, tracker_fields

    async with open_trackers() as (database, stored, settings):
        found = await stored.get(tracker, application)
        backlog = await Deliveries(database).backlog(found.id, current_time())
    fields = tracker_fields(settings, found)
    health = health_fields(found, backlog, current_time())
    print_result(fields | {"health": health}, as_json, lambda: print_nested_fields(fields | health))


@trackers.command("update", cls=OwnedCommand)
@click.argument("tracker", type=ID)
@secret_options("url", "url", "New URL of the tracker", is_secret=has_secret)
@_tracker_options
@secret_options(
    "secret",
    "secret",
    "New signing secret. It should have at least 24 bytes. During --overlap, requests are also signed with the replaced secret",
)
@click.option("--rotate-secret", is_flag=True, help="Generate a new signing secret and print it once.")
@click.option(
    "--overlap",
    type=DURATION,
    default="24h",
    show_default=True,
    help="How long requests are also signed with the replaced secret, for example 90s, 15m, 24h or 7d.",
)
@click.option("--disable/--enable", default=None, help="Disable: the tracker's deliveries wait (parked). Enable: send them.")
@click.option(
    "--remove",
    "removed",
    multiple=True,
    type=click.Choice(list(REMOVABLE)),
    help="Remove a property, so that its default applies. If the secret is removed, requests are not signed. Can be repeated.",
)
@click.option("--all-conversions", is_flag=True, help="Remove the filters that --action and --disposition have set.")
@yes_option
@json_option
@async_command
async def update_tracker(
    tracker: int,
    application: int | None,
    url: str | None,
    secret: str | None,
    rotate_secret: bool,
    overlap: timedelta,
    disable: bool | None,
    removed: tuple[str, ...],
    all_conversions: bool,
    yes: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Change a tracker. Properties without an option keep their values."""
    from shortener.delivery.tracker_presenter import tracker_fields, tracker_warnings
    from shortener.web.tracker_requests import TrackerUpdateRequest

    if all_conversions and (options["actions"] or options["dispositions"]):
        raise click.UsageError("--all-conversions must not be combined with --action or --disposition")
    data = _request_fields(options) | {"secret_overlap": int(overlap.total_seconds())}
    if url is not None:
        data["url"] = url
    if secret is not None:
        data["secret"] = secret
    if rotate_secret:
        data["rotate_secret"] = True
    if disable is not None:
        data["enabled"] = not disable
    for name in removed:
        if REMOVABLE[name] in data or (name == "secret" and rotate_secret):
            raise click.UsageError(f"--remove {name} must not be combined with an option that sets it")
        data[REMOVABLE[name]] = None
    if all_conversions:
        data |= {"conversion_actions": None, "conversion_dispositions": None}
    async with open_trackers() as (database, stored, settings):
        changes = _validate(TrackerUpdateRequest, data).to_changes()
        await _confirm_update(database, await stored.get(tracker, application), changes, overlap, yes)
        saved = await stored.update(command_line_audit(database), tracker, changes, application)
    print_warnings(tracker_warnings(saved.tracker, secret))
    _print_saved(tracker_fields(settings, saved.tracker), saved.secret, as_json)


async def _confirm_update(database: Any, found: Tracker, changes: TrackerChanges, overlap: timedelta, yes: bool) -> None:
    """Ask the user to confirm a change that disables the tracker, removes its credentials, or ends the use of a signing
    secret."""
    from shortener.delivery.tracker_queries import values_of_another_origin

    name = f"tracker {found.id} ({found.name}) of {await describe_application(database, found.application_id)}"
    effects = []
    if found.enabled and changes.get("enabled") is False:
        effects.append(f"The deliveries of {name} wait until it is enabled again.")
    credentials = {"headers": found.headers_set, "client certificate": found.client_certificate_set}
    removed = [what for what, is_set in credentials.items() if is_set and what.replace(" ", "_") not in changes]
    if removed and "url" in changes and values_of_another_origin(found.url, changes["url"]):
        effects.append(f"The {' and '.join(removed)} of {name} are removed, because the new URL leads to another host or port.")
    if found.secret_set and "secret" in changes and changes["secret"] is None:
        effects.append(f"The requests to {name} are no longer signed.")
    elif found.secret_set and ("secret" in changes or changes.get("rotate_secret")):
        effects.append(describe_replacement(f"The present signing secret of {name}", overlap, found.previous_secret_until))
    confirm(" ".join(filter(None, effects)), yes)


def _print_saved(fields: dict[str, Any], secret: str | None, as_json: bool) -> None:
    def print_text() -> None:
        print_nested_fields(fields | ({"secret": secret} if secret else {}))
        if secret:
            click.echo("Store the secret now; it is stored encrypted and not shown again.", err=True)

    print_result(fields | {"secret": secret}, as_json, print_text)


@trackers.command("remove", cls=OwnedCommand)
@click.argument("tracker", type=ID)
@yes_option
@json_option
@async_command
async def remove_tracker(tracker: int, application: int | None, yes: bool, as_json: bool) -> None:
    """Delete a tracker. Its pending deliveries become dead."""
    from shortener.delivery.deliveries import Deliveries

    async with open_trackers() as (database, stored, _settings):
        found = await stored.get(tracker, application)
        pending = (await Deliveries(database).backlog(found.id, current_time())).pending
        owner = await describe_application(database, found.application_id)
        lost = counted(pending, "pending delivery becomes", "pending deliveries become")
        confirm(f"Tracker {tracker} ({found.name}) of {owner} is deleted, and its {lost} dead.", yes)
        await stored.delete(command_line_audit(database), tracker, application)
    print_result({"tracker_id": tracker, "deleted": True}, as_json, lambda: click.echo(f"tracker {tracker} is deleted"))


@trackers.command("test", cls=OwnedCommand)
@click.argument("tracker", type=ID)
@click.option(
    "--event",
    type=click.Choice(EVENT_NAMES),
    help="Event to send. Default: an event named test with the values of a subscribed event.",
)
@json_option
@async_command
async def test_tracker(tracker: int, application: int | None, event: str | None, as_json: bool) -> None:
    """Send one test event now and show the result. The exit code is 1 if the tracker does not accept it."""
    from shortener.container.connections import open_sender
    from shortener.delivery.guard import Guard
    from shortener.delivery.sample_delivery import send_test
    from shortener.delivery.tracker_presenter import sample_delivery_fields
    from shortener.ids import IdGenerator

    async with (
        open_trackers() as (database, stored, settings),
        open_sender(Guard(settings.allow_private_targets), settings, current_time) as sender,
    ):
        await stored.get(tracker, application)  # this call raises NOT_FOUND if the tracker belongs to another application
        ids, allow_http = IdGenerator(database.node), settings.allow_http_targets
        audit = command_line_audit(database)
        sample = await send_test(
            database, audit, stored, sender, ids, current_time, tracker, allow_http=allow_http, event_name=event
        )

    def print_text() -> None:
        result = "accepted" if sample.delivered else f"NOT accepted: {sample.error}"
        status = f"HTTP {sample.http_status}" if sample.http_status else "no response"
        click.echo(f"{result} ({status}, {sample.milliseconds} ms) {printable(sample.detail)}".rstrip())
        if sample.answer:
            click.echo("\n".join(map(printable, sample.answer.splitlines())))

    print_result(sample_delivery_fields(sample), as_json, print_text)
    if not sample.delivered:
        raise click.exceptions.Exit(1)
