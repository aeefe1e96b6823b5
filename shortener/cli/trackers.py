"""`shortener trackers` and `deliveries`. They work on the database, beside a server that may be running and reads it there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shortener.cli.accounts import Duration
from shortener.cli.common import json_option, load_settings, open_store, runs, show, table
from shortener.cli.data import Moment
from shortener.model import EVENT_NAMES

if TYPE_CHECKING:
    from pydantic import BaseModel

    from shortener.delivery.trackers import Trackers
    from shortener.settings import Settings

    M = TypeVar("M", bound=BaseModel)


@asynccontextmanager
async def _open() -> AsyncIterator[tuple[Any, Trackers, Settings]]:
    from shortener.delivery.guard import Guard
    from shortener.delivery.trackers import Trackers
    from shortener.model import utcnow
    from shortener.secret import open_secret

    settings = load_settings()
    async with open_store() as database:
        secret = open_secret(settings.secret, settings.data_dir)
        yield database, Trackers(database, secret, Guard(settings.allow_private_targets), settings, utcnow), settings


def _validate(model: type[M], data: dict[str, Any]) -> M:
    from shortener.web.validation import validate

    return validate(model, data)


def _header(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str] | None:
    headers = {}
    for value in values:
        name, colon, text = value.partition(":")
        if not colon:
            raise click.BadParameter(f"{value!r} is not 'NAME: VALUE'")
        headers[name.strip()] = text.strip()
    return headers or None


def _numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> list[float] | None:
    try:
        return None if value is None else [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter("wants seconds, separated by commas") from None


def _described(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `add` and `update` share."""
    for option in (
        click.option("--name", help="For people."),
        click.option("--event", "events", multiple=True, type=click.Choice(EVENT_NAMES), help="What to tell it; several times."),
        click.option("--method", type=click.Choice(["POST", "GET"])),
        click.option("--format", "format_", type=click.Choice(["scg", "json", "xoxzo", "infobip"]), help="Of the body."),
        click.option("--field", "fields", multiple=True, help="What a json body holds; several times."),
        click.option("--header", "headers", multiple=True, callback=_header, metavar="'NAME: VALUE'", help="Several times."),
        click.option("--success", metavar="STATUSES", help="Which statuses mean taken, for example 2xx or 200."),
        click.option("--body-contains", metavar="TEXT", help="What the answer must hold to mean taken."),
        click.option("--max-attempts", type=int, help="In all, the first one included."),
        click.option("--timeout", type=float, help="Seconds of one attempt."),
        click.option("--concurrency", type=int, help="Attempts under way at once."),
        click.option("--schedule", callback=_numbers, metavar="S,S,...", help="Seconds between attempts."),
        click.option("--with-suspected/--without-suspected", default=None, help="Clicks also of those suspected to be no persons."),
    ):
        command = option(command)
    return command


_PLAIN = ("name", "method", "headers", "max_attempts", "timeout", "concurrency", "schedule", "with_suspected")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    given = {
        "events": list(options["events"]),
        "fields": list(options["fields"]),
        "format": options["format_"],
        **{name: options[name] for name in _PLAIN},
    }
    if options["success"] is not None or options["body_contains"] is not None:
        given["success"] = {"statuses": options["success"], "body_contains": options["body_contains"]}
    return {name: value for name, value in given.items() if value not in (None, [])}


@click.group()
def trackers() -> None:
    """Where events go: add, list, show, update, remove, test."""


@trackers.command("add")
@click.argument("application", type=int)
@click.argument("url")
@_described
@click.option("--secret", help="Signing secret; one is made and shown this once when absent.")
@click.option("--unsigned", is_flag=True, help="No signing secret.")
@json_option
@runs
async def add_tracker(application: int, url: str, secret: str | None, unsigned: bool, as_json: bool, **options: Any) -> None:
    """Deliver events of an application to a URL; it may hold placeholders such as {phone}."""
    from shortener.delivery.tracker_presenter import tracker_fields
    from shortener.web.tracker_requests import TrackerCreateRequest

    if secret and unsigned:
        raise click.UsageError("--secret and --unsigned exclude each other")
    data = {"url": url, "events": [], **_given(options)}
    if secret or unsigned:
        data["secret"] = secret
    async with _open() as (_, parts, settings):
        saved = await parts.create(application, _validate(TrackerCreateRequest, data).to_tracker())
    _show_saved(tracker_fields(settings, saved.tracker), saved.secret, as_json)


