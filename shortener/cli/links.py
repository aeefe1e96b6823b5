"""The commands `shortener links` and `shortener hosts`: change and disable links, and block destination hosts.

The commands change the database, also while servers run. When a link is disabled, all nodes apply it at once. When a host is
blocked, all nodes apply it within a second.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import click

from shortener.cli.command_clock import current_time
from shortener.cli.common import (
    after_change,
    async_command,
    cell,
    command_line_actor,
    command_line_audit,
    confirm,
    confirm_write,
    describe_application,
    json_option,
    load_settings,
    open_cache,
    open_store,
    print_fields,
    print_result,
    print_table,
    print_warnings,
    printable,
    yes_option,
)
from shortener.cli.parameters import END_TIME, ID, OPTIONAL_APPLICATION, ApplicationCommand, OwnedCommand, period_options
from shortener.errors import StoreUnavailable
from shortener.plurals import counted

if TYPE_CHECKING:
    from shortener.clicks.link_updates import LinkUpdates


@click.group()
def links() -> None:
    """List, show, change, disable and enable short links."""


@links.command("list", cls=ApplicationCommand, application_help=OPTIONAL_APPLICATION)
@click.argument("application", type=ID, required=False)
@click.option("--campaign", help="Only links of messages of this campaign.")
@click.option("--url", help="Only links with exactly this destination URL.")
@click.option("--label", help="Only links with this label.")
@period_options()
@click.option("--enabled/--disabled", default=None, help="Only links that are enabled, or only links that are disabled.")
@click.option("--expired/--not-expired", default=None, help="Only links that have expired, or only links that have not expired.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Maximum number of links.")
@json_option
@async_command
async def list_command(application: int | None, limit: int, as_json: bool, **filters: Any) -> None:
    """List the links of an application, newest message first, with their clicks."""
    from shortener.accounts.directory import Directory, base_url_of
    from shortener.cli.stats import find_application
    from shortener.clicks.link_details import serialize_link
    from shortener.reporting.links import LinkClicks, LinkFilter, list_links
    from shortener.storage.clock_guard import read_trusted_time

    async with open_store() as database:
        directory = Directory(database)
        await directory.refresh()
        owner = await find_application(database, application)
        base_url = base_url_of(load_settings(), directory)
        chosen = LinkFilter(owner, await database.read(read_trusted_time, current_time()), **filters)
        rows: list[dict[str, Any]] = []
        after = None
        while len(rows) < limit:
            page = await database.read(list_links, chosen, min(limit - len(rows), 1000), after)
            rows += [
                serialize_link(row, directory, base_url, chosen.now, page.clicks.get(row.id, LinkClicks())) for row in page.rows
            ]
            after = page.next
            if after is None:
                break
    columns = ("code", "url", "label", "campaign", "state", "expires_at", "clicks", "clicked_at")
    print_result(rows, as_json, lambda: print_table(rows, *columns))


@links.command("show", cls=OwnedCommand)
@click.argument("code")
@json_option
@async_command
async def show_link(code: str, application: int | None, as_json: bool) -> None:
    """Show a link: its destination, or the reason why it does not redirect, and the history of its changes."""
    async with open_store() as database:
        await _print_link(database, code, as_json, application)


@links.command("update", cls=OwnedCommand, application_help="Id of the application whose links are changed. Required without CODE.")
@click.argument("code", required=False)
@click.option("--campaign", help="Change the links of this campaign.")
@click.option("--destination", help="Change the links with exactly this destination URL.")
@click.option("--label", help="Change the links with this label.")
@click.option("--url", help="New destination URL of the links.")
@click.option("--expires-at", type=END_TIME, help="New time when the links expire (UTC). A date includes the whole day.")
@click.option(
    "--fallback-url", help="URL to which expired links redirect. Empty: the fallback URL of the domain or the application."
)
@click.option("--disable/--enable", default=None, help="Disable or enable the links.")
@yes_option
@json_option
@async_command
async def update_links(
    code: str | None,
    application: int | None,
    campaign: str | None,
    destination: str | None,
    label: str | None,
    disable: bool | None,
    yes: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Change one link, or all links that have the given campaign, destination or label.

    Many links are changed in small batches. If the command is interrupted, a running server continues the update.
    """
    requested = {name: value for name, value in values.items() if value is not None}
    if disable is not None:
        requested["enabled"] = not disable
    if not requested:
        raise click.UsageError("nothing to change: use --url, --expires-at, --fallback-url, --disable or --enable")
    is_selection = not (campaign is None and destination is None and label is None)
    if code is not None and code.isdigit() and is_selection and application is None:
        # The command names the links by --campaign, --destination or --label, so the argument is the id of the application.
        code, application = None, ID.convert(code, None, None)
    if (code is None) is not is_selection:
        raise click.UsageError("name either CODE, or one or more of --campaign, --destination and --label")
    if code is not None:
        await _change_link(code, application, requested, as_json, yes=yes)
        return
    if application is None:
        raise click.UsageError("--application is required to change many links")
    chosen = ", ".join(
        f"{name} {value!r}"
        for name, value in (("campaign", campaign), ("destination", destination), ("label", label))
        if value is not None
    )
    if not await _has_links(application, campaign, destination, label):
        nothing = {"state": "done", "total": 0, "done": 0, "changed": 0}
        text = f"nothing was changed: application {application} has no links with {chosen}"
        print_result(nothing, as_json, lambda: click.echo(text))
        return
    confirm(f"All links with {chosen} of application {application} are changed. Links that were sent change too.", yes)
    await _change_links(application, (campaign, destination, label), requested, as_json)


