"""The commands `shortener conversions` (list conversions and refused reports) and `shortener postback-keys`."""
# Tested by tests/cli/test_conversions.py

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import click

from shortener.cli.command_clock import current_time
from shortener.cli.common import (
    async_command,
    command_line_audit,
    confirm_write,
    describe_application,
    describe_replacement,
    json_option,
    load_settings,
    open_store,
    print_fields,
    print_result,
    print_table,
    yes_option,
)
from shortener.cli.parameters import DURATION, ID, OPTIONAL_APPLICATION, ApplicationCommand, OwnedCommand, period_options
from shortener.ids import CONVERSION_IDS, REFUSED_REPORT_IDS, PublicIds

_LIMIT = click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Maximum number of rows.")
_REVEAL = click.option("--reveal", is_flag=True, help="Show complete phone numbers in parameters. Default: they are masked.")


@click.group()
def conversions() -> None:
    """List conversions, and list refused conversion reports with the reason."""


@conversions.command("list", cls=ApplicationCommand, application_help=OPTIONAL_APPLICATION)
@click.argument("application", type=ID, required=False)
@period_options()
@click.option("--campaign", help="Only conversions of messages of this campaign.")
@click.option("--action", help="Only conversions with this action, compared without case.")
@click.option("--status", help="Only conversions whose latest revision has this status word, compared without case.")
@click.option(
    "--disposition",
    type=click.Choice(["positive", "negative", "pending", "none"]),
    help="Only conversions with this disposition: positive, negative, pending (the status word means pending), or none (no "
    "disposition, and not pending).",
)
@click.option("--message", "message_id", help="Only conversions of this message.")
@_LIMIT
@click.option(
    "--below", metavar="CONVERSION", help="Id of the last conversion of the previous page: show the conversions after it."
)
@_REVEAL
@json_option
@async_command
async def list_conversions(
    application: int | None,
    since: datetime | None,
    until: datetime | None,
    campaign: str | None,
    action: str | None,
    status: str | None,
    disposition: str | None,
    message_id: str | None,
    limit: int,
    below: str | None,
    reveal: bool,
    as_json: bool,
) -> None:
    """List conversions with their revisions, newest first."""
    from shortener.cli.stats import find_application
    from shortener.ids import ClickIds
    from shortener.reporting import conversions as report
    from shortener.secret import open_secret

    settings = load_settings()
    async with open_store() as database:
        click_ids = ClickIds(open_secret(settings.secret, settings.data_dir).key("click ids"))
        filters = report.ConversionFilter(
            await find_application(database, application),
            since=since,
            until=until,
            campaign=campaign,
            action=action,
            status=status,
            disposition=disposition,
            message_id=message_id,
        )
        page = await database.read(report.list_conversions, filters, limit, _parse_row_id(below, CONVERSION_IDS, "conversion"))
    rows = [report.serialize_listed(row, page.revisions.get(row.id, ()), click_ids.encode, reveal=reveal) for row in page.rows]
    next_page = None if page.next is None else CONVERSION_IDS.encode(page.next)
    columns = ("conversion_id", "timestamp", "message_id", "action", "transaction_id", "status", "disposition", "value", "currency")

    def print_text() -> None:
        print_table(rows, *columns, "revision")
        if next_page:
            click.echo(f"The next page: --below {next_page}")

    print_result({"conversions": rows, "next": next_page}, as_json, print_text)


@conversions.command("refused", cls=ApplicationCommand, application_help=OPTIONAL_APPLICATION)
@click.argument("application", type=ID, required=False)
@period_options()
@click.option("--reason", help="Only reports with this reason: an error code, for example MESSAGE_NOT_FOUND, or NOT_APPLIED.")
@_LIMIT
@click.option("--below", metavar="REFUSED", help="Id of the last refused report of the previous page: show the reports after it.")
@_REVEAL
@json_option
@async_command
async def list_refused(
    application: int | None,
    since: datetime | None,
    until: datetime | None,
    reason: str | None,
    limit: int,
    below: str | None,
    reveal: bool,
    as_json: bool,
) -> None:
    """List refused conversion reports with the reason, newest first. They are stored for 30 days."""
    from shortener.cli.stats import find_application
    from shortener.reporting import conversions as report

    async with open_store() as database:
        page = await database.read(
            report.list_refused,
            await find_application(database, application),
            limit,
            _parse_row_id(below, REFUSED_REPORT_IDS, "refused report"),
            since=since,
            until=until,
            reason=None if reason is None else reason.upper(),
        )
    rows = [report.serialize_refused(row, reveal=reveal) for row in page.rows]
    next_page = None if page.next is None else REFUSED_REPORT_IDS.encode(page.next)

    def print_text() -> None:
        print_table(rows, "refused_id", "received_at", "endpoint", "reason", "message_id", "click_id", "transaction_id")
        if next_page:
            click.echo(f"The next page: --below {next_page}")

    print_result({"refused": rows, "next": next_page}, as_json, print_text)