@trackers.command("list")
@click.argument("application", type=int, required=False)
@json_option
@runs
async def list_trackers(application: int | None, as_json: bool) -> None:
    """List trackers, with the state of their breakers."""
    from shortener.delivery.tracker_presenter import tracker_fields
    from shortener.model import utcnow
    from shortener.storage.types import to_ms

    async with _open() as (_, parts, settings):
        found = await parts.all(application)
    now = to_ms(utcnow())
    rows = [
        {"application_id": one.application_id, **tracker_fields(settings, one), "breaker": one.health.breaker(now)} for one in found
    ]
    show(
        rows, as_json, lambda: table(rows, "tracker_id", "application_id", "name", "events", "format", "url", "enabled", "breaker")
    )


@trackers.command("show")
@click.argument("tracker", type=int)
@json_option
@runs
async def show_tracker(tracker: int, as_json: bool) -> None:
    """Show one tracker and how it is doing: breaker, last success and failure, what is pending and what is dead."""
    from shortener.delivery.deliveries import Deliveries
    from shortener.delivery.tracker_presenter import health_fields, tracker_fields
    from shortener.model import utcnow

    async with _open() as (database, parts, settings):
        found = await parts.get(tracker)
        backlog = await Deliveries(database).backlog(found.id, utcnow())
    fields = tracker_fields(settings, found)
    health = health_fields(found, backlog, utcnow())

    def people() -> None:
        for name, value in (fields | health).items():
            click.echo(f"{name:22}{'-' if value is None else value}")

    show(fields | {"health": health}, as_json, people)