async def _has_links(application: int, campaign: str | None, destination: str | None, label: str | None) -> bool:
    """Return whether the application has links with this campaign, destination and label. Raise ApiError NOT_FOUND if the
    application does not exist."""
    from shortener.reporting.links import LinkFilter, list_links

    async with open_store(application) as database:
        chosen = LinkFilter(application, current_time(), campaign=campaign, url=destination, label=label)
        return bool((await database.read(list_links, chosen, 1)).rows)


@links.command("disable", cls=OwnedCommand)
@click.argument("code")
@yes_option
@json_option
@async_command
async def disable_link(code: str, application: int | None, yes: bool, as_json: bool) -> None:
    """Disable a link: it responds with 410, and hits on it are not clicks."""
    await _change_link(code, application, {"enabled": False}, as_json, yes=yes)


@links.command("enable", cls=OwnedCommand)
@click.argument("code")
@json_option
@async_command
async def enable_link(code: str, application: int | None, as_json: bool) -> None:
    """Enable a disabled link."""
    await _change_link(code, application, {"enabled": True}, as_json)


async def _parse_changes(database: Any, application_id: int, requested: dict[str, Any]) -> dict[str, Any]:
    """Check changes of links with the settings of the application. Print warnings about the changes to stderr."""
    from shortener.accounts.directory import Directory
    from shortener.clicks.link_changes import change_warnings, parse_changes
    from shortener.container.link_hosts import InstallationHosts
    from shortener.storage.clock import open_clock

    directory = Directory(database)
    await directory.refresh()
    application = directory.application(application_id)
    if application is None:
        raise click.ClickException(f"there is no application {application_id}")
    now = (await open_clock(database))()
    changes = parse_changes(requested, application, InstallationHosts(load_settings(), directory), now)
    print_warnings(change_warnings(requested))
    return changes


