"""The command `shortener deliveries`: list, show and replay deliveries of events to trackers.

The commands change only the database. A running server sends the deliveries that become due.
"""
# Tested by tests/cli/test_trackers.py

from __future__ import annotations

from datetime import datetime

import click

from shortener.cli.command_clock import current_time
from shortener.cli.common import (
    async_command,
    command_line_audit,
    confirm,
    describe_application,
    json_option,
    open_store,
    print_fields,
    print_result,
    print_table,
    yes_option,
)
from shortener.cli.parameters import ID, ApplicationCommand, OwnedCommand, period_options
from shortener.cli.stats import find_application
from shortener.cli.trackers import open_trackers
from shortener.plurals import counted

_COLUMNS = ("delivery_id", "created_at", "tracker_id", "event", "message_id", "status", "attempt", "last_status", "last_error")


@click.group()
def deliveries() -> None:
    """List, show and replay deliveries of events; requeue quarantined events."""


@deliveries.command(
    "list",
    cls=ApplicationCommand,
    application_help="Only deliveries of this application. Required if there are several applications, unless --tracker is set.",
)
@click.argument("application", type=ID, required=False)
@click.option("--tracker", type=ID, help="Only deliveries to this tracker.")
@click.option("--status", type=click.Choice(["pending", "parked", "delivered", "dead"]), help="Only deliveries with this status.")
@period_options(" in which the deliveries were created")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Maximum number of deliveries.")
@click.option("--below", metavar="DELIVERY", help="Id of the last delivery of the previous page: show the deliveries after it.")
@json_option
@async_command
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
    """List deliveries of a tracker or an application, newest first."""
    from shortener.delivery.deliveries import Deliveries, DeliveryFilter
    from shortener.delivery.tracker_presenter import delivery_fields
    from shortener.ids import DELIVERY_IDS
    from shortener.model import DeliveryStatus

    async with open_store() as database:
        if tracker is None:
            application = await find_application(database, application)
        filters = DeliveryFilter(application, tracker, DeliveryStatus[status.upper()] if status else None, since, until)
        page = await Deliveries(database).page(filters, limit, None if below is None else _parse_delivery_id(below))
    rows = [delivery_fields(delivery) for delivery in page.deliveries]
    next_page = None if page.next is None else DELIVERY_IDS.encode(page.next)

    def print_text() -> None:
        print_table(rows, *_COLUMNS)
        if next_page:
            click.echo(f"The next page: --below {next_page}")

    print_result({"deliveries": rows, "next": next_page}, as_json, print_text)


@deliveries.command("show", cls=OwnedCommand)
@click.argument("delivery")
@json_option
@async_command
async def show_delivery(delivery: str, application: int | None, as_json: bool) -> None:
    """Show one delivery and its attempts."""
    from shortener.delivery.deliveries import Deliveries
    from shortener.delivery.tracker_presenter import attempt_fields, delivery_fields

    async with open_store() as database:
        found, attempts = await Deliveries(database).get(_parse_delivery_id(delivery), application)
    fields = delivery_fields(found)
    rows = [attempt_fields(attempt) for attempt in attempts]

    def print_text() -> None:
        print_fields(fields)
        print_table(rows, "attempt", "at", "milliseconds", "status", "error", "detail", "answer")

    print_result(fields | {"attempts": rows}, as_json, print_text)


@deliveries.command("replay", cls=OwnedCommand)
@click.argument("delivery", required=False)
@click.option("--tracker", type=ID, help="Replay all dead deliveries of this tracker.")
@period_options(" in which the deliveries were created", note="Only with --tracker. ")
@yes_option
@json_option
@async_command
async def replay_deliveries(
    delivery: str | None,
    application: int | None,
    tracker: int | None,
    since: datetime | None,
    until: datetime | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Send one delivery again, or all dead deliveries of a tracker. Each of them gets the full number of attempts."""
    from shortener.delivery.deliveries import Deliveries, DeliveryFilter
    from shortener.storage.clock import open_clock

    if (delivery is None) == (tracker is None):
        raise click.UsageError("use either a delivery or --tracker")
    async with open_trackers() as (database, trackers, _settings):
        stored, audit, clock = Deliveries(database), command_line_audit(database), await open_clock(database)
        if delivery is not None:
            await stored.replay(audit, _parse_delivery_id(delivery), clock(), application)
            replayed = 1
        else:
            found = await trackers.get(tracker or 0, application)
            filters = DeliveryFilter(None, found.id, None, since, until)
            dead = await stored.count_dead(filters)
            period = " of the period" if since or until else ""
            owner = await describe_application(database, found.application_id)
            number, verb = counted(dead, "dead delivery", "dead deliveries"), "is" if dead == 1 else "are"
            what = f"The {number}{period} of tracker {found.id} ({found.name}) of {owner} {verb} sent again."
            confirm(what if dead else "", yes)
            replayed, last_id = await stored.replay_dead(audit, filters, clock())
            while last_id is not None:
                count, last_id = await stored.replay_dead(audit, filters, clock(), last_id)
                replayed += count
    text = f"{counted(replayed, 'delivery is', 'deliveries are')} due again"
    print_result({"replayed": replayed}, as_json, lambda: click.echo(text))


@deliveries.command("requeue")
@json_option
@async_command
async def requeue_events(as_json: bool) -> None:
    """Create the deliveries of quarantined events.

    An event is quarantined (event_quarantined in the log) if a bug prevents its deliveries. Use this command after an
    upgrade that corrects the bug.
    """
    from shortener.delivery import fanout

    async with open_store() as database:
        count = await fanout.requeue_events(database, command_line_audit(database), current_time())
    print_result({"requeued": count}, as_json, lambda: click.echo(f"{counted(count, 'event')} requeued"))


#: `deliveries retell` is the former name of `deliveries requeue`. It still works, but `--help` does not show it.
deliveries.add_command(
    click.Command("retell", params=requeue_events.params, callback=requeue_events.callback, hidden=True, help=requeue_events.help)
)


def _parse_delivery_id(text: str) -> int:
    from shortener.ids import DELIVERY_IDS

    delivery_id = DELIVERY_IDS.decode(text)
    if delivery_id is None:
        raise click.ClickException(f"there is no delivery {text}")
    return delivery_id