@trackers.command("update")
@click.argument("tracker", type=int)
@click.option("--url")
@_described
@click.option("--secret", help="A new signing secret; the present one signs too for the overlap.")
@click.option("--rotate-secret", is_flag=True, help="Make a new signing secret; it is shown this once.")
@click.option("--overlap", type=Duration(), default="24h", show_default=True, help="How long the replaced secret goes on signing.")
@click.option("--disable/--enable", default=None, help="Park its deliveries, or let them go on.")
@json_option
@runs
async def update_tracker(
    tracker: int,
    url: str | None,
    secret: str | None,
    rotate_secret: bool,
    overlap: Any,
    disable: bool | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Change a tracker; what is not given stays."""
    from shortener.delivery.tracker_presenter import tracker_fields
    from shortener.web.tracker_requests import TrackerUpdateRequest

    data = _given(options) | {"secret_overlap": int(overlap.total_seconds())}
    if url is not None:
        data["url"] = url
    if secret is not None:
        data["secret"] = secret
    if rotate_secret:
        data["rotate_secret"] = True
    if disable is not None:
        data["enabled"] = not disable
    async with _open() as (_, parts, settings):
        saved = await parts.update(tracker, _validate(TrackerUpdateRequest, data).to_changes())
    _show_saved(tracker_fields(settings, saved.tracker), saved.secret, as_json)


def _show_saved(fields: dict[str, Any], secret: str | None, as_json: bool) -> None:
    def people() -> None:
        for name, value in fields.items():
            click.echo(f"{name:24}{value}")
        if secret:
            click.echo(f"{'secret':24}{secret}")
            click.echo("Keep the secret now: it is stored encrypted and not shown again.", err=True)

    show(fields | {"secret": secret}, as_json, people)


@trackers.command("remove")
@click.argument("tracker", type=int)
@json_option
@runs
async def remove_tracker(tracker: int, as_json: bool) -> None:
    """Delete a tracker; what was still to be delivered to it ends dead."""
    async with _open() as (_, parts, _settings):
        await parts.delete(tracker)
    show({"tracker_id": tracker, "deleted": True}, as_json, lambda: click.echo(f"tracker {tracker} deleted"))


@trackers.command("test")
@click.argument("tracker", type=int)
@json_option
@runs
async def test_tracker(tracker: int, as_json: bool) -> None:
    """Send one test event, now; exit code 1 when it is not taken."""
    from shortener.container import open_sender
    from shortener.delivery.guard import Guard
    from shortener.delivery.sample_delivery import send_test
    from shortener.delivery.tracker_presenter import sample_delivery_fields
    from shortener.ids import IdGenerator
    from shortener.model import utcnow

    async with (
        _open() as (database, parts, settings),
        open_sender(Guard(settings.allow_private_targets), settings, utcnow) as sender,
    ):
        ids, allow_http = IdGenerator(database.node), settings.allow_http_targets
        sample = await send_test(database, parts, sender, ids, utcnow, tracker, allow_http=allow_http)

    def people() -> None:
        result = "taken" if sample.delivered else f"NOT taken: {sample.error}"
        click.echo(f"{result} (HTTP {sample.http_status or '-'}, {sample.milliseconds} ms) {sample.detail}".rstrip())
        if sample.answer:
            click.echo(sample.answer)

    show(sample_delivery_fields(sample), as_json, people)
    if not sample.delivered:
        raise click.exceptions.Exit(1)


@click.group()
def deliveries() -> None:
    """What was delivered, and what was not: list, show, replay, requeue."""


_TIME = Moment()


@deliveries.command("list")
@click.option("--tracker", type=int, help="Of one tracker.")
@click.option("--application", type=int, help="Of one application.")
@click.option("--status", type=click.Choice(["pending", "parked", "delivered", "dead"]))
@click.option("--since", type=_TIME, help="Made from this time on (UTC).")
@click.option("--until", type=_TIME, help="Made before this time (UTC).")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--below", metavar="DELIVERY", help="Go on below this one, the last of the page before.")
@json_option
@runs
async def list_deliveries(
    tracker: int | None,
    application: int | None,
    status: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    below: str | None,
    as_json: bool,
) -> None:
    """List deliveries, newest first."""
    from shortener.delivery.deliveries import Deliveries, DeliveryFilter
    from shortener.delivery.tracker_presenter import delivery_fields
    from shortener.ids import encode
    from shortener.model import DeliveryStatus

    if tracker is None and application is None:
        raise click.UsageError("say of which: --tracker N or --application N")
    wanted = DeliveryFilter(application, tracker, DeliveryStatus[status.upper()] if status else None, since, until)
    async with open_store() as database:
        page = await Deliveries(database).page(wanted, limit, None if below is None else _number(below))
    rows = [delivery_fields(one) for one in page.deliveries]
    following = None if page.next is None else encode(page.next)

    def people() -> None:
        table(
            rows, "delivery_id", "created_at", "tracker_id", "event", "message_id", "status", "attempt", "last_status", "last_error"
        )
        if following:
            click.echo(f"more: --below {following}")

    show({"deliveries": rows, "next": following}, as_json, people)


@deliveries.command("show")
@click.argument("delivery")
@json_option
@runs
async def show_delivery(delivery: str, as_json: bool) -> None:
    """Show one delivery and its attempts."""
    from shortener.delivery.deliveries import Deliveries
    from shortener.delivery.tracker_presenter import attempt_fields, delivery_fields

    async with open_store() as database:
        found, attempts = await Deliveries(database).get(_number(delivery))
    fields = delivery_fields(found)
    rows = [attempt_fields(attempt) for attempt in attempts]

    def people() -> None:
        for name, value in fields.items():
            click.echo(f"{name:16}{'-' if value is None else value}")
        table(rows, "attempt", "at", "milliseconds", "status", "error", "detail", "answer")

    show(fields | {"attempts": rows}, as_json, people)


@deliveries.command("replay")
@click.argument("delivery", required=False)
@click.option("--tracker", type=int, help="All dead deliveries of this tracker.")
@click.option("--since", type=_TIME, help="Made from this time on (UTC).")
@click.option("--until", type=_TIME, help="Made before this time (UTC).")
@json_option
@runs
async def replay_deliveries(
    delivery: str | None, tracker: int | None, since: datetime | None, until: datetime | None, as_json: bool
) -> None:
    """Give one delivery, or the dead ones of a tracker, all their attempts anew."""
    from shortener.delivery.deliveries import Deliveries, DeliveryFilter
    from shortener.model import utcnow

    if (delivery is None) == (tracker is None):
        raise click.UsageError("say which: a delivery, or --tracker N")
    async with _open() as (database, parts, _settings):
        store = Deliveries(database)
        if delivery is not None:
            await store.replay(_number(delivery), utcnow())
            count = 1
        else:
            found = await parts.get(tracker or 0)
            wanted = DeliveryFilter(None, found.id, None, since, until)
            count, after = await store.replay_dead(wanted, utcnow())
            while after is not None:
                some, after = await store.replay_dead(wanted, utcnow(), after)
                count += some
    show({"replayed": count}, as_json, lambda: click.echo(f"{count} due again"))


@deliveries.command("requeue")
@json_option
@runs
async def requeue_events(as_json: bool) -> None:
    """Create the deliveries of quarantined events.

    An event is quarantined (event_quarantined in the log) if a bug prevents its deliveries. Use this command after an upgrade.
    """
    from shortener.delivery import fanout

    async with open_store() as database:
        count = await fanout.requeue_events(database)
    show({"requeued": count}, as_json, lambda: click.echo(f"{count} events requeued"))


#: The former name of the command.
deliveries.add_command(
    click.Command("retell", params=requeue_events.params, callback=requeue_events.callback, hidden=True, help=requeue_events.help)
)


def _number(delivery: str) -> int:
    from shortener.ids import decode

    number = decode(delivery)
    if number is None:
        raise click.ClickException(f"there is no delivery {delivery}")
    return number