async def _change_link(code: str, application: int | None, requested: dict[str, Any], as_json: bool, *, yes: bool = False) -> None:
    from shortener.clicks.link_changes import find_changeable, refresh_cache_after_commit, write_changes
    from shortener.clicks.link_details import find_link
    from shortener.errors import ApiError, ErrorCode
    from shortener.ids import IdGenerator
    from shortener.storage.clock import open_clock

    async with open_store() as database, open_cache() as cache:
        link = await database.read(find_link, code, application)
        changes = await _parse_changes(database, link.application_id, requested)
        if link.url and requested.get("enabled") is False:
            owner = await describe_application(database, link.application_id)
            confirm(f"Link {code} of {owner} responds with 410, and hits on it are not clicks, until it is enabled again.", yes)
        ids, now = IdGenerator(database.node), (await open_clock(database))()

        def write(connection: Any) -> None:
            row = find_changeable(connection, code)
            if not row.url:
                raise ApiError(ErrorCode.CONFLICT, "The link cannot be changed, because its message was erased.")
            write_changes(connection, [row], changes, actor=command_line_actor(), now=now, ids=ids)

        is_cache_updated = await cache.invalidate([code])
        await database.write(write)
        await refresh_cache_after_commit(database, cache, [code])
        with after_change():
            await _print_link(database, code, as_json)
    if not is_cache_updated:
        raise click.ClickException(
            "the link is changed, but Redis is unavailable: if the database also fails, Redis may still redirect the link as before"
        )


async def _perform_earlier(updates: LinkUpdates) -> int:
    """Perform batches of an earlier link update of the application, and return their number.

    The new update cannot begin before the earlier update is complete. If no server runs, only this command can complete it."""
    try:
        return await updates.step()
    except StoreUnavailable:
        raise
    except Exception:  # this error stops the earlier update, so the new update can begin
        return 0


async def _change_links(
    application: int, selected: tuple[str | None, str | None, str | None], requested: dict[str, Any], as_json: bool
) -> None:
    from shortener.accounts.link_targets import spellings_of
    from shortener.clicks.link_updates import (
        DONE,
        STOPPED,
        LinkSelection,
        LinkUpdates,
        create_update,
        find_update,
        serialize_update,
    )
    from shortener.ids import LINK_UPDATE_IDS, IdGenerator
    from shortener.storage.clock import ms_clock, open_clock

    campaign, destination, label = selected
    if destination is not None:
        destination = spellings_of(destination)[-1]
    async with open_store() as database, open_cache() as cache:
        changes = await _parse_changes(database, application, requested)
        # The update changes only messages whose ids are smaller than the id of the update. An id contains the time at which it
        # was generated. For the ids of messages, the servers use the clock of the database, so the update uses this clock too.
        clock = await open_clock(database)
        ids = IdGenerator(database.node, ms_clock(clock))
        update_id = await database.write(
            lambda connection: create_update(
                connection,
                application,
                LinkSelection(campaign, destination, label),
                changes,
                actor=command_line_actor(),
                ids=ids,
                clock=clock,
            )
        )
        updates = LinkUpdates(database, cache, ids, clock)
        public_id = LINK_UPDATE_IDS.encode(update_id)
        try:
            while True:
                # Wait if a server is performing the new update, or an earlier update of the application.
                if not await updates.perform(update_id) and not await _perform_earlier(updates):
                    await asyncio.sleep(0.1)
                fields = serialize_update(await database.read(find_update, public_id, application))
                if sys.stderr.isatty():
                    total = counted(fields["total"], "link") if fields["total"] else "? links"
                    click.echo(f"\r{fields['done']:,} of {total}", nl=False, err=True)
                if fields["state"] in (DONE, STOPPED):
                    break
        except StoreUnavailable as error:
            reason = f"the update {public_id} is stored, but not complete: {error}. A running server continues it"
            raise click.ClickException(reason) from None
    print_result(fields, as_json, lambda: print_fields(fields))


