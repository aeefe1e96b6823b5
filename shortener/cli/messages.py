"""The command `shortener messages`: list and show messages, and erase personal data."""
# Tested by tests/cli/test_commands.py

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

import click

from shortener.cli.common import (
    async_command,
    command_line_audit,
    confirm,
    json_option,
    load_settings,
    open_cache,
    open_store,
    print_nested_fields,
    print_result,
    print_table,
    printable,
    reveal_option,
    yes_option,
)
from shortener.cli.data import print_counts
from shortener.cli.parameters import ID, OPTIONAL_APPLICATION, ApplicationCommand, OwnedCommand, SearchedNumber, period_options
from shortener.cli.stats import find_application
from shortener.model import State

_NOTHING_TO_ERASE = "there is nothing to erase: no message matches"


@click.group()
def messages() -> None:
    """List and show messages; erase personal data."""


@messages.command("list", cls=ApplicationCommand, application_help=OPTIONAL_APPLICATION)
@click.argument("application", type=ID, required=False)
@click.option("--campaign", help="Only messages of this campaign.")
@click.option("--to", type=SearchedNumber(), help="Only messages to this phone number, for example +14085550100.")
@click.option(
    "--state", type=click.Choice([state.name for state in State], case_sensitive=False), help="Only messages in this state."
)
@period_options()
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Maximum number of messages.")
@reveal_option
@json_option
@async_command
async def list_all(
    application: int | None,
    campaign: str | None,
    to: str | None,
    state: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    reveal: bool,
    as_json: bool,
) -> None:
    """List messages, newest first."""
    from shortener.reporting.messages import MessageFilter, list_messages, serialize_message

    async with open_store() as database:
        owner = await find_application(database, application)
        filters = MessageFilter(
            owner, state=State[state.upper()] if state else None, to=to, campaign=campaign, since=since, until=until
        )
        rows: list[dict[str, Any]] = []
        below: int | None = None
        while len(rows) < limit:
            page = await database.read(list_messages, filters, limit - len(rows), below)
            rows += [serialize_message(row, reveal=reveal) for row in page.rows]
            below = page.next
            if below is None:
                break
    columns = ("created_at", "message_id", "to", "campaign", "state", "delivered_at", "clicked_at")
    print_result(rows, as_json, lambda: print_table(rows, *columns))


@messages.command(
    "show", cls=OwnedCommand, application_help="Id of the application. Required if several applications have this message id."
)
@click.argument("message_id")
@reveal_option
@json_option
@async_command
async def show_message(message_id: str, application: int | None, reveal: bool, as_json: bool) -> None:
    """Show one message with its states, links, hits with verdict and rule, conversions and deliveries."""
    from shortener.accounts.directory import Directory, base_url_of
    from shortener.ids import ClickIds
    from shortener.reporting.status import MessageStatusReader, find_status
    from shortener.reporting.timeline import message_timeline
    from shortener.secret import open_secret

    settings = load_settings()
    async with open_store() as database:
        secret = open_secret(settings.secret, settings.data_dir)
        directory = Directory(database)
        await directory.refresh()
        owners = [application] if application is not None else [owner.id for owner in directory.applications()]
        click_id = ClickIds(secret.key("click ids")).encode
        found = [
            (status, await database.read(message_timeline, owner, status, click_id))
            for owner in owners
            if (status := await database.read(find_status, owner, message_id)) is not None
        ]
    if not found:
        raise click.ClickException(f"there is no message {message_id!r}")
    if len(found) > 1:
        raise click.ClickException("several applications have a message with this id; name one with --application")
    reader = MessageStatusReader(base_url_of(settings, directory), click_id)
    status, timeline = found[0]
    fields = reader.serialize(status, reveal=reveal)

    def print_text() -> None:
        # The timeline already contains the revisions of each conversion, so they are left out here.
        conversions = [{name: one[name] for name in one if name != "revisions"} for one in fields["conversions"]]
        print_nested_fields(fields | {"conversions": conversions})
        click.echo()
        for entry in timeline:
            details = [
                printable(name if value is True else f"{name} {value}")
                for name, value in entry.items()
                if name not in ("at", "what") and value not in (None, False, "")
            ]
            click.echo(f"{entry['at']:<26}{entry['what']:<12}{', '.join(details)}".rstrip())

    print_result({**fields, "timeline": timeline}, as_json, print_text)


@messages.command("erase")
@click.option("--phone", help="Erase the personal data of all messages to this phone number, such as +14085550100.")
@click.option("--message", "message_id", help="Erase the personal data of the message with this id.")
@click.option("--application", type=ID, help="Erase only in this application. Default: in ALL applications.")
@yes_option
@json_option
@async_command
async def erase_messages(phone: str | None, message_id: str | None, application: int | None, yes: bool, as_json: bool) -> None:
    """Erase the personal data of one phone number or one message.

    This removes phone numbers, metadata, destinations, and the addresses and user agents of hits. Statistics stay correct. The
    links respond with 410. A message that waits for a gateway becomes FAILED, and its cost is refunded unless the gateway may have
    accepted it.
    """
    from shortener.errors import ApiError, ErrorCode
    from shortener.gateways.decisions import give_up_erased
    from shortener.gateways.finishing import SendWriter
    from shortener.ids import IdGenerator
    from shortener.messages.delivery_reports import DeliveryReports
    from shortener.messages.phone_numbers import PhoneNumberError, parse_number
    from shortener.retention.erasure import LinksStillCached, Subject, count_messages, erase_data
    from shortener.retention.scrub import ErasureResult
    from shortener.storage.clock import ms_clock, open_clock
    from shortener.storage.clock_guard import read_guard

    if (phone is None) == (message_id is None):
        raise click.UsageError("use exactly one of --phone and --message")
    if phone is not None:
        try:
            phone = parse_number(phone).e164
        except PhoneNumberError as error:
            raise click.BadParameter(error.reason, param_hint="--phone") from None
    subject = Subject(phone or "", message_id or "")
    async with open_store(application) as database, open_cache() as cache:
        counts = await database.read(count_messages, application, subject)
        if not counts and message_id is not None:
            raise ApiError(ErrorCode.MESSAGE_NOT_FOUND)
        if not counts and not yes:
            print_counts(dataclasses.asdict(ErasureResult()), as_json, _NOTHING_TO_ERASE)
            return
        where = ", ".join(f"{count:,} of application {name}" for name, count in counts.items())
        confirm(f"This permanently removes the personal data of messages: {where}.", yes, is_required=True)
        audit = command_line_audit(database)
        clock = await open_clock(database)
        now, ids = clock(), IdGenerator(database.node, ms_clock(clock))
        writer = SendWriter(ids, DeliveryReports(database, ids, on_events=lambda: None))
        guard = await database.read(read_guard, ms_clock(clock))
        give_up = give_up_erased(writer, guard.leases_wait)
        try:
            erased = await erase_data(database, cache, application, subject, now, audit, give_up)
        except LinksStillCached:
            raise click.ClickException(
                "nothing was erased: Redis is unavailable and may contain destinations; try again when it responds"
            ) from None
    print_counts(dataclasses.asdict(erased), as_json, _NOTHING_TO_ERASE)
