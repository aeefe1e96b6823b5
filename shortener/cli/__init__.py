"""The `shortener` command.

Each module contains the commands of one subject. A module is imported only when one of its commands runs, so that
`shortener --help` responds at once.

Exit codes: 0 success, 1 failure with one plain message on stderr, 2 wrong usage.
"""
# Tested by tests/cli/test_commands.py

from __future__ import annotations

import importlib
import os
import sys

import click

from shortener.lean_imports import import_pydantic_without_plugins

#: The commands. The key is the name of the command. The value is its module and its help text of one line.
COMMANDS = {
    "serve": ("serve", "Run the web server and the delivery workers in one process."),
    "deliver": ("serve", "Run delivery workers only, in addition to servers (requires PostgreSQL)."),
    "applications": ("accounts", "Create, list, show and update applications."),
    "operators": ("operators", "Invite, list, change, disable and reset the people who may use the portal."),
    "keys": ("accounts", "Create, list and revoke API keys."),
    "tokens": ("accounts", "Rotate tracker tokens."),
    "gateways": ("gateways", "Add, list, show, update, test and remove gateways, which send messages."),
    "send": ("sends", "Send one message through the gateway of an application."),
    "sends": ("sends", "List the messages that gateways send; send held messages again or give them up."),
    "balance": ("billing", "Show, set, increase or remove the balance of a prepaid application."),
    "prices": ("billing", "Set, list and remove prices of messages."),
    "opt-outs": ("billing", "List, add and remove recipients who refused further messages."),
    "trackers": ("trackers", "Add, list, show, update, remove and test trackers (the endpoints that receive events)."),
    "deliveries": ("deliveries", "List, show and replay deliveries of events; requeue quarantined events."),
    "postback-keys": ("conversions", "Create, list, rotate and revoke postback keys, for networks that can store only a URL."),
    "conversions": ("conversions", "List conversions, and the reports that were refused, with the reason."),
    "messages": ("messages", "List and show messages; erase personal data."),
    "stats": ("stats", "Show the statistics of a period as a table."),
    "clicks": ("clicks", "List hits with their verdicts; classify stored hits again."),
    "links": ("links", "List, show, change, disable and enable short links."),
    "hosts": ("links", "Block, unblock and list destination hosts."),
    "domains": ("domains", "Add, list, update, remove, disable and enable domains of applications."),
    "backup": ("recovery", "Write the SQLite database and its secret to one file, while the server runs."),
    "restore": ("recovery", "Restore a backup into DATA_DIR."),
    "secret": ("recovery", "Take over an installation whose secret was lost."),
    "purge": ("data", "Delete data that is older than its retention period."),
    "export": ("data", "Export the messages of an application as CSV or JSON."),
    "verify": ("verify", "Recount all statistics and report differences."),
    "demo": ("demo", "Take one message through all its steps with a local receiver, and print each step."),
    "listen": ("listen", "Run a local receiver that prints each request and verifies its signature."),
    "migrate": ("maintenance", "Upgrade the database schema to this version."),
    "copy": ("maintenance", "Copy an installation to another database."),
    "doctor": ("doctor", "Check what the service needs and what fails in practice, with remedies."),
}


class _LazyGroup(click.Group):
    """A group of commands that imports the module of a command when the command runs."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"shortener.cli.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, name.replace("-", "_"))
        return command

    def resolve_command(self, context: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(context, args)
        except click.UsageError as error:
            import difflib  # difflib is imported here, because only this error needs it

            nearest = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if args[0] in COMMANDS or not nearest or error.message.endswith("?"):
                raise
            raise click.UsageError(f"{error.message} Did you mean {nearest[0]!r}?", context) from None

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sms-shortener", prog_name="shortener")
def cli() -> None:
    """A self-hosted link shortener and click tracker for SMS.

    Settings are read from config/shortener.toml and from environment variables SHORTENER_<NAME>. Every command accepts --json for
    machine-readable output.
    """


def main() -> None:
    """Run the command line and exit. Every error becomes a message on stderr and an exit code.

    The traceback of an unexpected error is printed only with SHORTENER_LOG_LEVEL=debug. The umask prevents other users of the
    machine from reading the files that a command creates, because installations, exports and backups contain personal data.
    """
    os.umask(0o077)
    import_pydantic_without_plugins()
    try:
        # In its standalone mode, click exits the process itself. Without this mode, click returns the exit code and raises
        # errors.
        sys.exit(cli(standalone_mode=False))
    except click.Abort:
        sys.exit(1)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("SHORTENER_LOG_LEVEL", "").lower() == "debug":
            raise
        if isinstance(error, PermissionError):
            from shortener.cli.database_errors import user_name

            what = f"permission denied: {error.filename or error}"
            click.echo(f"Error: {what}. The command runs as the user {user_name()}; run it as the user of the service", err=True)
            sys.exit(1)
        click.echo(f"Error: unexpected {type(error).__name__}: {error}", err=True)
        click.echo("SHORTENER_LOG_LEVEL=debug shows where it occurred.", err=True)
        sys.exit(1)