async def _print_link(database: Any, code: str, as_json: bool, application: int | None = None) -> None:
    from shortener.accounts.directory import Directory, base_url_of
    from shortener.clicks.link_changes import read_history
    from shortener.clicks.link_details import find_link, serialize_link
    from shortener.reporting.links import LinkClicks, count_clicks
    from shortener.storage.clock_guard import read_trusted_time

    def read(connection: Any) -> Any:
        link, now = find_link(connection, code, application), read_trusted_time(connection, current_time())
        return link, count_clicks(connection, [(link.id, link.message)]), read_history(connection, link.id), now

    link, clicks, history, now = await database.read(read)
    directory = Directory(database)
    await directory.refresh()
    base_url = base_url_of(load_settings(), directory)
    fields = serialize_link(link, directory, base_url, now, clicks.get(link.id, LinkClicks()))
    fields = {"application_id": link.application_id} | fields | {"history": history}

    def print_text() -> None:
        print_fields({name: value for name, value in fields.items() if name != "history"} | ({} if history else {"history": None}))
        if history:
            click.echo("history")
            for entry in history:
                click.echo(f"  {entry['at']}  {printable(entry['by'])}: {_describe_changes(entry['changes'])}")

    print_result(fields, as_json, print_text)


def _describe_changes(changes: dict[str, Any]) -> str:
    """Return the changes of one history entry on one line, such as `enabled true -> false`. Control characters are escaped."""
    return ", ".join(f"{name} {cell(one['from'])} -> {cell(one['to'])}" for name, one in changes.items())


@click.group()
def hosts() -> None:
    """Block, unblock and list destination hosts."""


@hosts.command("block")
@click.argument("host")
@click.option("--application", type=ID, help="Block only links of this application. Default: links of ALL applications.")
@yes_option
@json_option
@async_command
async def block_host(host: str, application: int | None, yes: bool, as_json: bool) -> None:
    """Block a host: links to it respond with 410, and new links to it are rejected. HOST is for example shop.example, or
    *.shop.example for every subdomain of shop.example.
    """
    from shortener.accounts import audited_accounts
    from shortener.accounts.directory import Directory
    from shortener.model import ALL_APPLICATIONS

    owner = ALL_APPLICATIONS if application is None else application
    async with open_store(application) as database:
        if owner == ALL_APPLICATIONS:
            directory = Directory(database)
            await directory.refresh()
            whose = f"ALL applications ({', '.join(one.name for one in directory.applications()) or 'none'})"
        else:
            whose = await describe_application(database, owner)
        what = f"Links to {host} of {whose} respond with 410 until it is unblocked."
        audit = command_line_audit(database)
        blocked = await confirm_write(database, what, yes, audited_accounts.block_host, audit, owner, host, current_time())
    fields = {"host": blocked, "application_id": application}
    print_result(fields, as_json, lambda: click.echo(f"{blocked} is blocked"))


@hosts.command("unblock")
@click.argument("host")
@click.option(
    "--application",
    type=ID,
    help="Remove the block that applies only to this application. Default: the block that applies to ALL applications.",
)
@json_option
@async_command
async def unblock_host(host: str, application: int | None, as_json: bool) -> None:
    """Unblock a host: links to it redirect again, unless another block of the host remains. `hosts list` shows all blocks."""
    from shortener.accounts import audited_accounts
    from shortener.model import ALL_APPLICATIONS

    owner = ALL_APPLICATIONS if application is None else application
    async with open_store() as database:
        audit = command_line_audit(database)
        unblocked = await database.write(audited_accounts.unblock_host, audit, owner, host, current_time())
    fields = {"host": unblocked, "application_id": application}
    print_result(fields, as_json, lambda: click.echo(f"{unblocked} is no longer blocked"))


@hosts.command(
    "list", cls=ApplicationCommand, application_help="Only hosts that are blocked for this application. Default: all blocked hosts."
)
@click.argument("application", type=ID, required=False)
@json_option
@async_command
async def list_hosts(application: int | None, as_json: bool) -> None:
    """List blocked hosts. A host without an application is blocked for all applications."""
    from shortener.accounts import administration

    async with open_store(application) as database:
        blocked = await database.read(administration.list_blocked_hosts)
    rows = [row | {"application_id": row["application_id"] or None} for row in blocked]
    if application is not None:
        rows = [row for row in rows if row["application_id"] in (None, application)]
    print_result(rows, as_json, lambda: print_table(rows, "host", "application_id", "created_at"))
