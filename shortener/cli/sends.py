"""The commands `shortener send` and `shortener sends`: send one message, list the messages that gateways send, and decide about
held messages.

The commands change only the database. A running server sends the messages and delivers the events.
"""
# Tested by tests/cli/test_gateways.py

from __future__ import annotations

import click

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
    reveal_option,
    yes_option,
)
from shortener.cli.database_errors import name_database
from shortener.cli.parameters import ID, OPTIONAL_APPLICATION, ApplicationCommand, OwnedCommand
from shortener.cli.stats import find_application

_STATUSES = ("pending", "held", "failed", "sent")
_COLUMNS = ("created_at", "message_id", "application_id", "gateway", "send_status", "doubtful", "attempts", "last_error", "cost")


@click.command("send", cls=ApplicationCommand)
@click.argument("application", type=ID)
@click.argument("to")
@click.argument("text")
@click.option("--from", "sender", default="", help="Sender of the message.")
@click.option("--gateway", default="", help="Name of the gateway. Default: the gateway of the application.")
@reveal_option
@json_option
@async_command
async def send(application: int, to: str, text: str, sender: str, gateway: str, reveal: bool, as_json: bool) -> None:
    """Queue TEXT for the number TO at the gateway of an application. A running server passes the message to the gateway.

    `send_status` is the state of the message in the queue: pending, sent, held or failed. If the application has no gateway, the
    message is not sent: `send_status` is - (with --json: null), and the exit code is 1. `shortener sends show MESSAGE_ID` shows
    the state later.
    """
    from shortener.container import open_service
    from shortener.messages.rewrite_item import RewriteItem
    from shortener.model import SendStatus
    from shortener.reporting.sends import find_gateway_send

    settings = load_settings()
    with name_database(settings):
        service = await open_service(settings, owner=False, may_create=False)
    try:
        found = service.directory.application(application)
        if found is None:
            raise click.ClickException(f"there is no application {application}")
        [message] = await service.rewriter.rewrite(found, [RewriteItem((to,), text, from_address=sender, gateway=gateway)])
        status = None
        if message["sent"]:
            with after_change():
                row = await service.database.read(find_gateway_send, application, message["message_id"])
            status = SendStatus(row.status).api_name
    finally:
        await service.close(grace=2)
    if not reveal:
        from shortener.logs import mask, mask_in

        number = message["to"]
        warnings = [mask_in(mask_in(warning, number), to) for warning in message["warnings"]]
        message = {**message, "to": mask(number), "warnings": warnings}
    message = {**message, "send_status": status}
    # In the API, `sent` means that the service sends the message. A user who sees it next to `send_status` could think that the
    # message was already sent. Therefore `sent` is not printed.
    print_result(message, as_json, lambda: print_fields({key: message[key] for key in message if key not in ("links", "sent")}))
    if not message["sent"]:
        raise click.exceptions.Exit(1)


@click.group()
def sends() -> None:
    """List the messages that gateways send; send held messages again or give them up.

    The service holds a message that the gateway may already have accepted, in two cases: the gateway has the option `--on-doubt
    hold`, or its response did not show whether it accepted the message.
    """


@sends.command("list", cls=ApplicationCommand, application_help="Only messages of this application. Default: of all applications.")
@click.argument("application", type=ID, required=False)
@click.option("--status", type=click.Choice(_STATUSES), help="Only messages with this status. Default: all.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Maximum number of messages.")
@json_option
@async_command
async def list_all(application: int | None, status: str | None, limit: int, as_json: bool) -> None:
    """List messages that were queued for gateways, newest first."""
    from shortener.gateways.sends import list_sends, send_fields

    async with open_store(application) as database:
        page = await database.read(list_sends, application, status, None, limit)
    rows = [send_fields(row) for row in page.rows]
    print_result(rows, as_json, lambda: print_table(rows, *_COLUMNS))


@sends.command("show", cls=OwnedCommand, application_help=OPTIONAL_APPLICATION)
@click.argument("message_id")
@json_option
@async_command
async def show(message_id: str, application: int | None, as_json: bool) -> None:
    """Show how a message is sent through its gateway, with each attempt."""
    from shortener.reporting.status import find_status, serialize_send

    async with open_store() as database:
        owner = await find_application(database, application)
        found = await database.read(find_status, owner, message_id)
    if found is None or found.send is None:
        raise click.ClickException(f"no gateway sends a message {message_id!r}")
    fields = serialize_send(found.send)

    def print_text() -> None:
        print_fields({name: value for name, value in fields.items() if name != "attempt_log"})
        print_table(fields["attempt_log"], "attempt", "at", "milliseconds", "outcome", "status", "detail")

    print_result(fields, as_json, print_text)


@sends.command("resend", cls=OwnedCommand, application_help=OPTIONAL_APPLICATION)
@click.argument("message_id")
@json_option
@async_command
async def resend(message_id: str, application: int | None, as_json: bool) -> None:
    """Send a held message again, or a waiting message at once. If the gateway has already accepted the message, the recipient may
    get it twice."""
    from shortener.gateways import decisions
    from shortener.storage.clock import ms_clock, open_clock
    from shortener.storage.clock_guard import read_guard

    async with open_store() as database:
        owner = await find_application(database, application)
        # Use the clock of the database. With a clock that is ahead, the lease of a running attempt would seem to have ended.
        clock = await open_clock(database)
        guard = await database.read(read_guard, ms_clock(clock))
        await database.write(decisions.resend, command_line_audit(database), owner, message_id, clock(), guard.leases_wait)
    fields = {"message_id": message_id, "send_status": "pending"}
    print_result(fields, as_json, lambda: click.echo(f"message {message_id} is sent again as soon as a server runs"))


@sends.command("discard", cls=OwnedCommand, application_help=OPTIONAL_APPLICATION)
@click.argument("message_id")
@yes_option
@json_option
@async_command
async def discard(message_id: str, application: int | None, yes: bool, as_json: bool) -> None:
    """Give up a message that is held or waits for its gateway. It becomes FAILED.

    The cost of the message is refunded, but not if the gateway may have accepted the message, as with every held message. If a
    delivery report has arrived, the message keeps the reported state."""
    from shortener.container import open_service
    from shortener.gateways import decisions
    from shortener.gateways.sends import find_send, send_fields

    settings = load_settings()
    with name_database(settings):
        service = await open_service(settings, owner=False, may_create=False)
    try:
        owner = await find_application(service.database, application)
        what = f"Message {message_id} becomes FAILED and is not sent."
        writer = service.gateway_dispatcher.writer
        audit = command_line_audit(service.database)
        args = audit, writer, owner, message_id, service.clock(), service.clock_guard.leases_wait
        row_id, _ = await confirm_write(service.database, what, yes, decisions.discard, *args)
        found = await service.database.read(find_send, row_id)
    finally:
        await service.close(grace=2)
    fields = {"message_id": message_id, "send_status": send_fields(found.row)["send_status"] if found else "failed"}
    print_result(fields, as_json, lambda: click.echo(f"message {message_id} is given up"))
