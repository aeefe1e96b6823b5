"""Options whose value is a secret, such as a signing secret or a URL with a password.

Other users of the machine can read the arguments of a process, and a shell stores them in its history. Each option NAME therefore
has two further forms: `NAME -` reads the secret from the standard input, or asks for it on a terminal without showing it, and
`NAME-file FILE` reads it from a file. A secret as an argument still works, and causes a warning on stderr.
"""
# Tested by tests/cli/test_secret_input.py

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from shortener.cli.common import is_terminal

#: The value of an option that stands for the standard input.
STANDARD_INPUT = "-"


def has_password(url: str) -> bool:
    """Return whether a URL contains a password."""
    try:
        return urlsplit(url).password is not None
    except ValueError:
        return False


def secret_options(
    name: str,
    parameter: str,
    text: str,
    *,
    multiple: bool = False,
    required: bool = False,
    is_secret: Callable[[str], bool] = bool,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the options `--NAME` and `--NAME-file` to a command. The command gets the secret as `parameter`:
    a text or None, or a tuple of texts if `multiple` is true.

    `text` is the help text, without the final full stop. `is_secret` returns whether an argument contains a secret, so that it
    causes a warning."""
    option, file_option = f"--{name}", f"--{name}-file"

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_secrets(*args: Any, **values: Any) -> Any:
            given, files = values.pop(f"{parameter}_texts"), values.pop(f"{parameter}_files")
            secrets = [*_from_arguments(option, given, is_secret), *(_read(file_option, file) for file in files)]
            if required and not secrets:
                raise click.UsageError(f"Missing option '{option}' or '{file_option}'.")
            if len(secrets) > 1 and not multiple:
                raise click.UsageError(f"use only one of {option} and {file_option}, and only once")
            values[parameter] = tuple(secrets) if multiple else next(iter(secrets), None)
            return command(*args, **values)

        repeats = " Can be repeated." if multiple else ""
        help_text = f"{text}. `-` reads it from the standard input, or asks for it on a terminal.{repeats}"
        add_file = click.option(
            file_option, f"{parameter}_files", multiple=True, metavar="FILE", help=f"Read {option} from a file.{repeats}"
        )
        return click.option(option, f"{parameter}_texts", multiple=True, metavar="TEXT", help=help_text)(add_file(with_secrets))

    return decorate


def _from_arguments(option: str, given: Sequence[str], is_secret: Callable[[str], bool]) -> list[str]:
    if any(text != STANDARD_INPUT and is_secret(text) for text in given):
        click.echo(
            f"Warning: other users of this machine can see the secret in {option}, and the shell stores it in its history. Use "
            f"`{option} -` or `{option}-file FILE`.",
            err=True,
        )
    return [_read(option, text) if text == STANDARD_INPUT else text for text in given]


def _read(option: str, file: str) -> str:
    """Return the secret in a file, without white space around it. From the standard input, read one line. On a terminal, ask for
    the secret without showing it."""
    if file != STANDARD_INPUT:
        try:
            secret = Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise click.BadParameter(str(error), param_hint=option) from None
    elif is_terminal():
        secret = click.prompt(option.lstrip("-").removesuffix("-file").capitalize(), hide_input=True, err=True).strip()
    else:
        secret = sys.stdin.readline().strip()
    if not secret:
        raise click.BadParameter("must not be empty", param_hint=option)
    return str(secret)
