"""This module writes log lines to stderr: one JSON object per line, or readable text. The names of log events are in snake_case
and do not change.

A log line contains no credentials and identifies no person: `mask` hides most of a phone number, and the service logs no IP
addresses, tokens or bodies. The log line of an exception contains its message and its stack frames, but no values of variables
and no values of database rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import re
import sys
from collections.abc import MutableMapping
from datetime import datetime
from typing import Any, ClassVar, TextIO, cast

import orjson
import structlog
from structlog.typing import ExcInfo

from shortener.settings import Settings

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(settings: Settings) -> None:
    """Configure structlog, and write the log lines of the standard library's loggers (uvicorn, asyncio) in the same format."""
    global _stream
    stream = _stream = _LogStream(sys.stderr)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.log_format == "json":
        tail: list[Any] = [structlog.processors.JSONRenderer(serializer=_dumps)]
    else:
        tail = [_TextRenderer(colours=sys.stderr.isatty())]
    tail.insert(0, structlog.processors.ExceptionRenderer(_format_exception))
    structlog.configure(
        processors=[*shared, *tail],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.log_level]),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, stream)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(cast(TextIO, stream))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail], foreign_pre_chain=shared
        )
    )
    logging.getLogger("uvicorn.error").addFilter(_describe_cancellation)
    logging.getLogger("uvicorn.error").addFilter(_is_not_logged_elsewhere)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(_LEVELS[settings.log_level], logging.WARNING))


def hold() -> None:
    """Keep log lines in memory until `release` is called. A command can then print its own text before the first log line."""
    if _stream is not None:
        _stream.held = []


def release() -> None:
    """Write the log lines that `hold` kept, and write later lines at once."""
    if _stream is not None and _stream.held is not None:
        lines, _stream.held = _stream.held, None
        for line in lines:
            _stream.write(line)
        _stream.flush()


def _describe_cancellation(record: logging.LogRecord) -> bool:
    """If the stop of the process cancelled a request, replace uvicorn's error text and traceback by one sentence."""
    if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
        record.msg, record.args, record.exc_info = "A request did not finish before the stop, and was cancelled.", (), None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


def _is_not_logged_elsewhere(record: logging.LogRecord) -> bool:
    """Return False for uvicorn's line about an invalid request, because `server.http_protocol` also logs the request, with its
    id."""
    return record.msg != "Invalid HTTP request received."


#: These lines of a PostgreSQL error contain values of rows, such as phone numbers: "Failing row contains (...)", "Key
#: (to_address)=(...) already exists".
_DETAIL_LINE = re.compile(r"^DETAIL: .*$", re.MULTILINE)


def _format_exception(exc_info: ExcInfo) -> str:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    return _DETAIL_LINE.sub("DETAIL: withheld", text.getvalue()).rstrip()


class _TextRenderer:
    """A renderer of log lines as readable text: the local time, the level (except info), the event, and the values of the event.

    In the lines of clicks and requests, the values have a fixed order, so that they form columns."""

    #: ANSI colours by level.
    _COLOURS: ClassVar = {"warning": "33", "error": "31", "critical": "31", "debug": "2"}
    #: ANSI colours of verdicts.
    _VERDICTS: ClassVar = {"human": "32", "suspected": "33", "ignored": "2", "none": "31"}

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, logger: object, name: str, event: MutableMapping[str, Any]) -> str:
        level, what = str(event.pop("level", "info")), str(event.pop("event", ""))
        at = datetime.fromisoformat(str(event.pop("timestamp"))).astimezone()
        exception = event.pop("exception", None)
        prefix = f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}  "
        if what == "click":
            verdict = str(event["verdict"])
            text = f"click    {event['status']}  /{event['code']}  "
            text += self._paint(f"{verdict} ({event['rule']})", self._VERDICTS.get(verdict, "")) + f"  {event['milliseconds']} ms"
        elif what == "request":
            text = f"request  {event['status']}  {event['method']} {event['path']}  {event['milliseconds']} ms"
            text += f"  {self._paint(str(event['error_code']), '31')}" if "error_code" in event else ""
        else:
            shown = what if level == "info" else f"{level.upper()} {what}"
            values = "  ".join(f"{key}={value}" for key, value in event.items())
            text = self._paint(shown, self._COLOURS.get(level, "")) + (f"  {values}" if values else "")
        return prefix + text + (f"\n{exception}" if exception else "")

    def _paint(self, text: str, colour: str) -> str:
        return f"\033[{colour}m{text}\033[0m" if self._colours and colour else text


