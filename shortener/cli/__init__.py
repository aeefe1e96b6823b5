"""The `shortener` command. Each file holds the commands of one noun; they are imported when they are asked for, so that
`shortener --help` answers at once.

Exit codes: 0 done, 1 a failure (said on stderr), 2 bad usage.
"""
# Tested by tests/cli/test_commands.py

from __future__ import annotations

import importlib
import sys

import click

#: Command -> (module, one line of help).
COMMANDS = {
    "serve": ("serve", "Serve web and delivery in one process."),
    "deliver": ("serve", "Run delivery workers alone (scale-out)."),
    "applications": ("accounts", "Create, list, show and update applications."),
    "keys": ("accounts", "API keys: create, list, revoke."),
    "tokens": ("accounts", "Tracker tokens: rotate."),
    "trackers": ("trackers", "Where events go: add, list, show, update, remove, test."),
    "deliveries": ("trackers", "What was delivered and what was not: list, show, replay, requeue."),
    "messages": ("data", "Messages: show one, erase a person's data."),
    "clicks": ("clicks", "Clicks: judge them again by today's rules."),
    "links": ("links", "Links: show one, switch it off or on."),
    "hosts": ("links", "Destination hosts that no link leads to: block, unblock, list."),
    "domains": ("links", "Applications' own domains: list, add, disable, enable, update."),
    "purge": ("data", "Delete what is past its retention."),
    "export": ("data", "Write an application's messages as CSV."),
    "verify": ("data", "Count everything again and compare with the kept counts."),
    "demo": ("demo", "Play the whole life of one message against a real local receiver."),
    "listen": ("listen", "A local receiver that prints, and verifies, what it is sent."),
    "migrate": ("maintenance", "Bring the database's schema to this version."),
    "copy": ("maintenance", "Move an installation to another database; goes on where it was cut off."),
    "doctor": ("maintenance", "Check the set-up and say what to mend."),
}


class _Lazy(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"shortener.cli.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sms-shortener", prog_name="shortener")
def cli() -> None:
    """A self-hosted link shortener and click tracker for SMS.

    Settings come from config/shortener.toml and SHORTENER_<NAME>; every command takes --json.
    """


def main() -> None:
    """Run the command line; turns what can go wrong into a line on stderr and an exit code."""
    try:
        # Without standalone mode click returns the code of an Exit instead of leaving with it.
        sys.exit(cli(standalone_mode=False))
    except click.Abort:
        sys.exit(1)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(1)
