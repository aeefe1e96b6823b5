"""Log lines: one JSON object a line on stderr, or text for people. Event names are stable snake_case words.

Nothing that identifies a person or a credential is logged: phone numbers are masked by `mask`, addresses, tokens and bodies never
given. Of an exception the frames and the message are told, never the values of variables or of rows.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
from typing import Any, TextIO, cast

import orjson
import structlog
from structlog.typing import ExcInfo

from shortener.settings import Settings

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(settings: Settings) -> None:
    """Set up structlog, and send the standard library's loggers (uvicorn, asyncio) the same way."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.log_format == "json":
        tail: list[Any] = [structlog.processors.JSONRenderer(serializer=_dumps)]
    else:
        tail = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    tail.insert(0, structlog.processors.ExceptionRenderer(_told))
    structlog.configure(
        processors=[*shared, *tail],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.log_level]),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Unfailing(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail], foreign_pre_chain=shared
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(_LEVELS[settings.log_level], logging.WARNING))


#: What PostgreSQL adds to a message: "Failing row contains (...)", "Key (to_address)=(...) already exists".
_VALUES = re.compile(r"^DETAIL: .*$", re.MULTILINE)


def _told(exc_info: ExcInfo) -> str:
    told = io.StringIO()
    structlog.dev.plain_traceback(told, exc_info)
    return _VALUES.sub("DETAIL: withheld", told.getvalue()).rstrip()


class _Unfailing(io.TextIOBase):
    """A line that cannot be written is lost: a disk that is full of logs must not fail requests."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()


def _dumps(event: dict[str, Any], **_: Any) -> str:
    return orjson.dumps(event, default=str).decode()


def mask(number: str) -> str:
    """A phone number that a log may hold: country and the last two digits."""
    return f"{number[:3]}…{number[-2:]}" if len(number) > 6 else "…"