def _parse_row_id(text: str | None, ids: PublicIds, what: str) -> int | None:
    if text is None:
        return None
    row_id = ids.decode(text)
    if row_id is None:
        raise click.BadParameter(f"{text} is not a {what}", param_hint="--below")
    return row_id


@click.group("postback-keys")
def postback_keys() -> None:
    """Create, list, rotate and revoke postback keys, for networks that can store only a URL.

    A postback key is a part of the URL. It allows reports of conversions and nothing else.
    """


@postback_keys.command("create", cls=ApplicationCommand)
@click.argument("application", type=ID)
@click.option("--name", default="", help="Name of the network that uses the key. It has no effect and is only displayed.")
@json_option
@async_command
async def create_postback_key(application: int, name: str, as_json: bool) -> None:
    """Create a postback key and print the URL for the network. The key is stored hashed and is never shown again."""
    from shortener.accounts import audited_credentials

    async with open_store() as database:
        audit = command_line_audit(database)
        key_id, key = await database.write(audited_credentials.create_postback_key, audit, application, name, current_time())
    fields = {"id": key_id, "postback_key": key, "url": _url(key)}
    print_result(fields, as_json, lambda: print_fields(fields))


@postback_keys.command("list", cls=ApplicationCommand)
@click.argument("application", type=ID, required=False)
@json_option
@async_command
async def list_postback_keys(application: int | None, as_json: bool) -> None:
    """List the postback keys of one application or of all applications, without the secret keys, which are not stored."""
    from shortener.accounts import postback_keys as keys

    async with open_store(application) as database:
        rows = await database.read(keys.list_postback_keys, application)
    columns = ("id", "application_id", "name", "hint", "created_at", "valid_until", "revoked_at")
    print_result(rows, as_json, lambda: print_table(rows, *columns))


@postback_keys.command("rotate", cls=OwnedCommand)
@click.argument("key", type=ID)
@click.option(
    "--overlap",
    type=DURATION,
    default="24h",
    show_default=True,
    help="How long the previous postback key stays valid, for example 90s, 15m, 24h or 7d.",
)
@yes_option
@json_option
@async_command
async def rotate_postback_key(key: int, application: int | None, overlap: timedelta, yes: bool, as_json: bool) -> None:
    """Replace the postback key with this id by a new key, and print the new URL. The previous key stays valid during --overlap."""
    from shortener.accounts import audited_credentials
    from shortener.storage.clock import open_clock
    from shortener.storage.types import to_iso

    async with open_store() as database:
        now = (await open_clock(database))()
        found = await _describe_postback_key(database, application, key)
        what = "" if found is None else describe_replacement(found, overlap)
        audit = command_line_audit(database)
        key_id, new_key, until = await confirm_write(
            database, what, yes, audited_credentials.rotate_postback_key, audit, application, key, now, overlap
        )
    fields = {"id": key_id, "postback_key": new_key, "url": _url(new_key), "previous_valid_until": to_iso(until)}
    print_result(fields, as_json, lambda: print_fields(fields))


@postback_keys.command("revoke", cls=OwnedCommand)
@click.argument("key", type=ID)
@yes_option
@json_option
@async_command
async def revoke_postback_key(key: int, application: int | None, yes: bool, as_json: bool) -> None:
    """Revoke a postback key by its id. The key stops working on every node within a second."""
    from shortener.accounts import audited_credentials

    async with open_store() as database:
        found = await _describe_postback_key(database, application, key)
        what = "" if found is None else f"{found} stops working at once and for ever."
        audit = command_line_audit(database)
        await confirm_write(database, what, yes, audited_credentials.revoke_postback_key, audit, application, key, current_time())
    print_result({"id": key, "revoked": True}, as_json, lambda: click.echo(f"postback key {key} is revoked"))


async def _describe_postback_key(database: Any, application: int | None, key: int) -> str | None:
    """Return the name of a postback key and of its application, for the text of `confirm`. Return None if no key has this id."""
    from shortener.accounts.postback_keys import list_postback_keys

    row = next((row for row in await database.read(list_postback_keys, application) if row["id"] == key), None)
    if row is None:
        return None
    return f"Postback key {key} ({row['name']}) of {await describe_application(database, row['application_id'])}"


def _url(key: str) -> str:
    from shortener.accounts.postback_keys import PATH

    return load_settings().base_url.rstrip("/") + PATH.format(postback_key=key)
