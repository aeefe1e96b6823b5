"""The types of command line arguments and options: ids, phone numbers, times and durations.

`period_options` adds the options that select a period, with the same meaning as the parameters of the API. `ApplicationCommand`
is the class of commands about one application. `OwnedCommand` is the class of commands about one object that an application
owns."""
# Tested by tests/cli/test_parameters.py, tests/cli/test_commands.py

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta, tzinfo
from typing import Any

import click

from shortener.ids import MAX_COUNTED_ID
from shortener.times import end_of, parse_iso, start_of, time_zone, to_utc

MAX_COMPANY_ID = 2**63 - 1

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Id(click.ParamType[int]):
    """A parameter that is the id of an application, a key or a tracker."""

    name = "id"

    def __init__(self, largest: int = MAX_COUNTED_ID) -> None:
        self._largest = largest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if not re.fullmatch(r"[0-9]{1,20}", str(value)) or int(value) > self._largest:
            self.fail(f"{value!r} is not an id; an id is a number from 0 to {self._largest}", param, ctx)
        return int(value)


class SearchedNumber(click.ParamType[str]):
    """A parameter that is a phone number to search for, in E.164 or in any notation that a rewrite accepts."""

    name = "phone number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from shortener.messages.phone_numbers import PhoneNumberError, parse_searched_number

        try:
            return parse_searched_number(str(value))
        except PhoneNumberError as error:
            self.fail(error.reason, param, ctx)


class EndTime(click.ParamType[datetime]):
    """A parameter that is the end of a period, such as 2026-11-20 or 2026-11-20T12:00:00Z.

    The value is a time in UTC that is no longer part of the period: for a date, the start of the next day, as in the API. A time
    before 1970 or after 2999 is replaced by the nearest time in these years."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            moment = parse_iso(str(value))
            return end_of(to_utc(moment) if isinstance(moment, datetime) else moment)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a time such as 2026-11-20 or 2026-11-20T12:00:00Z", param, ctx)


class DateOrTime(click.ParamType[date]):
    """A parameter that is a date, or a time with or without a zone, such as 2026-11-20 or 2026-11-20T12:00:00Z. The value is a
    `date` or a `datetime`, as `parse_iso` returns it."""

    name = "date or time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        if isinstance(value, date):
            return value
        try:
            return parse_iso(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a date or time such as 2026-11-20 or 2026-11-20T12:00:00Z", param, ctx)


class TimeZone(click.ParamType[tzinfo]):
    """A parameter that is the name of a time zone, such as Europe/Berlin."""

    name = "time zone"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tzinfo:
        if isinstance(value, tzinfo):
            return value
        try:
            return time_zone(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a time zone such as Europe/Berlin", param, ctx)


class Duration(click.ParamType[timedelta]):
    """A parameter that is a duration, written as a number with a unit: 90s, 15m, 24h, 7d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"(\d{1,6})([smhd])", str(value))
        if not match:
            self.fail(f"{value!r} is not a duration such as 90s, 15m, 24h or 7d", param, ctx)
        return timedelta(**{_UNITS[match[2]]: int(match[1])})


#: The help text of --application in commands that read the data of one application.
OPTIONAL_APPLICATION = "Id of the application. Required if there are several applications."


class ApplicationCommand(click.Command):
    """A command whose first argument is the id of an application. The user can write the id as the option --application
    instead."""

    def __init__(self, *args: Any, application_help: str = "Id of the application.", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        text = f"{application_help} Another form of the argument APPLICATION."
        self.params.insert(0, click.Option(["--application", "application_option"], type=ID, expose_value=False, help=text))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move the value of --application to the start of the arguments, where the argument APPLICATION is expected. Then parse
        the arguments."""
        rest, found = _take_option(args, "--application")
        if len(found) > 1:
            raise click.UsageError("--application must be used only once", ctx)
        try:
            return super().parse_args(ctx, [*found, *rest])
        except click.UsageError as error:
            if found and "unexpected extra argument" in error.message:
                raise click.UsageError(f"{error.message}. With --application, leave out the argument APPLICATION.", ctx) from None
            raise


class OwnedCommand(click.Command):
    """A command about one object of an application, such as a link or a tracker.

    With the option --application, the object must belong to that application. The callback gets the id as `application`, or None
    if the option is missing."""

    def __init__(
        self,
        *args: Any,
        application_help: str = "Id of the application to which the object must belong. Default: any application.",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.params.insert(0, click.Option(["--application"], type=ID, help=application_help))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. If there are too many arguments, the error also says that --application names the application."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if "unexpected extra argument" in error.message:
                hint = "To name the application too, use the option --application."
                raise click.UsageError(f"{error.message}. {hint}", ctx) from None
            raise


def _take_option(args: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """Remove an option from the arguments of a command. Return the remaining arguments, and the values of the option. If the
    option is the last argument, and so has no value, it is not removed."""
    rest: list[str] = []
    found: list[str] = []
    index = 0
    while index < len(args):
        one = args[index]
        if one == "--":
            return rest + list(args[index:]), found
        if one == name and index + 1 < len(args):
            index += 1
            found.append(args[index])
        elif one.startswith(name + "="):
            found.append(one.removeprefix(name + "="))
        else:
            rest.append(one)
        index += 1
    return rest, found


ID = Id()
COMPANY_ID = Id(MAX_COMPANY_ID)
END_TIME = EndTime()
DATE_OR_TIME = DateOrTime()
TIME_ZONE = TimeZone()
DURATION = Duration()


def period_options(
    rows: str = "",
    *,
    note: str = "",
    since_default: str = "the oldest data",
    until_default: str = "now",
    required: bool = False,
    has_zone: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the options --since, --until and --tz. The callback gets the times `since` and `until` in UTC,
    or None. If `has_zone` is true, it also gets `zone`, the time zone that --tz names.

    `rows` describes the period in the help texts, for example " in which the messages were created". `note` is a sentence before
    the help texts. If `required` is true, the user must write --since."""
    since_text = f"{note}Start of the period{rows}: a date or a time, which is included. Without a zone, --tz applies."
    until_text = f"{note}End of the period{rows}: a date, which is included, or a time, which is excluded. Without a zone, --tz "
    until_text += f"applies. Default: {until_default}."
    if not required:
        since_text += f" Default: {since_default}."
    days = "days and hours, and of " if has_zone else ""
    zone_text = f"{note}Time zone of {days}--since and --until without a zone, for example Europe/Berlin."

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(*args: Any, since: date | None, until: date | None, tz: tzinfo, **kwargs: Any) -> Any:
            begin, end = None if since is None else start_of(since, tz), None if until is None else end_of(until, tz)
            if begin is not None and end is not None and begin >= end:
                raise click.UsageError("--since must be before --until", click.get_current_context())
            if has_zone:
                kwargs["zone"] = tz
            return command(*args, since=begin, until=end, **kwargs)

        run = click.option("--tz", type=TIME_ZONE, default="UTC", show_default=True, help=zone_text)(run)
        run = click.option("--until", type=DATE_OR_TIME, help=until_text)(run)
        return click.option("--since", type=DATE_OR_TIME, required=required, help=since_text)(run)

    return add
