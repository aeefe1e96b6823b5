"""The commands `shortener operators`, which manage the people who may use the portal."""
# Tested by tests/cli/test_operators.py

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from shortener.cli.command_clock import current_time
from shortener.cli.common import (
    async_command,
    command_line_audit,
    confirm,
    confirm_write,
    describe_application,
    json_option,
    load_settings,
    open_store,
    print_result,
    print_table,
    yes_option,
)
from shortener.cli.parameters import ID

ROLES = ("viewer", "support", "manager", "admin")


@click.group()
def operators() -> None:
    """Manage the people who may use the portal: invite, list, change or disable them, or reset their sign-in."""


_ROLE = click.option(
    "--role",
    type=click.Choice(ROLES),
    default="viewer",
    show_default=True,
    help="viewer: figures and lists with masked numbers. support: may also reveal numbers and replay deliveries. manager: may also "
    "change trackers, links, keys and settings. admin: manages the whole installation.",
)
_APPLICATION = click.option("--application", type=ID, help="Id of the application to which the role applies. Default: all.")


@operators.command("invite")
@click.argument("name")
@_ROLE
@_APPLICATION
@json_option
@async_command
async def invite(name: str, role: str, application: int | None, as_json: bool) -> None:
    """Create an operator and print the URL of an invitation, which is valid once and for 72 hours.

    An operator who has not accepted an earlier invitation gets a new URL, and the earlier URL becomes invalid.
    """
    from shortener.portal import operators as module

    application_id = application or 0
    parsed = module.parse_role(role, application_id)

    def create(connection: Any, now: datetime) -> Any:
        return module.invite(connection, name, parsed, application_id, now)

    async with open_store() as database:
        await _invite(database, create, as_json, "operator_invited")


@operators.command("reset")
@click.argument("name")
@yes_option
@json_option
@async_command
async def reset(name: str, yes: bool, as_json: bool) -> None:
    """Remove the password, the second factor and all sessions of an operator, and print a new invitation.

    The roles stay. Enable a disabled operator first: `shortener operators disable NAME --enable`.
    """
    from shortener.portal import operators as module

    async with open_store() as database:
        operator = await database.read(module.find_operator, name)
        module.require_enabled(operator)
        what = f"The operator {operator.name} is signed out, and the password and the second factor are removed."
        if await database.read(module.is_only_admin, operator):
            what += " This is the only admin: until the invitation is accepted, nobody can manage the installation in the portal."
        confirm(what, yes)
        await _invite(database, lambda connection, now: module.reset(connection, name, now), as_json, "operator_reset")


async def _invite(database: Any, create: Any, as_json: bool, action: str) -> None:
    """Call `create`, which returns an invitation, and add an audit row in the same transaction. Then print the invitation."""
    from shortener.portal.invitation_url import link
    from shortener.storage.types import to_iso

    settings = load_settings()
    now = current_time()
    audit = command_line_audit(database)

    def write(connection: Any) -> Any:
        created = create(connection, now)
        audit.add(connection, now, action, created.name, after={"role": created.role.label})
        return created

    invitation = await database.write(write)
    fields = {
        "operator": invitation.name,
        "role": invitation.role.label,
        "url": link(settings.portal_origin, invitation.token),
        "expires_at": to_iso(invitation.expires_at),
    }

    def print_text() -> None:
        click.echo(
            f"{fields['operator']} ({fields['role']}) sets a password at this address, once, until {fields['expires_at']}:\n"
        )
        click.echo(f"  {fields['url']}\n")
        if not settings.portal:
            click.echo("The portal is off (PORTAL=off), so nobody can open this address now.", err=True)

    print_result(fields, as_json, print_text)


@operators.command("list")
@json_option
@async_command
async def list_operators(as_json: bool) -> None:
    """List all operators with their roles. Application 0 means all applications."""
    from shortener.portal import operators as module
    from shortener.storage.types import to_iso

    async with open_store() as database:
        found = await database.read(module.list_operators)
    rows = [
        {
            "operator": one.name,
            "roles": [{"application_id": application, "role": role.label} for application, role in one.roles.items()],
            "state": "disabled" if one.is_disabled else "active" if one.has_password else "invited",
            "second_factor": one.has_second_factor,
            "last_sign_in_at": to_iso(one.last_sign_in_at),
        }
        for one in found
    ]

    def print_text() -> None:
        shown = [{**row, "roles": [_role_text(one) for one in row["roles"]]} for row in rows]
        print_table(shown, "operator", "roles", "state", "second_factor", "last_sign_in_at")

    print_result(rows, as_json, print_text)


def _role_text(role: Any) -> str:
    application = role["application_id"]
    return f"{role['role']} of {'all' if application == 0 else application}"


@operators.command("grant")
@click.argument("name")
@_ROLE
@_APPLICATION
@click.option("--remove", is_flag=True, help="Remove the role of the operator instead of setting it.")
@yes_option
@json_option
@async_command
async def grant(name: str, role: str, application: int | None, remove: bool, yes: bool, as_json: bool) -> None:
    """Set or remove the role of an operator in one application or in all applications. The sessions of the operator end."""
    from shortener.accounts.directory import require_application
    from shortener.portal import operators as module
    from shortener.portal.sessions import end_sessions

    application_id = application or 0
    parsed = module.parse_role(role, application_id)

    def write(connection: Any) -> dict[str, Any]:
        operator = module.find_operator(connection, name)
        if application_id:
            require_application(connection, application_id)
        if remove:
            module.revoke(connection, operator.id, application_id)
        else:
            module.grant(connection, operator.id, parsed, application_id)
        end_sessions(connection, operator.id)  # The sessions of the operator have the rights of the previous role, so they end.
        return {"operator": operator.name, "application_id": application_id, "role": None if remove else parsed.label}

    async with open_store() as database:
        what = ""
        if remove:
            where = await describe_application(database, application_id) if application_id else "all applications"
            what = f"The operator {name} is signed out and loses the role in {where}."
        fields = await _write_audited(database, write, "role_removed" if remove else "role_granted", what, yes)
    print_result(
        fields, as_json, lambda: click.echo(f"{fields['operator']}: " + (_role_text(fields) if not remove else "role removed"))
    )


@operators.command("disable")
@click.argument("name")
@click.option("--enable", is_flag=True, help="Enable a disabled operator again.")
@yes_option
@json_option
@async_command
async def disable(name: str, enable: bool, yes: bool, as_json: bool) -> None:
    """Disable an operator and end all sessions at once. --enable reverses this."""
    from shortener.portal import operators as module

    def write(connection: Any) -> dict[str, Any]:
        operator = module.disable(connection, name, current_time(), is_disabled=not enable)
        return {"operator": operator.name, "disabled": not enable}

    what = "" if enable else f"The operator {name} is signed out and can no longer sign in, for all applications."
    async with open_store() as database:
        fields = await _write_audited(database, write, "operator_enabled" if enable else "operator_disabled", what, yes)
    print_result(fields, as_json, lambda: click.echo(f"{fields['operator']} is {'enabled' if enable else 'disabled'}"))


async def _write_audited(database: Any, change: Any, action: str, what: str, yes: bool) -> dict[str, Any]:
    """Ask the user to confirm the change that `what` describes. Write the change and its audit row in one transaction."""

    audit = command_line_audit(database)

    def write(connection: Any) -> dict[str, Any]:
        fields: dict[str, Any] = change(connection)
        audit.add(connection, current_time(), action, fields["operator"], after=fields)
        return fields

    return dict(await confirm_write(database, what, yes, write))
