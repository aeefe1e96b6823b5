"""This module defines options whose value is a secret, such as a signing secret or a URL with a password. It also defines options
of named values, some of which are secrets, such as `--variable password=VALUE`.

Other users of the machine can read the arguments of a process, and a shell stores them in its history. Therefore each option NAME
has two other forms. `NAME -` reads the secret from the standard input, or asks for it on a terminal without showing it.
`NAME-file FILE` reads the secret from a file. For named values, these forms are `--variable password=-` and `--variable-file
password=FILE`. A secret as an argument still works, but causes a warning on stderr.
"""
# Tested by tests/cli/test_secret_input.py

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import click

from shortener.cli.common import is_terminal, print_warnings

#: If an option has this value, the secret is read from the standard input.
STANDARD_INPUT = "-"

# A named value is a secret if its name matches this expression. Examples: password, auth_token, Authorization and X-Api-Key.
_SECRET_NAME = re.compile(r"pass|pwd|secret|token|key|auth|cred|cookie|signature|^pin$|^variables$", re.IGNORECASE)
# A named value with one of these texts is never a secret, whatever its name is: an empty text, true, false, and a text with a
# placeholder, such as `App {api_key}`.
_NO_SECRET = re.compile(r"|true|false|[^{}\[\]]*\{[\w.]+\}[^{}\[\]]*")


def has_password(url: str) -> bool:
    """Return whether a URL contains a password before its host."""
    try:
        return urlsplit(url).password is not None
    except ValueError:
        return False


def has_secret(url: str) -> bool:
    """Return whether a text is a URL with a password before its host, or with a secret in its query."""
    try:
        parts = urlsplit(url)
        return bool(parts.netloc) and (
            parts.password is not None or any(_is_secret(*pair) for pair in parse_qsl(parts.query, max_num_fields=100))
        )
    except ValueError:
        return False


def is_named_secret(name: str, text: str) -> bool:
    """Return whether the name of a value says that it is a secret, or whether the value is a URL that contains a secret."""
    return _is_secret(name, text) or has_secret(text)


def _is_secret(name: str, text: str) -> bool:
    return bool(_SECRET_NAME.search(name)) and not _NO_SECRET.fullmatch(text)


def read_url(context: click.Context, parameter: click.Parameter, url: str) -> str:
    """The callback of a positional argument that is a URL. Return the URL. If the argument is `-`, read the URL from the
    standard input. If the argument contains a secret, warn about this."""
    if url == STANDARD_INPUT:
        return _read("URL", url, "URL")
    if has_secret(url):
        _warn("the argument URL", "`-` in place of URL")
    return url


def secret_options(
    name: str,
    parameter: str,
    text: str,
    *,
    multiple: bool = False,
    required: bool = False,
    is_secret: Callable[[str], bool] = bool,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the options `--NAME` and `--NAME-file` to a command. The callback gets the secret as
    `parameter`: a text or None, or a tuple of texts if `multiple` is true.

    `text` is the help text, without the final full stop. `is_secret` returns whether an argument contains a secret. Such an
    argument causes a warning."""
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


def named_value_options(
    name: str, parameter: str, text: str, *, sign: str = "="
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the options `--NAME` and `--NAME-file` to a command. Both can be repeated. The callback gets
    their values as `parameter`: a dict of texts by name. `sign` is the character between the name and the text of a value.

    `text` is the help text, without the final full stop."""
    option, file_option = f"--{name}", f"--{name}-file"
    space = "" if sign == "=" else " "
    form, file_form = f"NAME{sign}{space}VALUE", f"NAME{sign}{space}FILE"

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_values(*args: Any, **values: Any) -> Any:
            given = _split(option, values.pop(f"{parameter}_texts"), sign, form)
            files = _split(file_option, values.pop(f"{parameter}_files"), sign, file_form)
            if both := sorted({key for key, _ in given} & {key for key, _ in files}):
                raise click.UsageError(f"{both[0]}: use only one of {option} and {file_option}")
            secret = next((key for key, value in given if value != STANDARD_INPUT and is_named_secret(key, value)), None)
            if secret is not None:
                stdin_form, file = (_quoted(f"{secret}{sign}{space}{value}") for value in (STANDARD_INPUT, "FILE"))
                _warn(option, f"`{option} {stdin_form}` or `{file_option} {file}`")
            found = {key: _read(option, value, key) if value == STANDARD_INPUT else value for key, value in given}
            values[parameter] = found | {key: _read(file_option, file, key) for key, file in files}
            return command(*args, **values)

        help_text = f"{text}. The value `-` is read from the standard input, or asked for on a terminal. Can be repeated."
        add_file = click.option(
            file_option,
            f"{parameter}_files",
            multiple=True,
            metavar=_quoted(file_form),
            help=f"Read the value of {option} from a file. Can be repeated.",
        )
        add_text = click.option(option, f"{parameter}_texts", multiple=True, metavar=_quoted(form), help=help_text)
        return add_text(add_file(with_values))

    return decorate


def _quoted(text: str) -> str:
    return f"'{text}'" if " " in text else text


def _split(option: str, given: Sequence[str], sign: str, form: str) -> list[tuple[str, str]]:
    """Split each value into its name and its text. If `sign` is a colon, remove the white space around both, as in HTTP
    headers."""
    pairs = []
    for value in given:
        name, found, text = value.partition(sign)
        if not found:
            # The user may have written a secret without its name, so the error does not repeat the text.
            raise click.BadParameter(f"must be {_quoted(form)}", param_hint=option)
        pairs.append((name.strip(), text if sign == "=" else text.strip()))
    return pairs


def _warn(option: str, remedy: str) -> None:
    print_warnings(
        [f"other users of this machine can see the secret in {option}, and the shell stores it in its history. Use {remedy}."]
    )


def _from_arguments(option: str, given: Sequence[str], is_secret: Callable[[str], bool]) -> list[str]:
    if any(text != STANDARD_INPUT and is_secret(text) for text in given):
        _warn(option, f"`{option} -` or `{option}-file FILE`")
    return [_read(option, text) if text == STANDARD_INPUT else text for text in given]


def _read(option: str, file: str, label: str = "") -> str:
    """Read a secret from a file, and remove the white space around it. If `file` is `-`, ask for the secret on a terminal without
    showing it, or read one line of the standard input. The question is `label`, or by default the name of the option."""
    if file != STANDARD_INPUT:
        try:
            secret = Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            # The error does not repeat the name of the file. Somebody may have written the secret in place of the name.
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise click.BadParameter(f"the file cannot be read: {reason}", param_hint=option) from None
    elif is_terminal():
        secret = click.prompt(label or option.lstrip("-").removesuffix("-file").capitalize(), hide_input=True, err=True).strip()
    else:
        secret = sys.stdin.readline().strip()
    if not secret:
        raise click.BadParameter("must not be empty", param_hint=option)
    return str(secret)
