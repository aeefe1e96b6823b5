"""This module replaces the directives in a text by their long URLs, without the service.

The client uses the same parser of directives and the same check of destinations as the server. Therefore, if the server would
reject a text because of a directive or its URL, the client rejects it with the same error code, position and reason. A raw
directive never reaches a phone. The client does not know rules that depend on the installation: blocked hosts, hosts of the
service itself and `strict_destinations`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from typing import Any

from shortener.client.exceptions import BadRequestError, ErrorDetail
from shortener.client.models import RewrittenText
from shortener.messages.directives import parse_directives
from shortener.messages.segments import count_segments
from shortener.redirect_locations import fill_placeholders
from shortener.urls import UrlError, parse_destination

_INVALID_DIRECTIVE, _INVALID_URL = "INVALID_TRACK_DIRECTIVE", "INVALID_TRACK_URL"


def resolve_directives(body: str, *, extra_schemes: Container[str] = (), values: Mapping[str, str] | None = None) -> str:
    """Return the text with each directive replaced by its long URL. Raise BadRequestError if the server would reject a directive.

    `extra_schemes` contains the additional URL schemes that the application permits, in lower case. `values` replace the
    placeholders of destinations, such as `{message_id}`. A placeholder without a value becomes empty, such as `{click_id}`, whose
    value exists only for a short link."""
    directives, errors = parse_directives(body)
    problems = [(error.position, _INVALID_DIRECTIVE, error.reason) for error in errors]
    parts: list[str] = []
    end = 0
    for directive in directives:
        parts.append(body[end : directive.start])
        end = directive.end
        try:
            destination = parse_destination(directive.url, extra_schemes)
        except UrlError as error:
            problems.append((directive.start, _INVALID_URL, f"{directive.url!r} {error.reason}"))
            continue
        known = dict.fromkeys(destination.placeholders, "") | dict(values or {})
        parts.append(fill_placeholders(destination.location, known).decode() if destination.placeholders else destination.url)
    if problems:
        raise _invalid(sorted(problems, key=lambda problem: problem[0]))
    return "".join([*parts, body[end:]])


def long_text(message: Mapping[str, Any], to: str, message_id: str, reason: str, extra_schemes: Container[str]) -> RewrittenText:
    """Return the text of one recipient with long URLs. `message` is a message of a request, and `reason` explains why its links are
    not tracked."""
    values = {
        "message_id": message_id,
        "campaign": str(message.get("campaign", "")),
        "phone_sha256": hashlib.sha256(to.encode()).hexdigest(),
    }
    body = resolve_directives(str(message["body"]), extra_schemes=extra_schemes, values=values)
    counted = count_segments(body)
    return RewrittenText(
        to=to,
        body=body,
        message_id=message_id,
        message_request_id=str(message.get("message_request_id", "")),
        links=(),
        encoding=counted.encoding,
        segments=counted.segments,
        segments_without_rewriting=counted.segments,
        warnings=(f"not tracked: {reason}",),
        is_tracked=False,
    )


def _invalid(problems: list[tuple[int, str, str]]) -> BadRequestError:
    """Return one error for these problems, each (position, error code, reason). The code of the error is that of the first
    problem."""
    details = [ErrorDetail("body", f"position {position}: {reason}", code, position, 0) for position, code, reason in problems]
    return BadRequestError(400, problems[0][1], "The text cannot be rewritten; the client checked it without the service.", details)
