"""`shortener messages`: the status of a message, and the erasure of personal data."""
# Tested by tests/cli/test_commands.py

from __future__ import annotations

import dataclasses

import click
import orjson

from shortener.cli.common import async_command, json_option, load_settings, open_cache, open_store, print_result
from shortener.cli.data import print_counts
from shortener.cli.listen import format_body
from shortener.cli.parameters import ID


@click.group()
def messages() -> None:
    """Show messages; erase personal data."""


@messages.command("show")
@click.argument("message_id")
@click.option("--application", type=ID, help="Id of the application. Required if several applications have this message id.")
@json_option
@async_command
async def show_message(message_id: str, application: int | None, as_json: bool) -> None:
    """Show the state, times, links and conversions of one message."""
    from shortener.accounts.directory import Directory, base_url_of
    from shortener.ids import ClickIds
    from shortener.reporting.status import MessageStatusReader, find_status
    from shortener.secret import open_secret

    settings = load_settings()
    secret = open_secret(settings.secret, settings.data_dir)
    async with open_store() as database:
        directory = Directory(database)
        await directory.refresh()
        owners = [application] if application is not None else [owner.id for owner in directory.applications()]
        found = [status for owner in owners if (status := await database.read(find_status, owner, message_id)) is not None]
    if not found:
        raise click.ClickException(f"there is no message {message_id!r}")
    if len(found) > 1:
        raise click.ClickException("several applications have a message with this id; name one with --application")
    reader = MessageStatusReader(base_url_of(settings, directory), ClickIds(secret.key("click ids")).encode)
    fields = reader.serialize(found[0])
    print_result(fields, as_json, lambda: click.echo(format_body(orjson.dumps(fields))))


@messages.command("erase")
@click.option("--phone", help="Phone number in E.164; erase every message to it.")
@click.option("--message", "message_id", help="Id of one message to erase.")
@click.option("--application", type=ID, help="Only in this application. Default: in ALL applications.")
@click.confirmation_option(prompt="This permanently removes personal data. Continue?", help="Do not ask for confirmation.")
@json_option
@async_command
async def erase_messages(phone: str | None, message_id: str | None, application: int | None, as_json: bool) -> None:
    """Erase the personal data of one phone number or one message.

    This removes phone numbers, metadata, destinations, and the addresses and user agents of hits. Statistics stay correct. The
    links respond with 410.
    """
    from shortener.model import utcnow
    from shortener.retention.erasure import erase, erase_message, find_codes

    if (phone is None) == (message_id is None):
        raise click.UsageError("use exactly one of --phone and --message")
    async with open_store() as database, open_cache() as cache:
        codes = await database.read(find_codes, application, phone=phone or "", message_id=message_id or "")
        if not await cache.invalidate(codes):
            raise click.ClickException(
                "nothing was erased: Redis is unavailable and may contain destinations; try again when it responds"
            )
        if phone is not None:
            erased = await erase(database, application, phone, utcnow())
        else:
            erased = await database.write(erase_message, application, message_id, utcnow())
    print_counts(dataclasses.asdict(erased), as_json, "there is nothing to erase")