class _LogStream(io.TextIOBase):
    """A stream for log lines that ignores failed writes. A disk that is full must not make requests fail.

    `held` contains the lines since `hold` was called. If `held` is None, lines are written at once."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.held: list[str] | None = None

    def write(self, text: str) -> int:
        if self.held is not None:
            self.held.append(text)
            return len(text)
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()


#: Log lines are written to this stream. It is None until `configure` is called.
_stream: _LogStream | None = None


def _dumps(event: dict[str, Any], **_: Any) -> str:
    try:
        return orjson.dumps(event, default=str).decode()
    # orjson cannot encode some values, for example an unpaired surrogate. If a line cannot be logged, the work that it describes
    # must still continue.
    except TypeError:
        return json.dumps(event, default=str)


_INTERNATIONAL_NUMBER = r"(?:\+|%2[Bb])[0-9][0-9 ().-]{5,}[0-9]"
#: International phone numbers in a text. The plus sign may be percent-encoded.
_INTERNATIONAL_NUMBERS = re.compile(_INTERNATIONAL_NUMBER)
#: International phone numbers in a text. A text that consists only of 8 to 15 digits also counts as a phone number.
_PHONE_NUMBERS = re.compile(rf"{_INTERNATIONAL_NUMBER}|^[0-9]{{8,15}}$")
#: Phone numbers in the value of a parameter whose name says that the value is a phone number.
_NUMBERS = re.compile(r"(?:\+|%2[Bb])?[0-9][0-9 ().-]{5,}[0-9]")
#: Names of parameters whose value is a phone number.
_NAMES_OF_NUMBERS = re.compile(r"phone|msisdn|mobile|recipient|^(?:to|tel|number|cell)$", re.IGNORECASE)


def mask_numbers(text: str) -> str:
    """Return a text with all its phone numbers masked."""
    return _PHONE_NUMBERS.sub(lambda found: mask(found[0]), text)


def mask_recipient(message_id: str, number: str) -> str:
    """Return a message id in which phone numbers are masked: the recipient's `number`, which may be empty, and all international
    numbers. Other digits stay readable, because many message ids consist of digits."""
    return _INTERNATIONAL_NUMBERS.sub(lambda found: mask(found[0]), mask_in(message_id, number))


def mask_parameters(value: Any, name: str = "") -> Any:
    """Return `value` with all phone numbers masked. `value` is the parameters of a report, or the value of the parameter `name`.

    A number without a plus sign is masked only if the name of its parameter means a phone number. Otherwise the number may be an
    id or an amount."""
    if isinstance(value, dict):
        return {key: mask_parameters(one, str(key)) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [mask_parameters(one, name) for one in value]
    is_number = _NAMES_OF_NUMBERS.search(name) is not None
    if isinstance(value, int) and not isinstance(value, bool) and is_number:
        value = str(value)
    if isinstance(value, str):
        return (_NUMBERS if is_number else _INTERNATIONAL_NUMBERS).sub(lambda found: mask(found[0]), value)
    return value


def mask_in(text: str, number: str) -> str:
    """Return a text in which the phone number `number` is masked, with and without its plus sign. `number` may be empty."""
    if not number:
        return text
    masked = mask(number)
    return text.replace(number, masked).replace(number.removeprefix("+"), masked.removeprefix("+"))


def mask(number: str) -> str:
    """Return a phone number for a log line: only its first three characters and its last two digits are visible."""
    return f"{number[:3]}…{number[-2:]}" if len(number) > 6 else "…"
